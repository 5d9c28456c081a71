//! Tensors that all ranks combine in place: on GPUs by NCCL, on the host by allfold's own links.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use allfold::nccl::Gpu;
use allfold::{Communicator, ReduceOp, Reducible, bf16, f16};
use candle_core::{
    CpuStorage, DeviceLocation, InplaceOp1, Layout, Result as Candle, Tensor, Var, WithDType,
};
#[cfg(feature = "cuda")]
use candle_core::{CudaStorage, backend::BackendStorage};

use crate::error::{Error, Result};

/// This rank's part in NCCL; none where there is no GPU, or no other rank.
#[derive(Clone, Debug, Default)]
pub(crate) struct Nccl {
    queue: Option<Arc<Queue>>,
}

/// What is queued on a GPU, by number: all ranks queue and wait alike.
#[derive(Debug)]
struct Queue {
    gpu: Gpu,
    queued: AtomicU64,
    /// All up to this one are done.
    done: AtomicU64,
}

/// What is done to a tensor.
#[derive(Clone, Copy)]
enum Call {
    /// The sum over all ranks, under a label.
    Sum(u64),
    /// It becomes rank 0's.
    Broadcast,
}

impl Nccl {
    /// Connects the ranks by NCCL where parameters lie on GPUs; all ranks make this call, with
    /// parameters in the same kind of place.
    ///
    /// # Errors
    /// As [`Gpu::connect`]; [`Error::Gpu`] on every rank where parameters of one of them lie on
    /// another GPU than NCCL uses.
    pub(crate) fn connect(world: &Communicator, parameters: &[(String, Var)]) -> Result<Self> {
        let places = parameters.iter().filter_map(|(name, var)| Some((name, gpu_of(var)?)));
        let places: Vec<_> = places.collect();
        if world.size() == 1 || places.is_empty() {
            return Ok(Self::default());
        }
        let split = world.split(Some(0), world.rank() as u32)?.unwrap_or_else(Communicator::single);
        let gpu = connect(split, parameters)?;
        let elsewhere = places.iter().find(|(_, place)| *place != gpu.index());
        let mut ranks_astray = [u64::from(elsewhere.is_some())];
        world.all_reduce(&mut ranks_astray, ReduceOp::Sum)?;
        let problem = match elsewhere {
            Some((name, place)) => {
                format!("parameter `{name}` is on GPU {place}, and this rank's is {gpu:?}")
            }
            None if ranks_astray != [0] => ASTRAY.into(),
            None => {
                let (queued, done) = (AtomicU64::new(0), AtomicU64::new(0));
                return Ok(Self { queue: Some(Arc::new(Queue { gpu, queued, done })) });
            }
        };
        Err(Error::Gpu { problem, help: MAKE_THERE.into() })
    }

    /// `one a rank, this one's NVIDIA H100 80GB HBM3; gradients by NCCL`.
    pub(crate) fn described(&self) -> Option<String> {
        let gpu = self.gpu()?;
        Some(format!("one a rank, this one's {}; gradients by NCCL", gpu.name()))
    }

    /// The sum over all ranks in place of the tensor. On a GPU it is queued, behind what candle has
    /// queued: until [`wait`](Self::wait) it is not there.
    pub(crate) fn all_reduce(
        &self,
        world: &Communicator,
        label: u64,
        tensor: &Tensor,
    ) -> Result<()> {
        self.make(Call::Sum(label), world, tensor)
    }

    /// Rank 0's in place of the tensor; queued, as [`all_reduce`](Self::all_reduce).
    pub(crate) fn broadcast(&self, world: &Communicator, tensor: &Tensor) -> Result<()> {
        self.make(Call::Broadcast, world, tensor)
    }

    /// Waits for what is queued.
    pub(crate) fn wait(&self) -> Result<()> {
        self.wait_for(u64::MAX)
    }

    /// The number of what was queued last.
    pub(crate) fn queued(&self) -> u64 {
        self.queue.as_ref().map_or(0, |queue| queue.queued.load(Ordering::Relaxed))
    }

