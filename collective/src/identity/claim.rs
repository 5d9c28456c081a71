//! What one launcher's variables say of this process.

use super::{Environment, MAX_WORLD_SIZE, by_hand, invalid, pods};
use crate::config::DEFAULT_PORT;
use crate::error::{Error, ErrorKind, Result};

/// A value, and the variables, or what else, it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<T> {
    /// The value.
    pub value: T,
    /// Where it came from: names of variables, or words.
    pub from: String,
}

impl<T> Found<T> {
    pub(super) fn new(value: T, from: impl Into<String>) -> Self {
        Self { value, from: from.into() }
    }
}

/// A launcher's word that this process is a rank.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub(super) rank: Found<usize>,
    /// An error says what to set where it is not known.
    pub(super) size: Result<Found<usize>>,
    pub(super) local: Option<Local>,
    /// An error says what to set where it is not known.
    pub(super) rendezvous: Result<Found<String>>,
    pub(super) job: Option<Found<String>>,
    /// This rank's own port, where a list of addresses has one for each rank.
    pub(super) port: Option<u16>,
    /// How many agents of the launcher there are, one of which started this process, if it has
    /// agents.
    pub(super) agents: Option<usize>,
    /// Told by a name that may end in a number for another reason.
    pub(super) is_guess: bool,
    /// Where a manifest says how many pods there are.
    pub(super) pods: Option<&'static str>,
}

/// A rank's place on its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Local {
    pub(super) rank: Found<usize>,
    pub(super) size: Found<usize>,
}

impl Claim {
    /// A claim of these numbers alone; `help` says how to name a rendezvous.
    pub(super) fn new(rank: Found<usize>, size: Result<Found<usize>>, help: &str) -> Self {
        let rendezvous = Err(no_rendezvous("is not set, and MASTER_ADDR is not either", help));
        Self {
            rank,
            size,
            local: None,
            rendezvous,
            job: None,
            port: None,
            agents: None,
            is_guess: false,
            pods: None,
        }
    }

    /// Its size, where that is known.
    pub(super) fn known_size(&self) -> Option<usize> {
        self.size.as_ref().ok().map(|size| size.value)
    }

    /// Whether the other says the same, as far as both speak.
    pub(super) fn agrees(&self, other: &Self) -> bool {
        let sizes = self.known_size().zip(other.known_size());
        self.rank.value == other.rank.value && sizes.is_none_or(|(a, b)| a == b)
    }

    /// Whether it numbers the processes that each process of the other's started.
    pub(super) fn refines(&self, other: &Self) -> bool {
        let local_size = self.local.as_ref().map(|local| local.size.value);
        let each = match (self.known_size(), other.known_size()) {
            (Some(size), Some(outer)) if outer > 0 && size % outer == 0 => Some(size / outer),
            (Some(_), None) => local_size,
            _ => None,
        };
        each.is_some_and(|each| each > 1 && self.rank.value / each == other.rank.value)
    }

    /// Takes from another of the same numbers what this one lacks.
    pub(super) fn complete_with(&mut self, other: &Self) {
        if self.size.is_err() && other.size.is_ok() {
            self.size = other.size.clone();
        }
        if self.rendezvous.is_err() && other.rendezvous.is_ok() {
            self.rendezvous = other.rendezvous.clone();
        }
        self.local = self.local.take().or_else(|| other.local.clone());
        self.job = self.job.take().or_else(|| other.job.clone());
    }

    /// `Open MPI 1/4`: as [`WITHIN`](super::run::WITHIN) lists it.
    pub(super) fn entry(&self, launcher: &str) -> String {
        match self.known_size() {
            Some(size) => format!("{launcher} {}/{size}", self.rank.value),
            None => format!("{launcher} {}", self.rank.value),
        }
    }

    /// `rank 1 of 4 by RANK and WORLD_SIZE`
    pub(super) fn numbers(&self) -> String {
        let Found { value: rank, from } = &self.rank;
        match &self.size {
            Ok(size) if size.from == *from => format!("rank {rank} of {} by {from}", size.value),
            Ok(size) => format!("rank {rank} of {} by {from} and {}", size.value, size.from),
            Err(_) => format!("rank {rank} by {from}"),
        }
    }

    /// Looks for values that contradict each other.
    pub(super) fn check(&self, environment: &Environment) -> Result<()> {
        let Ok(size) = &self.size else { return Ok(()) };
        check_size(&size.from, size.value)?;
        if self.rank.value >= size.value {
            let of = match environment.get(&size.from) {
                Some(_) => format!("{} ({})", size.value, size.from),
                None => size.value.to_string(),
            };
            let problem = format!("must be below the world size, {of}; ranks count from 0");
            let help = self.pods.map(|pods| pods::too_many(pods, &size.from));
            return Err(contradiction(environment, &self.rank, problem, help));
        }
        let Some(local) = &self.local else { return Ok(()) };
        if local.rank.value >= size.value {
            let problem = format!("must be below the world size, {}", size.value);
            return Err(contradiction(environment, &local.rank, problem, None));
        }
        if local.size.value == 0 || local.size.value > size.value {
            let problem = format!("must be 1 to {}", size.value);
            return Err(contradiction(environment, &local.size, problem, None));
        }
        if local.rank.value >= local.size.value {
            let problem = format!("must be below {}, {}", local.size.from, local.size.value);
            return Err(contradiction(environment, &local.rank, problem, None));
        }
        Ok(())
    }
}

