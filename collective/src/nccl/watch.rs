//! The thread that stands by NCCL: it connects, looks for NCCL's own errors, and gives NCCL up as
//! soon as the world has ended, so that nothing waits in it for a rank that is gone.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cudarc::driver::CudaContext;
use cudarc::nccl::sys::ncclUniqueId;

use super::inside::{Inside, Patience};
use super::library::{Code, INVALID_ARGUMENT, INVALID_USAGE, Nccl, SUCCESS};
use super::pair::{Failure, Pair};
use crate::error::{Error, ErrorKind, Result};
use crate::report;
use crate::verdict::Loss;
use crate::world::World;

/// The handle to the thread. Where it is dropped, the thread gives NCCL up and ends.
pub(super) struct Watch {
    commands: Mutex<Sender<Command>>,
    /// Told once NCCL is given up or closed.
    ended: Mutex<Receiver<()>>,
}

enum Command {
    /// All calls have ended.
    Close,
}

/// What the thread connects with.
pub(super) struct Joining {
    pub(super) id: ncclUniqueId,
    pub(super) rank: usize,
    pub(super) size: usize,
    pub(super) context: Arc<CudaContext>,
    pub(super) limit: Duration,
    /// None in a world of one.
    pub(super) world: Option<Arc<World>>,
    pub(super) inside: Arc<Inside>,
}

impl Watch {
    /// Starts the thread and waits until NCCL is connected.
    pub(super) fn start(nccl: &'static Nccl, joining: Joining) -> Result<(Self, Arc<Pair>)> {
        let pair = Arc::new(Pair::new(nccl));
        let (commands, inbox) = channel();
        let (connected, outcome) = channel();
        let (end, ended) = channel();
        let (world, limit) = (joining.world.clone(), joining.limit);
        let thread = Thread { nccl, pair: pair.clone(), joining };
        let work = move || thread.work(&connected, &inbox, &end);
        if let Err(error) = std::thread::Builder::new().name("allfold-nccl".into()).spawn(work) {
            let words = format!("its thread does not start: {error}");
            return Err(failed(Failure::Nccl(words), world.as_deref(), limit));
        }
        let this = Self { commands: Mutex::new(commands), ended: Mutex::new(ended) };
        let result = wait_connected(&outcome, world.as_deref(), limit);
        match result {
            Ok(()) => Ok((this, pair)),
            Err(failure) => Err(failed(failure, world.as_deref(), limit)),
        }
    }

    /// Takes NCCL down, and waits for that a short time.
    pub(super) fn close(&self) {
        let _ = self.commands.lock().unwrap_or_else(PoisonError::into_inner).send(Command::Close);
        if !self.wait_ended(CLOSE_LIMIT) {
            report::warn("NCCL does not end; its threads are left to the end of the process");
        }
    }

    /// Waits until NCCL has been given up or closed, so long; whether it has.
    pub(super) fn wait_ended(&self, limit: Duration) -> bool {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        !matches!(ended.recv_timeout(limit), Err(RecvTimeoutError::Timeout))
    }
}

/// Waits for the thread, which may be stuck in NCCL where that looks neither at the clock nor at the
/// world.
fn wait_connected(
    outcome: &Receiver<Result<(), Failure>>,
    world: Option<&World>,
    limit: Duration,
) -> Result<(), Failure> {
    let begun = Instant::now();
    let late = begun + limit.saturating_add(GRACE);
    let mut over_since = None;
    let mut next_warning = world.map_or(limit, |world| world.limits.late_after);
    loop {
        match outcome.recv_timeout(LOOK) {
            Ok(result) => return result,
            Err(RecvTimeoutError::Disconnected) => return Err(Failure::Late),
            Err(RecvTimeoutError::Timeout) => {}
        }
        let now = Instant::now();
        let waited = now - begun;
        if waited >= next_warning {
            next_warning = waited * 2;
            report::warn(&format!(
                "NCCL is still connecting the ranks' GPUs after {}; NCCL_DEBUG=INFO shows what it \
                 waits for",
                report::duration(waited)
            ));
        }
        if world.is_some_and(World::is_over) && *over_since.get_or_insert(now) + GRACE <= now {
            return Err(Failure::Over);
        }
        if now >= late {
            return Err(Failure::Late);
        }
    }
}

struct Thread {
    nccl: &'static Nccl,
    pair: Arc<Pair>,
    joining: Joining,
}

impl Thread {
    fn work(
        &self,
        connected: &Sender<Result<(), Failure>>,
        inbox: &Receiver<Command>,
        end: &Sender<()>,
    ) {
        let Joining { id, rank, size, context, limit, world, .. } = &self.joining;
        if let Some(world) = world {
            report::speak_for(&world.counters.origin);
        }
        let is_over = || world.as_ref().is_some_and(|world| world.is_over());
        let result = match context.bind_to_thread() {
            Err(error) => Err(Failure::Nccl(format!("its GPU cannot be used: {error}"))),
            Ok(()) => {
                let deadline = Instant::now() + *limit;
                self.pair.connect(id, (*rank, *size), deadline, &is_over)
            }
        };
        let is_connected = result.is_ok();
        let is_awaited = connected.send(result).is_ok();
        if is_connected && is_awaited {
            self.watch(inbox, end);
        } else {
            self.pair.give_up(|| end.send(()).unwrap_or_default());
        }
        let _ = end.send(());
    }

