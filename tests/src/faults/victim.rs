//! Inside a rank: the fault it was told of, at the moment it was told, and the marks by which the
//! test learns when.

use std::fmt;
use std::fs::File;
use std::future::Future;
use std::io::{self, Read, Write};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use allfold::faults::weather::{self, Place, Route, Weather};
use allfold::faults::{Moment, Step, watch};
use allfold::{Communicator, Error, Identity, Pending, ReduceOp, Result};
use rustix::process::{Signal, getpid, kill_process};
use rustix::time::{ClockId, clock_gettime};

use super::case::{Case, What, When};
use super::chaos::Chaos;

/// Says which case it is; every rank of a job has it.
pub const FAULT: &str = "UNDER_TEST_FAULT";
/// A pipe: the rank that is held back reads from it before it connects.
pub const GATE: &str = "UNDER_TEST_GATE";
/// Before everything that a rank tells the test.
pub const MARK: &str = "@ ";

/// The case that this process is part of, and what it is to do to itself.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// The case.
    pub case: Case,
    /// This rank.
    pub rank: usize,
    /// The calls are random ones.
    pub chaos: Option<Chaos>,
}

impl Part {
    /// Reads the variable; from then on this process does to itself what it says. None where it is
    /// not set, or this is no rank.
    pub fn take() -> Option<Self> {
        let case: Case = std::env::var(FAULT).ok()?.parse().ok()?;
        let rank = Identity::from_env().ok()??.rank;
        let part = Self { case, rank, chaos: Chaos::take() };
        if case.held_back() == Some(rank)
            && let Some(path) = std::env::var_os(GATE)
        {
            let _ = File::open(path).and_then(|mut gate| gate.read_exact(&mut [0]));
        }
        part.lie_in_wait();
        Some(part)
    }

    /// Makes calls until one returns an error, as a rank of the job; prints when that was, and
    /// whether the next call says the same.
    ///
    /// # Errors
    /// That of the call, or of connecting.
    pub fn play(self) -> Result<()> {
        let world = match self.connect() {
            Ok(world) => world,
            Err(error) => {
                mark(self.rank, format_args!("error {}", now()));
                return Err(error);
            }
        };
        let Err(error) = self.call(&world) else { return world.close() };
        let since = now();
        let again = world.barrier();
        let (asked, dropped) = (now(), {
            drop(world);
            now()
        });
        let is_same = again.is_err_and(|again| again.to_string() == error.to_string());
        let (later, drop) = (asked - since, dropped - asked);
        mark(self.rank, format_args!("again {} {later} {drop}", u8::from(is_same)));
        Err(error)
    }

