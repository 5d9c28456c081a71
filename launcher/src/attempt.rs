//! One start of all ranks, and what came of it; nothing of it stays behind.

use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use allfold::Secret;
use rustix::process::{Pid, Signal};
use rustix::termios::{LocalModes, tcgetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use crate::announcer::Announcer;
use crate::binding::Binding;
use crate::directory;
use crate::ending::at_fault;
use crate::environment::{Environment, MARK, REPORT};
use crate::error::Error;
use crate::hosts::words::{self, Word};
use crate::input;
use crate::job::{Job, Kind, Place};
use crate::journal::{Entry, Journal};
use crate::keeper::Keeper;
use crate::kill_every::KillEvery;
use crate::lines::Lines;
use crate::logs::Log;
use crate::meeting::Meeting;
use crate::output::{Logged, Origin, Output, Shape, Source, Stream};
use crate::port::Port;
use crate::random;
use crate::rank::{Rank, watch};
use crate::report::{self, Report};
use crate::share::{Ruler, Share};
use crate::supervisor::{Event, Supervisor, Surroundings};
use crate::verdict::{Outcome, verdict};

/// What is new each time, beside the secret and the port.
pub(crate) struct Attempt<'a> {
    pub(crate) job: &'a Job,
    /// The job's name, which no two attempts share.
    pub(crate) name: &'a str,
    /// How often the ranks have been started before.
    pub(crate) restart: usize,
    pub(crate) binding: &'a Binding,
    pub(crate) journal: &'a Journal,
    pub(crate) kills: Option<&'a KillEvery>,
    /// By rank; empty where nothing is logged.
    pub(crate) logs: Vec<Arc<Log>>,
}

/// How it ended.
pub(crate) struct End {
    pub(crate) outcome: Outcome,
    /// The exit code, where no rank is at fault but what they ran on.
    pub(crate) failed: Option<u8>,
    pub(crate) result: Result<(), Error>,
}

