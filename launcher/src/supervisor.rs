//! Watches over the ranks from their start to the end of the last one.

mod leaving;

use std::collections::HashSet;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, getpid, kill_process, waitid};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM, SIGTSTP};

use crate::announcer::Announcer;
use crate::duration;
use crate::ending::{Ending, How, at_fault, order_simultaneous};
use crate::hosts::News;
use crate::hosts::words::{self, Word};
use crate::job::Kind;
use crate::journal::{Entry, Journal, signal_text};
use crate::keeper::Keeper;
use crate::kill_every::KillEvery;
use crate::log;
use crate::memory::Killings;
use crate::output::{Output, Reader, Stream};
use crate::rank::{Leaving, Rank, State};
use crate::report::Report;
use crate::stop::Stop;
use crate::verdict::Outcome;

/// What the launcher waits for.
pub(crate) enum Event {
    /// Some rank's process has ended.
    ProcessEnded,
    /// The launcher got this signal.
    Signal(i32),
    /// One of the two streams is printed to its end, or could not be.
    OutputDone(Option<Errno>),
    /// A rank of another host has ended; None where the job has failed there in another way.
    Elsewhere(Option<Ending>),
    /// How another launcher, which leads, gets on with that stream.
    Reader(Stream, Reader),
    /// A host of several says something.
    OfHost(usize, News),
}

/// The ranks, and what is decided about them.
pub(crate) struct Supervisor<'a> {
    ranks: Vec<Rank>,
    around: Surroundings<'a>,
    outcome: Outcome,
    killings: Killings,
    stage: Stage,
    stop: Option<Stop>,
    last_end: Option<Instant>,
}

/// All that must learn of the ranks' ends, and what the user wants.
pub(crate) struct Surroundings<'a> {
    pub(crate) announcer: &'a Announcer,
    pub(crate) output: &'a Output,
    pub(crate) keeper: &'a Keeper,
    pub(crate) journal: &'a Journal,
    pub(crate) kind: Kind,
    /// Whether these are all ranks of the job.
    pub(crate) is_whole: bool,
    /// Whether another launcher leads, and is told everything.
    pub(crate) is_led: bool,
    /// Between SIGTERM and SIGKILL, where the user says it.
    pub(crate) grace: Option<Duration>,
    /// Where the user wants to see ranks killed.
    pub(crate) kills: Option<&'a KillEvery>,
    /// Whether a copy of ourselves has nothing left to do but to end.
    pub(crate) is_done: &'a dyn Fn() -> bool,
    /// What copies of ourselves have left so far, by rank.
    pub(crate) reports: &'a dyn Fn() -> Vec<Option<Report>>,
}

/// How far the launcher has gone to end the ranks after a failure or a stop.
enum Stage {
    Running,
    /// The ranks know since then, and may still end by themselves.
    Grace(Instant),
    /// They got SIGTERM, and get SIGKILL then.
    Terminating(Instant),
    Killed,
}

impl<'a> Supervisor<'a> {
    /// Takes charge of ranks that have been started.
    pub(crate) fn new(ranks: Vec<Rank>, around: Surroundings<'a>) -> Self {
        Self {
            ranks,
            around,
            outcome: Outcome::default(),
            killings: Killings::watch(),
            stage: Stage::Running,
            stop: None,
            last_end: None,
        }
    }

    /// Returns when every rank and its process group have ended.
    pub(crate) fn run(mut self, events: &Receiver<Event>) -> Outcome {
        while self.ranks.iter().any(|rank| !matches!(rank.state, State::Over)) {
            let event = match self.timeout() {
                Some(timeout) => events.recv_timeout(timeout).ok(),
                None => events.recv().ok(),
            };
            match event {
                Some(Event::Signal(signal)) => self.obey(signal),
                Some(Event::Elsewhere(ending)) => self.hear(ending),
                Some(Event::Reader(stream, reader)) => self.around.output.heed(stream, reader),
                _ => {}
            }
            self.collect();
            self.kill_in_turn();
            self.escalate();
            self.see_off();
        }
        for rank in &mut self.ranks {
            let _ = rank.child.wait();
        }
        self.outcome
    }

    fn timeout(&self) -> Option<Duration> {
        if self.ranks.iter().any(|rank| matches!(rank.state, State::Leaving(_))) {
            return Some(TICK);
        }
        let until = match self.stage {
            Stage::Grace(since) => self.end_of_grace(since)?,
            Stage::Terminating(until) => until,
            // Killings for want of memory are looked for that often.
            Stage::Running => {
                let kills = self.around.kills.filter(|_| self.is_whole());
                let due = kills.and_then(KillEvery::due);
                let wait = due.map(|due| due.saturating_duration_since(Instant::now()));
                return Some(wait.map_or(LOOK, |wait| wait.min(LOOK)));
            }
            Stage::Killed => return None,
        };
        Some(until.saturating_duration_since(Instant::now()))
    }

