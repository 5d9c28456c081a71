//! Calls on a GPU as programs make them, and the same ones straight to NCCL: two buffers, calls on
//! parts of them, and CUDA's clock.

use std::time::Duration;

use cudarc::driver::sys::{CUdeviceptr, CUevent_flags};
use cudarc::driver::{
    CudaEvent, CudaSlice, CudaView, DevicePtr, DeviceRepr, DriverError, ValidAsZeroBits,
};

use super::calls::{Group, OnStream};
use super::gpu::Gpu;
use super::meeting::words;
use super::raw::Raw;
use crate::caller::argument;
use crate::error::{Error, Result};
use crate::reduce::{ReduceOp, Reducible};

/// Two buffers on a rank's GPU. All that is done with them is done on the stream of the GPU's own.
pub struct DeviceBuffers<'a, T> {
    gpu: &'a Gpu,
    input: CudaSlice<T>,
    output: CudaSlice<T>,
    /// Where the two begin.
    starts: [CUdeviceptr; 2],
}

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceBuffer {
    /// Of calls out of place.
    Input,
    /// In place the input too.
    Output,
}

/// A collective with its operation and root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceCollective {
    /// Both ways.
    AllReduce(ReduceOp),
    /// Both ways.
    ReduceScatter(ReduceOp),
    /// Both ways.
    AllGather,
    /// In place only.
    Broadcast {
        /// Whose data it is.
        root: usize,
    },
    /// In place only.
    Reduce {
        /// How it is combined.
        op: ReduceOp,
        /// Who has the result.
        root: usize,
    },
    /// To the next rank, from the one before; out of place only.
    SendRecv,
}

/// A call on parts of the two buffers.
#[derive(Clone, Copy, Debug)]
pub struct DeviceCall {
    /// What is called.
    pub collective: DeviceCollective,
    /// Elements, of one block where there are blocks.
    pub count: usize,
    /// Whether the output is the input as well.
    pub in_place: bool,
    /// Where its part of the input begins.
    pub input: usize,
    /// Where its part of the output begins.
    pub output: usize,
}

/// A moment on the stream.
pub struct DeviceMark(CudaEvent);

/// Calls straight to NCCL. See [`DeviceBuffers::raw`].
pub struct RawDeviceCalls<'a, T> {
    buffers: &'a DeviceBuffers<'a, T>,
    raw: &'a Raw<'a>,
}

impl<'a, T: Reducible + DeviceRepr + ValidAsZeroBits> DeviceBuffers<'a, T> {
    /// Of so many elements each, all zero; an empty one has one element.
    ///
    /// # Errors
    /// CUDA's words where the GPU has not so much memory.
    pub fn new(gpu: &'a Gpu, input: usize, output: usize) -> Result<Self, String> {
        let in_words = |error: DriverError| words(&error);
        let buffer = |length: usize| gpu.stream().alloc_zeros::<T>(length.max(1)).map_err(in_words);
        let (input, output) = (buffer(input)?, buffer(output)?);
        let starts = [&input, &output].map(|buffer| buffer.device_ptr(gpu.stream()).0);
        Ok(Self { gpu, input, output, starts })
    }

    /// Copies `data` to the elements from `first` on.
    ///
    /// # Errors
    /// An argument error where it does not fit; the rank is lost where CUDA fails.
    pub fn write(&mut self, buffer: DeviceBuffer, first: usize, data: &[T]) -> Result<()> {
        let (gpu, stream) = (self.gpu, self.gpu.stream());
        let of = match buffer {
            DeviceBuffer::Input => &mut self.input,
            DeviceBuffer::Output => &mut self.output,
        };
        let Some(mut part) = of.try_slice_mut(first..first + data.len()) else {
            return argument(TOO_SHORT.into());
        };
        if data.is_empty() {
            return Ok(());
        }
        stream.memcpy_htod(data, &mut part).map_err(|error| gpu.broken("a copy to it", &error))
    }

