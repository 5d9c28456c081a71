//! `allfold run`, and the copies that `train -n 4` and `bench` start.

use super::choice::Reading;
use super::claim::{Claim, local, master, rank_and_size};
use super::{Environment, by_hand};
use crate::error::Result;

pub(super) fn read(environment: &Environment) -> Result<Reading> {
    if !is_there(environment) {
        return Ok(Reading::Absent);
    }
    let (rank, size) = rank_and_size(environment, "ALLFOLD_RANK", "ALLFOLD_WORLD_SIZE")?;
    let mut claim = Claim::new(rank, Ok(size), by_hand::RENDEZVOUS);
    claim.local = local(environment, "ALLFOLD_LOCAL_RANK", "ALLFOLD_LOCAL_WORLD_SIZE")?;
    if let Some(master) = master(environment) {
        claim.rendezvous = Ok(master);
    }
    Ok(claim.into())
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
