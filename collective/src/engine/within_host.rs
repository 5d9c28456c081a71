//! Calls of a communicator whose ranks share memory. A blocking one is made on the caller's own
//! thread, without a hand-over; one that was started is made on a thread of the communicator's, in
//! its turn.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::buffer::Lent;
use crate::contract::Contract;
use crate::deadlock::{REPORT_EVERY, Rest};
use crate::error::{ErrorKind, Result};
use crate::group::Begun;
use crate::lane::{self, Call, Command, Completer};
use crate::link::shared_memory::{Patience, Shared, Stop, Sum};
use crate::plan::Algorithm;
use crate::reduce::ReduceOp;
use crate::report;
use crate::statistics::CallKey;
use crate::verdict::Fault;
use crate::wire;
use crate::world::{Waiting, World};

/// What a communicator has where its ranks share memory.
pub(super) struct WithinHost {
    world: Arc<World>,
    group: u64,
    /// Of the communicator.
    ranks: u32,
    shared: Mutex<Shared>,
    /// Calls handed to the thread that have not ended.
    queued: AtomicUsize,
    queue: Mutex<Option<Queue>>,
}

struct Queue {
    jobs: Sender<Job>,
    thread: JoinHandle<()>,
}

/// What the communicator's thread does in its turn.
enum Job {
    Here(Box<Begun>, Lent, Completer),
    /// Over the network: the lane's calls keep their own order.
    There(Box<Call>),
    Flush(Completer),
}

impl WithinHost {
    pub(super) fn new(world: Arc<World>, group: u64, ranks: u32, shared: Shared) -> Arc<Self> {
        Arc::new(Self {
            world,
            group,
            ranks,
            shared: Mutex::new(shared),
            queued: AtomicUsize::new(0),
            queue: Mutex::new(None),
        })
    }

    /// Whether calls are in the hands of the thread.
    pub(super) fn is_queued(&self) -> bool {
        self.queued.load(Ordering::Acquire) > 0
    }

    /// Makes a call on this thread; all before it have ended.
    pub(super) fn call(&self, begun: &Begun, buffer: &mut [u8]) -> Result<()> {
        self.make(begun, buffer, Instant::now(), None)
    }

    /// Has a call made in its turn.
    pub(super) fn start(self: &Arc<Self>, begun: Begun, lent: Lent, done: Completer) {
        self.hand_over(Job::Here(Box::new(begun), lent, done));
    }

    /// Hands a call to the lane in its turn.
    pub(super) fn forward(self: &Arc<Self>, call: Box<Call>) {
        self.hand_over(Job::There(call));
    }

    /// Completes this once all that was handed over has ended.
    pub(super) fn flush(self: &Arc<Self>, done: Completer) {
        self.hand_over(Job::Flush(done));
    }

