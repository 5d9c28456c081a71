//! The launcher on a host, as another one that leads has started it: `allfold host`.
//!
//! It hears by standard input what to do, and says by standard output what happens. When standard
//! input ends, whatever the reason, it ends at once, and its keeper ends the ranks.

use std::io;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use rustix::process::{getpid, set_child_subreaper};
use signal_hook::consts::{SIGCONT, SIGTSTP};
use zeroize::Zeroizing;

use super::words::{self, Order, Task, Wanted, Word};
use crate::attempt::Attempt;
use crate::binding::Binding;
use crate::duration;
use crate::error::Error;
use crate::exit_code;
use crate::job::{Job, Kind, Place};
use crate::journal::Journal;
use crate::log;
use crate::meeting::Meeting;
use crate::options::{BindOptions, JobOptions, OutputOptions};
use crate::output::say_led as say;
use crate::program::Program;
use crate::report::Report;
use crate::share::{Ruler, Share, listen};
use crate::signals;
use crate::supervisor::Event;

/// Does a host's share of a job; the launcher that leads hears of everything.
pub(crate) fn follow() -> Result<(), Error> {
    let broken = Error::system("cannot hear the launcher that leads");
    say(&words::greeting()).map_err(&broken)?;
    let mut from = io::stdin().lock();
    let secret = words::read_line(&mut from).map_err(&broken)?.map(Zeroizing::new);
    let Some(secret) = secret.as_deref().and_then(|line| std::str::from_utf8(line).ok()) else {
        return Err(Error::Usage {
            problem: "this is part of `allfold run --hosts`, which starts it by itself".into(),
            help: Some("see `allfold run --help`".into()),
        });
    };
    let secret = Zeroizing::new(secret.trim_end().to_owned());
    let Some(Order::Task(task)) = words::read(&mut from).map_err(&broken)? else {
        return Ok(());
    };
    drop(from);
    match share_of(*task, secret) {
        Ok(()) => Ok(()),
        // The one that leads prints it.
        Err(error) => {
            let Report { message, help } = Report::from(&error);
            let code = error.exit_code();
            say(&words::line(&Word::Refused { message, help, code })).map_err(&broken)
        }
    }
}

fn share_of(task: Task, secret: Zeroizing<String>) -> Result<(), Error> {
    let directory = task.directory.display();
    std::env::set_current_dir(&task.directory).map_err(|problem| Error::Usage {
        problem: format!("no directory {directory}: {}", crate::error::reason(&problem)),
        help: Some(
            "ranks start in the directory of the command: make it there, or start from one that \
             all hosts have"
                .into(),
        ),
    })?;
    let (program, kind) = match task.program {
        Wanted::Copies(words) => (Program::copy_of(words), Kind::Copies),
        Wanted::Program(words) => {
            let (name, arguments) = words
                .split_first()
                .ok_or_else(|| Error::Usage { problem: "no program given".into(), help: None })?;
            (Program::find(name, arguments)?, Kind::Program)
        }
    };
    let port = task.listen.as_ref().map(listen).transpose()?;
    let binding = Binding::plan(task.bind, task.ranks)?;
    if let Some(warning) = binding.warning() {
        log::say("warning", warning);
    }
    let (sender, events) = mpsc::channel();
    let system = Error::system("cannot handle signals");
    signals::subscribe(sender.clone()).map_err(&system)?;
    set_child_subreaper(Some(getpid())).map_err(|error| system(error.into()))?;
    let meeting = prepare(sender.clone(), port.as_ref().map(|port| port.address.port()))?;
    let here = task.first..task.first + task.ranks;
    let rendezvous = port.map(|port| port.udp);
    let share = Share { here, meeting, rendezvous, ruler: Ruler::Launcher { secret } };
    let job = Job {
        ranks: task.world,
        program,
        kind,
        options: JobOptions {
            grace: task.grace,
            binding: BindOptions { bind: task.bind },
            ..JobOptions::default()
        },
        output: OutputOptions { only_rank: task.only_rank, ..OutputOptions::default() },
        variables: task.variables,
        place: Place::Share(share),
    };
    allfold::report::name_job(&task.job);
    let attempt = Attempt {
        job: &job,
        name: &task.job,
        restart: task.restart,
        binding: &binding,
        journal: &Journal::none(),
        kills: None,
        logs: Vec::new(),
    };
    let end = attempt.run(sender, &events)?;
    let done = Word::Done { put_down: end.outcome.put_down };
    say(&words::line(&done)).map_err(Error::system("cannot tell the launcher that leads"))
}

/// Says that all is there; returns when all hosts are. Orders are events from then on.
fn prepare(events: Sender<Event>, port: Option<u16>) -> Result<Meeting, Error> {
    let (heard, orders) = mpsc::channel();
    let broken = Error::system("cannot hear the launcher that leads");
    thread::Builder::new().name("orders".into()).spawn(move || hear(&heard)).map_err(&broken)?;
    let (start, started) = mpsc::channel();
    thread::Builder::new()
        .name("obedience".into())
        .spawn(move || obey(&orders, &start, &events))
        .map_err(&broken)?;
    say(&words::line(&Word::Ready { port })).map_err(&broken)?;
    // Where no start comes, `obey` ends this process.
    started.recv().map_err(|_| broken(io::ErrorKind::UnexpectedEof.into()))
}

/// Hands on every order, until there are no more.
fn hear(heard: &Sender<Order>) {
    let mut from = io::stdin().lock();
    while let Ok(Some(order)) = words::read(&mut from) {
        if heard.send(order).is_err() {
            return;
        }
    }
}

/// Heeds every order; ends this process when there are no more, or when none comes for long.
fn obey(orders: &mpsc::Receiver<Order>, start: &Sender<Meeting>, events: &Sender<Event>) {
    let mut is_suspended = false;
    loop {
        let order = match is_suspended {
            true => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => orders.recv_timeout(PATIENCE),
        };
        // Whoever receives these may be done.
        let _ = match order {
            Ok(Order::Start { meeting }) => start.send(meeting).is_ok(),
            // This process itself goes on, or it would not hear the end.
            Ok(Order::Signal { signal: SIGTSTP }) => {
                is_suspended = true;
                events.send(Event::Signal(signal_hook::consts::SIGSTOP)).is_ok()
            }
            Ok(Order::Signal { signal }) => {
                is_suspended &= signal != SIGCONT;
                events.send(Event::Signal(signal)).is_ok()
            }
            Ok(Order::Ended(ended)) => events.send(Event::Elsewhere(Some(ended.into()))).is_ok(),
            Ok(Order::Failed) => events.send(Event::Elsewhere(None)).is_ok(),
            Ok(Order::Reader { stream, reader }) => {
                events.send(Event::Reader(stream, reader)).is_ok()
            }
            Ok(Order::Beat | Order::Task(_)) => true,
            // Nobody waits for this host any more. Whatever is left is the keeper's.
            Err(silence) => {
                if silence == RecvTimeoutError::Timeout {
                    let patience = duration::text(PATIENCE);
                    let words = format!(
                        "no word from the launcher that leads for {patience}: the ranks here end"
                    );
                    log::say("warning", &words);
                }
                std::process::exit(exit_code::TRY_AGAIN.into())
            }
        };
    }
}

/// Three beats, and more than ssh takes to notice a connection that is dead.
const PATIENCE: Duration = Duration::from_secs(30);