    /// When the ranks that still run are put down; None where none does.
    fn end_of_grace(&self, since: Instant) -> Option<Instant> {
        let mut running = self.running();
        let (one, others) = (running.next()?, running.next());
        // Who stops a job may wait for a checkpoint, which often only one rank writes.
        if let Some(stop) = &self.stop {
            return Some(stop.since + self.around.grace.unwrap_or(STOP_GRACE));
        }
        let latest = since + GRACE;
        if others.is_some() || !self.around.is_whole {
            return Some(latest);
        }
        // It was the last one to matter, and nobody is left that it could wait for.
        let last_end = self.last_end.unwrap_or(since);
        let is_named =
            (self.around.reports)().iter().flatten().any(|report| report.names(one.number));
        let alone = if is_named { NAMED_GRACE } else { ALONE_GRACE };
        Some(latest.min(last_end + alone))
    }

    /// A signal to the launcher is meant for the job.
    fn obey(&mut self, signal: i32) {
        match signal {
            SIGCHLD => self.reap_adopted(),
            SIGHUP | SIGINT | SIGQUIT | SIGTERM if self.stop.is_some() => {
                let now = Instant::now();
                if !self.stop.as_ref().is_some_and(|stop| stop.is_same_wish(signal, now)) {
                    self.kill();
                }
            }
            SIGHUP | SIGINT | SIGQUIT | SIGTERM => {
                let since = Instant::now();
                self.stop = Some(Stop { signal, since });
                self.outcome.is_stopped = true;
                self.collect();
                if at_fault(&self.outcome.endings).is_none() {
                    self.outcome.stopped_by = Some(signal);
                }
                self.around.journal.note(&Entry::Stopping { signal: signal_text(signal) });
                self.forward(signal);
                if matches!(self.stage, Stage::Running) {
                    self.stage = Stage::Grace(since);
                }
            }
            SIGTSTP => {
                // Ctrl-Z reaches only the terminal's foreground group, which is the launcher's.
                self.forward(signal);
                let _ = kill_process(getpid(), Signal::STOP);
            }
            _ => self.forward(signal),
        }
    }

    /// What happens on other hosts counts as if it were here.
    fn hear(&mut self, ending: Option<Ending>) {
        match ending {
            Some(ending) => {
                self.around.announcer.announce(ending);
                self.outcome.endings.push(ending);
                self.see_failure();
            }
            None if matches!(self.stage, Stage::Running) => {
                self.stage = Stage::Grace(Instant::now());
            }
            None => {}
        }
    }

    fn forward(&self, signal: i32) {
        if let Some(signal) = Signal::from_named_raw(signal) {
            self.running().for_each(|rank| rank.signal(signal));
        }
    }

    /// Ends everything at once.
    fn kill(&mut self) {
        self.put_down();
        self.stage = Stage::Killed;
        let groups = || self.ranks.iter().filter(|rank| !matches!(rank.state, State::Over));
        groups().for_each(|rank| rank.signal(Signal::KILL));
        let pids: HashSet<Pid> = groups().map(|rank| rank.pid).collect();
        self.around.keeper.remains(pids).kill();
    }

    /// Kills a rank where the user wants to see that; not one of a job that is ending.
    fn kill_in_turn(&self) {
        let Some(kills) = self.around.kills else { return };
        if !self.is_whole() || !matches!(self.stage, Stage::Running) {
            return;
        }
        let Some((rank, which)) = kills.turn(Instant::now(), self.around.is_done) else { return };
        for rank in self.ranks.iter().filter(|other| other.number == rank) {
            let (number, pid) = (rank.number, rank.pid);
            let message = format!("--kill-every: rank {number} (pid {pid}) is killed, {which}");
            self.around.output.say(log::line("warning", &message));
            rank.signal(Signal::KILL);
        }
    }

    fn is_whole(&self) -> bool {
        self.ranks.iter().all(|rank| matches!(rank.state, State::Running))
    }

    /// Takes note of every process that has ended, and tells the others.
    fn collect(&mut self) {
        let by_itself = !matches!(self.stage, Stage::Terminating(_) | Stage::Killed);
        let mut endings = Vec::new();
        for rank in &mut self.ranks {
            if !matches!(rank.state, State::Running) {
                continue;
            }
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            let Ok(Some(status)) = waitid(WaitId::Pid(rank.pid), options) else {
                continue;
            };
            let since = Instant::now();
            self.last_end = Some(since);
            rank.state = State::Leaving(Leaving { since, sent: None });
            endings.push(Ending {
                rank: rank.number,
                pid: rank.pid.as_raw_pid(),
                how: How::of(&status),
                by_itself,
                noticed: since,
            });
        }
        for ending in &mut endings {
            let is_killed = ending.by_itself && ending.how == How::Signal(SIGKILL);
            if is_killed && self.killings.is_one_more() {
                ending.how = How::OutOfMemory;
            }
        }
        if endings.is_empty() {
            self.killings.forget(Instant::now());
        }
        order_simultaneous(&mut endings);
        let reports = if endings.is_empty() { Vec::new() } else { (self.around.reports)() };
        for ending in endings {
            self.around.announcer.announce(ending);
            let report = reports.get(ending.rank).and_then(Option::as_ref);
            let said = report.map(|report| report.message.as_str());
            self.around.journal.note(&Entry::of_ending(&ending, said));
            if self.around.is_led {
                let (ended, report) = (ending.into(), report.cloned());
                self.around.output.tell(words::line(&Word::Ended { ended, report }));
            }
            self.outcome.endings.push(ending);
        }
        self.see_failure();
    }

