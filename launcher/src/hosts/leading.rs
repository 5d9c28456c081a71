//! The launcher that leads: one start of all ranks, on several hosts.
//!
//! It says nothing of how ranks are watched and ended: each host's launcher does that, as if the
//! other hosts' ranks were its own, since it hears of them from here.

use std::ffi::OsString;
use std::io::{self, pipe};
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use allfold::Secret;
use rustix::process::{Signal, getpid, kill_process};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};

use super::call::{Call, News};
use super::words::{Ended, Order, Task, Wanted, Word};
use super::{Hosts, Place, ssh};
use crate::attempt::{Attempt, End, Streams, wait_for_output};
use crate::ending::{Ending, How, at_fault};
use crate::environment::OWN_NAMES;
use crate::error::Error;
use crate::exit_code;
use crate::job::Kind;
use crate::journal::{Entry, signal_text};
use crate::log;
use crate::meeting::Meeting;
use crate::output::{Output, Shape, Source, Stream};
use crate::report::Report;
use crate::supervisor::{Event, Stop, failed};
use crate::variables::Variable;
use crate::verdict::{Outcome, stopped, verdict};

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
        patience: None,
        has_given_up: false,
    };
    leader.call(&sender)?;
    leader.listen(&sender, events);
    leader.end(events)
}

struct Leader<'a> {
    attempt: &'a Attempt<'a>,
    hosts: &'a Hosts,
    /// One for each of `hosts.places`.
    lines: Vec<Line>,
    secret: Secret,
    /// Since the ranks have been started.
    output: Option<Output>,
    outcome: Outcome,
    reports: Vec<Option<Report>>,
    /// What failed before any rank did.
    failure: Option<Error>,
    stop: Option<Stop>,
    /// When hosts that do not answer, or whose output nobody takes, are given up.
    patience: Option<Instant>,
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
    /// All its ranks have ended.
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
        let mut has_asked = false;
        while self.lines.iter().any(|line| line.call.is_some()) {
            let until = self.patience.map(|until| until.saturating_duration_since(Instant::now()));
            match events.recv_timeout(until.unwrap_or(SAY_AFTER).min(SAY_AFTER)) {
                Ok(Event::OfHost(number, news)) => self.hear(number, news, sender),
                Ok(Event::Signal(signal)) => self.obey(signal),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) if self.patience.is_some_and(is_over) => {
                    self.cut();
                    self.has_given_up = true;
                    return;
                }
                Err(RecvTimeoutError::Timeout) if !has_asked && self.output.is_none() => {
                    has_asked = true;
                    self.say_who_is_missing();
                }
                Err(_) => {}
            }
        }
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
        let outcome = match self.has_given_up {
            true => self.outcome,
            false => wait_for_output(self.outcome, events),
        };
        let hosts = self.hosts;
        let result = match self.failure {
            Some(failure) if outcome.stopped_by.is_none() => Err(failure),
            _ => verdict(self.attempt.job.kind, &outcome, &self.reports),
        };
        let result = result.map_err(|error| match error {
            Error::Job { message, help, code } => {
                let message = with_hosts(message, &outcome, hosts);
                Error::Job { message, help, code }
            }
            other => other,
        });
        Ok(End { outcome, result })
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
                let task = Order::Task(Box::new(self.task(place)));
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
                if let Some(call) = &mut line.call {
                    call.hang_up();
                }
                let own = put_down.into_iter().filter(|rank| place.ranks.contains(rank));
                self.outcome.put_down.extend(own);
            }
            // `Call` prints what ranks print.
            News::Word(Word::Printed { .. }) => {}
            News::Unread(stream) => self.order_all(&Order::Close { stream }),
            News::Gone(problem) => {
                let Some(call) = line.call.take() else { return };
                let stage = line.stage;
                let (status, said) = call.end();
                if stage != Stage::Done && self.outcome.stopped_by.is_none() {
                    let error = self.loss(place, stage, problem, status, &said);
                    self.fail(error);
                }
            }
        }
    }

    /// What a line means that has ended too early.
    fn loss(
        &self,
        place: &Place,
        stage: Stage,
        problem: Option<io::Error>,
        status: Option<std::process::ExitStatus>,
        said: &[String],
    ) -> Error {
        let Hosts { path, source, .. } = self.hosts;
        let name = &place.host.destination;
        if stage == Stage::Calling && problem.is_none() {
            return ssh::why(&place.host, path, source, said, status);
        }
        let reason = match (problem, said.last()) {
            (Some(problem), _) if problem.kind() == io::ErrorKind::InvalidData => {
                problem.to_string()
            }
            (_, Some(line)) => line.clone(),
            (Some(problem), None) => problem.to_string(),
            (None, None) => ssh::ended(status),
        };
        let ranks = match place.ranks.len() {
            1 => format!("rank {}", place.ranks.start),
            _ => format!("ranks {} to {}", place.ranks.start, place.ranks.end - 1),
        };
        Error::Job {
            message: format!("lost the connection to {name} ({ranks}): {reason}"),
            help: Some(format!(
                "see whether {name} and the network to it are up; the launcher there ends its \
                 ranks by itself"
            )),
            code: exit_code::TRY_AGAIN,
        }
    }

    /// What one host has to do.
    fn task(&self, place: &Place) -> Task {
        let job = self.attempt.job;
        let words = job.program.os_words();
        let program = match job.kind {
            Kind::Program => Wanted::Program(words),
            Kind::Copies => Wanted::Copies(words),
        };
        let only_rank = match self.attempt.logs.is_empty() {
            true => job.output.only_rank.clone(),
            false => Vec::new(),
        };
        Task {
            job: self.attempt.name.into(),
            restart: self.attempt.restart,
            world: job.ranks,
            first: place.ranks.start,
            ranks: place.ranks.len(),
            listen: (place.ranks.start == 0).then(|| self.hosts.listen.clone()),
            directory: std::env::current_dir().map_or_else(|_| "/".into(), Into::into),
            program,
            variables: variables(&job.variables, std::env::vars_os()),
            bind: job.options.binding.bind,
            grace: job.options.grace,
            only_rank,
        }
    }

    /// All hosts are ready.
    fn start(&mut self, sender: &Sender<Event>) -> Result<(), Error> {
        let done = sender.clone();
        let output = Output::start(move |problem| {
            let _ = done.send(Event::OutputDone(problem));
        })
        .map_err(Error::system("cannot print"))?;
        let listen = &self.hosts.listen;
        let port = self.lines.first().and_then(|line| line.port).unwrap_or(listen.port);
        let meeting = Meeting { host: listen.host.clone(), port };
        for (place, line) in self.hosts.places.iter().zip(&self.lines) {
            let Some(call) = &line.call else { continue };
            for rank in place.ranks.clone() {
                self.connect(rank, call, &output).map_err(Error::system("cannot print"))?;
            }
        }
        self.output = Some(output);
        self.order_all(&Order::Start { meeting });
        Ok(())
    }

    /// What the rank prints is shown and logged as if it were here.
    fn connect(&self, rank: usize, call: &Call, output: &Output) -> io::Result<()> {
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
            let (from, to) = pipe()?;
            output.add(stream, Source { rank, pipe: from.into(), shown, log });
            call.print_to(rank, stream, to.into());
        }
        Ok(())
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
            Some(_) => self.order_all(&Order::Failed),
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
                // The hosts kill their ranks now.
                Some(_) => self.patience = Some(now + GIVE_UP),
                None => {
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
                }
            },
            _ => {}
        }
        self.order_all(&Order::Signal { signal });
        if signal == SIGTSTP {
            // Else the hosts' ranks would go on, and miss this launcher.
            self.lines.iter().filter_map(|line| line.call.as_ref()).for_each(Call::flush);
            let _ = kill_process(getpid(), Signal::STOP);
        }
    }

    fn order_all(&self, order: &Order) {
        self.lines.iter().filter_map(|line| line.call.as_ref()).for_each(|call| call.order(order));
    }

    /// Ends all lines at once, and so the launchers and the ranks there.
    fn cut(&mut self) {
        self.lines.iter_mut().filter_map(|line| line.call.as_mut()).for_each(Call::cut);
    }

    fn say(&self, line: String) {
        if let Some(output) = &self.output {
            output.say(line);
        }
    }

    fn say_who_is_missing(&self) {
        let places = self.hosts.places.iter().zip(&self.lines);
        let missing: Vec<&str> = places
            .filter(|(_, line)| line.stage != Stage::Ready)
            .map(|(place, _)| place.host.destination.as_str())
            .collect();
        if !missing.is_empty() {
            log::say("info", &format!("waiting for the launcher on {}", missing.join(", ")));
        }
    }
}