    /// Ends the thread, after all that was handed over.
    pub(super) fn end(&self) {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Queue { jobs, thread }) = queue {
            drop(jobs);
            let _ = thread.join();
        }
    }

    fn hand_over(self: &Arc<Self>, job: Job) {
        self.queued.fetch_add(1, Ordering::AcqRel);
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.is_none() {
            let (jobs, inbox) = channel();
            let this = self.clone();
            let work = move || this.work(&inbox);
            let name = "allfold-host".to_string();
            if let Ok(thread) = std::thread::Builder::new().name(name).spawn(work) {
                *queue = Some(Queue { jobs, thread });
            }
        }
        // Without a thread the job is dropped, which completes it with an error.
        if let Some(queue) = &*queue {
            let _ = queue.jobs.send(job);
        }
    }

    fn work(&self, inbox: &Receiver<Job>) {
        report::speak_for(&self.world.counters.origin);
        #[cfg(feature = "faults")]
        crate::faults::enter(self.world.rank);
        while let Ok(job) = inbox.recv() {
            match job {
                Job::Here(begun, mut lent, done) => {
                    let result = self.flush_lane().and_then(|()| {
                        let awaited = || done.awaited();
                        self.make(&begun, lent.in_place(), Instant::now(), Some(&awaited))
                    });
                    drop(lent);
                    self.queued.fetch_sub(1, Ordering::AcqRel);
                    done.set(result);
                }
                Job::There(call) => {
                    self.world.send_to_lane(Command::Run(call));
                    self.queued.fetch_sub(1, Ordering::AcqRel);
                }
                Job::Flush(done) => {
                    let result = self.flush_lane();
                    self.queued.fetch_sub(1, Ordering::AcqRel);
                    done.set(result);
                }
            }
        }
    }

    /// Waits until the lane has no call of the communicator.
    fn flush_lane(&self) -> Result<()> {
        let (done, completion) = lane::completion();
        self.world.send_to_lane(Command::Flush(self.group, done));
        completion.wait()
    }

    fn make(
        &self,
        begun: &Begun,
        buffer: &mut [u8],
        since: Instant,
        awaited: Option<&dyn Fn() -> Option<Instant>>,
    ) -> Result<()> {
        let contract = &begun.contract;
        let (world, group) = (&*self.world, self.group);
        // A barrier is the sum of nothing.
        let sum = Sum {
            element: contract.element,
            op: contract.op.unwrap_or(ReduceOp::Sum),
            ranks: self.ranks,
            is_all: true,
        };
        let mut watch = Watch::new(world, begun, since, awaited);
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = match world.is_over() {
            true => Err(Stop::Over),
            false => shared.all_reduce((contract.sequence, begun.hash), sum, buffer, &mut watch),
        };
        drop(shared);
        let result = match outcome {
            Ok(()) => {
                let (collective, algorithm) = (contract.collective, Algorithm::SharedMemory);
                let key = CallKey { collective, algorithm };
                world.counters.call(key, since.elapsed());
                Ok(())
            }
            Err(Stop::Over) => Err(world.error().unwrap_or_else(|| ErrorKind::Closed.into())),
            Err(Stop::Differs(place, hash)) => {
                self.tell_difference(begun, (place, hash), &mut watch);
                Err(world.error().unwrap_or_else(|| ErrorKind::Closed.into()))
            }
        };
        world.end_call(group);
        result
    }
}

impl WithinHost {
    /// The rank at `place` makes another call: the verdict shows both.
    fn tell_difference(&self, begun: &Begun, (place, hash): (usize, u64), watch: &mut Watch<'_>) {
        let (world, contract) = (&*self.world, &begun.contract);
        let members = world.members(self.group);
        let peer = members.as_ref().and_then(|members| members.get(place)).copied();
        let Some(peer) = peer else { return };
        let location = world.location_of(self.group, contract.sequence);
        let own = [&contract.to_wire()[..], location.as_bytes()].concat();
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(theirs) = shared.explain(contract.sequence, &own, place, watch) else { return };
        drop(shared);
        let theirs = wire::read_contract(&theirs);
        let sequence = contract.sequence;
        if !world.compare_call(peer, self.group, (sequence, hash), theirs.as_ref()) {
            let problem = "it shows another call than the one it makes".into();
            world.raise(peer, Fault::Protocol { problem });
        }
    }
}

/// Looks after a call that waits long.
struct Watch<'a> {
    world: &'a World,
    begun: &'a Begun,
    /// Of one that was started: since when somebody waits for it.
    awaited: Option<&'a dyn Fn() -> Option<Instant>>,
    since: Instant,
    /// When its turn came.
    begun_at: Instant,
    looked: Instant,
    /// Whom this rank waited for last, and how much of that has been counted.
    counted: (usize, Duration),
    /// Time in which this rank was itself not there to wait.
    missed: Duration,
    next_warning: Duration,
    reported: Option<Instant>,
    /// What the program's other threads do meanwhile.
    rest: Option<Rest>,
    /// Of a blocking call: said only once it takes long.
    waiting: Option<Waiting<'a>>,
}

impl<'a> Watch<'a> {
    fn new(
        world: &'a World,
        begun: &'a Begun,
        since: Instant,
        awaited: Option<&'a dyn Fn() -> Option<Instant>>,
    ) -> Self {
        let next_warning = world.limits.late_after;
        Self {
            world,
            begun,
            awaited,
            since,
            begun_at: since,
            looked: since,
            counted: (0, Duration::ZERO),
            missed: Duration::ZERO,
            next_warning,
            reported: None,
            rest: None,
            waiting: None,
        }
    }
}

