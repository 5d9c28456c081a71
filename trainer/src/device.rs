//! Where a rank computes: on the processors of its host, or on a GPU of its own.

use allfold::Communicator;
use allfold::nccl::Presence;
use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};
use crate::options::DeviceKind;

/// Whether this build and this machine can compute there, with so many ranks: one needs no NCCL.
/// `find` looks for what there is.
///
/// # Errors
/// [`Error::Gpu`] where this build has no CUDA; [`allfold::ErrorKind::NoGpu`] where the machine has
/// no driver, no GPU or no NCCL.
pub(crate) fn check(kind: DeviceKind, ranks: usize, find: impl FnOnce() -> Presence) -> Result<()> {
    match kind {
        DeviceKind::Cpu => Ok(()),
        DeviceKind::Gpu if cfg!(feature = "cuda") => {
            let presence = find();
            let checked = if ranks > 1 { presence.check() } else { presence.check_driver() };
            checked.map_err(|absence| Error::World(absence.into()))
        }
        DeviceKind::Gpu => Err(Error::Gpu { problem: NOT_BUILT.into(), help: BUILD.into() }),
    }
}

/// The device on which this rank computes.
///
/// # Errors
/// As [`check`]; candle's own.
pub(crate) fn open(kind: DeviceKind, world: &Communicator) -> Result<Device> {
    match kind {
        DeviceKind::Cpu => Ok(Device::Cpu),
        DeviceKind::Gpu => gpu(world),
    }
}

/// This rank's GPU, for the variables and the batches of a loop of one's own: the one with the
/// number of the rank on its host, among those that `CUDA_VISIBLE_DEVICES` shows.
/// [`Distributed`](crate::Distributed) adds up by NCCL what lies there.
///
/// # Errors
/// [`Error::Gpu`] where this build has no CUDA (the feature `cuda`), or was made for another GPU;
/// [`allfold::ErrorKind::NoGpu`] where the machine has no driver, no GPU or no NCCL; candle's own.
pub fn gpu(world: &Communicator) -> Result<Device> {
    check(DeviceKind::Gpu, world.size(), Presence::find)?;
    // As allfold's own choice; more ranks than GPUs are refused when NCCL connects them.
    let gpus = Presence::find().gpus.len().max(1);
    let index = world.local_rank() % gpus;
    // A stream of its own: what threads share would be another one in each.
    let device = Device::new_cuda_with_stream(index)?;
    try_kernel(&device, index)?;
    Ok(device)
}

/// Finds out whether candle's kernels run there. It loads them when they are first needed, which else
/// would be in the middle of a training.
fn try_kernel(device: &Device, index: usize) -> Result<()> {
    let sum = Tensor::zeros(1, DType::F32, device).and_then(|zero| (zero + 1.0)?.to_vec1::<f32>());
    let problem = match sum.map_err(Error::from) {
        Ok(sum) if sum == [1.0] => return Ok(()),
        Ok(sum) => format!("0 + 1 is {sum:?} there"),
        Err(Error::Candle { problem }) if OF_A_BUILD.iter().any(|name| problem.contains(name)) => {
            problem
        }
        // No memory, say.
        Err(error) => return Err(error),
    };
    let problem = format!("this allfold's kernels do not run on GPU {index}: {problem}");
    Err(Error::Gpu { problem, help: BUILD_FOR.into() })
}

/// In the driver's names for kernels that were compiled for something else.
const OF_A_BUILD: [&str; 5] =
    ["NO_BINARY_FOR_GPU", "_PTX", "INVALID_IMAGE", "INVALID_SOURCE", "NOT_FOUND"];
const BUILD_FOR: &str = "build it with CUDA_COMPUTE_CAP set to what `nvidia-smi --query-gpu=compute_cap \
                         --format=csv` shows, without the dot; and the driver must have the CUDA of \
                         the nvcc that is used there, or a later one";
const NOT_BUILT: &str = "this allfold was built without CUDA";
const BUILD: &str = "where CUDA's nvcc and its libraries and NCCL are installed: `cargo build \
                     --release -p allfold-launcher --features cuda`";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_always_there() {
        check(DeviceKind::Cpu, 2, Presence::find).unwrap();
        assert!(open(DeviceKind::Cpu, &Communicator::single()).unwrap().is_cpu());
    }

    #[test]
    fn a_kernel_is_tried_before_anything_is_trained() {
        try_kernel(&Device::Cpu, 0).unwrap();
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_says_how_to_build_one() {
        let error = gpu(&Communicator::single()).unwrap_err();
        assert_eq!((error.to_string().as_str(), error.exit_code()), (NOT_BUILT, 2));
        assert!(error.help().unwrap().contains("--features cuda"));
    }
}