    /// While the ranks meet, the caller waits: a program panics on another thread then.
    fn connect(self) -> Result<Communicator> {
        let panics = self.is_victim() && self.case.what == What::Panic;
        if !(panics && matches!(self.case.when, When::Gathering | When::Prepared)) {
            return Communicator::from_env();
        }
        let connecting = std::thread::spawn(Communicator::from_env);
        TOLD.wait(|| connecting.is_finished());
        if TOLD.is_told() {
            self.panics();
        }
        match connecting.join() {
            Ok(connected) => connected,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    fn call(self, world: &Communicator) -> Result<()> {
        if let Some(chaos) = self.chaos {
            if chaos.play(world)? {
                mark(self.rank, format_args!("wrong"));
            }
            return Ok(());
        }
        let mine = self.is_victim();
        for number in 0..MOST_CALLS {
            if mine && self.case.when == When::Idle && number == CALL {
                self.strike();
            }
            let buffer = vec![1.0f32; self.case.elements()];
            let sums = match mine && self.case.what == What::Panic {
                // Its thread is free to panic while the call is under way.
                true => self.wait_or_panic(world.start_all_reduce(buffer, ReduceOp::Sum)?)?,
                false => {
                    let mut buffer = buffer;
                    world.all_reduce(&mut buffer, ReduceOp::Sum)?;
                    buffer
                }
            };
            if sums.iter().any(|sum| *sum != world.size() as f32) {
                mark(self.rank, format_args!("wrong"));
            }
        }
        Ok(())
    }

    fn wait_or_panic(self, pending: Pending<Vec<f32>>) -> Result<Vec<f32>> {
        TOLD.register();
        let mut pending = pin!(pending);
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        loop {
            if TOLD.is_told() {
                self.panics();
            }
            match pending.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(result) => return result,
                Poll::Pending => std::thread::park(),
            }
        }
    }

    fn is_victim(self) -> bool {
        self.rank == self.case.victim
    }

    fn lie_in_wait(self) {
        let once = AtomicBool::new(false);
        let failed = AtomicBool::new(false);
        let calls = AtomicU64::new(0);
        watch(move |moment| {
            if matches!(moment, Moment::Call { .. }) {
                calls.fetch_add(1, Ordering::Relaxed);
            }
            if matches!(moment, Moment::Failed { .. }) && !failed.swap(true, Ordering::AcqRel) {
                mark(self.rank, format_args!("error {}", now()));
            }
            if !self.is_victim() {
                return;
            }
            let is_time = match &self.chaos {
                Some(chaos) => chaos.is_time(&moment, calls.load(Ordering::Relaxed)),
                None => self.is_time(&moment),
            };
            if is_time && !once.swap(true, Ordering::AcqRel) {
                let on_callers_thread =
                    matches!(moment, Moment::Call { .. } | Moment::BeforeConnect { .. });
                match self.case.what {
                    What::Panic if !on_callers_thread => TOLD.tell(),
                    _ => self.strike(),
                }
            }
        });
    }

    fn is_time(self, moment: &Moment) -> bool {
        let panics = self.case.what == What::Panic;
        match (self.case.when, moment) {
            (When::BeforeConnect, Moment::BeforeConnect { .. })
            | (When::Gathering, Moment::Gathering { .. })
            | (When::Prepared, Moment::Prepared { .. }) => true,
            (When::Step(algorithm, at), Moment::Step(step)) => {
                (step.communicator, step.sequence, step.algorithm) == (0, CALL, algorithm.name())
                    && step.index == at.index(step.count)
            }
            // A rank starts the next bucket while the one before is under way.
            (When::Backward, Moment::Call { label: Some(label), .. }) => panics && *label == BUCKET,
            (When::Backward, Moment::Step(Step { label: Some(label), index, count, .. })) => {
                !panics && *label == BUCKET && *index == count / 2
            }
            _ => false,
        }
    }

    /// Does it, on this thread.
    fn strike(self) {
        let Case { what, victim, .. } = self.case;
        let neighbour = Route::with(Place::Rank(self.case.neighbour()));
        let cut = Weather::new().cut();
        if what == What::Panic {
            self.panics();
        }
        mark(victim, format_args!("fault {} {}", now(), getpid().as_raw_pid()));
        match what {
            What::Kill => _ = kill_process(getpid(), Signal::KILL),
            What::Terminate => _ = kill_process(getpid(), Signal::TERM),
            What::Stop => _ = kill_process(getpid(), Signal::STOP),
            What::Exit => std::process::exit(0),
            What::Abort => std::process::abort(),
            What::CutPair => weather::set(neighbour, cut),
            What::CutOneWay => weather::set(neighbour.inwards(), cut),
            What::CutAll => weather::set(Route::all(), cut),
            What::Panic => {}
        }
    }

    fn panics(self) -> ! {
        mark(self.rank, format_args!("fault {} {}", now(), getpid().as_raw_pid()));
        panic!("told to");
    }

    /// `train` came to its end with this exit code.
    pub fn ended(self) {
        mark(self.rank, format_args!("ended {}", now()));
    }
}

/// The moment has come, on another thread than the one that is to panic.
struct Told {
    told: AtomicBool,
    who: OnceLock<Thread>,
}

static TOLD: Told = Told { told: AtomicBool::new(false), who: OnceLock::new() };

impl Told {
    fn register(&self) {
        self.who.get_or_init(std::thread::current);
    }

    fn tell(&self) {
        self.told.store(true, Ordering::Release);
        if let Some(thread) = self.who.get() {
            thread.unpark();
        }
    }

    fn is_told(&self) -> bool {
        self.told.load(Ordering::Acquire)
    }

    fn wait(&self, is_over: impl Fn() -> bool) {
        self.register();
        while !self.is_told() && !is_over() {
            std::thread::park_timeout(LOOK);
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Nanoseconds of CLOCK_MONOTONIC, which all processes of a host share.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// Tells the test something, in one write.
pub fn mark(rank: usize, words: fmt::Arguments<'_>) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(format!("{MARK}{rank} {words}\n").as_bytes());
    let _ = out.flush();
}

/// How a program ends with an error.
pub fn report(error: &Error) {
    let mut text = format!("error: {error}\n");
    if let Some(help) = error.help() {
        text.push_str(&format!("help: {help}\n"));
    }
    let _ = io::stderr().write_all(text.as_bytes());
}

/// The call in which it happens: links are open by then.
const CALL: u64 = 10;
/// Bucket 1 of the second step: bucket 0 is under way.
const BUCKET: u64 = 2_000_001;
/// Three seconds of calls are a tenth of it; no job goes on for ever.
const MOST_CALLS: u64 = 1_000_000;
/// How often a thread looks whether the one that connects has ended; nothing wakes it then.
const LOOK: Duration = Duration::from_millis(10);
