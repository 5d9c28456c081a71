//! Whether ranks of one host share memory.

use crate::error::{Error, ErrorKind, Result};
use crate::identity::{Environment, invalid};

/// Whether ranks of one host meet in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    Never,
    /// Where they find each other's memory.
    Where,
    /// Anything else is an error.
    Everywhere,
}

impl Sharing {
    pub(super) fn read(environment: &Environment) -> Result<Self> {
        environment.get(TRANSPORT).map_or(Ok(Self::Where), Self::parse)
    }

    pub(super) fn parse(name: &str) -> Result<Self> {
        match name {
            "auto" => Ok(Self::Where),
            "quic" => Ok(Self::Never),
            MUST_SHARE => Ok(Self::Everywhere),
            other => Err(invalid(TRANSPORT, other, "must be auto, quic or shared-memory")),
        }
    }
}

/// Not all ranks share memory, though the setting wants it.
pub(crate) fn cannot_share(problem: String) -> Error {
    let help = "leave ALLFOLD_TRANSPORT out, and ranks that share no memory use QUIC";
    Error::from(ErrorKind::Setting {
        name: TRANSPORT.into(),
        value: Some(MUST_SHARE.into()),
        problem,
        help: Some(help.into()),
    })
}

const TRANSPORT: &str = "ALLFOLD_TRANSPORT";
const MUST_SHARE: &str = "shared-memory";
