//! Pods that Kubernetes numbers: StatefulSet, Indexed Job, JobSet. None tells a pod how many there
//! are.

use super::choice::Reading;
use super::claim::{Claim, Found, master, no_rendezvous, unset};
use super::{Environment, by_hand};
use crate::config::DEFAULT_PORT;
use crate::error::{Error, Result};

pub(super) fn read_stateful_set(environment: &Environment) -> Result<Reading> {
    let Some(pod) = Pod::of_stateful_set(environment)? else {
        return Ok(Reading::Absent);
    };
    let start = environment.number(START)?.unwrap_or(0);
    let Found { value: ordinal, from } = &pod.number;
    let Some(rank) = ordinal.checked_sub(start) else {
        let problem = format!("must be at most {ordinal}, this pod's ordinal ({from})");
        return Err(super::invalid(START, &start.to_string(), &problem));
    };
    let from = if start == 0 { from.clone() } else { format!("{from} - {START}") };
    let size = size(environment, "a StatefulSet has", REPLICAS)?;
    let mut claim = Claim::new(Found::new(rank, from), size, "");
    claim.pods = Some(REPLICAS);
    claim.is_guess = !is_told(environment);
    claim.rendezvous = pod.rendezvous(environment, start, "serviceName in the StatefulSet")?;
    claim.job = Some(Found::new(pod.base, pod.from));
    Ok(claim.into())
}

pub(super) fn read_indexed_job(environment: &Environment) -> Result<Reading> {
    let (Some(index), None) = (environment.number(INDEX)?, job_set(environment)) else {
        return Ok(Reading::Absent);
    };
    let rank = given_rank(environment)?.unwrap_or_else(|| Found::new(index, INDEX));
    let size = size(environment, "a Job has", COMPLETIONS)?;
    let mut claim = Claim::new(rank, size, "");
    claim.pods = Some(COMPLETIONS);
    let host = environment.host();
    if let Some(base) = host.name.strip_suffix(&format!("-{index}")) {
        let pod = Pod::new(base, environment.host().service(), index, HOST);
        claim.rendezvous = pod.rendezvous(environment, 0, "subdomain in the Job's pod template")?;
        claim.job = Some(Found::new(pod.base, pod.from));
    } else {
        let unknown = || no_service("subdomain in the Job's pod template", "JOB-0");
        claim.rendezvous = master(environment).ok_or_else(unknown);
    }
    Ok(claim.into())
}

pub(super) fn read_job_set(environment: &Environment) -> Result<Reading> {
    let (Some(index), Some(place)) = (environment.number(INDEX)?, job_set(environment)) else {
        return Ok(Reading::Absent);
    };
    let job = environment.number(JOB_INDEX)?;
    let (job, from) = match job {
        Some(job) => (job, format!("{JOB_INDEX}, {INDEX}")),
        None => (place.job, format!("{HOST}, {INDEX}")),
    };
    let rank = match (given_rank(environment)?, job) {
        (Some(rank), _) => rank,
        (None, 0) => Found::new(index, from),
        (None, job) => {
            let Some(each) = environment.number(PODS_PER_JOB)? else {
                let problem = format!("is not set, and this is job {job} of a JobSet");
                let help = format!(
                    "add to the container's env: {{name: {PODS_PER_JOB}, value: \"1\"}}, with the \
                     number in parallelism"
                );
                return Err(unset(PODS_PER_JOB, problem, help));
            };
            if index >= each {
                let problem = format!("must be below {PODS_PER_JOB}, {each}");
                return Err(super::invalid(INDEX, &index.to_string(), &problem));
            }
            let from = format!("{from}, {PODS_PER_JOB}");
            Found::new(job.saturating_mul(each).saturating_add(index), from)
        }
    };
    let size = size(environment, "a JobSet has", ALL_PODS)?;
    let mut claim = Claim::new(rank, size, "");
    claim.pods = Some(ALL_PODS);
    let domain = environment.host().service();
    let pod = Pod::new(&format!("{}-0", place.base), domain, 0, HOST);
    claim.rendezvous = pod.rendezvous(environment, 0, "network.subdomain in the JobSet")?;
    claim.job = Some(Found::new(place.set, HOST));
    Ok(claim.into())
}

/// Whether Kubernetes numbers this pod, so that ALLFOLD_RANK may be that number.
pub(super) fn is_numbered(environment: &Environment) -> bool {
    environment.get(INDEX).is_some()
        || matches!(Pod::of_stateful_set(environment), Ok(Some(_)) | Err(_))
}

/// A pod by its name.
struct Pod {
    /// The name without its number.
    base: String,
    number: Found<usize>,
    /// What follows a pod's name in its full name, if it has a Service.
    domain: Option<String>,
    from: String,
}

impl Pod {
    fn new(base: &str, domain: Option<&str>, number: usize, from: &str) -> Self {
        let number = Found::new(number, from);
        Self { base: base.into(), number, domain: domain.map(Into::into), from: from.into() }
    }

