//! How the search for rank 0 goes: who answers where its name leads, and why it is not found. Pure:
//! the clock passed in.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::diagnosis::{Diagnosis, Sign};
use super::{SAY_EVERY, refused};
use crate::config::HostPort;
use crate::error::{Error, ErrorKind, Result};
use crate::report;
use crate::trust::handshake::ANOTHER_RANK;
use crate::trust::hello::DialError;

/// Why rank 0 was not found.
pub(crate) enum Unfound {
    /// Nobody knows its name; the resolver's word.
    Unknown(String),
    Dial(DialError),
}

/// What is known of where rank 0 should be.
pub(super) struct Search {
    /// The rendezvous address, as the user wrote it.
    place: HostPort,
    /// Why the last attempt to reach rank 0 failed.
    problem: String,
    /// Who else answers in its place, where its name leads.
    stranger: Option<Stranger>,
    /// Strangers that were told of.
    told: BTreeSet<String>,
    /// Nobody knows its name; the resolver's word.
    unknown: Option<String>,
    /// Whether its name has led anywhere.
    was_known: bool,
    /// How the last connection to it ended, if there was one.
    lost: Option<Lost>,
    /// What was found out of its addresses.
    diagnosis: Option<Diagnosis>,
    /// When that was that nobody listens there.
    refused_at: Option<Instant>,
}

/// Somebody who is not rank 0 of this job, and never will be.
struct Stranger {
    reason: String,
    /// From when on it was always somebody else who answered.
    since: Instant,
    /// How many attempts since then have met nobody.
    unmet: u32,
}

/// A connection to rank 0 that was.
struct Lost {
    at: IpAddr,
    how: String,
}

impl Search {
    pub(super) fn new(place: HostPort) -> Self {
        // What the system does not need to ask for is known.
        let unknown = place.ip().is_none().then(|| UNANSWERED.to_string());
        Self {
            place,
            problem: "nobody answers".into(),
            stranger: None,
            told: BTreeSet::new(),
            unknown,
            was_known: false,
            lost: None,
            diagnosis: None,
            refused_at: None,
        }
    }

    /// A look-up of its name has ended; the resolver's word where it failed.
    pub(super) fn named(&mut self, outcome: std::result::Result<(), String>) {
        self.was_known |= outcome.is_ok();
        self.unknown = outcome.err();
    }

    /// The system's word that nobody listens is rare, and silence proves little beside it.
    pub(super) fn probed(&mut self, now: Instant, diagnosis: Diagnosis) {
        let is_silent = matches!(diagnosis.sign, Sign::Filtered | Sign::Silent(_));
        let is_same = self.diagnosis.as_ref().is_some_and(|d| d.among == diagnosis.among);
        let counts = self.refused_at.is_some_and(|at| now < at + REFUSED_COUNTS);
        if is_silent && is_same && counts {
            return;
        }
        self.refused_at = (diagnosis.sign == Sign::Refused).then_some(now);
        self.diagnosis = Some(diagnosis);
    }

    /// It was found.
    pub(super) fn met(&mut self) {
        self.was_known = true;
        (self.unknown, self.diagnosis) = (None, None);
        (self.stranger, self.lost) = (None, None);
    }

    /// The connection to it has ended: it is looked for anew.
    pub(super) fn lose(&mut self, at: IpAddr, how: &str) {
        let how = format!("the connection to it ended ({how})");
        self.lost = Some(Lost { at, how });
    }

    /// An attempt to reach it has failed. What to tell the user, if anything; and an error where
    /// there is no point in another attempt.
    pub(super) fn missed(&mut self, now: Instant, why: Unfound) -> (Option<String>, Result<()>) {
        let error = match why {
            Unfound::Unknown(problem) => {
                self.unknown = Some(problem);
                return (None, Ok(()));
            }
            Unfound::Dial(error) => error,
        };
        // There was somewhere to dial.
        if !std::mem::replace(&mut self.was_known, true) {
            self.unknown = None;
        }
        match error {
            DialError::Retry(problem) | DialError::Busy(problem) => {
                self.problem = problem;
                if let Some(stranger) = &mut self.stranger {
                    stranger.unmet += 1;
                    // One answer may be lost; the name may as well lead elsewhere by now.
                    self.stranger.take_if(|stranger| stranger.unmet >= GONE_AFTER);
                }
                (None, Ok(()))
            }
            // A name may lead to where rank 0 was, and somebody else is by now.
            DialError::Final(reason) | DialError::Elsewhere(reason)
                if self.place.ip().is_none() =>
            {
                (self.word_of(&reason), self.meet_stranger(now, reason))
            }
            DialError::Final(reason) | DialError::Elsewhere(reason) => {
                (None, Err(not_rank_0(&reason, reason.clone())))
            }
            DialError::Refused(reason, again) => (None, Err(refused(reason, again))),
        }
    }

