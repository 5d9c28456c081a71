//! Kubeflow: PyTorchJob of the training operator v1, Trainer v2, MPIJob, and LeaderWorkerSet, which
//! others build upon. They number pods.

use super::choice::Reading;
use super::claim::{Claim, Found, master, master_by, unset};
use super::{Environment, by_hand, mpi, torchrun};
use crate::error::{Error, Result};

/// Both set torchrun's own options, `PET_` and their names; torchrun makes ranks of them. Where it
/// does not run, each pod is one rank.
pub(super) fn read_pytorch(environment: &Environment) -> Result<Reading> {
    let by_torchrun = environment.get(torchrun::RUN_ID).is_some();
    let Some(rank) = environment.number(NODE_RANK)? else {
        let elastic = environment.get("PET_RDZV_ENDPOINT").is_some();
        return match elastic && !by_torchrun {
            true => Err(unset(
                NODE_RANK,
                "is not set, but PET_RDZV_ENDPOINT is: in an elastic PyTorchJob only torchrun \
                 knows the ranks",
                "start the program as `torchrun PROGRAM`, or drop elasticPolicy",
            )),
            false => Ok(Reading::Absent),
        };
    };
    if by_torchrun {
        // Its input, which has become RANK and WORLD_SIZE.
        return Ok(Reading::Absent);
    }
    let nodes = nodes(environment)?;
    let each = processes(environment)?;
    if each > 1 && !is_local(environment) {
        let problem = format!(
            "asks for {each} processes in each pod, and torchrun, which starts them, has not \
             started this one"
        );
        let help = "start the program as `torchrun PROGRAM`, or set nprocPerNode to 1";
        return Err(unset(&format!("{PROCESSES}={each}"), problem, help));
    }
    let mut claim = Claim::new(Found::new(rank, NODE_RANK), nodes, by_hand::RENDEZVOUS);
    if is_rank_of_node(environment)
        && let Some(other) = environment.number("WORLD_SIZE")?
        && let Some(size) = claim.known_size().filter(|size| *size != other)
    {
        let problem = format!("must be {size}, as {NODES} says");
        return Err(super::invalid("WORLD_SIZE", &other.to_string(), &problem));
    }
    if let Some(place) =
        master_by(environment, "PET_MASTER_ADDR", "PET_MASTER_PORT").or_else(|| master(environment))
    {
        claim.job = job(&place);
        claim.rendezvous = Ok(place);
    }
    Ok(claim.into())
}

/// Whether RANK is not this process's but its pod's, as PyTorchJob v1 sets it. Whoever starts
/// several processes in a pod sets LOCAL_RANK, too.
pub(super) fn is_rank_of_node(environment: &Environment) -> bool {
    environment.get(NODE_RANK).is_some()
        && environment.get("RANK").is_none_or(|rank| environment.get(NODE_RANK) == Some(rank))
        && !is_local(environment)
}

fn is_local(environment: &Environment) -> bool {
    environment.get("LOCAL_RANK").is_some()
}

/// How many pods there are; an elastic job gives `MIN:MAX`.
fn nodes(environment: &Environment) -> Result<Result<Found<usize>>> {
    if environment.get(NODES).is_some_and(|nodes| nodes.contains(':')) {
        let problem = "is a range, and only torchrun finds out how many pods there are";
        let help = "start the program as `torchrun PROGRAM`, or drop elasticPolicy";
        return Ok(Err(unset(NODES, problem, help)));
    }
    Ok(match environment.number(NODES)? {
        Some(nodes) => Ok(Found::new(nodes, NODES)),
        None => {
            let problem = format!("is not set, but {NODE_RANK} is");
            let help = "add PET_NNODES, the number of pods, to the container's env";
            Err(unset(NODES, problem, help))
        }
    })
}

/// How many processes each pod is to have; `auto` is one where torchrun does not count devices.
fn processes(environment: &Environment) -> Result<usize> {
    match environment.get(PROCESSES) {
        None | Some("auto" | "cpu" | "gpu" | "xpu") => Ok(1),
        Some(_) => Ok(environment.number(PROCESSES)?.unwrap_or(1)),
    }
}

/// `digits-master-0` is of the PyTorchJob `digits`, `digits-node-0-0.digits` of the TrainJob.
fn job(place: &Found<String>) -> Option<Found<String>> {
    let host = place.value.split(':').next()?;
    let job = match host.split_once('.') {
        Some((name, domain)) => {
            let job = domain.split('.').next()?;
            name.starts_with(&format!("{job}-")).then_some(job)
        }
        None => host.strip_suffix("-master-0").or_else(|| host.strip_suffix("-worker-0")),
    };
    job.filter(|job| !job.is_empty()).map(|job| Found::new(job.to_string(), place.from.clone()))
}

/// An MPIJob's pods have ranks only by mpirun, which runs in one of them.
pub(super) fn read_mpi_job(environment: &Environment) -> Result<Reading> {
    let Some(role) = environment.get("K_MPI_JOB_ROLE") else {
        return Ok(Reading::Absent);
    };
    let problem = "is set, but mpirun did not start this process";
    let error = |help: &str| -> Error { unset(&format!("K_MPI_JOB_ROLE={role}"), problem, help) };
    if mpi::is_started(environment) {
        let reason = format!("this is the {role} pod, and mpirun started this process in it");
        return Ok(Reading::Outer { reason, help: None });
    }
    Err(error("make the launcher's command `mpirun PROGRAM`; its workers run sshd alone"))
}

pub(super) fn read_leader_worker_set(environment: &Environment) -> Result<Reading> {
    let Some(leader) = environment.get("LWS_LEADER_ADDRESS") else {
        return Ok(Reading::Absent);
    };
    let Some(rank) = environment.number("LWS_WORKER_INDEX")? else {
        let help = "LeaderWorkerSet 0.6 sets it; with an older one set ALLFOLD_RANK from the label \
                    leaderworkerset.sigs.k8s.io/worker-index";
        return Err(unset("LWS_WORKER_INDEX", "is not set, but LWS_LEADER_ADDRESS is", help));
    };
    let size = match environment.number("LWS_GROUP_SIZE")? {
        Some(size) => Ok(Found::new(size, "LWS_GROUP_SIZE")),
        None => {
            let problem = "is not set, but LWS_WORKER_INDEX is";
            Err(unset("LWS_GROUP_SIZE", problem, "set ALLFOLD_WORLD_SIZE to the group's size"))
        }
    };
    let rank = Found::new(rank, "LWS_WORKER_INDEX");
    let mut claim = Claim::new(rank, size, by_hand::RENDEZVOUS);
    claim.rendezvous = Ok(Found::new(leader.to_string(), "LWS_LEADER_ADDRESS"));
    let group = leader.split('.').next().filter(|group| !group.is_empty());
    claim.job = group.map(|group| Found::new(group.to_string(), "LWS_LEADER_ADDRESS"));
    Ok(claim.into())
}

const NODE_RANK: &str = "PET_NODE_RANK";
const NODES: &str = "PET_NNODES";
const PROCESSES: &str = "PET_NPROC_PER_NODE";
