//! Slurm's srun: the tasks of a step. A batch script and a shell in an allocation look much alike.

mod nodes;

use super::Environment;
use super::choice::Reading;
use super::claim::{Claim, Found, Local, at_host, master, no_rendezvous, unset};
use super::mpi::{Guess, HYDRA_LOCAL_RANK};
use crate::error::Result;

pub(super) fn read(environment: &Environment) -> Result<Reading> {
    let Some(job) = environment.get(JOB_ID) else {
        return Ok(Reading::Absent);
    };
    let outer = |reason: String, help| Ok(Reading::Outer { reason, help });
    let tasks = environment.number("SLURM_NTASKS")?;
    let step = environment.number("SLURM_STEP_ID")?.filter(|step| *step < FIRST_SPECIAL_STEP);
    let (Some(step), Some(rank)) = (step, environment.number("SLURM_PROCID")?) else {
        let help = tasks.filter(|tasks| *tasks > 1).map(|tasks| {
            format!("start the program as `srun PROGRAM`: the allocation has {tasks} tasks")
        });
        let reason = format!(
            "SLURM_JOB_ID={job} is an allocation, and this process is no task of srun in it"
        );
        return outer(reason, help);
    };
    let step_tasks = environment.number(STEP_TASKS)?;
    check_whole(environment, step_tasks, tasks)?;
    // An srun within such a shell hands the variable on to its tasks.
    if environment.get("SLURM_PTY_PORT").is_some() && step_tasks.is_none_or(|tasks| tasks <= 1) {
        return outer("srun --pty started a shell, not the ranks of a job".into(), None);
    }
    // With `srun --preserve-env` SLURM_NTASKS is still the allocation's.
    let (size, size_name) = match (step_tasks, tasks) {
        (Some(size), _) => (size, STEP_TASKS),
        (None, Some(size)) => (size, "SLURM_NTASKS"),
        (None, None) => {
            let help = "set ALLFOLD_RANK, ALLFOLD_WORLD_SIZE and ALLFOLD_RENDEZVOUS on every rank";
            return Err(unset(STEP_TASKS, "is not set, but SLURM_PROCID is", help));
        }
    };
    let mut claim =
        Claim::new(Found::new(rank, "SLURM_PROCID"), Ok(Found::new(size, size_name)), "");
    claim.local = place(environment, size)?;
    let from = format!("{JOB_ID}, SLURM_STEP_ID");
    claim.job = Some(Found::new(format!("slurm-{job}.{step}"), from));
    claim.rendezvous = rendezvous(environment, &claim);
    Ok(claim.into())
}

/// The parts of a heterogeneous step are numbered through, and each is told of its own hosts.
fn check_whole(
    environment: &Environment,
    step_tasks: Option<usize>,
    tasks: Option<usize>,
) -> Result<()> {
    match (environment.get("SLURM_HET_SIZE"), step_tasks, tasks) {
        (Some(_), Some(part), Some(all)) if part < all => {
            let problem = format!(
                "is {part}, of {all} tasks of a heterogeneous step, whose parts allfold does not \
                 put together"
            );
            let help = "srun ... sh -c 'ALLFOLD_RANK=$SLURM_PROCID ALLFOLD_WORLD_SIZE=$SLURM_NTASKS \
                        ALLFOLD_RENDEZVOUS=HOST exec PROGRAM', with the host of task 0";
            Err(unset(STEP_TASKS, problem, help))
        }
        _ => Ok(()),
    }
}

/// A task's place on its node, by how many each node has.
fn place(environment: &Environment, size: usize) -> Result<Option<Local>> {
    let Some(local_rank) = environment.number("SLURM_LOCALID")? else {
        return Ok(None);
    };
    let rank = Found::new(local_rank, "SLURM_LOCALID");
    let (Some(text), Some(node)) =
        (environment.get(TASKS_PER_NODE), environment.number("SLURM_NODEID")?)
    else {
        let size = Found::new(local_rank.saturating_add(1), "at least, by SLURM_LOCALID");
        return Ok(Some(Local { rank, size }));
    };
    let wrong = |problem: &str| super::invalid(TASKS_PER_NODE, text, problem);
    let counts = nodes::tasks(text).map_err(wrong)?;
    if counts.iter().sum::<usize>() != size {
        return Err(wrong(&format!("must be {size} tasks, as {STEP_TASKS} says")));
    }
    let Some(count) = counts.get(node) else {
        return Err(wrong(&format!("has no node {node}, but SLURM_NODEID says so")));
    };
    let from = format!("{TASKS_PER_NODE}, SLURM_NODEID");
    Ok(Some(Local { rank, size: Found::new(*count, from) }))
}

