//! From the job's secret, or from certificates of a cluster's own authority, to TLS: who may
//! connect.

mod authority;
pub(crate) mod certificates;
#[cfg(test)]
mod doors;
#[cfg(test)]
mod expiry;
#[cfg(test)]
mod floods;
mod handshake;
pub(crate) mod hello;
#[cfg(test)]
mod hostile;
mod names;
pub(crate) mod own;
pub(crate) mod secret;
#[cfg(test)]
mod strangers;
pub(crate) mod verifier;
#[cfg(test)]
mod words;

use std::sync::Arc;

use crate::error::Result;
use crate::identity::{Environment, Identity};
use own::OwnCertificates;
use secret::Secrets;

/// What makes this process a member of its job.
#[derive(Clone, Debug)]
pub(crate) enum Credentials {
    Secrets(Secrets),
    Certificates(Arc<OwnCertificates>),
}

impl Credentials {
    /// Own certificates where they are given, else the secret.
    pub(crate) fn from_environment(environment: &Environment, who: &Identity) -> Result<Self> {
        if let Some(own) = OwnCertificates::from_environment(environment, who.rank)? {
            return Ok(Self::Certificates(Arc::new(own)));
        }
        Secrets::from_environment(environment, who).map(Self::Secrets)
    }
}
