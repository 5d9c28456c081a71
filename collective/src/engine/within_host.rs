//! Calls of a communicator whose ranks share memory. A blocking one is made on the caller's own
//! thread, without a hand-over; one that was started is made on a thread of the communicator's, in
//! its turn.

mod difference;

use std::collections::VecDeque;
use std::panic::Location;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use super::watch::Watch;
use crate::buffer::{Borrowed, Lent, Parts};
use crate::error::{ErrorKind, Result};
use crate::group::{Begun, Planned};
use crate::host_memory::HostMemory;
use crate::lane::{self, Asked, Completer};
use crate::lanes::Handed;
use crate::link::shared_memory::{Shared, Stop, Sum};
use crate::plan::{Algorithm, Plan};
use crate::reduce::ReduceOp;
use crate::report;
use crate::verdict::Loss;
use crate::world::World;

/// What a communicator has where its ranks share memory.
pub(super) struct WithinHost {
    world: Arc<World>,
    group: u64,
    /// Of the communicator.
    ranks: u32,
    /// Those that meet here, in the world.
    around: Vec<u32>,
    /// Where not all ranks do: into how many parts the data are cut between hosts.
    parts: Option<usize>,
    shared: Mutex<Shared>,
    memory: Arc<HostMemory>,
    /// Calls handed to the thread that have not ended.
    queued: AtomicUsize,
    /// Who may wait for them: the first is under way.
    asked: Mutex<VecDeque<Asked>>,
    queue: Mutex<Option<Queue>>,
}

/// What a call needs to go on between hosts.
pub(super) struct Between {
    pub(super) plan: Plan,
    pub(super) members: Arc<[u32]>,
    pub(super) location: &'static Location<'static>,
}

struct Queue {
    jobs: Sender<Job>,
    thread: JoinHandle<()>,
}

/// What the communicator's thread does in its turn.
enum Job {
    Here(Box<(Begun, Option<Between>)>, Lent, Completer),
    /// Over the network: the lanes' calls keep their own order.
    There(Handed),
    Flush(Completer),
}

impl WithinHost {
    /// For communicator `group` of so many ranks; `around` meet in `shared`.
    pub(super) fn new(
        world: Arc<World>,
        (group, ranks): (u64, u32),
        (around, shared, memory): (Vec<u32>, Shared, Arc<HostMemory>),
        parts: Option<usize>,
    ) -> Arc<Self> {
        Arc::new(Self {
            world,
            group,
            ranks,
            around,
            parts,
            shared: Mutex::new(shared),
            memory,
            queued: AtomicUsize::new(0),
            asked: Mutex::new(VecDeque::new()),
            queue: Mutex::new(None),
        })
    }

    /// Whether some ranks are on other hosts.
    pub(super) fn has_other_hosts(&self) -> bool {
        self.parts.is_some()
    }

    /// Whether calls are in the hands of the thread.
    pub(super) fn is_queued(&self) -> bool {
        self.queued.load(Ordering::Acquire) > 0
    }

    /// Makes a call on this thread; all before it have ended.
    pub(super) fn call(
        &self,
        begun: &Begun,
        between: Option<Between>,
        buffer: &mut [u8],
    ) -> Result<()> {
        self.make((begun, between), buffer, Instant::now(), None)
    }

    /// Has a call made in its turn.
    pub(super) fn start(
        self: &Arc<Self>,
        call: (Begun, Option<Between>),
        lent: Lent,
        done: Completer,
    ) {
        self.hand_over(Job::Here(Box::new(call), lent, done));
    }

    /// Hands a call to the lanes in its turn.
    pub(super) fn forward(self: &Arc<Self>, call: Handed) {
        self.hand_over(Job::There(call));
    }

    /// Completes this once all that was handed over has ended.
    pub(super) fn flush(self: &Arc<Self>, done: Completer) {
        done.note_awaited();
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
        let (is_here, asked) = match &job {
            Job::Here(_, _, done) => (true, Some(done.asked())),
            Job::Flush(done) => (false, Some(done.asked())),
            Job::There(call) => (false, call.asked()),
        };
        self.asked().extend(asked);
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
        let sent = queue.as_ref().is_some_and(|queue| queue.jobs.send(job).is_ok());
        drop(queue);
        // The job was dropped, which completes it with an error.
        if !sent {
            self.leave_queue();
            if is_here {
                self.world.end_call(self.group);
            }
            let problem = "it cannot start a thread for its calls".into();
            self.world.lose(self.world.rank, Loss::Failed { problem });
        }
    }