fn rendezvous(environment: &Environment, claim: &Claim) -> Result<Found<String>> {
    if let Some(master) = master(environment) {
        return Ok(master);
    }
    let help = "export ALLFOLD_RENDEZVOUS=HOST, rank 0's, before srun";
    let Some(list) = environment.get(STEP_NODES) else {
        return Err(no_rendezvous("is not set, and neither is SLURM_STEP_NODELIST", help));
    };
    let nodes = nodes::expand(list).map_err(|problem| super::invalid(STEP_NODES, list, problem))?;
    let (host, why) = match &nodes[..] {
        [_] => ("127.0.0.1", "all ranks are on this host, by SLURM_STEP_NODELIST"),
        [first, ..] => (first.as_str(), "first host of SLURM_STEP_NODELIST"),
        [] => return Err(super::invalid(STEP_NODES, list, "names no host")),
    };
    let is_arbitrary =
        environment.get("SLURM_DISTRIBUTION").is_some_and(|how| how.starts_with("arbitrary"));
    if is_arbitrary && nodes.len() > 1 {
        let problem = "is not set, and with an arbitrary distribution of tasks only the host file \
                       knows rank 0's host";
        return Err(no_rendezvous(problem, help));
    }
    let reserved = environment.get("SLURM_STEP_RESV_PORTS").and_then(nodes::first_port);
    match (reserved, environment.get("ALLFOLD_PORT")) {
        (Some(port), None) => {
            Ok(Found::new(format!("{host}:{port}"), format!("{why}; port: SLURM_STEP_RESV_PORTS")))
        }
        _ => at_host(environment, host, why, claim.job.as_ref()),
    }
}

/// Where another launcher within the allocation starts its rank 0.
pub(super) fn first_host_of_job(environment: &Environment) -> Option<Guess> {
    let nodes = nodes::expand(environment.get("SLURM_JOB_NODELIST")?).ok()?;
    let host = nodes.into_iter().next()?;
    let own = environment.host().name.as_str();
    // Hydra hands mpiexec's own variables on to all hosts, this one included.
    let node = environment.get("SLURMD_NODENAME");
    let node = node.filter(|_| environment.get(HYDRA_LOCAL_RANK).is_none());
    let is_here = node.unwrap_or(own) == host || own == host.split('.').next().unwrap_or_default();
    Some(Guess { host, why: "first host of SLURM_JOB_NODELIST".into(), is_here })
}

/// Whether an srun set the variables of PMI, with --mpi=pmi2, and not an mpiexec that runs within
/// what it started; why they do not count then.
pub(super) fn owns_pmi(environment: &Environment) -> Option<String> {
    let of = environment.get("PMI_JOBID").filter(|id| is_step(id))?;
    if environment.get(HYDRA_LOCAL_RANK).is_some() {
        return None;
    }
    let (job, step) = (environment.get(JOB_ID), environment.get("SLURM_STEP_ID"));
    let own = job.zip(step).map(|(job, step)| format!("{job}.{step}"));
    if own.as_deref() != Some(of) {
        return Some(format!("PMI_RANK is of Slurm's step {of}, and this process is not"));
    }
    let pairs = [("PMI_RANK", "SLURM_PROCID"), ("PMI_SIZE", STEP_TASKS)];
    let is_same = pairs.iter().all(|(pmi, slurm)| environment.get(pmi) == environment.get(slurm));
    is_same.then(|| "srun --mpi=pmi2 sets PMI_RANK, too".into())
}

/// `3.0`: Slurm's name for a step; other launchers have other names.
fn is_step(id: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    id.split_once('.').is_some_and(|(job, step)| is_number(job) && is_number(step))
}

/// The name that all processes of the allocation can give their job.
pub(super) fn job(environment: &Environment) -> Option<Found<String>> {
    Some(Found::new(format!("slurm-{}", environment.get(JOB_ID)?), JOB_ID))
}

const JOB_ID: &str = "SLURM_JOB_ID";
const STEP_TASKS: &str = "SLURM_STEP_NUM_TASKS";
const STEP_NODES: &str = "SLURM_STEP_NODELIST";
const TASKS_PER_NODE: &str = "SLURM_STEP_TASKS_PER_NODE";
/// slurm.h: the batch script, salloc's shell and others have numbers from 0xfffffff0 on.
const FIRST_SPECIAL_STEP: usize = 0xffff_fff0;