/// The user's variables, and allfold's own settings: a login on another host has none of those that
/// are set here.
fn variables(
    given: &[Variable],
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> Vec<Variable> {
    let is_setting = |name: &OsString| {
        name.as_bytes().starts_with(b"ALLFOLD_") && !OWN_NAMES.iter().any(|own| name == *own)
    };
    let settings = environment.filter(|(name, _)| is_setting(name));
    settings.chain(given.iter().cloned()).collect()
}

/// `rank 2 (pid 71)` becomes `rank 2 (h1, pid 71)`.
fn with_hosts(message: String, outcome: &Outcome, hosts: &Hosts) -> String {
    outcome.endings.iter().fold(message, |message, Ending { rank, pid, .. }| {
        let place = hosts.places.iter().find(|place| place.ranks.contains(rank));
        let name = place.map_or("", |place| &place.host.destination);
        message.replace(&format!("{rank} (pid {pid})"), &format!("{rank} ({name}, pid {pid})"))
    })
}

fn is_over(until: Instant) -> bool {
    until <= Instant::now()
}

/// How long nobody wonders why nothing happens; as long as the library waits with its first line.
const SAY_AFTER: Duration = Duration::from_secs(10);
/// After a second signal: what hosts take to kill their ranks and to say so.
const GIVE_UP: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::HostOptions;

    #[test]
    fn settings_go_along_and_secrets_do_not() {
        let pair = |name: &str, value: &str| (OsString::from(name), OsString::from(value));
        let here = [
            pair("ALLFOLD_TRANSPORT", "quic"),
            pair("ALLFOLD_SECRET", "no"),
            pair("ALLFOLD_JOB", "no"),
            pair("HOME", "no"),
        ];
        let sent = variables(&[pair("A", "b")], here.into_iter());
        assert_eq!(sent, [pair("ALLFOLD_TRANSPORT", "quic"), pair("A", "b")]);
    }

    #[test]
    fn a_pid_is_of_a_host() {
        let options = HostOptions { hosts: Some("h0:2,me@h1:2".into()), ..HostOptions::default() };
        let hosts = Hosts::of(&options, None).unwrap().unwrap();
        let ended = Ended { rank: 2, pid: 71, how: How::Signal(9), by_itself: true };
        let outcome = Outcome { endings: vec![ended.into()], ..Outcome::default() };
        let message = outcome.endings[0].to_string();
        assert_eq!(
            with_hosts(message, &outcome, &hosts),
            "rank 2 (me@h1, pid 71) was killed by signal 9 (SIGKILL)"
        );
    }
}
