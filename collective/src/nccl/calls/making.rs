//! A call on its way from the user to NCCL: checked, numbered, given over.

use std::ffi::{c_int, c_void};
use std::panic::Location;
use std::sync::Arc;

use cudarc::driver::sys::{CUdeviceptr, CUstream};
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, DeviceSlice, SyncOnDrop};
use cudarc::nccl::sys::{cudaStream_t, ncclDataType_t, ncclRedOp_t};

use super::super::gpu::{Gpu, Turn};
use super::super::library::{Code, Functions};
use super::super::pair::Comm;
use crate::caller::{Caller, Shaped, argument};
use crate::contract::{Collective, Role};
use crate::error::Result;
use crate::pending::Pending;
use crate::reduce::{Element, ElementType, ReduceOp, Reducible};

/// Until these are dropped, cudarc takes the buffers of a call for untouched by it.
pub(super) type Held<'a> = [Option<SyncOnDrop<'a>>; 2];

/// A call on its way from the user to NCCL.
pub(super) struct DeviceCall<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) stream: &'a Arc<CudaStream>,
    pub(super) label: Option<u64>,
    pub(super) location: &'static Location<'static>,
    pub(super) way: Way,
}

#[derive(Clone, Copy)]
pub(super) enum Way {
    Compared(Comparing),
    /// Given to NCCL with nothing around it.
    Raw(Comm),
}

/// When the ranks' calls are compared.
#[derive(Clone, Copy)]
pub(super) enum Comparing {
    /// First, with all before it; and then the call is waited for.
    Blocking,
    /// When it is waited for: it is given to NCCL at once.
    Queued,
    /// As `Queued`, in a group that holds the communicator.
    Grouped(Comm),
}