    /// Copies the elements from `first` on to `data`, when all before it is done.
    ///
    /// # Errors
    /// As [`write`](Self::write) and [`Gpu::wait`].
    pub fn read(&self, buffer: DeviceBuffer, first: usize, data: &mut [T]) -> Result<()> {
        let Some(part) = self.part(buffer, first, data.len()) else {
            return argument(TOO_SHORT.into());
        };
        if data.is_empty() {
            return Ok(());
        }
        let (gpu, stream) = (self.gpu, self.gpu.stream());
        // Calls that hang end here, and not in the copy.
        gpu.wait(stream)?;
        stream.memcpy_dtoh(&part, data).map_err(|error| gpu.broken("a copy from it", &error))?;
        gpu.wait(stream)
    }

    /// Makes calls as programs do, several of them as one group. `waits`: as those that return when
    /// they are done, else as those on a stream.
    ///
    /// # Errors
    /// As for each of the calls.
    pub fn call(&self, calls: &[DeviceCall], waits: bool) -> Result<()> {
        let (gpu, stream) = (self.gpu, self.gpu.stream());
        let on = gpu.on(stream);
        match calls {
            [call] if !call.is_pair() && waits => return self.on_gpu(gpu, call),
            [call] if !call.is_pair() => self.on_stream(&on, call)?,
            _ => on.group(|group| calls.iter().try_for_each(|call| self.in_group(group, call)))?,
        }
        if waits { gpu.wait(stream) } else { Ok(()) }
    }

    /// Makes calls straight to NCCL, which all ranks do.
    ///
    /// # Errors
    /// That of `body`; as for every call where the world has ended.
    pub fn raw<R, E: From<Error>>(
        &self,
        body: impl FnOnce(&RawDeviceCalls<'_, T>) -> Result<R, E>,
    ) -> Result<R, E> {
        let on = self.gpu.on(self.gpu.stream());
        on.raw(|raw| body(&RawDeviceCalls { buffers: self, raw }))
    }

    /// So many marks, to be set.
    ///
    /// # Errors
    /// The rank is lost where CUDA fails.
    pub fn marks(&self, many: usize) -> Result<Vec<DeviceMark>> {
        let one = |_| self.gpu.context().new_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
        let marks: Result<Vec<_>, _> = (0..many).map(|index| one(index).map(DeviceMark)).collect();
        marks.map_err(|error| self.gpu.broken("an event", &error))
    }

    /// Marks where the stream is when it has come to here.
    ///
    /// # Errors
    /// As [`marks`](Self::marks).
    pub fn set(&self, mark: &DeviceMark) -> Result<()> {
        let set = mark.0.record(self.gpu.stream());
        set.map_err(|error| self.gpu.broken("an event", &error))
    }

    /// From one mark to a later one, by the GPU's clock; both are past.
    ///
    /// # Errors
    /// As [`marks`](Self::marks).
    pub fn between(&self, from: &DeviceMark, to: &DeviceMark) -> Result<Duration> {
        let milliseconds = from.0.elapsed_ms(&to.0);
        let milliseconds = milliseconds.map_err(|error| self.gpu.broken("an event", &error))?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
    }

    /// Returns when all calls are done.
    ///
    /// # Errors
    /// As [`Gpu::wait`].
    pub fn wait(&self) -> Result<()> {
        self.gpu.wait(self.gpu.stream())
    }

    fn part(&self, buffer: DeviceBuffer, first: usize, length: usize) -> Option<CudaView<'_, T>> {
        let of = match buffer {
            DeviceBuffer::Input => &self.input,
            DeviceBuffer::Output => &self.output,
        };
        of.try_slice(first..first.checked_add(length)?)
    }

