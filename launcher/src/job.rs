//! Starts the ranks of a job on this host, and clears up when they have ended.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;

use allfold::Secret;
use rustix::process::{Pid, Signal, getpid, set_child_subreaper};
use rustix::termios::{LocalModes, isatty, tcgetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use crate::announcer::Announcer;
use crate::directory;
use crate::ending::at_fault;
use crate::environment::{Environment, REPORT};
use crate::error::{Error, MAX_RANKS};
use crate::input;
use crate::keeper::Keeper;
use crate::lines::Lines;
use crate::output::{Output, Stream};
use crate::port::Port;
use crate::program::Program;
use crate::random;
use crate::report::Report;
use crate::signals;
use crate::supervisor::{Event, Rank, Supervisor, watch};
use crate::verdict::{Outcome, verdict};

/// What to run.
pub(crate) struct Job {
    pub(crate) ranks: usize,
    pub(crate) program: Program,
    pub(crate) kind: Kind,
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
        let (sender, events) = mpsc::channel();
        signals::subscribe(sender.clone()).map_err(Error::system("cannot handle signals"))?;
        // What a rank leaves behind becomes the launcher's child and can be found.
        set_child_subreaper(Some(getpid()))
            .map_err(|error| Error::system("cannot adopt processes")(error.into()))?;
        let name = format!("run-{}", random::hex().map_err(Error::system("no random numbers"))?);
        let keeper = Keeper::start(&name).map_err(Error::system("cannot start the keeper"))?;
        let mut place = None;
        let result = self.run_in(&name, &keeper, &mut place, sender, &events);
        keeper.finish(place.as_deref());
        if result.is_err() && self.kind == Kind::Copies {
            clear_progress_bar();
        }
        result
    }

    fn run_in(
        &self,
        name: &str,
        keeper: &Keeper,
        place: &mut Option<PathBuf>,
        sender: mpsc::Sender<Event>,
        events: &mpsc::Receiver<Event>,
    ) -> Result<(), Error> {
        let directory = directory::create(|path| keeper.watch_directory(path))
            .map_err(Error::system("cannot make a private directory"))?;
        let directory = place.insert(directory).as_path();
        let secret = directory::write_secret(directory, &Secret::random()?.to_line())
            .map_err(Error::system("cannot write the secret's file"))?;
        let port = Port::find().map_err(Error::system("no free port on 127.0.0.1"))?;
        let environment = Environment {
            ranks: self.ranks,
            rendezvous: port.address,
            job: name,
            directory,
            secret: &secret,
        };
        let socket = directory::socket(directory);
        let announcer = Announcer::start(&socket, port.udp, self.ranks)
            .map_err(Error::system("cannot listen for the ranks"))?;
        let done = sender.clone();
        let output = Output::start(move |problem| {
            let _ = done.send(Event::OutputDone(problem));
        })
        .map_err(Error::system("cannot print"))?;

        drop(port.tcp);
        let mut ranks = Vec::with_capacity(self.ranks);
        let started = (0..self.ranks).try_for_each(|rank| {
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
        let supervisor = Supervisor::new(ranks, &announcer, &output, keeper, self.kind, &reports);
        let outcome = supervisor.run(events);
        drop(output);
        let outcome = wait_for_output(outcome, events);
        verdict(&outcome, &reports())
    }

    fn start(
        &self,
        rank: usize,
        environment: &Environment<'_>,
        output: &Output,
        keeper: &Keeper,
    ) -> Result<Rank, Error> {
        let mut command = self.program.command();
        environment.apply(rank, &mut command);
        if self.kind == Kind::Copies {
            command.env(REPORT, directory::report(environment.directory, rank));
        }
        let streams = self.connect(rank, &mut command);
        let fail = |problem| Error::Start { rank, program: self.program.name(), problem };
        let mut child = command.process_group(0).spawn().map_err(fail)?;
        let pid = Pid::from_child(&child);
        keeper.watch_group(pid);
        if let Some(stdin) = child.stdin.take() {
            input::relay(stdin.into()).map_err(fail)?;
        }
        let stdout = child.stdout.take().map(OwnedFd::from);
        let stderr = child.stderr.take().map(OwnedFd::from);
        for (stream, pipe) in [(Stream::Out, stdout), (Stream::Err, stderr)] {
            if let Some(pipe) = pipe {
                let lines = match streams {
                    Streams::Plain => Lines::plain(),
                    Streams::Prefixed => Lines::of_rank(rank, self.ranks),
                };
                output.add(stream, rank, pipe, lines);
            }
        }
        Ok(Rank::new(rank, pid, child))
    }

    /// Where the rank's standard streams lead.
    fn connect(&self, rank: usize, command: &mut Command) -> Streams {
        command.stdin(if rank == 0 { input::of_rank_0() } else { Stdio::null() });
        match (self.kind, rank) {
            (Kind::Program, _) => {
                command.stdout(Stdio::piped()).stderr(Stdio::piped());
                Streams::Prefixed
            }
            (Kind::Copies, 0) => {
                let stdout = terminal_or_pipe(stops_writers(io::stdout()));
                command.stdout(stdout).stderr(terminal_or_pipe(stops_writers(io::stderr())));
                Streams::Plain
            }
            (Kind::Copies, _) => {
                command.stdout(Stdio::null()).stderr(Stdio::piped());
                Streams::Prefixed
            }
        }
    }

    fn reports(&self, directory: &Path) -> Vec<Option<Report>> {
        (0..self.ranks).map(|rank| Report::read(&directory::report(directory, rank))).collect()
    }
}

#[derive(Clone, Copy)]
enum Streams {
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

/// Rank 0 may have ended in the middle of a line; the error begins on a clean one.
fn clear_progress_bar() {
    if isatty(io::stderr()) {
        let _ = io::stderr().write_all(b"\r\x1b[K");
    }
}

/// Returns when both streams are printed, or when the user no longer wants to wait for a reader
/// that has stalled.
fn wait_for_output(mut outcome: Outcome, events: &mpsc::Receiver<Event>) -> Outcome {
    let mut open_streams = 2;
    while open_streams > 0 {
        match events.recv() {
            Ok(Event::OutputDone(problem)) => {
                open_streams -= 1;
                outcome.unprinted = outcome.unprinted.or(problem);
            }
            Ok(Event::Signal(signal @ (SIGHUP | SIGINT | SIGQUIT | SIGTERM))) => {
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