    /// Waits for what has this number, and everything else that is queued by then; it costs nothing
    /// where somebody has waited since.
    pub(crate) fn wait_for(&self, number: u64) -> Result<()> {
        let Some(queue) = &self.queue else { return Ok(()) };
        if number > queue.done.load(Ordering::Relaxed) {
            let queued = self.queued();
            queue.gpu.synchronize()?;
            queue.done.store(queued, Ordering::Relaxed);
        }
        Ok(())
    }

    fn gpu(&self) -> Option<&Gpu> {
        self.queue.as_ref().map(|queue| &queue.gpu)
    }

    /// Waits, for a second at most, until what is queued is done here, whatever the other ranks do;
    /// false where there is no GPU.
    pub(crate) fn settle(&self) -> bool {
        self.gpu().map(Gpu::settle).is_some()
    }

    /// An error with which this rank's part of a training ends: where that is candle's own, on a
    /// GPU, it becomes that of all ranks, which would wait for this one.
    pub(crate) fn fail(&self, error: Error) -> Error {
        match (error, self.gpu()) {
            (Error::Candle { problem }, Some(gpu)) => {
                gpu.fail(&format!("candle: {problem}")).into()
            }
            (error, _) => error,
        }
    }

    fn make(&self, call: Call, world: &Communicator, tensor: &Tensor) -> Result<()> {
        if let Some(queue) = &self.queue {
            queue.queued.fetch_add(1, Ordering::Relaxed);
        }
        let gpu = self.gpu();
        let in_place = InPlace { call, world, gpu, failed: RefCell::default() };
        let made = tensor.inplace_op1(&in_place);
        match in_place.failed.into_inner() {
            Some(error) => Err(error.into()),
            None => Ok(made?),
        }
    }
}

/// NCCL on the GPU of the first variable there is, with candle's own context of it.
#[cfg(feature = "cuda")]
fn connect(world: Communicator, parameters: &[(String, Var)]) -> Result<Gpu> {
    let mut devices = parameters.iter().map(|(_, var)| var.device());
    let gpu = devices.find_map(|device| device.as_cuda_device().ok());
    Ok(match gpu {
        Some(device) => Gpu::connect_with(world, device.cuda_stream().context())?,
        None => Gpu::connect(world)?,
    })
}

#[cfg(not(feature = "cuda"))]
fn connect(world: Communicator, _: &[(String, Var)]) -> Result<Gpu> {
    Ok(Gpu::connect(world)?)
}

/// The number of the GPU on which a variable lies.
pub(crate) fn gpu_of(var: &Var) -> Option<usize> {
    match var.device().location() {
        DeviceLocation::Cuda { gpu_id } => Some(gpu_id),
        _ => None,
    }
}

/// candle lends the memory of a tensor to operations alone.
struct InPlace<'a> {
    call: Call,
    world: &'a Communicator,
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "no tensor lies on a GPU"))]
    gpu: Option<&'a Gpu>,
    /// candle would make a text of it.
    failed: RefCell<Option<allfold::Error>>,
}

impl InPlace<'_> {
    fn on_host<T: WithDType + Reducible>(&self, elements: &mut [T]) -> Candle<()> {
        self.told(match self.call {
            Call::Sum(label) => self.world.labelled(label).all_reduce(elements, ReduceOp::Sum),
            Call::Broadcast => self.world.broadcast(elements, 0),
        })
    }

    #[cfg(feature = "cuda")]
    fn on_gpu<T: candle_core::cuda_backend::CudaDType + Reducible>(
        &self,
        gpu: &Gpu,
        storage: &mut CudaStorage,
        range: Range<usize>,
    ) -> Candle<()> {
        let mut elements = storage.as_cuda_slice_mut::<T>()?.slice_mut(range);
        let on = gpu.on(gpu.stream());
        self.told(match self.call {
            Call::Sum(label) => on.labelled(label).all_reduce(&mut elements, ReduceOp::Sum),
            Call::Broadcast => on.broadcast(&mut elements, 0),
        })
    }

    fn told(&self, made: allfold::Result<()>) -> Candle<()> {
        made.map_err(|error| {
            let text = error.to_string();
            *self.failed.borrow_mut() = Some(error);
            candle_core::Error::Msg(text)
        })
    }
}

