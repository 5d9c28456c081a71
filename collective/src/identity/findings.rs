//! Everything that the environment says of this process, for people: `allfold env`.

use std::fmt;

use super::choice::{self, Scope};
use super::claim::{Claim, Found, Local, check_size, unset};
use super::peers::Peers;
use super::{Environment, Identity, by_hand, invalid};
use crate::config::{HostPort, default_port};
use crate::error::{Error, ErrorKind, Result};
use crate::trust::Credentials;

/// What the environment says of this process, and from which variable each value comes. A value
/// that it does not say is None.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// The launcher in words, such as `allfold run` or `torchrun`.
    pub launcher: Option<String>,
    /// Rank, 0 to size - 1.
    pub rank: Option<Found<usize>>,
    /// World size.
    pub size: Option<Found<usize>>,
    /// Rank among the ranks of this host.
    pub local_rank: Option<Found<usize>>,
    /// The number of ranks of this host.
    pub local_size: Option<Found<usize>>,
    /// Where rank 0 is, as `host:port`.
    pub rendezvous: Option<Found<String>>,
    /// The job's name.
    pub job: Option<Found<String>>,
    /// Launchers whose variables are set and that did not decide.
    pub ignored: Vec<Ignored>,
    /// The port at which this rank listens, where a list of all ranks' addresses names one.
    port: Option<u16>,
    /// Why this process cannot be a rank.
    problem: Option<Error>,
    /// Whether the problem is only that what this process runs in does not say how many ranks there
    /// are.
    is_surrounding: bool,
}

/// A launcher whose variables are set, and why they do not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ignored {
    /// The launcher in words.
    pub launcher: String,
    /// Why it did not decide.
    pub reason: String,
    /// What to do, where the user may have meant this launcher.
    pub help: Option<String>,
}

impl Findings {
    /// Looks at this process's environment.
    pub fn from_env() -> Self {
        Self::of(&Environment::of_process())
    }

    pub(crate) fn of(environment: &Environment) -> Self {
        let choice = choice::choose(environment);
        let mut findings = Self { ignored: choice.ignored, ..Self::default() };
        match choice.winner {
            Some((detector, word)) => {
                findings.launcher = Some(detector.launcher.into());
                match word {
                    Ok(mut claim) => {
                        let settled = settle(environment, detector.scope, &mut claim);
                        findings.is_surrounding = settled.is_ok()
                            && claim.size.is_err()
                            && [Scope::Pod, Scope::Plain].contains(&detector.scope);
                        findings.take(environment, claim, settled);
                    }
                    Err(error) => {
                        findings.is_surrounding =
                            detector.scope == Scope::Plain && is_unset(&error);
                        findings.problem = Some(findings.or_help(error));
                    }
                }
            }
            None => match by_hand::halves(environment) {
                Ok(None) => {}
                Ok(Some(one)) => {
                    findings.launcher = Some(by_hand::ONE.into());
                    findings.take(environment, one, Ok(()));
                }
                Err(error) => findings.problem = Some(error),
            },
        }
        findings
    }

    /// Of a process that was told on its command line who it is.
    pub(super) fn told(environment: &Environment, launcher: &str, claim: Result<Claim>) -> Self {
        let mut findings = Self { launcher: Some(launcher.into()), ..Self::default() };
        match claim {
            Ok(claim) => {
                let checked = claim.check(environment);
                findings.take(environment, claim, checked);
            }
            Err(error) => findings.problem = Some(error),
        }
        findings
    }

    fn take(&mut self, environment: &Environment, claim: Claim, checked: Result<()>) {
        let Claim { rank, size, local, rendezvous, job, port, .. } = claim;
        self.port = port;
        let is_alone = size.as_ref().is_ok_and(|size| size.value == 1);
        let alone = |value| Found::new(value, "no other rank of this host is known");
        let local = local.unwrap_or_else(|| Local { rank: alone(0), size: alone(1) });
        let missing = [size.as_ref().err(), rendezvous.as_ref().err().filter(|_| !is_alone)];
        let missing = missing.into_iter().flatten().next().cloned();
        self.problem = checked.err().or(missing);
        self.rank = Some(rank);
        self.size = size.ok();
        self.local_rank = Some(local.rank);
        self.local_size = Some(local.size);
        self.rendezvous = rendezvous.ok();
        let named = environment.get("ALLFOLD_JOB");
        self.job = named.map(|job| Found::new(job.to_string(), "ALLFOLD_JOB")).or(job);
    }

