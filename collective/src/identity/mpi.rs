//! Open MPI's mpirun, and MPICH's and Intel MPI's mpiexec: they number processes, and name no
//! rendezvous.

use super::choice::Reading;
use super::claim::{Claim, Found, Local, at_host, local, master, no_rendezvous, rank_and_size};
use super::{Environment, slurm};
use crate::error::Result;

pub(super) fn read_open_mpi(environment: &Environment) -> Result<Reading> {
    if environment.get("OMPI_COMM_WORLD_RANK").is_none() {
        return Ok(Reading::Absent);
    }
    let (rank, size) = rank_and_size(environment, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")?;
    let named = ["PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"];
    let job = named
        .into_iter()
        .find_map(|name| Some(Found::new(format!("openmpi-{}", environment.get(name)?), name)));
    let mut claim = Claim::new(rank, Ok(size), "");
    // OMPI_COMM_WORLD_NODE_RANK is no node's number: it counts the processes of all jobs here.
    claim.local = local(environment, "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")?;
    claim.job = job;
    claim.rendezvous = rendezvous(environment, &claim, "mpirun -x ALLFOLD_RENDEZVOUS=");
    Ok(claim.into())
}

pub(super) fn read_pmi(environment: &Environment) -> Result<Reading> {
    if environment.get("PMI_RANK").is_none() {
        return Ok(Reading::Absent);
    }
    if environment.get("PMI_FD").is_none() && environment.get("PMI_PORT").is_none() {
        let reason = "PMI_RANK without PMI_FD or PMI_PORT is of another process".into();
        // Some launchers of Crays set no more.
        let size = environment.get("PMI_SIZE").and_then(|size| size.parse::<usize>().ok());
        let help = size.filter(|size| *size > 1).map(|size| {
            format!("if an mpiexec started this process as one of {size} ranks, {SET_BY_HAND}")
        });
        return Ok(Reading::Outer { reason, help });
    }
    if let Some(reason) = slurm::owns_pmi(environment) {
        return Ok(Reading::Outer { reason, help: None });
    }
    if environment.get("FLUX_TASK_RANK") == environment.get("PMI_RANK") {
        let reason = "flux run sets PMI_RANK, too".into();
        return Ok(Reading::Outer { reason, help: None });
    }
    let (rank, size) = rank_and_size(environment, "PMI_RANK", "PMI_SIZE")?;
    let mut claim = Claim::new(rank, Ok(size), "");
    claim.local = local(environment, HYDRA_LOCAL_RANK, "MPI_LOCALNRANKS")?;
    claim.job = intel_job(environment).or_else(|| slurm::job(environment));
    claim.rendezvous = rendezvous(environment, &claim, "mpiexec -genv ALLFOLD_RENDEZVOUS ");
    Ok(claim.into())
}

/// PMIx alone tells no world size; Open MPI and srun set theirs beside it.
pub(super) fn read_pmix(environment: &Environment) -> Result<Reading> {
    let others = ["OMPI_COMM_WORLD_RANK", "SLURM_PROCID", "PMI_RANK"];
    if environment.get("PMIX_RANK").is_none()
        || others.iter().any(|name| environment.get(name).is_some())
    {
        return Ok(Reading::Absent);
    }
    let reason = "PMIX_RANK comes without a world size".into();
    Ok(Reading::Outer { reason, help: Some(SET_BY_HAND.into()) })
}

/// Intel MPI draws an id for each start; MPICH gives nothing that all its ranks know.
fn intel_job(environment: &Environment) -> Option<Found<String>> {
    const NAME: &str = "I_MPI_HYDRA_UUID";
    environment.get(NAME).map(|id| Found::new(format!("intelmpi-{id}"), NAME))
}

/// Where rank 0 is, as far as every rank can tell by itself; rank 0 checks it. `set` begins the
/// command that says it.
fn rendezvous(environment: &Environment, claim: &Claim, set: &str) -> Result<Found<String>> {
    if let Some(master) = master(environment) {
        return Ok(master);
    }
    let job = claim.job.as_ref();
    let is_one_host = match &claim.local {
        Some(Local { size, .. }) => Some(size.value) == claim.known_size(),
        None => claim.known_size() == Some(1),
    };
    if is_one_host {
        return at_host(environment, "127.0.0.1", "all ranks are on this host", job);
    }
    let own = environment.host();
    let full_name = match &own.domain {
        Some(domain) => format!("{}.{domain}", own.name),
        None => own.name.clone(),
    };
    let is_first = claim.rank.value == 0;
    let help = match is_first {
        true => format!("{set}{full_name} ..., this rank 0's host"),
        false => format!("{set}HOST ..., with the host of rank 0"),
    };
    let guess = first_worker(environment)
        .or_else(|| slurm::first_host_of_job(environment))
        .or_else(|| host_of_mpirun(environment));
    let Some(guess) = guess else {
        let problem =
            "is not set, and this launcher does not say on which of several hosts rank 0 is";
        return Err(no_rendezvous(problem, &help));
    };
    if is_first && !guess.is_here {
        let problem =
            format!("is not set, and rank 0 is not where others look for it ({})", guess.why);
        return Err(no_rendezvous(&problem, &help));
    }
    at_host(environment, &guess.host, &guess.why, job)
}

/// Where rank 0 probably is.
pub(super) struct Guess {
    pub(super) host: String,
    pub(super) why: String,
    /// Whether this process is there.
    pub(super) is_here: bool,
}

/// An MPIJob runs its ranks in pods `NAME-worker-0` and on, through ssh, which hides that they are
/// pods; only the name tells.
fn first_worker(environment: &Environment) -> Option<Guess> {
    let host = environment.host();
    let domain = host.service()?;
    let (job, role) = match host.name.rsplit_once("-worker-") {
        Some((job, _)) => (job, "worker"),
        // It runs ranks, too, where the MPIJob has runLauncherAsWorker.
        None => (host.name.strip_suffix("-launcher")?, "launcher"),
    };
    Some(Guess {
        host: format!("{job}-worker-0.{domain}"),
        why: "first worker of the MPIJob, by this pod's name".into(),
        is_here: role == "worker" && host.name == format!("{job}-worker-0"),
    })
}

/// Open MPI 4 names its own first daemon to every rank: that of the host where mpirun runs, which
/// is where rank 0 is unless the host file begins elsewhere.
fn host_of_mpirun(environment: &Environment) -> Option<Guess> {
    let first = environment.get("OMPI_MCA_orte_hnp_uri")?;
    let (id, rest) = first.split_once(';')?;
    let mut addresses = rest.split(';').filter_map(|uri| {
        let (_, address) = uri.split_once("://")?;
        let (hosts, _) = address.rsplit_once(':')?;
        hosts.trim_matches(['[', ']']).split(',').next()
    });
    let own = environment.get("OMPI_MCA_orte_local_daemon_uri")?;
    Some(Guess {
        host: addresses.next()?.to_string(),
        why: "mpirun's host, by OMPI_MCA_orte_hnp_uri".into(),
        is_here: own.split(';').next() == Some(id),
    })
}

/// Whether an mpirun or mpiexec started this process.
pub(super) fn is_started(environment: &Environment) -> bool {
    ["OMPI_COMM_WORLD_RANK", "PMI_RANK"].iter().any(|name| environment.get(name).is_some())
}

/// Hydra sets it for each process that it starts, srun never.
pub(super) const HYDRA_LOCAL_RANK: &str = "MPI_LOCALRANKID";
const SET_BY_HAND: &str =
    "set ALLFOLD_RANK, ALLFOLD_WORLD_SIZE and ALLFOLD_RENDEZVOUS on every rank";