    /// Where the call's input and output begin, if it fits in.
    fn places(&self, call: &DeviceCall) -> Result<(CUdeviceptr, CUdeviceptr)> {
        let DeviceCall { collective, count, in_place, input, output } = *call;
        let world = self.gpu.communicator();
        let (rank, all) = (world.rank(), count.saturating_mul(world.size()));
        // Lengths, and in place where the shorter one lies in the longer one.
        let (reads, writes, own) = match collective {
            DeviceCollective::ReduceScatter(_) => (all, count, rank * count),
            DeviceCollective::AllGather => (count, all, rank * count),
            _ => (count, count, 0),
        };
        if in_place {
            let Some(at) = self.address(DeviceBuffer::Output, output, reads.max(writes)) else {
                return argument(TOO_SHORT.into());
            };
            let block = at + (own * size_of::<T>()) as CUdeviceptr;
            return Ok(if reads < writes { (block, at) } else { (at, block) });
        }
        let from = self.address(DeviceBuffer::Input, input, reads);
        let into = self.address(DeviceBuffer::Output, output, writes);
        match (from, into) {
            (Some(from), Some(into)) => Ok((from, into)),
            _ => argument(TOO_SHORT.into()),
        }
    }

    /// Where elements lie that there are. Their use is ordered by the one stream alone.
    fn address(&self, buffer: DeviceBuffer, first: usize, length: usize) -> Option<CUdeviceptr> {
        let [input, output] = self.starts;
        let (start, all) = match buffer {
            DeviceBuffer::Input => (input, self.input.len()),
            DeviceBuffer::Output => (output, self.output.len()),
        };
        let fits = first.checked_add(length).is_some_and(|end| end <= all);
        fits.then_some(start + (first * size_of::<T>()) as CUdeviceptr)
    }

    fn neighbours(&self) -> (usize, usize) {
        let world = self.gpu.communicator();
        let (rank, ranks) = (world.rank(), world.size());
        ((rank + 1) % ranks, (rank + ranks - 1) % ranks)
    }
}

macro_rules! give {
    ($($name:ident: $on:ty),*) => { $(
        fn $name(&self, on: &$on, call: &DeviceCall) -> Result<()> {
            let (from, into) = self.places(call)?;
            let count = call.count;
            // SAFETY: `places` has found that all elements are of these buffers; those are freed in
            // the order of the stream on which the call is made, so after it.
            unsafe {
                match call.collective {
                    DeviceCollective::AllReduce(op) => {
                        on.all_reduce_at::<T>(from, into, count, op)
                    }
                    DeviceCollective::ReduceScatter(op) => {
                        on.reduce_scatter_at::<T>(from, into, count, op)
                    }
                    DeviceCollective::AllGather => on.all_gather_at::<T>(from, into, count),
                    DeviceCollective::Broadcast { root } => on.broadcast_at::<T>(into, count, root),
                    DeviceCollective::Reduce { op, root } => {
                        on.reduce_at::<T>(into, count, op, root)
                    }
                    DeviceCollective::SendRecv => {
                        let (next, last) = self.neighbours();
                        on.send_at::<T>(from, count, next)?;
                        on.recv_at::<T>(into, count, last)
                    }
                }
            }
        }
    )* };
}

impl<T: Reducible + DeviceRepr + ValidAsZeroBits> DeviceBuffers<'_, T> {
    give!(on_gpu: Gpu, on_stream: OnStream<'_>, in_group: Group<'_>, give_raw: Raw<'_>);
}

impl<T: Reducible + DeviceRepr + ValidAsZeroBits> RawDeviceCalls<'_, T> {
    /// Makes calls, several of them as one group; `waits` until they are done.
    ///
    /// # Errors
    /// NCCL's or CUDA's; the rank is lost then.
    pub fn call(&self, calls: &[DeviceCall], waits: bool) -> Result<()> {
        let Self { buffers, raw } = *self;
        match calls {
            [call] if !call.is_pair() => buffers.give_raw(raw, call)?,
            _ => raw.group(|| calls.iter().try_for_each(|call| buffers.give_raw(raw, call)))?,
        }
        if !waits {
            return Ok(());
        }
        let done = buffers.gpu.stream().synchronize();
        done.map_err(|error| buffers.gpu.broken("its stream", &error))
    }
}

impl DeviceCall {
    /// Of two calls that need each other.
    fn is_pair(&self) -> bool {
        self.collective == DeviceCollective::SendRecv
    }
}

const TOO_SHORT: &str = "a buffer on the GPU is too short for the call";