/// A number that cannot stand beside another.
fn contradiction(
    environment: &Environment,
    found: &Found<usize>,
    problem: String,
    help: Option<String>,
) -> Error {
    let Found { value, from } = found;
    let is_variable = environment.number(from).ok().flatten() == Some(*value);
    let (name, value) = match is_variable {
        true => (from.clone(), Some(value.to_string())),
        false => (format!("{value} ({from})"), None),
    };
    ErrorKind::Setting { name, value, problem, help }.into()
}

/// What torchrun's four variables say, or those that are called alike but for a prefix; rank 0 is at
/// MASTER_ADDR where that is set.
pub(super) fn numbered(environment: &Environment, prefix: &str) -> Result<Claim> {
    let name = |name: &str| format!("{prefix}{name}");
    let (rank, size) = rank_and_size(environment, &name("RANK"), &name("WORLD_SIZE"))?;
    let mut claim = Claim::new(rank, Ok(size), by_hand::RENDEZVOUS);
    claim.local = local(environment, &name("LOCAL_RANK"), &name("LOCAL_WORLD_SIZE"))?;
    if let Some(master) = master(environment) {
        claim.rendezvous = Ok(master);
    }
    Ok(claim)
}

/// Rank and size from the variables of these names; an error if either is missing.
pub(super) fn rank_and_size(
    environment: &Environment,
    rank: &str,
    size: &str,
) -> Result<(Found<usize>, Found<usize>)> {
    let missing = |name: &str, other: &str| not_set(environment, name, other, (rank, size));
    let rank_number = environment.number(rank)?.ok_or_else(|| missing(rank, size))?;
    let size_number = environment.number(size)?.ok_or_else(|| missing(size, rank))?;
    Ok((Found::new(rank_number, rank), Found::new(size_number, size)))
}

/// One of a pair of variables is missing.
pub(super) fn not_set(
    environment: &Environment,
    name: &str,
    other: &str,
    (rank, size): (&str, &str),
) -> Error {
    let problem = match environment.get(other) {
        Some(_) => format!("is not set, but {other} is"),
        None => "is not set, but other variables of a launcher are".into(),
    };
    unset(name, problem, format!("set {rank} and {size} on every rank"))
}

/// Local rank and local size, where the first is given. It alone is common; then the size is only
/// known to be larger.
pub(super) fn local(environment: &Environment, rank: &str, size: &str) -> Result<Option<Local>> {
    let (local_rank, local_size) = (environment.number(rank)?, environment.number(size)?);
    let local_rank = match (local_rank, local_size) {
        (None, None) => return Ok(None),
        (number, _) => number.unwrap_or(0),
    };
    let size = match local_size {
        Some(number) => Found::new(number, size),
        None => Found::new(local_rank.saturating_add(1), format!("at least, by {rank}")),
    };
    Ok(Some(Local { rank: Found::new(local_rank, rank), size }))
}

pub(super) fn check_size(name: &str, size: usize) -> Result<()> {
    if size == 0 || size > MAX_WORLD_SIZE {
        let problem = format!("must be 1 to {MAX_WORLD_SIZE}");
        return Err(invalid(name, &size.to_string(), &problem));
    }
    Ok(())
}

/// A variable that must be set and is not.
pub(super) fn unset(name: &str, problem: impl Into<String>, help: impl Into<String>) -> Error {
    let (problem, help) = (problem.into(), Some(help.into()));
    ErrorKind::Setting { name: name.into(), value: None, problem, help }.into()
}

pub(super) fn no_rendezvous(problem: &str, help: &str) -> Error {
    unset("ALLFOLD_RENDEZVOUS", problem, help)
}

/// MASTER_ADDR:MASTER_PORT, which many scripts export under whatever launcher.
pub(super) fn master(environment: &Environment) -> Option<Found<String>> {
    master_by(environment, "MASTER_ADDR", "MASTER_PORT")
}

pub(super) fn master_by(
    environment: &Environment,
    address: &str,
    port: &str,
) -> Option<Found<String>> {
    let host = bracketed(environment.get(address)?);
    Some(match environment.get(port) {
        Some(number) => Found::new(format!("{host}:{number}"), format!("{address}, {port}")),
        None => Found::new(host, address),
    })
}

/// A rendezvous at a host, where nobody says which port; `why` there.
pub(super) fn at_host(
    environment: &Environment,
    host: &str,
    why: &str,
    job: Option<&Found<String>>,
) -> Result<Found<String>> {
    let named = environment.get("ALLFOLD_JOB").or(job.map(|job| job.value.as_str()));
    let (port, from) = match environment.port()? {
        Some(port) => (port, "port: ALLFOLD_PORT".into()),
        // Jobs may share hosts, and each needs a port of its own.
        None => match named {
            Some(job) => (port_of(job), format!("port from the job {job}")),
            None => (DEFAULT_PORT, "the default port".into()),
        },
    };
    Ok(Found::new(format!("{}:{port}", bracketed(host)), format!("{why}; {from}")))
}

/// IPv6 addresses stand in brackets.
fn bracketed(host: &str) -> String {
    match host.contains(':') && !host.starts_with('[') {
        true => format!("[{host}]"),
        false => host.to_string(),
    }
}

/// By FNV-1a (Fowler, Noll and Vo), which all ranks compute alike.
fn port_of(job: &str) -> u16 {
    let hash = job.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    FIRST_PORT + (hash % u64::from(PORTS)) as u16
}

/// Below the ports that Linux gives to clients (32,768 on) and 29,500; few services live there.
const FIRST_PORT: u16 = 20_000;
const PORTS: u16 = 9_000;
