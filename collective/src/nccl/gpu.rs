//! A rank's GPU: NCCL between all ranks of a communicator.

mod waiting;

use std::collections::VecDeque;
use std::fmt;
use std::panic::Location;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use cudarc::driver::sys::{CUresult, CUstreamCaptureStatus};
use cudarc::driver::{CudaContext, CudaStream, DriverError};

use super::calls::OnStream;
use super::inside::{Entered, Inside};
use super::library::{Code, Functions, Nccl, SUCCESS};
use super::meeting::{self, Found};
use super::pair::{Comm, Pair};
use super::watch::{self, Joining, OTHERS_KNOW, Watch};
use crate::caller::argument;
use crate::communicator::{Communicator, Kind};
use crate::contract::Role;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::Process;
use crate::pending::Pending;
use crate::report;
use crate::verdict::Loss;
use crate::world::World;

/// A rank's GPU and, through NCCL, those of the other ranks. Its own methods are collectives that
/// return when they are done; [`on`](Self::on) makes them on a stream of the program's.
///
/// As with a [`Communicator`], every rank makes the same calls in the same order, whether on the
/// host or on GPUs: both count.
///
/// After an error other than [`ErrorKind::ConcurrentCalls`] or [`ErrorKind::Argument`] it is of no
/// more use, and the contents of buffers under way are unspecified. Dropping it waits for its calls
/// and closes the communicator.
pub struct Gpu {
    watch: Watch,
    pair: Arc<Pair>,
    nccl: &'static Nccl,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    index: usize,
    name: String,
    /// Messages on streams that the other rank is not known to have made yet.
    started: Mutex<VecDeque<Pending<()>>>,
    /// On which calls were made since they were last waited for.
    streams: Mutex<Vec<Used>>,
    /// Communicator and sequence of the call that was numbered last, and may wait in NCCL for others.
    numbered: Mutex<Option<(u64, u64)>>,
    /// The call that is in NCCL now.
    inside: Arc<Inside>,
    /// The source line of the call that is being numbered and given to NCCL.
    turn: Mutex<Option<&'static Location<'static>>>,
    /// A fork has no GPU.
    process: Process,
    /// Until when NCCL is waited for that is given up.
    let_go_by: OnceLock<Instant>,
    /// Where in the program it was connected.
    connected_at: &'static Location<'static>,
    /// Until it is closed. Closed last, as the ranks need it to end well.
    communicator: Option<Communicator>,
}

impl Gpu {
    /// Chooses this rank's GPU and connects it to those of all ranks of the communicator, which all
    /// make this call: the GPU with the number of the rank on its host, among those that
    /// `CUDA_VISIBLE_DEVICES` shows.
    ///
    /// # Errors
    /// [`ErrorKind::NoGpu`], on every rank, where one of them has no driver, no GPU of its own or no
    /// NCCL, or must not use it; [`ErrorKind::RankLost`] where NCCL does not connect.
    #[track_caller]
    pub fn connect(communicator: Communicator) -> Result<Self> {
        Self::join(communicator, None, Location::caller()).inspect_err(report::has_failed)
    }

    /// As [`connect`](Self::connect), to the GPU of a context that the program has, so that its
    /// buffers fit: cudarc orders streams by what the context object knows.
    ///
    /// # Errors
    /// As there.
    #[track_caller]
    pub fn connect_with(communicator: Communicator, context: &Arc<CudaContext>) -> Result<Self> {
        let location = Location::caller();
        Self::join(communicator, Some(context), location).inspect_err(report::has_failed)
    }

    fn join(
        communicator: Communicator,
        given: Option<&Arc<CudaContext>>,
        connected_at: &'static Location<'static>,
    ) -> Result<Self> {
        let settings = communicator.nccl_settings()?;
        let caller = communicator.caller(connected_at);
        let Found { nccl, context, gpu } = meeting::prepare(caller, settings, given)?;
        let world = match &communicator.kind {
            Kind::Single => None,
            Kind::Joined(engine) => Some(engine.world().clone()),
        };
        let stream = context.new_stream();
        let stream = stream.map_err(|error| fail(world.as_deref(), "a stream", &error))?;
        let id = meeting::share_id(caller, nccl)?;
        let inside = Arc::new(Inside::default());
        let joining = Joining {
            id,
            rank: communicator.rank(),
            size: communicator.size(),
            context: context.clone(),
            limit: settings.patience,
            world,
            inside: inside.clone(),
        };
        let (watch, pair) = Watch::start(nccl, joining)?;
        Ok(Self {
            watch,
            pair,
            nccl,
            context,
            stream,
            index: gpu.index,
            name: gpu.name,
            started: Mutex::default(),
            streams: Mutex::default(),
            numbered: Mutex::default(),
            inside,
            turn: Mutex::default(),
            process: Process::this(),
            let_go_by: OnceLock::new(),
            connected_at,
            communicator: Some(communicator),
        })
    }

