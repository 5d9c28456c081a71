//! `allfold run`, and the copies that `train -n 4` and `bench` start.

use super::Environment;
use super::choice::Reading;
use super::claim::numbered;
use crate::error::Result;

pub(super) fn read(environment: &Environment) -> Result<Reading> {
    if !is_there(environment) {
        return Ok(Reading::Absent);
    }
    Ok(numbered(environment, "ALLFOLD_")?.into())
}

pub(super) fn is_there(environment: &Environment) -> bool {
    environment.get("ALLFOLD_LAUNCHER").is_some()
}

/// It sets torchrun's variables as well, for programs that know nothing of allfold.
pub(super) fn has_set_rank(environment: &Environment) -> bool {
    is_there(environment)
        && environment.get("RANK") == environment.get("ALLFOLD_RANK")
        && environment.get("WORLD_SIZE") == environment.get("ALLFOLD_WORLD_SIZE")
}

pub(super) const LAUNCHER: &str = "allfold run";
