//! torchrun, and every launcher that keeps to its contract: RANK, WORLD_SIZE, MASTER_ADDR.

use super::{Environment, Identity, local, rank_and_size};
use crate::error::Result;

pub(super) fn detect(environment: &Environment) -> Result<Option<Identity>> {
    let by_torchrun = environment.get("TORCHELASTIC_RUN_ID").is_some();
    // One without the other is an error below, not a world of one.
    let numbered = environment.get("RANK").is_some() || environment.get("WORLD_SIZE").is_some();
    if !by_torchrun && !numbered {
        return Ok(None);
    }
    let (rank, size) = rank_and_size(environment, "RANK", "WORLD_SIZE")?;
    let (local_rank, local_size) = local(environment, ("LOCAL_RANK", "LOCAL_WORLD_SIZE"), size)?;
    Ok(Some(Identity {
        rank,
        size,
        local_rank,
        local_size,
        launcher: if by_torchrun { "torchrun" } else { "RANK and WORLD_SIZE" }.into(),
        rendezvous: rendezvous(environment),
        // `none` is torchrun's default, the same for every job.
        job: environment.get("TORCHELASTIC_RUN_ID").filter(|id| *id != "none").map(str::to_string),
    }))
}

/// ALLFOLD_RENDEZVOUS, else MASTER_ADDR:MASTER_PORT.
pub(super) fn rendezvous(environment: &Environment) -> Option<String> {
    if let Some(rendezvous) = environment.get("ALLFOLD_RENDEZVOUS") {
        return Some(rendezvous.to_string());
    }
    let host = environment.get("MASTER_ADDR")?;
    let host = if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]")
    } else {
        host.to_string()
    };
    Some(match environment.get("MASTER_PORT") {
        Some(port) => format!("{host}:{port}"),
        None => host,
    })
}
