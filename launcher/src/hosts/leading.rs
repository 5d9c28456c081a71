//! The launcher that leads: one start of all ranks, on several hosts.
//!
//! It says nothing of how ranks are watched and ended: each host's launcher does that, as if the
//! other hosts' ranks were its own, since it hears of them from here.

mod reasons;
mod task;
mod wait;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use allfold::Secret;
use rustix::process::{Signal, getpid, kill_process};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};

use super::call::{Call, News};
use super::words::{Ended, Order, Word};
use super::{Hosts, Place, ssh};
use crate::attempt::{Attempt, End, Streams, wait_for_output};
use crate::ending::{Ending, How, at_fault};
use crate::error::Error;
use crate::exit_code;
use crate::input;
use crate::job::Kind;
use crate::journal::{Entry, signal_text};
use crate::log;
use crate::meeting::Meeting;
use crate::output::{Origin, Output, Shape, Source, Stream};
use crate::report::Report;
use crate::stop::Stop;
use crate::supervisor::{Event, failed, latest_end};
use crate::verdict::{Outcome, stopped, verdict};
use reasons::{late, loss, with_hosts};
use task::task;
use wait::{GIVE_UP, SAY_AFTER, Wait};

/// Runs it to its end, whichever that is; an error where the ranks could not be started.
pub(crate) fn run(
    attempt: &Attempt<'_>,
    hosts: &Hosts,
    sender: Sender<Event>,
    events: &Receiver<Event>,
) -> Result<End, Error> {
    let mut leader = Leader {
        attempt,
        hosts,
        lines: Vec::new(),
        secret: Secret::random()?,
        output: None,
        outcome: Outcome::default(),
        reports: vec![None; attempt.job.ranks],
        failure: None,
        stop: None,
        wishes: 0,
        wait: Wait::until_ready(Instant::now()),
        has_given_up: false,
    };
    let has_unread = attempt.restart == 0 && input::has_unread();
    if has_unread {
        log::say("warning", UNREAD);
    }
    leader.call(&sender)?;
    leader.listen(&sender, events);
    let end = leader.end(events);
    // It may have come only now.
    if attempt.restart == 0 && !has_unread && input::has_unread() {
        log::say("warning", UNREAD);
    }
    end
}

struct Leader<'a> {
    attempt: &'a Attempt<'a>,
    hosts: &'a Hosts,
    /// One for each of `hosts.places`.
    lines: Vec<Line>,
    secret: Secret,
    /// Since the ranks have been started.
    output: Option<Arc<Output>>,
    outcome: Outcome,
    reports: Vec<Option<Report>>,
    /// What failed before any rank did.
    failure: Option<Error>,
    stop: Option<Stop>,
    /// How often the user has asked for an end.
    wishes: usize,
    wait: Wait,
    has_given_up: bool,
}

struct Line {
    /// None once it has ended.
    call: Option<Call>,
    stage: Stage,
    /// Rank 0's, if it is there.
    port: Option<u16>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No launcher has answered.
    Calling,
    /// It is there, and makes ready.
    Greeted,
    /// It waits for the others.
    Ready,
    /// All its ranks have ended, or it has said why there are none.
    Done,
}