    /// Until the world has ended, or all calls have.
    fn watch(&self, inbox: &Receiver<Command>, end: &Sender<()>) {
        let world = self.joining.world.as_deref();
        let give_up = || self.pair.give_up(|| end.send(()).unwrap_or_default());
        let mut patience = Patience::default();
        let mut suspect: Option<Instant> = None;
        loop {
            match inbox.recv_timeout(LOOK) {
                Ok(Command::Close) => return self.close(),
                Err(RecvTimeoutError::Disconnected) => return give_up(),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Some(world) = world {
                patience.look(&self.joining.inside, world);
                if world.is_over() {
                    return give_up();
                }
            }
            let code = match self.pair.look() {
                None => continue,
                Some(SUCCESS) => {
                    suspect = None;
                    continue;
                }
                Some(code) => code,
            };
            // Whatever it is: sizes that differ from rank to rank are to NCCL a wrong use of it.
            if suspect.get_or_insert_with(Instant::now).elapsed() >= OTHERS_KNOW {
                let problem = format!("NCCL: {}", self.nccl.describe(code));
                match world {
                    Some(world) => world.lose(world.rank, Loss::Failed { problem }),
                    None => self.pair.blame(problem),
                }
                return give_up();
            }
        }
    }

    /// Takes NCCL down, on a thread of its own: it waits for its peers, and one of them may be lost
    /// meanwhile.
    fn close(&self) {
        let (pair, context) = (self.pair.clone(), self.joining.context.clone());
        let (closed, is_closed) = channel::<()>();
        let work = move || {
            if context.bind_to_thread().is_ok() {
                pair.close_caller();
            }
            drop(closed);
        };
        if std::thread::Builder::new().name("allfold-close".into()).spawn(work).is_err() {
            return self.pair.give_up(|| ());
        }
        let world = self.joining.world.as_deref();
        while is_closed.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
            if world.is_some_and(World::is_over) {
                self.pair.give_up(|| ());
            }
        }
        self.pair.close_handle();
    }
}

/// How long to wait for a better word on an error of a call of NCCL's, which has noticed nothing
/// else. It may only be that another rank is gone, which NCCL sees first but does not name; control
/// says who it was.
pub(super) fn patience(code: Code, noticed: Code) -> Duration {
    match (code, noticed) {
        (INVALID_ARGUMENT | INVALID_USAGE, SUCCESS) => Duration::ZERO,
        _ => OTHERS_KNOW,
    }
}

/// The error of a rank whose NCCL did not connect; the others hear it from the world.
fn failed(failure: Failure, world: Option<&World>, limit: Duration) -> Error {
    let (patience, problem) = match failure {
        Failure::Nccl(words) => (OTHERS_KNOW, format!("NCCL does not connect: {words}")),
        Failure::Late => (
            Duration::ZERO,
            format!(
                "NCCL does not connect within {} (ALLFOLD_CONNECT_TIMEOUT); NCCL_DEBUG=INFO shows \
                 what it waits for",
                report::duration(limit)
            ),
        ),
        Failure::Over => (Duration::ZERO, "the world has ended".into()),
    };
    match world {
        Some(world) => blame(world, patience, problem),
        None => ErrorKind::System { operation: "connecting NCCL".into(), problem }.into(),
    }
}

/// Ends the world because NCCL or CUDA fails on this rank. Another rank may be why: for so long the
/// world may say so, and then this one is not at fault.
pub(super) fn blame(world: &World, patience: Duration, problem: String) -> Error {
    // Where all ranks fail alike, the lowest says so first, and one error is that of all.
    let turn = if patience.is_zero() { Duration::ZERO } else { TURN * world.rank.min(MAX_TURNS) };
    let until = Instant::now() + patience + turn;
    while !world.is_over() && Instant::now() < until {
        std::thread::sleep(ASK);
    }
    if !world.is_over() {
        world.lose(world.rank, Loss::Failed { problem });
    }
    world.ended()
}

/// How soon an end of the world reaches NCCL.
const LOOK: Duration = Duration::from_millis(20);
/// How soon an end of the world ends the patience with an error.
const ASK: Duration = Duration::from_millis(1);
/// As long as lanes wait for a verdict after a broken link (2.6 s): two seconds of silence, the
/// question to other ranks, and the way of the verdict.
pub(super) const OTHERS_KNOW: Duration = Duration::from_millis(2600);
/// More than a verdict needs to the other ranks.
const TURN: Duration = Duration::from_millis(10);
const MAX_TURNS: u32 = 20;
/// What NCCL has registered with GPUs and network cards is given back one by one.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);
/// Giving NCCL up takes milliseconds.
const GRACE: Duration = Duration::from_secs(1);
