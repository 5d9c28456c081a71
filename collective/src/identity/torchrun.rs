//! torchrun.

use super::choice::Reading;
use super::claim::{Claim, Found, local, master, rank_and_size};
use super::{Environment, by_hand};
use crate::error::Result;

pub(super) fn read(environment: &Environment) -> Result<Reading> {
    let Some(id) = environment.get(RUN_ID) else {
        return Ok(Reading::Absent);
    };
    let (rank, size) = rank_and_size(environment, "RANK", "WORLD_SIZE")?;
    let mut claim = Claim::new(rank, Ok(size), by_hand::RENDEZVOUS);
    claim.local = local(environment, "LOCAL_RANK", "LOCAL_WORLD_SIZE")?;
    if let Some(master) = master(environment) {
        claim.rendezvous = Ok(master);
    }
    // `none` is its default, the same for every job.
    claim.job = (id != "none").then(|| Found::new(id.to_string(), RUN_ID));
    claim.agent = environment.number("GROUP_RANK")?.zip(environment.number("GROUP_WORLD_SIZE")?);
    Ok(claim.into())
}

pub(super) const LAUNCHER: &str = "torchrun";
/// Set for torchrun's workers and by nobody else.
pub(super) const RUN_ID: &str = "TORCHELASTIC_RUN_ID";