impl Leader<'_> {
    fn call(&mut self, sender: &Sender<Event>) -> Result<(), Error> {
        for (number, place) in self.hosts.places.iter().enumerate() {
            match Call::make(self.hosts, place, number, sender.clone()) {
                Ok(call) => {
                    let call = Some(call);
                    self.lines.push(Line { call, stage: Stage::Calling, port: None });
                }
                Err(problem) => {
                    self.cut();
                    let ssh = self.hosts.ssh.split_whitespace().next().unwrap_or(ssh::DEFAULT);
                    if problem.kind() == io::ErrorKind::NotFound {
                        let program = ssh.to_owned();
                        let help = "install an OpenSSH client, or name one: --ssh \"PATH OPTIONS\"";
                        return Err(Error::ProgramNotFound { program, help: Some(help.into()) });
                    }
                    return Err(Error::system("cannot start ssh")(problem));
                }
            }
        }
        Ok(())
    }

    /// Returns when every line has ended.
    fn listen(&mut self, sender: &Sender<Event>, events: &Receiver<Event>) {
        while !self.has_given_up && self.lines.iter().any(|line| line.call.is_some()) {
            let event = match self.wait.next(self.output.is_some()) {
                Some(due) => {
                    events.recv_timeout(due.saturating_duration_since(Instant::now())).ok()
                }
                None => events.recv().ok(),
            };
            match event {
                Some(Event::OfHost(number, news)) => self.hear(number, news, sender),
                Some(Event::Signal(signal)) => self.obey(signal),
                _ => {}
            }
            self.look_at_the_clock(Instant::now());
        }
    }

    /// No wait is for ever, and none is silent.
    fn look_at_the_clock(&mut self, now: Instant) {
        if self.wait.end.is_some_and(|end| end <= now) {
            return self.give_up();
        }
        if self.output.is_some() || self.failure.is_some() {
            return;
        }
        if self.wait.ready <= now {
            let missing = self.missing(|stage| stage != Stage::Ready);
            self.fail(late(&missing));
        } else if self.wait.say <= now {
            self.wait.say = now + SAY_AFTER;
            let missing = self.missing(|stage| stage != Stage::Ready);
            if !missing.is_empty() {
                log::say("info", &format!("waiting for the launcher on {}", missing.join(", ")));
            }
        }
    }

    /// Waits no longer for hosts of which nothing is heard.
    fn give_up(&mut self) {
        self.has_given_up = true;
        let missing = self.missing(|stage| stage != Stage::Done);
        if self.output.is_some() && !missing.is_empty() {
            let names = missing.join(", ");
            let message = format!("gave up on {names}: no word that the ranks there have ended");
            self.say(log::line("warning", &message));
        }
        self.cut();
    }

    /// All ranks have to end; those that do are heard of within this time.
    fn expect_end(&mut self, within: Duration) {
        let end = Instant::now() + within + GIVE_UP;
        self.wait.end = Some(self.wait.end.map_or(end, |other| other.max(end)));
    }

    fn end(mut self, events: &Receiver<Event>) -> Result<End, Error> {
        let Some(output) = self.output.take() else {
            // No rank has been started.
            let stopped = self.outcome.stopped_by.map(|signal| stopped(signal, &self.outcome));
            let nobody = || Error::Job {
                message: "no launcher on any host".into(),
                help: None,
                code: exit_code::TRY_AGAIN,
            };
            return Err(stopped.or(self.failure).unwrap_or_else(nobody));
        };
        drop(output);
        // Who has asked for an end does not wait for one who reads nothing.
        let limit = (self.has_given_up || self.outcome.is_stopped).then_some(READER);
        let outcome = wait_for_output(self.outcome, events, limit);
        let hosts = self.hosts;
        let (failed, result) = match self.failure {
            Some(failure) if outcome.stopped_by.is_none() => {
                (Some(failure.exit_code()), Err(failure))
            }
            _ => (None, verdict(self.attempt.job.kind, &outcome, &self.reports)),
        };
        let result = result.map_err(|error| match error {
            Error::Job { message, help, code } => {
                let message = with_hosts(message, &outcome, hosts);
                Error::Job { message, help, code }
            }
            other => other,
        });
        Ok(End { outcome, failed, result })
    }

    fn hear(&mut self, number: usize, news: News, sender: &Sender<Event>) {
        let (Some(place), Some(line)) = (self.hosts.places.get(number), self.lines.get_mut(number))
        else {
            return;
        };
        match news {
            News::Greeted(Err(version)) => {
                let error = ssh::other_version(&place.host, &self.hosts.path, &version);
                self.fail(error);
            }
            News::Greeted(Ok(())) => {
                line.stage = Stage::Greeted;
                let task = Order::Task(Box::new(task(self.attempt, self.hosts, place)));
                let secret = self.secret.to_line();
                if let Some(call) = self.lines.get(number).and_then(|line| line.call.as_ref()) {
                    call.send_secret(&secret);
                    call.order(&task);
                }
            }
            News::Word(Word::Ready { port }) => {
                (line.stage, line.port) = (Stage::Ready, port);
                if self.lines.iter().all(|line| line.stage == Stage::Ready)
                    && let Err(error) = self.start(sender)
                {
                    self.fail(error);
                }
            }
            News::Word(Word::Refused { message, help, code }) => {
                // It ends by itself now, and is not lost.
                line.stage = Stage::Done;
                let message = format!("{}: {message}", place.host.destination);
                self.fail(Error::Job { message, help, code: code.max(exit_code::CHECK_FAILED) });
            }
            News::Word(Word::Started { rank, pid }) => {
                let host = Some(place.host.destination.as_str());
                self.attempt.journal.note(&Entry::RankStarted { rank, pid, host });
            }
            News::Word(Word::Ended { ended, report }) => self.note(number, place, ended, report),
            News::Word(Word::Done { put_down }) => {
                line.stage = Stage::Done;
                if let Some(call) = &line.call {
                    call.hang_up();
                }
                let own = put_down.into_iter().filter(|rank| place.ranks.contains(rank));
                self.outcome.put_down.extend(own);
            }
            // `Call` prints what ranks print.
            News::Word(Word::Printed { .. }) => {}
            News::Gone(problem) => {
                let Some(call) = line.call.take() else { return };
                let stage = line.stage;
                let (status, said) = call.end();
                if stage != Stage::Done && self.outcome.stopped_by.is_none() {
                    let error = loss(self.hosts, place, stage, problem, status, &said);
                    self.fail(error);
                }
            }
        }
    }

    /// All hosts are ready.
    fn start(&mut self, sender: &Sender<Event>) -> Result<(), Error> {
        let done = sender.clone();
        let output = Output::start(move |problem| {
            let _ = done.send(Event::OutputDone(problem));
        })
        .map_err(Error::system("cannot print"))?;
        let output = Arc::new(output);
        let listen = &self.hosts.listen;
        let port = self.lines.first().and_then(|line| line.port).unwrap_or(listen.port);
        let meeting = Meeting { host: listen.host.clone(), port };
        for (place, line) in self.hosts.places.iter().zip(&self.lines) {
            let Some(call) = &line.call else { continue };
            place.ranks.clone().for_each(|rank| self.connect(rank, call, &output));
            call.show_on(&output);
        }
        self.output = Some(output);
        self.order_all(&Order::Start { meeting });
        Ok(())
    }

    /// What the rank prints is shown and logged as if it were here.
    fn connect(&self, rank: usize, call: &Call, output: &Output) {
        let job = self.attempt.job;
        let streams: &[(Stream, Streams)] = match (job.kind, rank) {
            (Kind::Program, _) if job.output.has_prefix() => {
                &[(Stream::Out, Streams::Prefixed), (Stream::Err, Streams::Prefixed)]
            }
            (Kind::Program, _) | (Kind::Copies, 0) => {
                &[(Stream::Out, Streams::Plain), (Stream::Err, Streams::Plain)]
            }
            (Kind::Copies, _) => &[(Stream::Err, Streams::Prefixed)],
        };
        for &(stream, shape) in streams {
            let shown = self.attempt.lines(rank, shape).map(Shape::Lines);
            let log = self.attempt.logged(rank);
            if shown.is_none() && log.is_none() {
                continue;
            }
            let origin = Origin::Host(call.printed());
            output.add(stream, Source { rank, origin, shown, log });
        }
    }

    /// A rank has ended.
    fn note(&mut self, number: usize, place: &Place, ended: Ended, report: Option<Report>) {
        if !place.ranks.contains(&ended.rank) {
            return;
        }
        let ending = Ending::from(ended);
        let said = report.as_ref().map(|report| report.message.as_str());
        self.attempt.journal.note(&Entry::of_ending(&ending, said));
        let was_well = at_fault(&self.outcome.endings).is_none();
        self.outcome.endings.push(ending);
        if let Some(own) = self.reports.get_mut(ended.rank) {
            *own = report;
        }
        for (other, line) in self.lines.iter().enumerate() {
            if let Some(call) = line.call.as_ref().filter(|_| other != number) {
                call.order(&Order::Ended(ended));
            }
        }
        let is_first = was_well && at_fault(&self.outcome.endings).is_some();
        let is_last = self.outcome.endings.len() == self.attempt.job.ranks;
        if is_first {
            self.expect_end(latest_end(self.attempt.job.options.grace, false));
        }
        if is_first && !is_last && self.attempt.job.kind == Kind::Program && self.stop.is_none() {
            let message = with_hosts(failed(ending), &self.outcome, self.hosts);
            self.say(log::line("warning", &message));
        }
    }

    /// Something else than a rank has failed.
    fn fail(&mut self, error: Error) {
        let is_cause = at_fault(&self.outcome.endings)
            .is_none_or(|ending| ending.how == How::Exit(exit_code::TRY_AGAIN));
        match is_cause && self.failure.is_none() {
            true => self.failure = Some(error),
            false if self.output.is_some() => self.say(log::line("warning", &error.to_string())),
            // One line is enough where nothing has begun.
            false => {}
        }
        match self.output {
            Some(_) => {
                self.expect_end(latest_end(self.attempt.job.options.grace, false));
                self.order_all(&Order::Failed);
            }
            None => self.cut(),
        }
    }

    /// A signal here is meant for the job.
    fn obey(&mut self, signal: i32) {
        let now = Instant::now();
        match signal {
            SIGCHLD => return,
            SIGHUP | SIGINT | SIGQUIT | SIGTERM => match &self.stop {
                Some(stop) if stop.is_same_wish(signal, now) => {}
                Some(_) if self.wishes > 1 => return self.give_up(),
                // The hosts kill their ranks now.
                Some(_) => {
                    self.wishes += 1;
                    self.wait.end = Some(now + GIVE_UP);
                }
                None => {
                    self.wishes = 1;
                    self.stop = Some(Stop { signal, since: now });
                    self.outcome.is_stopped = true;
                    if self.failure.is_none() && at_fault(&self.outcome.endings).is_none() {
                        self.outcome.stopped_by = Some(signal);
                    }
                    let entry = Entry::Stopping { signal: signal_text(signal) };
                    self.attempt.journal.note(&entry);
                    if self.output.is_none() {
                        return self.cut();
                    }
                    self.expect_end(latest_end(self.attempt.job.options.grace, true));
                }
            },
            _ => {}
        }
        self.order_all(&Order::Signal { signal });
        if signal == SIGTSTP {
            // Else the hosts' ranks would go on, and miss this launcher.
            self.called().for_each(Call::flush);
            let since = Instant::now();
            let _ = kill_process(getpid(), Signal::STOP);
            self.wait.shift(since.elapsed());
        }
    }

    /// Where somebody is there who understands orders: the first line is the secret.
    fn called(&self) -> impl Iterator<Item = &Call> {
        let lines = self.lines.iter().filter(|line| line.stage != Stage::Calling);
        lines.filter_map(|line| line.call.as_ref())
    }

    fn order_all(&self, order: &Order) {
        self.called().for_each(|call| call.order(order));
    }

    /// Ends all lines at once, and so the launchers and the ranks there.
    fn cut(&mut self) {
        self.lines.iter().filter_map(|line| line.call.as_ref()).for_each(Call::cut);
        self.wait.end.get_or_insert(Instant::now() + GIVE_UP);
    }

    fn say(&self, line: String) {
        if let Some(output) = &self.output {
            output.say(line);
        }
    }

    /// The hosts at such a stage.
    fn missing(&self, is_such: impl Fn(Stage) -> bool) -> Vec<&str> {
        let places = self.hosts.places.iter().zip(&self.lines);
        let missing = places.filter(|(_, line)| line.call.is_some() && is_such(line.stage));
        missing.map(|(place, _)| place.host.destination.as_str()).collect()
    }
}

/// After a stop: how long whoever reads what the ranks print may take for the rest.
const READER: Duration = Duration::from_secs(5);
const UNREAD: &str = "standard input is not handed on to ranks of --hosts: rank 0 has none";