    /// The communicator that it was made of. Calls on the host are made by way of it.
    pub fn communicator(&self) -> &Communicator {
        static CLOSED: std::sync::LazyLock<Communicator> =
            std::sync::LazyLock::new(Communicator::single);
        // It is there until `close`, which takes this in.
        self.communicator.as_ref().unwrap_or(&CLOSED)
    }

    /// Its number among the GPUs that this process sees.
    pub fn index(&self) -> usize {
        self.index
    }

    /// What it calls itself.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its primary context, which every library in this process shares.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// A stream of its own, on which its own methods make their calls.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Calls on a stream of this GPU: they return at once, and are done when the stream has come so
    /// far. See [the module](super) for when they are compared.
    pub fn on<'a>(&'a self, stream: &'a Arc<CudaStream>) -> OnStream<'a> {
        OnStream::new(self, stream)
    }

    /// Returns once everything on the stream is done, and every rank is seen to have made the calls
    /// that this one has made on any stream. It is a call itself: every rank makes it.
    ///
    /// # Errors
    /// As for each of the calls.
    #[track_caller]
    pub fn wait(&self, stream: &CudaStream) -> Result<()> {
        self.wait_at(stream, Location::caller())
    }

    /// As [`wait`](Self::wait), for every stream on which calls were made.
    ///
    /// # Errors
    /// As there.
    #[track_caller]
    pub fn synchronize(&self) -> Result<()> {
        self.end_all(Role::DeviceWait, Location::caller())
    }

    /// Ends the world because this rank's own work on its GPU fails, as the error of all ranks, which
    /// names this one and `problem`. Before that it waits 2.6 s for a better word: it may only be that
    /// another rank is gone.
    pub fn fail(&self, problem: &str) -> Error {
        self.let_go_after(match self.world() {
            Some(world) => watch::blame(world, OTHERS_KNOW, problem.into()),
            None => {
                ErrorKind::System { operation: "the GPU".into(), problem: problem.into() }.into()
            }
        })
    }

    /// Waits for all calls, here and on all other ranks, which all make this call; takes NCCL down and
    /// closes the communicator.
    ///
    /// # Errors
    /// As [`synchronize`](Self::synchronize) and [`Communicator::close`].
    #[track_caller]
    pub fn close(mut self) -> Result<()> {
        let stopped = self.stop(Location::caller());
        let closed = self.communicator.take().map_or(Ok(()), Communicator::close);
        stopped.and(closed)
    }

    /// The versions, as a header shows them: `NCCL 2.28.9`.
    pub fn library(&self) -> String {
        format!("NCCL {}", self.nccl.version)
    }

    pub(super) fn world(&self) -> Option<&Arc<World>> {
        match &self.communicator.as_ref()?.kind {
            Kind::Single => None,
            Kind::Joined(engine) => Some(engine.world()),
        }
    }

    /// A call was numbered that may wait for others in NCCL, which connects ranks at their first calls.
    pub(super) fn note_numbered(&self, number: Option<(u64, u64)>) {
        *lock(&self.numbered) = number;
    }

