//! TensorFlow's TF_CONFIG, as Kubeflow's TFJob sets it: chief, master and workers become ranks.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::choice::Reading;
use super::claim::{Claim, Found, unset};
use super::peers::Peers;
use super::{Environment, by_hand, pods};
use crate::config::{HostPort, default_port};
use crate::error::{Error, Result};

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    cluster: BTreeMap<String, Members>,
    task: Option<Task>,
}

/// The addresses of a role.
#[derive(Deserialize)]
#[serde(untagged)]
enum Members {
    All(Vec<String>),
    /// With enableDynamicWorker a task sees only itself, by its index.
    Some(BTreeMap<String, String>),
}

#[derive(Deserialize)]
struct Task {
    r#type: String,
    index: Index,
}

/// Some write it as a string.
#[derive(Deserialize)]
#[serde(untagged)]
enum Index {
    Number(usize),
    Text(String),
}

pub(super) fn read(environment: &Environment) -> Result<Reading> {
    let Some(text) = environment.get(NAME) else {
        return Ok(Reading::Absent);
    };
    // All of it would be too long to show.
    let wrong = |problem: &str| unset(NAME, problem, HELP);
    let config: Config = serde_json::from_str(text)
        .map_err(|error| wrong(&format!("is not what TensorFlow reads: {error}")))?;
    let Some(task) = config.task.filter(|_| !config.cluster.is_empty()) else {
        let reason = "TF_CONFIG describes no cluster".into();
        return Ok(Reading::Outer { reason, help: None });
    };
    let index = match &task.index {
        Index::Number(index) => Some(*index),
        Index::Text(text) => text.parse().ok(),
    };
    let index = index.ok_or_else(|| wrong("has a task whose index is no whole number"))?;
    check_role(&task.r#type)?;
    let members = |role: &str| match config.cluster.get(role) {
        Some(Members::All(list)) => &list[..],
        _ => &[],
    };
    if let Some(Members::Some(known)) = config.cluster.get(&task.r#type) {
        return sparse(environment, index, known).map(Into::into);
    }
    if index >= members(&task.r#type).len() {
        return Err(wrong(&format!(
            "has no {} {index} in its cluster, but says that this is one",
            task.r#type
        )));
    }
    let leads = members("chief").len() + members("master").len();
    let rank = match task.r#type.as_str() {
        "worker" => leads + index,
        "master" => members("chief").len() + index,
        _ => index,
    };
    let ranks = ["chief", "master", "worker"].into_iter().flat_map(members).map(String::as_str);
    let peers = Peers::of(ranks, default_port(environment)?).map_err(|problem| wrong(&problem))?;
    let mut claim = peers.claim(Found::new(rank, NAME), NAME)?;
    claim.job = peers.first().and_then(|first| job(&first.host));
    Ok(claim.into())
}

fn check_role(role: &str) -> Result<()> {
    let refused = |problem: &str, help: &str| -> Result<()> { Err(unset(NAME, problem, help)) };
    match role {
        "chief" | "master" | "worker" => Ok(()),
        "ps" => refused(
            "makes this process a parameter server, and allfold needs none: the workers add up \
             their gradients among themselves",
            "drop PS from tfReplicaSpecs of the TFJob",
        ),
        "evaluator" => refused(
            "makes this process an evaluator, and allfold has none: the ranks evaluate while they \
             train",
            "drop Evaluator from tfReplicaSpecs of the TFJob, or run `allfold eval` in it",
        ),
        other => refused(
            &format!("gives this process the role `{}`, which is no rank", other.escape_default()),
            "the roles chief, master and worker are ranks",
        ),
    }
}

/// Of all workers such a task knows only itself.
fn sparse(
    environment: &Environment,
    index: usize,
    known: &BTreeMap<String, String>,
) -> Result<Claim> {
    let size = environment.number(by_hand::SIZE)?;
    let size = match size {
        Some(size) => Ok(Found::new(size, by_hand::SIZE)),
        None => Err(no_size()),
    };
    let mut claim = Claim::new(Found::new(index, NAME), size, by_hand::RENDEZVOUS);
    let Some(own) = known.get(&index.to_string()) else { return Ok(claim) };
    claim.port = HostPort::read(own, default_port(environment)?).ok().map(|own| own.port);
    let (name, rest) = own.split_at(own.find(['.', ':']).unwrap_or(own.len()));
    if let Some(base) = name.strip_suffix(&format!("-{index}")) {
        let why = format!("{NAME}, with 0 for {index}");
        claim.rendezvous = Ok(Found::new(format!("{base}-0{rest}"), why));
        claim.job = job(name);
    }
    Ok(claim)
}

fn no_size() -> Error {
    let help = format!("{}, or drop enableDynamicWorker", pods::manifest_line("Worker.replicas"));
    let problem = "is not set, and with enableDynamicWorker a task does not see the other workers";
    unset(by_hand::SIZE, problem, help)
}

/// `digits-worker-0.default.svc` is of the job `digits`.
fn job(host: &str) -> Option<Found<String>> {
    let name = host.split('.').next()?;
    let (rest, index) = name.rsplit_once('-')?;
    let (job, role) = rest.rsplit_once('-')?;
    let is_task = index.parse::<usize>().is_ok() && ["chief", "master", "worker"].contains(&role);
    is_task.then(|| Found::new(job.to_string(), NAME))
}

const NAME: &str = "TF_CONFIG";
const HELP: &str =
    "TFJob sets it; by hand, ALLFOLD_PEERS and ALLFOLD_RANK are simpler, or --peers and --rank";
