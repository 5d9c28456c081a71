//! The collectives on GPUs.

mod making;

use std::cell::RefCell;
use std::panic::Location;
use std::rc::Rc;
use std::sync::Arc;

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, SyncOnDrop};

use super::gpu::Gpu;
use super::pair::Comm;
use super::raw::Raw;
use crate::error::Result;
use crate::reduce::{Element, ReduceOp, Reducible};
use making::{Comparing, DeviceCall, Held, Way};

/// Calls on a stream; they return at once. See [`Gpu::on`].
#[derive(Clone, Copy)]
pub struct OnStream<'a> {
    pub(super) gpu: &'a Gpu,
    stream: &'a Arc<CudaStream>,
    label: Option<u64>,
}

/// Calls on a stream that NCCL is given at once, so that sends and receives that need each other can
/// go on together. See [`OnStream::group`].
pub struct Group<'a> {
    on: OnStream<'a>,
    comm: Comm,
    /// Shared with who ends the group, so that they outlive it also while unwinding.
    kept: Rc<RefCell<Vec<SyncOnDrop<'a>>>>,
}

impl<'a> OnStream<'a> {
    pub(super) fn new(gpu: &'a Gpu, stream: &'a Arc<CudaStream>) -> Self {
        Self { gpu, stream, label: None }
    }

    /// The same with a label that must be equal on all ranks.
    pub fn labelled(self, label: u64) -> Self {
        Self { label: Some(label), ..self }
    }

    /// Makes the calls of `calls` as one: NCCL begins none before it has them all. Their buffers
    /// come from outside, so that they are there until then. No other call of this GPU is made within
    /// `calls`, from whatever thread.
    ///
    /// # Errors
    /// That of `calls`, of which those before the error are made all the same; else NCCL's.
    #[track_caller]
    pub fn group<R>(&self, calls: impl FnOnce(&Group<'a>) -> Result<R>) -> Result<R> {
        let turn = self.gpu.enter(Location::caller())?;
        // They go after NCCL has all calls, when cudarc may order other streams behind them.
        let kept = Rc::default();
        let result =
            self.gpu.launch_group(|comm| calls(&Group { on: *self, comm, kept: Rc::clone(&kept) }));
        drop((kept, turn));
        let result = result?;
        self.gpu.limit_started()?;
        Ok(result)
    }

    /// Returns once everything on the stream is done, as [`Gpu::wait`].
    ///
    /// # Errors
    /// As there.
    #[track_caller]
    pub fn wait(&self) -> Result<()> {
        self.gpu.wait_at(self.stream, Location::caller())
    }

    fn call(&self, location: &'static Location<'static>) -> DeviceCall<'a> {
        let OnStream { gpu, stream, label } = *self;
        DeviceCall { gpu, stream, label, location, way: Way::Compared(Comparing::Queued) }
    }

    fn release(&self, _held: Held<'_>) {}
}

impl<'a> Group<'a> {
    fn call(&self, location: &'static Location<'static>) -> DeviceCall<'a> {
        DeviceCall { way: Way::Compared(Comparing::Grouped(self.comm)), ..self.on.call(location) }
    }

    /// Until the group has ended.
    fn release(&self, held: Held<'a>) {
        self.kept.borrow_mut().extend(held.into_iter().flatten());
    }
}

impl Raw<'_> {
    fn call(&self, location: &'static Location<'static>) -> DeviceCall<'_> {
        DeviceCall { way: Way::Raw(self.comm), ..self.on.call(location) }
    }

    fn release(&self, _held: Held<'_>) {}
}

impl Gpu {
    fn call(&self, location: &'static Location<'static>) -> DeviceCall<'_> {
        let (stream, way) = (self.stream(), Way::Compared(Comparing::Blocking));
        DeviceCall { gpu: self, stream, label: None, location, way }
    }

    fn release(&self, _held: Held<'_>) {}
}