    /// The first failure puts an end to all.
    fn see_failure(&mut self) {
        if matches!(self.stage, Stage::Running)
            && let Some(&ending) = at_fault(&self.outcome.endings)
        {
            self.stage = Stage::Grace(Instant::now());
            self.warn(ending);
        }
    }

    /// Says at once why the job will end; copies of ourselves have one error for all.
    fn warn(&self, ending: Ending) {
        if self.around.kind == Kind::Program
            && self.stop.is_none()
            && !self.around.is_led
            && self.running().next().is_some()
        {
            self.around.output.say(log::line("warning", &failed(ending)));
        }
    }

    /// Ends the ranks that do not end by themselves after another has failed.
    fn escalate(&mut self) {
        let now = Instant::now();
        match self.stage {
            Stage::Grace(since) if self.end_of_grace(since).is_some_and(|until| until <= now) => {
                self.put_down();
                if self.stop.as_ref().is_some_and(|stop| stop.signal == SIGTERM) {
                    // They have had it, and their time.
                    self.stage = Stage::Killed;
                    return self.running().for_each(|rank| rank.signal(Signal::KILL));
                }
                let patience = match self.stop {
                    Some(_) => PUT_DOWN,
                    None => self.around.grace.unwrap_or(PUT_DOWN),
                };
                self.stage = Stage::Terminating(now + patience);
                for rank in self.running() {
                    rank.signal(Signal::TERM);
                    // One that is stopped must run to end.
                    rank.signal(Signal::CONT);
                }
            }
            Stage::Terminating(until) if until <= now => {
                self.stage = Stage::Killed;
                self.running().for_each(|rank| rank.signal(Signal::KILL));
            }
            _ => {}
        }
    }

    fn put_down(&mut self) {
        let ranks: Vec<usize> = self.running().map(|rank| rank.number).collect();
        for rank in ranks {
            if !self.outcome.put_down.contains(&rank) {
                self.outcome.put_down.push(rank);
            }
        }
    }

    fn running(&self) -> impl Iterator<Item = &Rank> {
        self.ranks.iter().filter(|rank| matches!(rank.state, State::Running))
    }
}

/// How long after the first failure, or after the user's stop, the last rank is gone at the latest.
pub(crate) fn latest_end(grace: Option<Duration>, is_stop: bool) -> Duration {
    let patience = match is_stop {
        true => grace.unwrap_or(STOP_GRACE) + PUT_DOWN,
        false => GRACE + grace.unwrap_or(PUT_DOWN),
    };
    patience + leaving::longest()
}

/// What this failure means for the others.
pub(crate) fn failed(ending: Ending) -> String {
    let Ending { rank, pid, how, .. } = ending;
    let end = match how {
        How::Exit(code) => format!("ended with code {code}"),
        How::Signal(_) | How::OutOfMemory => how.to_string(),
    };
    let grace = duration::text(GRACE);
    format!("rank {rank} (pid {pid}) {end}; the others have {grace} to end")
}

/// How long the ranks may take to end by themselves, and say why, after one has failed: the 3 s
/// within which every survivor has its error, and 2 s to write what it has to.
const GRACE: Duration = Duration::from_secs(5);
/// The same for the last one that runs, once all others have ended: by then it must know, too.
const ALONE_GRACE: Duration = Duration::from_secs(3);
/// The same where the others' errors name it: it hangs, is stopped, or is just about to end with
/// the error that made the others end, and then its own word counts.
const NAMED_GRACE: Duration = Duration::from_millis(500);
/// From a signal of the user's on: what Kubernetes gives a pod.
const STOP_GRACE: Duration = Duration::from_secs(30);
/// Between SIGTERM and SIGKILL for a rank that did not end within its grace: enough to flush a
/// file, and it had its time.
const PUT_DOWN: Duration = Duration::from_secs(1);
/// Nothing tells when a process group is empty.
const TICK: Duration = Duration::from_millis(20);
/// So much younger than it is may a killing seem (see `memory.rs`).
const LOOK: Duration = Duration::from_secs(1);