impl Attempt<'_> {
    /// Runs it to its end, whichever that is; an error where the ranks could not be started.
    pub(crate) fn run(
        &self,
        sender: mpsc::Sender<Event>,
        events: &mpsc::Receiver<Event>,
    ) -> Result<End, Error> {
        let mark = match &self.job.place {
            Place::Share(_) => Some(random::hex().map_err(Error::system("no random numbers"))?),
            Place::Here | Place::Hosts(_) => None,
        };
        let variable = match &mark {
            // Launchers of the same job may be on one host.
            Some(mark) => format!("{MARK}={mark}"),
            None => format!("ALLFOLD_JOB={}", self.name),
        };
        let keeper = Keeper::start(self.name, &variable)
            .map_err(Error::system("cannot start the keeper"))?;
        let mut place = None;
        let end = self.run_in(&keeper, mark.as_deref(), &mut place, sender, events);
        keeper.finish(place.as_deref());
        end
    }

    fn run_in(
        &self,
        keeper: &Keeper,
        mark: Option<&str>,
        place: &mut Option<PathBuf>,
        sender: mpsc::Sender<Event>,
        events: &mpsc::Receiver<Event>,
    ) -> Result<End, Error> {
        let size = self.job.ranks;
        let directory = directory::create(|path| keeper.watch_directory(path))
            .map_err(Error::system("cannot make a private directory"))?;
        let directory = place.insert(directory).as_path();
        let secret = self.write_secret(directory)?;
        let Bound { meeting, rendezvous, tcp } = self.meet()?;
        let environment = Environment {
            ranks: size,
            here: self.job.started(),
            rendezvous: &meeting,
            job: self.name,
            directory,
            secret: secret.as_deref(),
            mark,
            restart: self.restart,
            variables: &self.job.variables,
        };
        let socket = directory::socket(directory);
        let announcer = Announcer::start(&socket, rendezvous, size)
            .map_err(Error::system("cannot listen for the ranks"))?;
        let done = sender.clone();
        let done = move |problem| {
            let _ = done.send(Event::OutputDone(problem));
        };
        let output = if self.is_led() { Output::start_led(done) } else { Output::start(done) };
        let output = output.map_err(Error::system("cannot print"))?;

        drop(tcp);
        let here = self.job.started();
        let mut ranks = Vec::with_capacity(here.len());
        let started = here.clone().try_for_each(|rank| {
            ranks.push(self.start(rank, &environment, &output, keeper)?);
            Ok(())
        });
        let watched = started.and_then(|()| {
            watch(&ranks, sender).map_err(Error::system("cannot watch over the ranks"))
        });
        if let Err(error) = watched {
            for rank in &mut ranks {
                rank.signal(Signal::KILL);
                let _ = rank.child.wait();
            }
            return Err(error);
        }

        let reports = || self.reports(directory);
        let is_done =
            || here.clone().any(|rank| report::is_done(&directory::report(directory, rank)));
        let around = Surroundings {
            announcer: &announcer,
            output: &output,
            keeper,
            journal: self.journal,
            kind: self.job.kind,
            is_whole: here.len() == size,
            is_led: self.is_led(),
            grace: self.job.options.grace,
            kills: self.kills,
            is_done: &is_done,
            reports: &reports,
        };
        let outcome = Supervisor::new(ranks, around).run(events);
        drop(output);
        let outcome = wait_for_output(outcome, events, None);
        let result = verdict(self.job.kind, &outcome, &reports());
        Ok(End { outcome, failed: None, result })
    }

    fn start(
        &self,
        rank: usize,
        environment: &Environment<'_>,
        output: &Output,
        keeper: &Keeper,
    ) -> Result<Rank, Error> {
        let mut command = self.job.program.command();
        environment.apply(rank, &mut command);
        if self.job.kind == Kind::Copies {
            command.env(REPORT, directory::report(environment.directory, rank));
        }
        let streams = self.connect(rank, &mut command);
        let fail = |problem| Error::Start { rank, program: self.job.program.name(), problem };
        let local_rank = rank - environment.here.start;
        let bound = self.binding.enter(local_rank).map_err(fail)?;
        let mut child = command.process_group(0).spawn().map_err(fail)?;
        drop(bound);
        let pid = Pid::from_child(&child);
        keeper.watch_group(pid);
        self.journal.note(&Entry::RankStarted { rank, pid: pid.as_raw_pid(), host: None });
        if self.is_led() {
            output.tell(words::line(&Word::Started { rank, pid: pid.as_raw_pid() }));
        }
        if let Some(stdin) = child.stdin.take() {
            input::relay(stdin.into()).map_err(fail)?;
        }
        let stdout = child.stdout.take().map(OwnedFd::from);
        let stderr = child.stderr.take().map(OwnedFd::from);
        for (stream, pipe) in [(Stream::Out, stdout), (Stream::Err, stderr)] {
            if let Some(pipe) = pipe {
                let shown = match self.is_led() {
                    true => Some(Shape::Words { rank, stream }),
                    false => self.lines(rank, streams).map(Shape::Lines),
                };
                let log = self.logged(rank);
                let origin = Origin::Pipe(pipe);
                output.add(stream, Source { rank, origin, shown, log });
            }
        }
        Ok(Rank::new(rank, pid, child))
    }

    /// Where the rank's standard streams lead.
    fn connect(&self, rank: usize, command: &mut Command) -> Streams {
        // Standard input of one that is led is for its leader.
        let gets_input = rank == 0 && !self.is_led();
        command.stdin(if gets_input { input::of_rank_0() } else { Stdio::null() });
        match (self.job.kind, rank) {
            (Kind::Program, _) => {
                let is_read = self.job.output.shows(rank) || !self.logs.is_empty();
                let stream = || if is_read { Stdio::piped() } else { Stdio::null() };
                command.stdout(stream()).stderr(stream());
                if self.job.output.has_prefix() { Streams::Prefixed } else { Streams::Plain }
            }
            (Kind::Copies, 0) => {
                let is_pipe = |stops_writers| stops_writers || self.is_led();
                let stdout = terminal_or_pipe(is_pipe(stops_writers(io::stdout())));
                let stderr = terminal_or_pipe(is_pipe(stops_writers(io::stderr())));
                command.stdout(stdout).stderr(stderr);
                Streams::Plain
            }
            (Kind::Copies, _) => {
                command.stdout(Stdio::null()).stderr(Stdio::piped());
                Streams::Prefixed
            }
        }
    }

    /// How a rank's lines are shown; None where they are not.
    pub(crate) fn lines(&self, rank: usize, streams: Streams) -> Option<Lines> {
        let output = &self.job.output;
        let lines = match streams {
            Streams::Plain => Lines::plain(),
            Streams::Prefixed => Lines::of_rank(rank, self.job.ranks),
        };
        output.shows(rank).then(|| lines.stamped(output.timestamp))
    }

    fn reports(&self, directory: &Path) -> Vec<Option<Report>> {
        let here = self.job.started();
        let read = |rank| Report::read(&directory::report(directory, rank));
        (0..self.job.ranks).map(|rank| here.contains(&rank).then(|| read(rank)).flatten()).collect()
    }

    /// Where the rank's lines are written as well.
    pub(crate) fn logged(&self, rank: usize) -> Option<Logged> {
        let log = self.logs.get(rank.checked_sub(self.job.started().start)?)?;
        let lines = Lines::plain().stamped(self.job.output.timestamp);
        Some(Logged { lines, log: log.clone() })
    }

    /// Whether another launcher leads, and hears of everything.
    fn is_led(&self) -> bool {
        matches!(&self.job.place, Place::Share(Share { ruler: Ruler::Launcher { .. }, .. }))
    }

    /// The file with the job's secret; None where the ranks find it by themselves.
    fn write_secret(&self, directory: &Path) -> Result<Option<PathBuf>, Error> {
        let written = match &self.job.place {
            Place::Share(Share { ruler: Ruler::User { .. }, .. }) => return Ok(None),
            Place::Share(Share { ruler: Ruler::Launcher { secret }, .. }) => {
                directory::write_secret(directory, secret)
            }
            Place::Here | Place::Hosts(_) => {
                directory::write_secret(directory, &Secret::random()?.to_line())
            }
        };
        written.map(Some).map_err(Error::system("cannot write the secret's file"))
    }

    /// Where all ranks meet, and what is bound there.
    fn meet(&self) -> Result<Bound, Error> {
        if let Place::Share(share) = &self.job.place {
            let rendezvous = share.rendezvous.as_ref().map(UdpSocket::try_clone).transpose();
            let rendezvous = rendezvous.map_err(Error::system("cannot share a socket"))?;
            return Ok(Bound { meeting: share.meeting.clone(), rendezvous, tcp: None });
        }
        let port = Port::find().map_err(Error::system("no free port on 127.0.0.1"))?;
        let meeting = port.address.into();
        Ok(Bound { meeting, rendezvous: Some(port.udp), tcp: Some(port.tcp) })
    }
}