// `held`: how long buffers are borrowed, where that is longer than the call.
macro_rules! collectives {
    ($($on:ty $(, $held:lifetime)?;)*) => { $(
impl$(<$held>)? $on {
    /// The buffer becomes the combination of all ranks' buffers.
    ///
    /// NCCL computes it: floats in an order of its own, which is alike on all ranks, and integers
    /// without a promise on overflow.
    ///
    /// # Errors
    /// [`ErrorKind::Mismatch`](crate::ErrorKind::Mismatch) if the ranks' calls differ,
    /// [`ErrorKind::RankLost`](crate::ErrorKind::RankLost) if a rank is gone or its NCCL fails,
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument) if the buffer is of another GPU.
    #[track_caller]
    pub fn all_reduce<T: Reducible, B: DevicePtrMut<T>>(
        &self,
        buffer: &$($held)? mut B,
        op: ReduceOp,
    ) -> Result<()> {
        self.release(self.call(Location::caller()).all_reduce(buffer, op)?);
        Ok(())
    }

    /// As [`all_reduce`](Self::all_reduce), with the result in `output`, as long as `input`.
    ///
    /// # Errors
    /// As there.
    #[track_caller]
    pub fn all_reduce_into<T: Reducible, I: DevicePtr<T>, O: DevicePtrMut<T>>(
        &self,
        input: &$($held)? I,
        output: &$($held)? mut O,
        op: ReduceOp,
    ) -> Result<()> {
        self.release(self.call(Location::caller()).all_reduce_into(input, output, op)?);
        Ok(())
    }

    /// `input` has one block for each rank, and `output` becomes this rank's block of the
    /// combination of all ranks' inputs.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce); an argument error if `input` is not world size times as
    /// long as `output`.
    #[track_caller]
    pub fn reduce_scatter<T: Reducible, I: DevicePtr<T>, O: DevicePtrMut<T>>(
        &self,
        input: &$($held)? I,
        output: &$($held)? mut O,
        op: ReduceOp,
    ) -> Result<()> {
        self.release(self.call(Location::caller()).reduce_scatter(input, output, op)?);
        Ok(())
    }

    /// `output` becomes all ranks' inputs in rank order.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce); an argument error if `output` is not world size times as
    /// long as `input`.
    #[track_caller]
    pub fn all_gather<T: Element, I: DevicePtr<T>, O: DevicePtrMut<T>>(
        &self,
        input: &$($held)? I,
        output: &$($held)? mut O,
    ) -> Result<()> {
        self.release(self.call(Location::caller()).all_gather(input, output)?);
        Ok(())
    }

    /// Every rank's buffer becomes the buffer of rank `root`.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce); an argument error if there is no rank `root`.
    #[track_caller]
    pub fn broadcast<T: Element, B: DevicePtrMut<T>>(
        &self,
        buffer: &$($held)? mut B,
        root: usize,
    ) -> Result<()> {
        self.release(self.call(Location::caller()).broadcast(buffer, root)?);
        Ok(())
    }

    /// The buffer of rank `root` becomes the combination of all ranks' buffers; the others stay as
    /// they are.
    ///
    /// # Errors
    /// As [`broadcast`](Self::broadcast).
    #[track_caller]
    pub fn reduce<T: Reducible, B: DevicePtrMut<T>>(
        &self,
        buffer: &$($held)? mut B,
        op: ReduceOp,
        root: usize,
    ) -> Result<()> {
        self.release(self.call(Location::caller()).reduce(buffer, op, root)?);
        Ok(())
    }

    /// Sends `input` to rank `to`, which receives it with [`recv`](Self::recv). A send and a
    /// receive of one rank that need each other stand in one [group](OnStream::group).
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce); an argument error if there is no other rank `to`.
    #[track_caller]
    pub fn send<T: Element, I: DevicePtr<T>>(&self, input: &$($held)? I, to: usize) -> Result<()> {
        self.release(self.call(Location::caller()).send(input, to)?);
        Ok(())
    }

    /// Receives into `output` what rank `from` sends with [`send`](Self::send).
    ///
    /// # Errors
    /// As there.
    #[track_caller]
    pub fn recv<T: Element, O: DevicePtrMut<T>>(&self, output: &$($held)? mut O, from: usize) -> Result<()> {
        self.release(self.call(Location::caller()).recv(output, from)?);
        Ok(())
    }

    /// As [`all_reduce_into`](Self::all_reduce_into), of `count` elements at raw addresses on the
    /// GPU; the two may be the same.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Safety
    /// Both are `count` elements of this GPU's memory, until the call is done on
    /// the stream, which has come to where the data are there.
    #[track_caller]
    pub unsafe fn all_reduce_at<T: Reducible>(
        &self,
        input: CUdeviceptr,
        output: CUdeviceptr,
        count: usize,
        op: ReduceOp,
    ) -> Result<()> {
        self.call(Location::caller()).all_reduce_at::<T>(input, output, count, op)
    }

    /// As [`reduce_scatter`](Self::reduce_scatter), of raw addresses; `count` is that of the output.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Safety
    /// `output` is `count` elements of this GPU's memory, and `input` world size times as many,
    /// until the call is done on
    /// the stream, which has come to where the data are there.
    #[track_caller]
    pub unsafe fn reduce_scatter_at<T: Reducible>(
        &self,
        input: CUdeviceptr,
        output: CUdeviceptr,
        count: usize,
        op: ReduceOp,
    ) -> Result<()> {
        self.call(Location::caller()).reduce_scatter_at::<T>(input, output, count, op)
    }

    /// As [`all_gather`](Self::all_gather), of raw addresses; `count` is that of the input.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Safety
    /// `input` is `count` elements of this GPU's memory, and `output` world size times as many,
    /// until the call is done on
    /// the stream, which has come to where the data are there.
    #[track_caller]
    pub unsafe fn all_gather_at<T: Element>(
        &self,
        input: CUdeviceptr,
        output: CUdeviceptr,
        count: usize,
    ) -> Result<()> {
        self.call(Location::caller()).all_gather_at::<T>(input, output, count)
    }

    /// As [`broadcast`](Self::broadcast), of a raw address.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Safety
    /// `buffer` is `count` elements of this GPU's memory, until the call is done on
    /// the stream, which has come to where the data are there.
    #[track_caller]
    pub unsafe fn broadcast_at<T: Element>(
        &self,
        buffer: CUdeviceptr,
        count: usize,
        root: usize,
    ) -> Result<()> {
        self.call(Location::caller()).broadcast_at::<T>(buffer, count, root)
    }

    /// As [`reduce`](Self::reduce), of a raw address.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Safety
    /// `buffer` is `count` elements of this GPU's memory, until the call is done on
    /// the stream, which has come to where the data are there.
    #[track_caller]
    pub unsafe fn reduce_at<T: Reducible>(
        &self,
        buffer: CUdeviceptr,
        count: usize,
        op: ReduceOp,
        root: usize,
    ) -> Result<()> {
        self.call(Location::caller()).reduce_at::<T>(buffer, count, op, root)
    }

    /// As [`send`](Self::send), of a raw address.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Safety
    /// `input` is `count` elements of this GPU's memory, until the call is done on
    /// the stream, which has come to where the data are there.
    #[track_caller]
    pub unsafe fn send_at<T: Element>(
        &self,
        input: CUdeviceptr,
        count: usize,
        to: usize,
    ) -> Result<()> {
        self.call(Location::caller()).send_at::<T>(input, count, to)
    }

    /// As [`recv`](Self::recv), of a raw address.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Safety
    /// `output` is `count` elements of this GPU's memory, until the call is done on
    /// the stream, which has come to where the data are there.
    #[track_caller]
    pub unsafe fn recv_at<T: Element>(
        &self,
        output: CUdeviceptr,
        count: usize,
        from: usize,
    ) -> Result<()> {
        self.call(Location::caller()).recv_at::<T>(output, count, from)
    }
}
    )* };
}
collectives! {
    Gpu;
    OnStream<'_>;
    Group<'held>, 'held;
    Raw<'_>;
}
