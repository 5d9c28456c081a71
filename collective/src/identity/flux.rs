//! Flux's `flux run`.

use super::Environment;
use super::choice::Reading;
use super::claim::{Claim, Found, at_host, local, master, no_rendezvous, rank_and_size};
use crate::error::Result;

pub(super) fn read(environment: &Environment) -> Result<Reading> {
    if environment.get("FLUX_TASK_RANK").is_none() {
        return Ok(Reading::Absent);
    }
    let (rank, size) = rank_and_size(environment, "FLUX_TASK_RANK", "FLUX_JOB_SIZE")?;
    let mut claim = Claim::new(rank, Ok(size), "");
    claim.local = local(environment, "FLUX_TASK_LOCAL_ID", "")?;
    let job = environment.get("FLUX_JOB_ID");
    claim.job = job.map(|id| Found::new(format!("flux-{id}"), "FLUX_JOB_ID"));
    claim.rendezvous = match (master(environment), environment.number("FLUX_JOB_NNODES")?) {
        (Some(master), _) => Ok(master),
        (None, Some(1)) => {
            if let (Some(local), Ok(size)) = (&mut claim.local, &claim.size) {
                local.size = size.clone();
            }
            let why = "all ranks are on this host, by FLUX_JOB_NNODES";
            at_host(environment, "127.0.0.1", why, claim.job.as_ref())
        }
        (None, _) => {
            let problem = "is not set, and Flux does not say on which host rank 0 is";
            let help = "flux run --env=ALLFOLD_RENDEZVOUS=HOST ..., with the host of rank 0";
            Err(no_rendezvous(problem, help))
        }
    };
    Ok(claim.into())
}