    /// A host name that ends in a number is of a StatefulSet only if something else says so, too:
    /// a Service, a world size, a label. Any pod can be called `x-1`.
    fn of_stateful_set(environment: &Environment) -> Result<Option<Self>> {
        let is_other = ["K_MPI_JOB_ROLE", "LWS_LEADER_ADDRESS", "TF_CONFIG", "PET_NNODES", INDEX]
            .iter()
            .any(|name| environment.get(name).is_some());
        if !environment.in_kubernetes() || is_other {
            return Ok(None);
        }
        let host = environment.host();
        let by_host = numbered(&host.name)
            .map(|(base, number)| Self::new(base, host.service(), number, HOST));
        let by_name = environment.get(NAME).and_then(numbered).map(|(base, number)| {
            // With hostNetwork the host's name is the node's.
            let domain = host.service().filter(|_| environment.get(NAME) == Some(&host.name));
            Self::new(base, domain, number, NAME)
        });
        if let (Some(by_host), Some(by_name)) = (&by_host, &by_name)
            && by_host.domain.is_some()
            && by_host.number.value != by_name.number.value
        {
            let problem = format!("contradicts the host's name, {}", host.name);
            return Err(super::invalid(NAME, environment.get(NAME).unwrap_or_default(), &problem));
        }
        let given = given_rank(environment)?;
        let is_meant = is_told(environment);
        let pod = by_name.or_else(|| by_host.filter(|pod| is_meant || pod.domain.is_some()));
        Ok(pod.map(|pod| Self { number: given.unwrap_or_else(|| pod.number.clone()), ..pod }))
    }

    /// Rank 0's pod, under the Service; `place` is where that is named.
    fn rendezvous(
        &self,
        environment: &Environment,
        first: usize,
        place: &str,
    ) -> Result<Result<Found<String>>> {
        if let Some(master) = master(environment) {
            return Ok(Ok(master));
        }
        let name = format!("{}-{first}", self.base);
        let Some(domain) = &self.domain else {
            return Ok(Err(no_service(place, &name)));
        };
        let port = environment.port()?.unwrap_or(DEFAULT_PORT);
        Ok(Ok(Found::new(format!("{name}.{domain}:{port}"), "this pod's full name")))
    }
}

/// A pod of a JobSet: `SET-REPLICATEDJOB-JOB-POD`, in the Service SET or another that it names.
struct Place {
    set: String,
    base: String,
    job: usize,
}

fn job_set(environment: &Environment) -> Option<Place> {
    let host = environment.host();
    let set = host.service()?.split('.').next()?;
    let (rest, _) = numbered(&host.name)?;
    let (base, job) = numbered(rest)?;
    // With a Service of another name it looks like a Job; only a JobSet has use for these.
    let is_told = [JOB_INDEX, PODS_PER_JOB].iter().any(|name| environment.get(name).is_some());
    let is_of_set = is_told || base.starts_with(&format!("{set}-"));
    is_of_set.then(|| Place { set: set.into(), base: base.into(), job })
}

/// Whether the manifest says that this is a rank.
fn is_told(environment: &Environment) -> bool {
    [by_hand::RANK, by_hand::SIZE, by_hand::PEERS]
        .iter()
        .any(|name| environment.get(name).is_some())
}

/// ALLFOLD_RANK, which the manifest takes from the pod's label.
fn given_rank(environment: &Environment) -> Result<Option<Found<usize>>> {
    let rank = environment.number(by_hand::RANK)?;
    Ok(rank.map(|rank| Found::new(rank, by_hand::RANK)))
}

/// `trainer-2` is number 2 of `trainer`; what a Deployment ends its names with is longer than any
/// number of pods.
fn numbered(name: &str) -> Option<(&str, usize)> {
    let (base, number) = name.rsplit_once('-')?;
    let is_number = number.len() < DEPLOYMENT_SUFFIX && number.bytes().all(|b| b.is_ascii_digit());
    let number = number.parse().ok().filter(|_| is_number && !base.is_empty())?;
    Some((base, number))
}

fn size(environment: &Environment, who: &str, field: &str) -> Result<Result<Found<usize>>> {
    let size = environment.number(by_hand::SIZE)?;
    Ok(size.map(|size| Found::new(size, by_hand::SIZE)).ok_or_else(|| no_size(who, field)))
}

/// A pod does not see how many there are.
pub(super) fn no_size(who: &str, field: &str) -> Error {
    let problem = format!("is not set, and a pod cannot see how many pods {who}");
    let alone = "; to start ranks within this pod alone, `allfold run -n 4 PROGRAM`";
    unset(by_hand::SIZE, problem, manifest_line(field) + alone)
}

pub(super) fn manifest_line(field: &str) -> String {
    format!(
        "add to the container's env: {{name: ALLFOLD_WORLD_SIZE, value: \"4\"}}, with the number \
         in {field}"
    )
}

/// What to do about a pod whose number is beyond the world size, which stands in `size`.
pub(super) fn too_many(field: &str, size: &str) -> String {
    let start = match field {
        REPLICAS => "; where the StatefulSet has ordinals.start, set ALLFOLD_ORDINAL_START to it",
        _ => "",
    };
    format!("{size} in the container's env and {field} must be the same number{start}")
}

fn no_service(place: &str, first: &str) -> Error {
    let problem = "is not set, and this pod has no name in a headless Service";
    let help = format!(
        "name a Service with `clusterIP: None` as {place}, or set ALLFOLD_RENDEZVOUS to \
         {first}.SERVICE"
    );
    no_rendezvous(problem, &help)
}

const HOST: &str = "host name";
const NAME: &str = "POD_NAME";
const INDEX: &str = "JOB_COMPLETION_INDEX";
pub(super) const REPLICAS: &str = "spec.replicas";
const COMPLETIONS: &str = "spec.completions";
const ALL_PODS: &str = "replicas times completions";
/// spec.ordinals.start of the StatefulSet.
const START: &str = "ALLFOLD_ORDINAL_START";
/// The label jobset.sigs.k8s.io/job-global-index.
const JOB_INDEX: &str = "ALLFOLD_JOB_INDEX";
const PODS_PER_JOB: &str = "ALLFOLD_PODS_PER_JOB";
/// Five characters, which may all be digits.
const DEPLOYMENT_SUFFIX: usize = 5;