    /// Why this process cannot be a rank, where a launcher says that it is one.
    pub fn problem(&self) -> Option<&Error> {
        self.problem.as_ref()
    }

    /// Whether a program that knows by itself how many ranks it wants need not heed the problem: a
    /// pod or a shell has numbers for something, and no launcher started this process as a rank.
    pub fn is_only_surrounding(&self) -> bool {
        self.is_surrounding
    }

    /// The launchers that numbered this process, as `ALLFOLD_WITHIN` tells them to ranks that it
    /// starts.
    pub fn within() -> Option<String> {
        choice::numbered_here(&Environment::of_process())
    }

    /// An error of half a pair, such as WORLD_SIZE that a batch script exports, with the help of a
    /// launcher that is near.
    fn or_help(&self, error: Error) -> Error {
        let near = self.ignored.iter().find_map(|ignored| ignored.help.clone());
        match (error.kind(), near) {
            (ErrorKind::Setting { name, value: None, problem, .. }, Some(help)) => {
                unset(name, problem.clone(), help)
            }
            _ => error,
        }
    }

    /// The error of a process that must be a rank, and is none.
    pub fn no_environment(&self) -> Error {
        let seen = self
            .ignored
            .iter()
            .map(|Ignored { launcher, reason, .. }| format!("; {launcher}: {reason}"));
        let help = self.ignored.iter().find_map(|ignored| ignored.help.clone());
        ErrorKind::NoEnvironment { seen: seen.collect(), help }.into()
    }

    /// What the user may have forgotten where no launcher says that this process is a rank: one line
    /// for each launcher that is near.
    pub fn forgotten(&self) -> Vec<String> {
        if self.launcher.is_some() || self.problem.is_some() {
            return Vec::new();
        }
        let near = |Ignored { reason, help, .. }: &Ignored| {
            Some(format!("this process is alone: {reason}; {}", help.as_ref()?))
        };
        self.ignored.iter().filter_map(near).collect()
    }

    /// Who this process is; None where no launcher says that it is a rank.
    ///
    /// # Errors
    /// As [`problem`](Self::problem).
    pub fn identity(&self) -> Result<Option<Identity>> {
        if let Some(error) = &self.problem {
            return Err(error.clone());
        }
        let (Some(launcher), Some(rank), Some(size)) = (&self.launcher, &self.rank, &self.size)
        else {
            return Ok(None);
        };
        let number = |found: &Option<Found<usize>>| found.as_ref().map(|found| found.value);
        Ok(Some(Identity {
            rank: rank.value,
            size: size.value,
            local_rank: number(&self.local_rank).unwrap_or(0),
            local_size: number(&self.local_size).unwrap_or(1),
            launcher: launcher.clone(),
            rendezvous: self.rendezvous.as_ref().map(|found| found.value.clone()),
            job: self.job.as_ref().map(|found| found.value.clone()),
            port: self.port,
            ignored: self.ignored.clone(),
        }))
    }

    /// What would make this process a member of its job, and where it is: the secret's fingerprint,
    /// never the secret. It makes none.
    ///
    /// # Errors
    /// As connecting would: [`ErrorKind::Secret`] or [`ErrorKind::Setting`].
    pub fn credentials(&self) -> Result<Found<String>> {
        let rank = self.rank.as_ref().map_or(0, |rank| rank.value);
        let size = self.size.as_ref().map_or(rank.saturating_add(1), |size| size.value);
        let job = self.job.as_ref().map(|job| job.value.clone());
        let who = Identity { job, ..Identity::explicit(rank, size) };
        let (value, from) = Credentials::seen(&Environment::of_process(), &who)?;
        Ok(Found { value, from })
    }
}

fn is_unset(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Setting { value: None, .. })
}

