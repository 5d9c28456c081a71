//! A job: its ranks are started, and started anew where that may help.

use std::io::{self, Write};
use std::ops::Range;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rustix::process::{getpid, set_child_subreaper};
use rustix::termios::isatty;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use crate::attempt::{Attempt, End};
use crate::binding::Binding;
use crate::duration;
use crate::ending::at_fault;
use crate::error::{Error, MAX_RANKS};
use crate::exit_code;
use crate::hosts::{Hosts, leading};
use crate::journal::{Entry, Journal};
use crate::kill_every::KillEvery;
use crate::log;
use crate::logs::{self, Log};
use crate::options::{JobOptions, OutputOptions};
use crate::program::Program;
use crate::random;
use crate::share::{self, Ruler, Share};
use crate::signals;
use crate::supervisor::Event;
use crate::unwritten::Unwritten;
use crate::variables::Variable;
use crate::verdict::{Outcome, Restart, stopped};

/// What to run, and how.
pub(crate) struct Job {
    /// The world size.
    pub(crate) ranks: usize,
    pub(crate) program: Program,
    pub(crate) kind: Kind,
    pub(crate) options: JobOptions,
    pub(crate) output: OutputOptions,
    pub(crate) variables: Vec<Variable>,
    pub(crate) place: Place,
}

/// Where its ranks run.
pub(crate) enum Place {
    /// All on this host.
    Here,
    /// Some on this host, and the others where other launchers start them.
    Share(Share),
    /// Where this launcher starts others.
    Hosts(Hosts),
}

/// Whose program it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The user's: every line bears its rank.
    Program,
    /// Copies of this program: rank 0 has the terminal to itself, and the errors of all become
    /// one.
    Copies,
}

/// Refuses a number of ranks, given with that option, that cannot be started.
pub(crate) fn check_ranks(ranks: usize, option: &'static str) -> Result<(), Error> {
    if (1..=MAX_RANKS).contains(&ranks) { Ok(()) } else { Err(Error::Ranks { ranks, option }) }
}

impl Job {
    /// Runs it to its end, whichever that is, and leaves nothing behind.
    pub(crate) fn run(&self) -> Result<(), Error> {
        let unwritten = Arc::default();
        share::check_ports(self.most_on_a_host(), |name| self.variable(name))?;
        let binding = match &self.place {
            // Each host has its own.
            Place::Hosts(_) => Binding::none(),
            Place::Here | Place::Share(_) => {
                Binding::plan(self.options.binding.bind, self.most_on_a_host())?
            }
        };
        let journal = Journal::open(self.options.json_events.as_deref(), &unwritten)?;
        let logs = self.create_logs(0, &unwritten)?;

        let (sender, events) = mpsc::channel();
        signals::subscribe(sender.clone()).map_err(Error::system("cannot handle signals"))?;
        // What a rank leaves behind becomes the launcher's child and can be found.
        set_child_subreaper(Some(getpid()))
            .map_err(|error| Error::system("cannot adopt processes")(error.into()))?;
        if let Some(warning) = binding.warning() {
            log::say("warning", warning);
        }
        let result = self.run_attempts(&binding, &journal, logs, &unwritten, (sender, &events));
        if result.is_err() {
            self.clear_progress_bar();
        }
        let result = result.and_then(|()| unwritten.verdict());
        let error = result.as_ref().err().map(Error::to_string);
        let code = result.as_ref().err().map_or(exit_code::DONE, Error::exit_code);
        journal.note(&Entry::JobEnded { code, error: error.as_deref() });
        // That line may be the one that did not fit.
        result.and_then(|()| unwritten.verdict())
    }

