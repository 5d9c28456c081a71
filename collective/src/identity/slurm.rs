//! Slurm's srun: the tasks of a step. A batch script and a shell in an allocation look much alike.

mod nodes;

use super::Environment;
use super::choice::Reading;
use super::claim::{Claim, Found, Local, at_host, master, no_rendezvous, unset};
use super::mpi::Guess;
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
    let own = [Some(environment.host().name.as_str()), environment.get("SLURMD_NODENAME")];
    let is_here = own.contains(&Some(host.as_str()));
    Some(Guess { host, why: "first host of SLURM_JOB_NODELIST".into(), is_here })
}

/// Whether srun itself set the variables of PMI, with --mpi=pmi2.
pub(super) fn speaks_pmi(environment: &Environment) -> bool {
    let (job, step) = (environment.get(JOB_ID), environment.get("SLURM_STEP_ID"));
    let id = job.zip(step).map(|(job, step)| format!("{job}.{step}"));
    id.is_some() && environment.get("PMI_JOBID") == id.as_deref()
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