    /// Says at once what the user may have to mend.
    fn word_of(&mut self, reason: &str) -> Option<String> {
        let is_new = self.told.len() < MAX_TOLD && self.told.insert(reason.to_string());
        is_new.then(|| {
            let place = &self.place;
            format!(
                "rank 0 is not found at {place}: {reason}; it is looked for on, as the name may \
                 lead elsewhere soon"
            )
        })
    }

    fn meet_stranger(&mut self, now: Instant, reason: String) -> Result<()> {
        let since = self.stranger.as_ref().map_or(now, |stranger| stranger.since);
        self.stranger = Some(Stranger { reason, since, unmet: 0 });
        match now.saturating_duration_since(since) {
            met if met >= STRANGER_STAYS => Err(self.give_up(report::duration(met))),
            _ => Ok(()),
        }
    }

    /// The error if it was not found for so long.
    pub(super) fn give_up(&self, waited: String) -> Error {
        if let Some(problem) = self.unknown.as_ref().filter(|_| !self.was_known) {
            let (name, problem) = (self.place.host.clone(), problem.clone());
            return ErrorKind::UnknownHost { name, problem, waited }.into();
        }
        if let Some(stranger) = &self.stranger {
            let problem = format!("{} (tried for {waited})", self.why());
            return not_rank_0(&stranger.reason, problem);
        }
        let diagnosis = self.diagnosis.as_ref();
        let help = diagnosis.and_then(|found| found.help(&self.place.host, self.was_met()));
        ErrorKind::ConnectTimeout { problem: self.why(), waited, help }.into()
    }

    /// Why it is not found, in words.
    pub(super) fn why(&self) -> String {
        let seen = self.diagnosis.as_ref().and_then(|d| d.problem(self.was_met()));
        let stranger = self.stranger.as_ref().map(|stranger| stranger.reason.clone());
        let here = || stranger.or(seen).unwrap_or_else(|| self.problem.clone());
        let why = match &self.unknown {
            Some(problem) if self.was_known => {
                format!("its name is unknown by now ({problem}), and where it led: {}", here())
            }
            Some(problem) => format!("its name is unknown so far ({problem})"),
            None => here(),
        };
        let why = match &self.lost {
            Some(lost) => format!("{}; {why}", lost.how),
            None => why,
        };
        format!("rank 0 is not found at {}: {why}", self.place)
    }

    /// Whether rank 0 once answered where the diagnosis is of.
    fn was_met(&self) -> bool {
        let seen = self.diagnosis.as_ref().map(|diagnosis| diagnosis.address.ip());
        self.lost.as_ref().is_some_and(|lost| Some(lost.at) == seen)
    }
}

/// The error where somebody answers who is not rank 0 of this job.
fn not_rank_0(who: &str, reason: String) -> Error {
    let help = match who.starts_with(ANOTHER_RANK) {
        true => {
            "ALLFOLD_RENDEZVOUS, or MASTER_ADDR and MASTER_PORT, must name rank 0's host and port \
             on every rank; is its port another rank's ALLFOLD_PORT?"
        }
        false => {
            "all ranks need one secret (ALLFOLD_SECRET_FILE, ALLFOLD_SECRET, else \
             ~/.allfold/secret; in Kubernetes one Secret, and pods that were started after its \
             last change) or certificates of one authority (ALLFOLD_TLS_*), one ALLFOLD_JOB and \
             one version of allfold"
        }
    };
    ErrorKind::Refused { reason, retryable: false, help: Some(help.into()) }.into()
}

/// Before the first word of the resolver.
const UNANSWERED: &str = "the name server has not answered yet";
/// Attempts in a row that meet nobody where somebody else was.
const GONE_AFTER: u32 = 3;
/// By then a name leads where it should: clusters keep names for 30 s, and caches twice that.
const STRANGER_STAYS: Duration = Duration::from_secs(60);
/// Strangers to be told of.
const MAX_TOLD: usize = 8;
/// As long as three probes in turn.
const REFUSED_COUNTS: Duration = SAY_EVERY.saturating_mul(3);