impl<'a> DeviceCall<'a> {
    pub(super) fn all_reduce<T: Reducible, B: DevicePtrMut<T>>(
        self,
        buffer: &'a mut B,
        op: ReduceOp,
    ) -> Result<Held<'a>> {
        self.is_here::<T>(buffer)?;
        let (stream, count) = (self.stream, buffer.len());
        let (at, until) = buffer.device_ptr_mut(stream);
        self.all_reduce_at::<T>(at, at, count, op)?;
        Ok([Some(until), None])
    }

    pub(super) fn all_reduce_into<T: Reducible, I: DevicePtr<T>, O: DevicePtrMut<T>>(
        self,
        input: &'a I,
        output: &'a mut O,
        op: ReduceOp,
    ) -> Result<Held<'a>> {
        self.are_here::<T>(input, output)?;
        self.caller().same_length("all_reduce", input.len(), output.len())?;
        let (stream, count) = (self.stream, input.len());
        let (from, input) = input.device_ptr(stream);
        let (into, output) = output.device_ptr_mut(stream);
        self.all_reduce_at::<T>(from, into, count, op)?;
        Ok([Some(input), Some(output)])
    }

    pub(super) fn reduce_scatter<T: Reducible, I: DevicePtr<T>, O: DevicePtrMut<T>>(
        self,
        input: &'a I,
        output: &'a mut O,
        op: ReduceOp,
    ) -> Result<Held<'a>> {
        self.are_here::<T>(input, output)?;
        let (long, block) = (input.len(), output.len());
        self.caller().blocks("reduce_scatter", "input", long, "output", block)?;
        let stream = self.stream;
        let (from, input) = input.device_ptr(stream);
        let (into, output) = output.device_ptr_mut(stream);
        self.reduce_scatter_at::<T>(from, into, block, op)?;
        Ok([Some(input), Some(output)])
    }

    pub(super) fn all_gather<T: Element, I: DevicePtr<T>, O: DevicePtrMut<T>>(
        self,
        input: &'a I,
        output: &'a mut O,
    ) -> Result<Held<'a>> {
        self.are_here::<T>(input, output)?;
        let (long, block) = (output.len(), input.len());
        self.caller().blocks("all_gather", "output", long, "input", block)?;
        let stream = self.stream;
        let (from, input) = input.device_ptr(stream);
        let (into, output) = output.device_ptr_mut(stream);
        self.all_gather_at::<T>(from, into, block)?;
        Ok([Some(input), Some(output)])
    }

    pub(super) fn broadcast<T: Element, B: DevicePtrMut<T>>(
        self,
        buffer: &'a mut B,
        root: usize,
    ) -> Result<Held<'a>> {
        self.is_here::<T>(buffer)?;
        let (stream, count) = (self.stream, buffer.len());
        let (at, until) = buffer.device_ptr_mut(stream);
        self.broadcast_at::<T>(at, count, root)?;
        Ok([Some(until), None])
    }

    pub(super) fn reduce<T: Reducible, B: DevicePtrMut<T>>(
        self,
        buffer: &'a mut B,
        op: ReduceOp,
        root: usize,
    ) -> Result<Held<'a>> {
        self.is_here::<T>(buffer)?;
        let (stream, count) = (self.stream, buffer.len());
        let (at, until) = buffer.device_ptr_mut(stream);
        self.reduce_at::<T>(at, count, op, root)?;
        Ok([Some(until), None])
    }

    pub(super) fn send<T: Element, I: DevicePtr<T>>(
        self,
        input: &'a I,
        to: usize,
    ) -> Result<Held<'a>> {
        self.is_here::<T>(input)?;
        let (stream, count) = (self.stream, input.len());
        let (at, until) = input.device_ptr(stream);
        self.send_at::<T>(at, count, to)?;
        Ok([Some(until), None])
    }

    pub(super) fn recv<T: Element, O: DevicePtrMut<T>>(
        self,
        output: &'a mut O,
        from: usize,
    ) -> Result<Held<'a>> {
        self.is_here::<T>(output)?;
        let (stream, count) = (self.stream, output.len());
        let (at, until) = output.device_ptr_mut(stream);
        self.recv_at::<T>(at, count, from)?;
        Ok([Some(until), None])
    }

    pub(super) fn all_reduce_at<T: Reducible>(
        self,
        input: CUdeviceptr,
        output: CUdeviceptr,
        count: usize,
        op: ReduceOp,
    ) -> Result<()> {
        let call = self.caller().whole(Collective::AllReduce, Some(op), count);
        let (kind, op) = (kind_of(T::TYPE), op_of(op));
        self.make::<T>(call, |nccl, comm, stream| {
            let (input, output) = (input as *const c_void, output as *mut c_void);
            // SAFETY: the caller's memory is there until the call is done, as it promises or as its
            // slices make sure; the communicator is held.
            unsafe { (nccl.all_reduce)(input, output, count, kind, op, comm.0, stream) }
        })
    }

    pub(super) fn reduce_scatter_at<T: Reducible>(
        self,
        input: CUdeviceptr,
        output: CUdeviceptr,
        count: usize,
        op: ReduceOp,
    ) -> Result<()> {
        let call = self.caller().of_blocks(Collective::ReduceScatter, Some(op), count);
        let (kind, op) = (kind_of(T::TYPE), op_of(op));
        self.make::<T>(call, |nccl, comm, stream| {
            let (input, output) = (input as *const c_void, output as *mut c_void);
            // SAFETY: as in `all_reduce_at`.
            unsafe { (nccl.reduce_scatter)(input, output, count, kind, op, comm.0, stream) }
        })
    }

    pub(super) fn all_gather_at<T: Element>(
        self,
        input: CUdeviceptr,
        output: CUdeviceptr,
        count: usize,
    ) -> Result<()> {
        let call = self.caller().of_blocks(Collective::AllGather, None, count);
        let kind = kind_of(T::TYPE);
        self.make::<T>(call, |nccl, comm, stream| {
            let (input, output) = (input as *const c_void, output as *mut c_void);
            // SAFETY: as in `all_reduce_at`.
            unsafe { (nccl.all_gather)(input, output, count, kind, comm.0, stream) }
        })
    }

    pub(super) fn broadcast_at<T: Element>(
        self,
        at: CUdeviceptr,
        count: usize,
        root: usize,
    ) -> Result<()> {
        let root = self.caller().rank_of("broadcast from", root)?;
        let call = self.caller().whole(Collective::Broadcast { root }, None, count);
        let kind = kind_of(T::TYPE);
        self.make::<T>(call, |nccl, comm, stream| {
            let (input, output) = (at as *const c_void, at as *mut c_void);
            // SAFETY: as in `all_reduce_at`.
            unsafe { (nccl.broadcast)(input, output, count, kind, root as c_int, comm.0, stream) }
        })
    }

    pub(super) fn reduce_at<T: Reducible>(
        self,
        at: CUdeviceptr,
        count: usize,
        op: ReduceOp,
        root: usize,
    ) -> Result<()> {
        let root = self.caller().rank_of("reduce to", root)?;
        let call = self.caller().whole(Collective::Reduce { root }, Some(op), count);
        let (kind, op) = (kind_of(T::TYPE), op_of(op));
        self.make::<T>(call, |nccl, comm, stream| {
            let (input, output) = (at as *const c_void, at as *mut c_void);
            // SAFETY: as in `all_reduce_at`; NCCL reads no output but the root's.
            unsafe { (nccl.reduce)(input, output, count, kind, op, root as c_int, comm.0, stream) }
        })
    }

    pub(super) fn send_at<T: Element>(
        self,
        at: CUdeviceptr,
        count: usize,
        to: usize,
    ) -> Result<()> {
        let to = self.caller().other_rank("send to", to)?;
        let kind = kind_of(T::TYPE);
        self.pass::<T>((to, true), count, |nccl, comm, stream| {
            // SAFETY: as in `all_reduce_at`.
            unsafe { (nccl.send)(at as *const c_void, count, kind, to as c_int, comm.0, stream) }
        })
    }

    pub(super) fn recv_at<T: Element>(
        self,
        at: CUdeviceptr,
        count: usize,
        from: usize,
    ) -> Result<()> {
        let from = self.caller().other_rank("recv from", from)?;
        let kind = kind_of(T::TYPE);
        self.pass::<T>((from, false), count, |nccl, comm, stream| {
            // SAFETY: as in `all_reduce_at`.
            unsafe { (nccl.recv)(at as *mut c_void, count, kind, from as c_int, comm.0, stream) }
        })
    }

    /// Makes a collective: compared and given to NCCL, in the order of its way.
    fn make<T: Element>(
        &self,
        mut call: Shaped,
        launch: impl FnOnce(&Functions, Comm, cudaStream_t) -> Code,
    ) -> Result<()> {
        let comparing = match self.way {
            Way::Compared(comparing) => comparing,
            Way::Raw(comm) => return self.give_raw(comm, launch),
        };
        // Calls that are compared at other moments are other calls.
        call.role = match comparing {
            Comparing::Blocking => Role::DeviceNow,
            Comparing::Queued | Comparing::Grouped(_) => Role::Device,
        };
        let shape = self.caller().shape::<T>(call);
        let _turn = self.enter(comparing)?;
        if let Some(engine) = self.caller().engine() {
            let number = match comparing {
                Comparing::Blocking => engine.compare(&shape),
                Comparing::Queued | Comparing::Grouped(_) => engine.note(&shape),
            };
            self.gpu.note_numbered(Some(self.checked(number)?));
        }
        self.give(comparing, None, launch)?;
        match comparing {
            Comparing::Blocking => self.gpu.compare(Role::DeviceWait, self.location),
            Comparing::Queued | Comparing::Grouped(_) => Ok(()),
        }
    }

    /// As [`make`](Self::make), for a message to or from a rank.
    fn pass<T: Element>(
        &self,
        peer: (u32, bool),
        count: usize,
        launch: impl FnOnce(&Functions, Comm, cudaStream_t) -> Code,
    ) -> Result<()> {
        let comparing = match self.way {
            Way::Compared(comparing) => comparing,
            Way::Raw(comm) => return self.give_raw(comm, launch),
        };
        let (of, label, location) = ((T::TYPE, count), self.label, self.location);
        let _turn = self.enter(comparing)?;
        let started = match self.caller().engine() {
            None => None,
            Some(engine) => {
                Some(self.checked(engine.start_comparing_message(peer, of, label, location))?)
            }
        };
        self.gpu.note_numbered(started.as_ref().and_then(Pending::number));
        let started = match (started, comparing) {
            (Some(started), Comparing::Blocking) => {
                self.checked(started.wait())?;
                None
            }
            (started, _) => started,
        };
        self.give(comparing, started, launch)
    }

    /// The turn of a call that is not within a group, which has it already.
    fn enter(&self, comparing: Comparing) -> Result<Option<Turn<'a>>> {
        self.gpu.takes(self.stream)?;
        match comparing {
            Comparing::Blocking | Comparing::Queued => self.gpu.enter(self.location).map(Some),
            Comparing::Grouped(_) => Ok(None),
        }
    }

    fn give(
        &self,
        comparing: Comparing,
        started: Option<Pending<()>>,
        launch: impl FnOnce(&Functions, Comm, cudaStream_t) -> Code,
    ) -> Result<()> {
        let stream: CUstream = self.stream.cu_stream();
        let grouped = match comparing {
            Comparing::Grouped(comm) => Some(comm),
            Comparing::Blocking | Comparing::Queued => None,
        };
        self.gpu.note_used(self.stream);
        self.gpu.launch(grouped, |nccl, comm| launch(nccl, comm, stream.cast()))?;
        if let Some(started) = started {
            self.gpu.note_started(started);
        }
        match comparing {
            Comparing::Blocking => self.gpu.wait_compared(self.stream, self.location),
            Comparing::Queued => self.gpu.limit_started(),
            Comparing::Grouped(_) => Ok(()),
        }
    }

    fn give_raw(
        &self,
        comm: Comm,
        launch: impl FnOnce(&Functions, Comm, cudaStream_t) -> Code,
    ) -> Result<()> {
        self.gpu.launch_raw(|nccl| launch(nccl, comm, self.stream.cu_stream().cast()))
    }

    /// An error of the comparison, once NCCL has let go of what was queued before.
    fn checked<T>(&self, compared: Result<T>) -> Result<T> {
        compared.map_err(|error| self.gpu.let_go_after(error))
    }

    fn caller(&self) -> Caller<'a> {
        let communicator = self.gpu.communicator();
        Caller { communicator, label: self.label, location: self.location }
    }

    fn is_here<T>(&self, buffer: &impl DeviceSlice<T>) -> Result<()> {
        self.gpu.takes(self.stream)?;
        self.knows(buffer)
    }

    fn are_here<T>(&self, input: &impl DeviceSlice<T>, output: &impl DeviceSlice<T>) -> Result<()> {
        self.is_here(input)?;
        self.knows(output)
    }

    /// Whether cudarc knows the buffer by this GPU's context, and so makes streams wait for it: to a
    /// context object of the program's own, what goes on here is unknown.
    fn knows<T>(&self, buffer: &impl DeviceSlice<T>) -> Result<()> {
        let (own, of_buffer) = (self.gpu.context(), buffer.stream().context());
        if of_buffer != own {
            let (index, other) = (own.ordinal(), of_buffer.ordinal());
            return argument(format!("the buffer is of GPU {other}, this rank's is GPU {index}"));
        }
        if !Arc::ptr_eq(own, of_buffer) {
            let problem = "the buffer was made with another CudaContext of this GPU; make it with that of \
                 Gpu::context, or connect with its own by Gpu::connect_with";
            return argument(problem.into());
        }
        Ok(())
    }
}

fn kind_of(element: ElementType) -> ncclDataType_t {
    match element {
        ElementType::I8 => ncclDataType_t::ncclInt8,
        ElementType::U8 => ncclDataType_t::ncclUint8,
        ElementType::I32 => ncclDataType_t::ncclInt32,
        ElementType::U32 => ncclDataType_t::ncclUint32,
        ElementType::I64 => ncclDataType_t::ncclInt64,
        ElementType::U64 => ncclDataType_t::ncclUint64,
        ElementType::F16 => ncclDataType_t::ncclFloat16,
        ElementType::BF16 => ncclDataType_t::ncclBfloat16,
        ElementType::F32 => ncclDataType_t::ncclFloat32,
        ElementType::F64 => ncclDataType_t::ncclFloat64,
    }
}

fn op_of(op: ReduceOp) -> ncclRedOp_t {
    match op {
        ReduceOp::Sum => ncclRedOp_t::ncclSum,
        ReduceOp::Avg => ncclRedOp_t::ncclAvg,
        ReduceOp::Min => ncclRedOp_t::ncclMin,
        ReduceOp::Max => ncclRedOp_t::ncclMax,
        ReduceOp::Prod => ncclRedOp_t::ncclProd,
    }
}
