//! Everything that the environment says of this process, for people: `allfold env`.

use std::fmt;

use super::choice::{self, Scope};
use super::claim::{Claim, Found, Local, check_size};
use super::peers::Peers;
use super::{Environment, Identity, by_hand, invalid};
use crate::config::HostPort;
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
    /// Why this process cannot be a rank.
    problem: Option<Error>,
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
                        findings.take(environment, claim, settled);
                    }
                    Err(error) => findings.problem = Some(error),
                }
            }
            None => findings.problem = by_hand::check_halves(environment).err(),
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
        let Claim { rank, size, local, rendezvous, job, .. } = claim;
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
        let who = Identity::explicit(rank, size);
        let (value, from) = Credentials::seen(&Environment::of_process(), &who)?;
        Ok(Found { value, from })
    }
}

/// Adds what the user set beside the launcher, and looks for contradictions.
fn settle(environment: &Environment, scope: Scope, claim: &mut Claim) -> Result<()> {
    if scope != Scope::Given
        && let Some(size) = environment.number(by_hand::SIZE)?
    {
        check_size(by_hand::SIZE, size)?;
        match &claim.size {
            Err(_) => claim.size = Ok(Found::new(size, by_hand::SIZE)),
            // A pod's environment counts pods, and a launcher in it the processes.
            Ok(_) if environment.in_kubernetes() && scope != Scope::Pod => {}
            Ok(found) if found.value != size => {
                let Found { value, from } = found;
                let problem = format!("must be {value}, as {from} says, or not be set");
                return Err(invalid(by_hand::SIZE, &size.to_string(), &problem));
            }
            Ok(_) => {}
        }
    }
    if let Some(place) = named(environment)? {
        claim.rendezvous = Ok(place);
    }
    if let Ok(Found { value, from }) = &mut claim.rendezvous {
        *value =
            HostPort::read(value).map_err(|problem| invalid(from, value, problem))?.to_string();
    }
    claim.check(environment)
}

/// The rendezvous that the user names, whatever the launcher.
fn named(environment: &Environment) -> Result<Option<Found<String>>> {
    const NAME: &str = "ALLFOLD_RENDEZVOUS";
    if let Some(place) = environment.get(NAME) {
        return Ok(Some(Found::new(place.to_string(), NAME)));
    }
    let Some(text) = environment.get(by_hand::PEERS) else { return Ok(None) };
    let peers = Peers::parse(by_hand::PEERS, text)?;
    Ok(peers.first().map(|first| Found::new(first.to_string(), "ALLFOLD_PEERS, first entry")))
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