    /// This thread goes into NCCL.
    fn enter_nccl(&self) -> Option<Entered<'_>> {
        let number = *lock(&self.numbered);
        let (world, number) = self.world().zip(number)?;
        Some(self.inside.enter(world, number))
    }

    /// Gives a call to NCCL. `grouped`: inside a group, which holds the communicator.
    pub(super) fn launch(
        &self,
        grouped: Option<Comm>,
        call: impl FnOnce(&Functions, Comm) -> Code,
    ) -> Result<()> {
        self.bind()?;
        let functions = &self.nccl.functions;
        // With what NCCL has noticed by itself.
        let make = |comm| match call(functions, comm) {
            SUCCESS => Ok(()),
            code => Err((code, self.pair.state(comm))),
        };
        let made = match grouped {
            Some(comm) => Some(make(comm)),
            None => {
                let _inside = self.enter_nccl();
                self.pair.call(make)
            }
        };
        match made {
            Some(made) => made.map_err(|(code, noticed)| self.failed(code, noticed)),
            None => Err(self.over()),
        }
    }

    /// NCCL works on the GPU of the thread's context.
    fn bind(&self) -> Result<()> {
        let bound = self.context.bind_to_thread();
        bound.map_err(|error| self.broken("an earlier call", &error))
    }

    /// Makes `calls` while nobody else does, with the communicator and the GPU at hand.
    pub(super) fn hold<R, E: From<Error>>(
        &self,
        calls: impl FnOnce(Comm) -> Result<R, E>,
    ) -> Result<R, E> {
        self.bind()?;
        let result = self.pair.hold(calls).unwrap_or_else(|| Err(self.over().into()));
        if result.is_err() && self.world().is_some_and(|world| world.is_over()) {
            self.let_go();
        }
        result
    }

    /// Gives NCCL a call where [`hold`](Self::hold) has made ready for it.
    pub(super) fn launch_raw(&self, call: impl FnOnce(&Functions) -> Code) -> Result<()> {
        match call(&self.nccl.functions) {
            SUCCESS => Ok(()),
            code => Err(self.failed(code, SUCCESS)),
        }
    }

    /// Several calls that NCCL is given at once.
    pub(super) fn launch_group<R>(&self, calls: impl FnOnce(Comm) -> Result<R>) -> Result<R> {
        self.bind()?;
        let functions = &self.nccl.functions;
        let outcome = self.pair.hold(|comm| {
            // SAFETY: it takes no argument; the group is of this thread.
            let begun = unsafe { (functions.group_start)() };
            if begun != SUCCESS {
                return (begun, SUCCESS, None);
            }
            let open = OpenGroup { gpu: self, functions };
            let result = calls(comm);
            let _inside = self.enter_nccl();
            let ended = open.end();
            let noticed = if ended == SUCCESS { SUCCESS } else { self.pair.state(comm) };
            (ended, noticed, Some(result))
        });
        let result = match outcome {
            Some((SUCCESS, _, Some(Ok(result)))) => return Ok(result),
            // Where the group has not failed as well, the calls before the error are made.
            Some((SUCCESS, _, Some(Err(error)))) => Err(error),
            Some((_, _, Some(Err(error)))) if !error.is_communicator_usable() => Err(error),
            Some((code, noticed, _)) => Err(self.failed(code, noticed)),
            None => Err(self.over()),
        };
        result.map_err(|error| self.let_go_after(error))
    }

    /// A call is made on the stream.
    pub(super) fn note_used(&self, stream: &Arc<CudaStream>) {
        let mut streams = lock(&self.streams);
        let same = |used: &&mut Used| used.stream.cu_stream() == stream.cu_stream();
        match streams.iter_mut().find(same) {
            Some(used) => used.calls += 1,
            None => streams.push(Used { stream: stream.clone(), calls: 1 }),
        }
    }

    /// A message was given to NCCL, and is compared meanwhile.
    pub(super) fn note_started(&self, comparing: Pending<()>) {
        lock(&self.started).push_back(comparing);
    }

    /// No more comparisons may be under way in the engine than it keeps in mind. None is waited for
    /// within a group: the other rank may wait for one of its own, before it comes to this one.
    pub(super) fn limit_started(&self) -> Result<()> {
        loop {
            let next = {
                let mut started = lock(&self.started);
                let is_done = started.front().is_some_and(Pending::is_done);
                if is_done || started.len() > MAX_STARTED { started.pop_front() } else { None }
            };
            match next {
                Some(oldest) => oldest.wait().map_err(|error| self.let_go_after(error))?,
                None => return Ok(()),
            }
        }
    }

    /// The right to number calls and to give them to NCCL: two threads that did would do it in an
    /// order that is no other rank's.
    pub(super) fn enter(&self, location: &'static Location<'static>) -> Result<Turn<'_>> {
        if !self.process.is_this() {
            let (process, connected) = (std::process::id(), self.process.id);
            return Err(ErrorKind::Forked { process, connected }.into());
        }
        let mut turn = lock(&self.turn);
        if let Some(first) = *turn {
            return Err(
                ErrorKind::ConcurrentCalls { first: at(first), second: at(location) }.into()
            );
        }
        *turn = Some(location);
        Ok(Turn(self))
    }

    /// Every rank has made the same calls, else some would be waited for in vain; and NCCL is only taken
    /// down once they have ended on every rank: what one of them has sent may still be on its way from
    /// here.
    fn stop(&mut self, location: &'static Location<'static>) -> Result<()> {
        let result = self.end_all(Role::DeviceClose, location);
        if self.world().is_some_and(|world| world.is_over()) || self.pair.is_given_up() {
            self.let_go();
        } else {
            self.watch.close();
        }
        result
    }

    /// A call that NCCL refuses. It may only be that another rank is gone, which the world then says.
    fn failed(&self, code: Code, noticed: Code) -> Error {
        let words = self.nccl.describe(code);
        let Some(world) = self.world() else {
            return ErrorKind::System { operation: "NCCL".into(), problem: words }.into();
        };
        let patience = watch::patience(code, noticed);
        self.let_go_after(watch::blame(world, patience, format!("NCCL: {words}")))
    }

    /// Whether calls can be made on the stream, or waited for. To be asked before cudarc makes it wait
    /// for a buffer, which would spoil a capture.
    pub(super) fn takes(&self, stream: &CudaStream) -> Result<()> {
        let (own, of_stream) = (&self.context, stream.context());
        if of_stream != own {
            let (index, other) = (own.ordinal(), of_stream.ordinal());
            return argument(format!("the stream is of GPU {other}, this rank's is GPU {index}"));
        }
        match stream.capture_status() {
            Ok(CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE) => Ok(()),
            Err(error) if error.0 != CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT => {
                Err(self.broken("the stream", &error))
            }
            Ok(_) | Err(_) => argument(
                "the stream is being captured into a CUDA graph, whose calls nobody would compare; \
                 make the call outside of the capture"
                    .into(),
            ),
        }
    }

    /// CUDA itself fails.
    pub(crate) fn broken(&self, what: &str, error: &DriverError) -> Error {
        self.let_go_after(fail(self.world().map(|world| &**world), what, error))
    }

    /// The error that ended everything.
    fn over(&self) -> Error {
        let Some(world) = self.world() else {
            let problem = self.pair.problem().unwrap_or("it was given up").into();
            return ErrorKind::System { operation: "NCCL".into(), problem }.into();
        };
        self.let_go_after(world.ended())
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if self.communicator.is_none() || !self.process.is_this() {
            return;
        }
        // The others hear of it before NCCL is given up here, and nothing is waited for.
        if std::thread::panicking() {
            if let Some(world) = self.world() {
                world.lose(world.rank, Loss::Panicked);
            }
            return;
        }
        // Of a world that has ended the error is told by whoever finds it first.
        if let Err(error) = self.stop(self.connected_at)
            && self.world().is_none()
        {
            report::warn(&error.to_string());
        }
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GPU {} ({})", self.index, self.name)
    }
}