/// The rendezvous.
struct Bound {
    meeting: Meeting,
    /// Where rank 0 is one of this host's.
    rendezvous: Option<UdpSocket>,
    /// Kept until the ranks start.
    tcp: Option<TcpListener>,
}

/// How the lines of a rank's streams look.
#[derive(Clone, Copy)]
pub(crate) enum Streams {
    Plain,
    Prefixed,
}

/// After `stty tostop` a terminal stops whoever writes to it from the background, and so every
/// rank: each has its own process group.
fn stops_writers(stream: impl AsFd) -> bool {
    tcgetattr(stream).is_ok_and(|terminal| terminal.local_modes.contains(LocalModes::TOSTOP))
}

fn terminal_or_pipe(is_pipe: bool) -> Stdio {
    if is_pipe { Stdio::piped() } else { Stdio::inherit() }
}

/// Returns when both streams are printed, or when the user no longer wants to wait for a reader
/// that has stalled, at the latest after `limit`.
pub(crate) fn wait_for_output(
    mut outcome: Outcome,
    events: &mpsc::Receiver<Event>,
    limit: Option<Duration>,
) -> Outcome {
    let until = limit.map(|limit| Instant::now() + limit);
    let mut open_streams = 2;
    while open_streams > 0 {
        let event = match until {
            Some(until) => events.recv_timeout(until.saturating_duration_since(Instant::now())),
            None => events.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
        };
        match event {
            Ok(Event::OutputDone(problem)) => {
                open_streams -= 1;
                outcome.unprinted = outcome.unprinted.or(problem);
            }
            Ok(Event::Signal(signal @ (SIGHUP | SIGINT | SIGQUIT | SIGTERM))) => {
                outcome.is_stopped = true;
                if at_fault(&outcome.endings).is_none() {
                    outcome.stopped_by.get_or_insert(signal);
                }
                break;
            }
            Ok(_) => {}
            Err(_) => break,
        }
    }
    outcome
}