    fn run_attempts(
        &self,
        binding: &Binding,
        journal: &Journal,
        mut logs: Vec<Arc<Log>>,
        unwritten: &Arc<Unwritten>,
        (sender, events): (mpsc::Sender<Event>, &mpsc::Receiver<Event>),
    ) -> Result<(), Error> {
        let limit = self.options.max_restarts;
        let mut name = self.new_name()?;
        let (ranks, pid) = (self.ranks, getpid().as_raw_pid());
        let program = &self.program.words();
        journal.note(&Entry::JobStarted { job: &name, ranks, pid, program });
        let mut restart = 0;
        let mut pause = Duration::ZERO;
        let now = Instant::now();
        let kills = self.options.kill_every.map(|every| KillEvery::new(every, ranks, limit, now));
        let kills = kills.as_ref();
        loop {
            allfold::report::name_job(&name);
            if let Some(kills) = kills {
                kills.starts(restart);
            }
            let attempt =
                Attempt { job: self, name: &name, restart, binding, journal, kills, logs };
            let end = match &self.place {
                Place::Here | Place::Share(_) => attempt.run(sender.clone(), events),
                Place::Hosts(hosts) => leading::run(&attempt, hosts, sender.clone(), events),
            };
            let End { outcome, failed, result } = match end {
                Ok(end) => end,
                // A host that takes its time to come back.
                Err(error) if restart > 0 && error.exit_code() == exit_code::TRY_AGAIN => {
                    let failed = Some(exit_code::TRY_AGAIN);
                    End { outcome: Outcome::default(), failed, result: Err(error) }
                }
                Err(error) => return Err(error),
            };
            let Err(error) = result else {
                if let Some(message) = kills.and_then(KillEvery::unseen) {
                    log::say("info", &message);
                }
                return Ok(());
            };
            let culprit = at_fault(&outcome.endings).map(|ending| ending.rank);
            let error = error.or_help(culprit.and_then(|rank| self.hint(rank, restart)));
            if limit == 0 {
                return Err(error);
            }
            match Restart::of(self.kind, &outcome, failed) {
                Restart::Unwanted => return Err(error),
                Restart::Useless(why) => return Err(error.with(&format!("; not restarted: {why}"))),
                Restart::MayHelp if restart == limit => {
                    let times = if limit == 1 { "1 restart" } else { &format!("{limit} restarts") };
                    return Err(error.with(&format!("; gave up after {times}")));
                }
                Restart::MayHelp => {}
            }
            if let Some(signal) = events.try_iter().find_map(stop_signal) {
                return Err(stopped(signal, &Outcome::default()));
            }
            restart += 1;
            name = self.new_name()?;
            logs = self.create_logs(restart, unwritten)?;
            let after = error.to_string();
            journal.note(&Entry::Restart { restart, of: limit, job: &name, after: &after });
            self.clear_progress_bar();
            pause = match failed {
                Some(_) => (pause * 2).clamp(PAUSE, MAX_PAUSE),
                None => Duration::ZERO,
            };
            let when = match pause {
                Duration::ZERO => String::new(),
                _ => format!(", in {}", duration::text(pause)),
            };
            log::say("warning", &format!("restart {restart} of {limit} after {after}{when}"));
            if let Some(signal) = signal_within(events, pause) {
                return Err(stopped(signal, &Outcome::default()));
            }
        }
    }

    fn create_logs(
        &self,
        restart: usize,
        unwritten: &Arc<Unwritten>,
    ) -> Result<Vec<Arc<Log>>, Error> {
        match &self.output.log_dir {
            Some(directory) => logs::create(directory, self.started(), restart, unwritten),
            None => Ok(Vec::new()),
        }
    }

    /// The ranks that this launcher starts, on whatever host.
    pub(crate) fn started(&self) -> Range<usize> {
        match &self.place {
            Place::Here | Place::Hosts(_) => 0..self.ranks,
            Place::Share(share) => share.here.clone(),
        }
    }

    fn most_on_a_host(&self) -> usize {
        match &self.place {
            Place::Here | Place::Share(_) => self.started().len(),
            Place::Hosts(hosts) => hosts.most(),
        }
    }

    /// As the ranks will see it.
    fn variable(&self, name: &str) -> Option<String> {
        let given = self.variables.iter().rev().find(|(given, _)| *given == *name);
        let value = given.map(|(_, value)| value.clone()).or_else(|| std::env::var_os(name))?;
        value.into_string().ok()
    }

    /// One that no other job has, unless it is the user who gives it.
    fn new_name(&self) -> Result<String, Error> {
        if let Place::Share(Share { ruler: Ruler::User { job }, .. }) = &self.place {
            return Ok(job.clone());
        }
        Ok(format!("run-{}", random::hex().map_err(Error::system("no random numbers"))?))
    }

    /// Where to read what the rank at fault has printed.
    fn hint(&self, rank: usize, restart: usize) -> Option<String> {
        if let Some(directory) = &self.output.log_dir {
            return Some(format!("see {}", logs::path(directory, rank, restart).display()));
        }
        (!self.output.shows(rank)).then(|| {
            format!("rank {rank}'s output was not shown: drop --only-rank, or add --log-dir DIR")
        })
    }

    /// Rank 0 may have ended in the middle of a line; the error begins on a clean one.
    fn clear_progress_bar(&self) {
        if self.kind == Kind::Copies && isatty(io::stderr()) {
            // A closed stderr is no error.
            let _ = io::stderr().write_all(b"\r\x1b[K");
        }
    }
}

/// Lets that time pass, unless the user wants an end.
fn signal_within(events: &mpsc::Receiver<Event>, pause: Duration) -> Option<i32> {
    let until = Instant::now() + pause;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if let Some(signal) = events.recv_timeout(left).ok().map(stop_signal)? {
            return Some(signal);
        }
    }
}

fn stop_signal(event: Event) -> Option<i32> {
    match event {
        Event::Signal(signal @ (SIGHUP | SIGINT | SIGQUIT | SIGTERM)) => Some(signal),
        _ => None,
    }
}

/// Before what failed with a host is tried again, twice as long each time in turn: a host that
/// starts anew takes minutes, and one that was cut off 30 s and more to end its ranks.
const PAUSE: Duration = Duration::from_secs(5);
const MAX_PAUSE: Duration = Duration::from_secs(60);
