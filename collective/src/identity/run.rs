//! `allfold run`, and the copies that `train -n 4` and `bench` start.

use super::Environment;
use super::choice::Reading;
use super::claim::{Claim, numbered};
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

/// Whether that launcher had given these numbers to `allfold run` itself, or whatever started it.
pub(super) fn is_within(environment: &Environment, launcher: &str, claim: &Claim) -> bool {
    let entry = claim.entry(launcher);
    environment.get(WITHIN).is_some_and(|list| list.split("; ").any(|known| known == entry))
}

/// It sets torchrun's variables as well, for programs that know nothing of allfold.
pub(super) fn has_set_rank(environment: &Environment) -> bool {
    is_there(environment)
        && environment.get("RANK") == environment.get("ALLFOLD_RANK")
        && environment.get("WORLD_SIZE") == environment.get("ALLFOLD_WORLD_SIZE")
}

pub(super) const LAUNCHER: &str = "allfold run";
/// What `allfold run` saw of other launchers when it started: `Open MPI 3/4; Slurm 0/1`.
pub(super) const WITHIN: &str = "ALLFOLD_WITHIN";