impl InplaceOp1 for InPlace<'_> {
    fn name(&self) -> &'static str {
        "collective"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Candle<()> {
        let range = contiguous(layout)?;
        match storage {
            CpuStorage::F16(elements) => self.on_host::<f16>(&mut elements[range]),
            CpuStorage::BF16(elements) => self.on_host::<bf16>(&mut elements[range]),
            CpuStorage::F32(elements) => self.on_host::<f32>(&mut elements[range]),
            CpuStorage::F64(elements) => self.on_host::<f64>(&mut elements[range]),
            _ => candle_core::bail!("a tensor whose elements cannot be added up"),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Candle<()> {
        use candle_core::DType;
        let Some(gpu) = self.gpu else { return Ok(()) };
        let range = contiguous(layout)?;
        // What candle has queued comes first. Its device may be the user's, with a stream of which
        // cudarc keeps no events.
        let before = storage.device.cuda_stream();
        gpu.stream().join(&before).map_err(candle_core::Error::wrap)?;
        match storage.dtype() {
            DType::F16 => self.on_gpu::<f16>(gpu, storage, range),
            DType::BF16 => self.on_gpu::<bf16>(gpu, storage, range),
            DType::F32 => self.on_gpu::<f32>(gpu, storage, range),
            DType::F64 => self.on_gpu::<f64>(gpu, storage, range),
            _ => candle_core::bail!("a tensor whose elements cannot be added up"),
        }
    }
}

/// Where the elements of a contiguous tensor lie.
fn contiguous(layout: &Layout) -> Candle<Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => candle_core::bail!("a tensor that is not contiguous"),
    }
}

const ASTRAY: &str = "another rank has parameters on another GPU than its own";
const MAKE_THERE: &str = "make the variables on the device that `allfold_trainer::gpu` gives";

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn tensors_are_combined_in_place() {
        for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
            let worlds = Communicator::in_memory(3).unwrap();
            std::thread::scope(|scope| {
                for world in &worlds {
                    scope.spawn(move || {
                        let own = Tensor::new(&[1.0, world.rank() as f64, 7.0], &Device::Cpu);
                        let own = own.unwrap().to_dtype(dtype).unwrap();
                        let read = || own.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
                        let nccl = Nccl::default();
                        // Of a part the rest is left alone.
                        nccl.all_reduce(world, 1, &own.narrow(0, 0, 2).unwrap()).unwrap();
                        nccl.wait().unwrap();
                        assert_eq!(read(), [3.0, 3.0, 7.0]);
                        let mine = (&own + world.rank() as f64).unwrap();
                        nccl.broadcast(world, &mine).unwrap();
                        assert_eq!(
                            mine.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap(),
                            read()
                        );
                    });
                }
            });
        }
    }

    #[test]
    fn candles_error_stays_its_own_without_a_gpu() {
        let error = Error::Candle { problem: "out of memory".into() };
        let told = Nccl::default().fail(error.clone());
        assert_eq!((told.to_string(), told.exit_code()), (error.to_string(), 2));
    }

    #[test]
    fn allfolds_error_comes_through() {
        let [first, second] = Communicator::in_memory(2).unwrap().try_into().ok().unwrap();
        std::thread::scope(|scope| {
            for (world, count) in [(first, 2), (second, 3)] {
                scope.spawn(move || {
                    let tensor = Tensor::zeros(count, DType::F32, &Device::Cpu).unwrap();
                    let error = Nccl::default().all_reduce(&world, 1, &tensor).unwrap_err();
                    assert!(matches!(error, Error::World(_)), "{error}");
                    assert_eq!(error.exit_code(), 3);
                });
            }
        });
    }
}
