//! `ALLFOLD_RANK` and `ALLFOLD_WORLD_SIZE`: set by `allfold run`, by a manifest or by hand.

use super::{Environment, Identity, local, rank_and_size};
use crate::error::Result;

pub(super) fn detect(environment: &Environment) -> Result<Option<Identity>> {
    // Any of them means a world: half an environment must not train alone in silence.
    if CLAIMS.iter().all(|name| environment.get(name).is_none()) {
        return Ok(None);
    }
    let numbered_elsewhere = environment.get("RANK").is_some();
    if environment.get("ALLFOLD_RANK").is_none() && numbered_elsewhere {
        return Ok(None);
    }
    let (rank, size) = rank_and_size(environment, "ALLFOLD_RANK", "ALLFOLD_WORLD_SIZE")?;
    let (local_rank, local_size) =
        local(environment, ("ALLFOLD_LOCAL_RANK", "ALLFOLD_LOCAL_WORLD_SIZE"), size)?;
    let launcher = match environment.get("ALLFOLD_LAUNCHER") {
        Some(_) => "allfold run",
        None => "ALLFOLD_RANK and ALLFOLD_WORLD_SIZE",
    };
    Ok(Some(Identity {
        rank,
        size,
        local_rank,
        local_size,
        launcher: launcher.into(),
        rendezvous: super::torchrun::rendezvous(environment),
        job: None,
    }))
}

const CLAIMS: [&str; 3] = ["ALLFOLD_RANK", "ALLFOLD_WORLD_SIZE", "ALLFOLD_RENDEZVOUS"];
