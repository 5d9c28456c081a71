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
pub(crate) mod handshake;
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

    /// What they would be, for people, and where they come from; no secret is made.
    pub(crate) fn seen(environment: &Environment, who: &Identity) -> Result<(String, String)> {
        match OwnCertificates::from_environment(environment, who.rank)? {
            Some(own) => Ok(("own certificate".into(), format!("ALLFOLD_TLS_CERT={}", own.place))),
            None => Secrets::seen(environment, who),
        }
    }
}
