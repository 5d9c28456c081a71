//! PyTorch's env:// contract without torchrun: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT.

use super::choice::Reading;
use super::claim::numbered;
use super::{Environment, kubeflow, run, torchrun};
use crate::error::Result;

pub(super) fn read(environment: &Environment) -> Result<Reading> {
    // One without the other is an error below, not a world of one.
    let is_set = environment.get("RANK").is_some() || environment.get("WORLD_SIZE").is_some();
    let is_foreign = environment.get(torchrun::RUN_ID).is_some()
        || kubeflow::is_rank_of_node(environment)
        || run::has_set_rank(environment);
    if !is_set || is_foreign {
        return Ok(Reading::Absent);
    }
    Ok(numbered(environment, "")?.into())
}