/// Ends the world because CUDA fails on this rank.
fn fail(world: Option<&World>, what: &str, error: &DriverError) -> Error {
    let problem = format!("CUDA, {what}: {}", meeting::words(error));
    match world {
        Some(world) => watch::blame(world, OTHERS_KNOW, problem),
        None => ErrorKind::System { operation: "CUDA".into(), problem }.into(),
    }
}

/// A stream on which calls were made, and how many.
#[derive(Clone)]
struct Used {
    stream: Arc<CudaStream>,
    calls: u64,
}

/// The right to make a call; given back when dropped, also when unwinding.
pub(super) struct Turn<'a>(&'a Gpu);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *lock(&self.0.turn) = None;
    }
}

/// A group that NCCL has begun on this thread. It must end there, or every later call of the thread
/// would be part of it.
struct OpenGroup<'a> {
    gpu: &'a Gpu,
    functions: &'a Functions,
}

impl OpenGroup<'_> {
    fn end(self) -> Code {
        let functions = self.functions;
        std::mem::forget(self);
        // SAFETY: it takes no argument; the group is of this thread.
        unsafe { (functions.group_end)() }
    }
}

/// The program's code is unwinding: the calls it had made would be given to NCCL without the others.
impl Drop for OpenGroup<'_> {
    fn drop(&mut self) {
        if let Some(world) = self.gpu.world() {
            world.lose(world.rank, Loss::Panicked);
        }
        // SAFETY: as in `end`.
        let _ = unsafe { (self.functions.group_end)() };
    }
}

fn at(location: &Location<'_>) -> String {
    crate::contract::show_location(location)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Half of what the engine keeps (see [`Pending`]): calls on the host may be under way too.
const MAX_STARTED: usize = 512;
/// Kernels look at NCCL's abort flag all the time.
const LET_GO: Duration = Duration::from_secs(1);