impl Patience for Watch<'_> {
    fn is_over(&self) -> bool {
        self.world.is_over()
    }

    fn waits(&mut self, peer: usize, to_come: bool) {
        let now = Instant::now();
        let waited = self.look(now);
        if to_come && waited >= LONG {
            self.count(peer, waited);
        }
        // One that was started and that nobody waits for is not late.
        if let Some(awaited) = self.awaited {
            match awaited() {
                Some(since) => self.since = since,
                None => return,
            }
        } else if self.waiting.is_none() {
            let Contract { group, sequence, .. } = self.begun.contract;
            self.waiting = Some(self.world.note_waiting(group, sequence));
        }
        let (limits, contract) = (self.world.limits, &self.begun.contract);
        let waited = now.saturating_duration_since(self.since).saturating_sub(self.missed);
        if waited >= self.next_warning {
            while self.next_warning <= waited {
                self.next_warning = (self.next_warning * 2).max(SHORTEST);
            }
            self.world.warn_late(contract, waited);
        }
        if let Some(timeout) = limits.timeout.filter(|timeout| waited >= *timeout) {
            let (rank, suffix) = (self.world.rank, self.world.suffix(contract.group));
            let fault = Fault::TimedOut {
                call: format!("{contract}{suffix} on rank {rank}"),
                limit: report::duration(timeout),
                late: self.world.late(contract.group, contract.sequence),
            };
            self.world.raise(rank, fault);
        }
        let Some(control) = self.world.control() else { return };
        if waited < limits.late_after / 2 {
            return;
        }
        let rest = self.rest.get_or_insert_with(|| Rest::begin(now));
        if waited >= limits.late_after
            && self.reported.is_none_or(|said| now.duration_since(said) >= REPORT_EVERY)
            && let Some(stuck) = self.world.stuck()
            && rest.lasts(now, limits.late_after / 4)
        {
            self.reported = Some(now);
            control.report_stuck(self.world.collector(), stuck);
        }
    }

    fn came(&mut self, peer: usize) {
        let waited = self.look(Instant::now());
        self.count(peer, waited);
        if let Some(rank) = self.rank_of(peer) {
            self.world.counters.waited(rank, waited);
        }
        self.counted = (peer, Duration::ZERO);
    }

    #[cfg(feature = "faults")]
    fn steps(&mut self, index: u32, count: u32) {
        self.tell_step(index, count);
    }
}

impl Watch<'_> {
    #[cfg(feature = "faults")]
    fn tell_step(&self, index: u32, count: u32) {
        let contract = &self.begun.contract;
        crate::faults::happens(|_| {
            crate::faults::Moment::Step(crate::faults::Step {
                rank: self.world.rank as usize,
                communicator: contract.group,
                sequence: contract.sequence,
                collective: contract.collective.name(),
                algorithm: Algorithm::SharedMemory.name(),
                label: contract.label,
                index: index as usize,
                count: count as usize,
                sends: true,
            })
        });
    }

    /// How long the call has taken, but for the time in which this rank was itself stopped.
    fn look(&mut self, now: Instant) -> Duration {
        let gap = now.saturating_duration_since(self.looked);
        self.looked = now;
        if gap >= GAP {
            self.missed += gap;
        }
        now.saturating_duration_since(self.begun_at).saturating_sub(self.missed)
    }

    /// This rank has waited so long for `peer` to begin the call.
    fn count(&mut self, peer: usize, waited: Duration) {
        let counted = if self.counted.0 == peer { self.counted.1 } else { Duration::ZERO };
        if let Some(rank) = self.rank_of(peer) {
            self.world.counters.waits(rank, waited.saturating_sub(counted));
        }
        self.counted = (peer, waited);
    }

    /// A rank of the communicator, in the whole world.
    fn rank_of(&self, peer: usize) -> Option<u32> {
        self.world.members(self.begun.contract.group)?.get(peer).copied()
    }
}

/// As the lane judges its own stops (`lane/lateness.rs`).
const GAP: Duration = Duration::from_millis(500);
/// As the lane's: shorter waits are counted when they end.
const LONG: Duration = Duration::from_secs(1);
/// Between two warnings.
const SHORTEST: Duration = Duration::from_millis(5);