    /// A job has ended.
    fn leave_queue(&self) {
        self.asked().pop_front();
        self.queued.fetch_sub(1, Ordering::AcqRel);
    }

    /// Since when somebody waits for the call under way, or for one behind it: that one cannot begin
    /// before.
    fn awaited(&self) -> Option<Instant> {
        self.asked().iter().filter_map(Asked::since).min()
    }

    fn asked(&self) -> MutexGuard<'_, VecDeque<Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, inbox: &Receiver<Job>) {
        report::speak_for(&self.world.counters.origin);
        #[cfg(feature = "faults")]
        crate::faults::enter(self.world.rank);
        while let Ok(job) = inbox.recv() {
            match job {
                Job::Here(call, mut lent, done) => {
                    let (begun, between) = *call;
                    let result = self.flush_lanes().and_then(|()| {
                        let awaited = || self.awaited();
                        let (buffer, now) = (lent.in_place(), Instant::now());
                        self.make((&begun, between), buffer, now, Some(&awaited))
                    });
                    drop(lent);
                    self.leave_queue();
                    done.set(result);
                }
                Job::There(call) => {
                    self.run_over_lanes(call);
                    self.leave_queue();
                }
                Job::Flush(done) => {
                    let result = self.flush_lanes();
                    self.leave_queue();
                    done.set(result);
                }
            }
        }
    }

    /// Where there are no lanes the call is dropped, which ends it with an error.
    fn run_over_lanes(&self, call: Handed) {
        if let Some(lanes) = self.world.lanes() {
            lanes.run(call);
        }
    }

    /// Waits until no lane has a call of the communicator.
    fn flush_lanes(&self) -> Result<()> {
        let (done, completion) = lane::completion();
        match self.world.lanes() {
            Some(lanes) => lanes.flush(self.group, done),
            None => drop(done),
        }
        completion.wait()
    }

    fn make(
        &self,
        (begun, between): (&Begun, Option<Between>),
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
            is_all: self.parts.is_none(),
        };
        let mut watch = Watch::new(world, (begun, &self.around), since, awaited);
        let hash = begun.hash;
        let outcome = match (self.parts, between) {
            _ if world.is_over() => Err(Stop::Over),
            (Some(parts), Some(between)) => {
                let reduced = self.shared().reduce_parts(hash, sum, parts, buffer, &mut watch);
                let met = reduced.and_then(|()| {
                    self.meet_other_hosts(begun, between, buffer, awaited.is_none())
                });
                met.and_then(|()| {
                    watch.goes_on();
                    self.shared().gather_parts(hash, sum, parts, buffer, &mut watch)
                })
            }
            _ => self.shared().all_reduce(hash, sum, buffer, &mut watch),
        };
        let result = match outcome {
            Ok(()) => {
                let algorithm = match self.parts {
                    Some(_) => Algorithm::ByHost,
                    None => Algorithm::SharedMemory,
                };
                world.counters.call(contract.key(algorithm), since.elapsed());
                Ok(())
            }
            Err(Stop::Over) => Err(world.error().unwrap_or_else(|| ErrorKind::Closed.into())),
            Err(Stop::Differs(place)) => {
                self.tell_difference(begun, place, &mut watch);
                Err(world.error().unwrap_or_else(|| ErrorKind::Closed.into()))
            }
        };
        if result.is_err() {
            // Before anybody has the buffer back: a rank that wakes in the middle of the call must
            // not write into it, nor into what is made of its memory next.
            self.memory.make_private(buffer);
        }
        world.end_call(group);
        result
    }
}

impl WithinHost {
    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds up this rank's part with those of other hosts. `is_awaited`: by this thread's caller.
    fn meet_other_hosts(
        &self,
        begun: &Begun,
        between: Between,
        buffer: &mut [u8],
        is_awaited: bool,
    ) -> std::result::Result<(), Stop> {
        let (world, sequence) = (&self.world, begun.contract.sequence);
        let Between { plan, members, location } = between;
        let whole = 0..buffer.len();
        let parts = Parts { input: whole.clone(), output: whole };
        let (loan, lent) = Borrowed::in_place(buffer, parts).lend();
        let planned = Planned { begun: *begun, plan, members };
        let (call, completion) = Handed::new(world, planned, location, lent, false);
        self.run_over_lanes(call);
        let waiting = is_awaited.then(|| world.note_waiting(self.group, sequence));
        let result = completion.wait();
        drop((waiting, loan));
        result.map_err(|_| Stop::Over)
    }
}