/// Adds what the user set beside the launcher, and looks for contradictions.
fn settle(environment: &Environment, scope: Scope, claim: &mut Claim) -> Result<()> {
    let peers = environment.get(by_hand::PEERS);
    let peers = peers.map(|text| Peers::parse(environment, by_hand::PEERS, text)).transpose()?;
    // A pod's environment counts pods, and a launcher in it the processes.
    let is_of_others = environment.in_kubernetes() && scope != Scope::Pod;
    if scope != Scope::Given {
        if let Some(size) = environment.number(by_hand::SIZE)? {
            check_size(by_hand::SIZE, size)?;
            settle_size(claim, size, by_hand::SIZE, &size.to_string(), is_of_others)?;
        }
        if let (Some(peers), Some(text)) = (&peers, environment.get(by_hand::PEERS)) {
            settle_size(claim, peers.len(), by_hand::PEERS, text, is_of_others)?;
        }
        if claim.local.is_none() && !is_of_others {
            let listed =
                peers.as_ref().map(|peers| peers.claim(claim.rank.clone(), by_hand::PEERS));
            claim.local = by_hand::local(environment)?
                .or(listed.transpose()?.and_then(|listed| listed.local));
        }
    }
    if let Some(place) = named(environment, peers.as_ref()) {
        claim.rendezvous = Ok(place);
    }
    if let Ok(Found { value, from }) = &mut claim.rendezvous {
        let port = default_port(environment)?;
        *value = HostPort::read(value, port)
            .map_err(|problem| invalid(from, value, problem))?
            .to_string();
    }
    claim.check(environment)
}

/// The user's world size beside the launcher's: `size` by the variable `name`, which is `text`.
fn settle_size(
    claim: &mut Claim,
    size: usize,
    name: &str,
    text: &str,
    is_of_others: bool,
) -> Result<()> {
    match &claim.size {
        Err(_) => claim.size = Ok(Found::new(size, name)),
        Ok(found) if found.value != size && !is_of_others => {
            let Found { value, from } = found;
            let problem = match name {
                by_hand::PEERS => format!("names {size} ranks, but there are {value} by {from}"),
                _ => format!("must be {value}, as {from} says, or not be set"),
            };
            return Err(invalid(name, text, &problem));
        }
        Ok(_) => {}
    }
    Ok(())
}

/// The rendezvous that the user names, whatever the launcher.
fn named(environment: &Environment, peers: Option<&Peers>) -> Option<Found<String>> {
    const NAME: &str = "ALLFOLD_RENDEZVOUS";
    if let Some(place) = environment.get(NAME) {
        return Some(Found::new(place.to_string(), NAME));
    }
    let first = peers?.first()?;
    Some(Found::new(first.to_string(), "ALLFOLD_PEERS, first entry"))
}

impl fmt::Display for Findings {
    /// A line for each value: its name, the value, where it came from.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, value: &str, from: &str| {
            writeln!(f, "{}", format!("{name:<13}{value:<24} {from}").trim_end())
        };
        let number = |found: &Option<Found<usize>>| match found {
            Some(Found { value, from }) => (value.to_string(), from.clone()),
            None => (MISSING.into(), String::new()),
        };
        let text = |found: &Option<Found<String>>, missing: &str| match found {
            Some(Found { value, from }) => (value.clone(), from.clone()),
            None => (missing.into(), String::new()),
        };
        line("launcher", self.launcher.as_deref().unwrap_or("none"), "")?;
        if self.launcher.is_some() {
            for (name, found) in [
                ("rank", &self.rank),
                ("world size", &self.size),
                ("local rank", &self.local_rank),
                ("local size", &self.local_size),
            ] {
                let (value, from) = number(found);
                line(name, &value, &from)?;
            }
            let (value, from) = text(&self.rendezvous, MISSING);
            line("rendezvous", &value, &from)?;
            let (value, from) = text(&self.job, "default");
            line("job", &value, &from)?;
        }
        for Ignored { launcher, reason, .. } in &self.ignored {
            line("ignored", &format!("{launcher}: {reason}"), "")?;
        }
        Ok(())
    }
}

const MISSING: &str = "missing";
