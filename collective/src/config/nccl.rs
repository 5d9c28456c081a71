//! What NCCL may be used for, and with what patience.

use std::time::Duration;

use crate::error::Result;
use crate::identity::{Environment, invalid};

/// How a communicator's ranks use NCCL.
#[cfg_attr(not(feature = "nccl"), expect(dead_code))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct NcclSettings {
    pub(crate) reach: Reach,
    /// How long connecting may take.
    pub(crate) patience: Duration,
    /// Of this process, by which it chooses its GPU.
    pub(crate) local_rank: usize,
}

/// Between which ranks NCCL may move data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Reach {
    Nowhere,
    /// Only where all ranks are on one host: between hosts its data is not encrypted.
    SameHost,
    #[default]
    Everywhere,
}

impl Reach {
    pub(super) fn read(environment: &Environment) -> Result<Self> {
        environment.get(NAME).map_or(Ok(Self::default()), Self::parse)
    }

    pub(super) fn parse(name: &str) -> Result<Self> {
        match name {
            "on" => Ok(Self::Everywhere),
            "off" => Ok(Self::Nowhere),
            "same-host" => Ok(Self::SameHost),
            other => Err(invalid(NAME, other, "must be on, off or same-host")),
        }
    }
}

const NAME: &str = "ALLFOLD_NCCL";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nccl_is_on_unless_it_is_restricted() {
        let read = |value| Reach::read(&Environment::from([(NAME, value)]));
        assert_eq!(Reach::read(&Environment::from([])).unwrap(), Reach::Everywhere);
        assert_eq!(read("on").unwrap(), Reach::Everywhere);
        assert_eq!(read("same-host").unwrap(), Reach::SameHost);
        assert_eq!(read("off").unwrap(), Reach::Nowhere);
        let error = read("never").unwrap_err().to_string();
        assert_eq!(error, "ALLFOLD_NCCL=never: must be on, off or same-host");
    }
}
