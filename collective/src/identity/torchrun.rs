//! torchrun.

use super::Environment;
use super::choice::Reading;
use super::claim::{Found, numbered};
use crate::error::Result;

pub(super) fn read(environment: &Environment) -> Result<Reading> {
    let Some(id) = environment.get(RUN_ID) else {
        return Ok(Reading::Absent);
    };
    let mut claim = numbered(environment, "")?;
    // `none` is its default, the same for every job.
    claim.job = (id != "none").then(|| Found::new(id.to_string(), RUN_ID));
    claim.agents = environment.number("GROUP_WORLD_SIZE")?;
    Ok(claim.into())
}

pub(super) const LAUNCHER: &str = "torchrun";
/// Set for torchrun's workers and by nobody else.
pub(super) const RUN_ID: &str = "TORCHELASTIC_RUN_ID";
