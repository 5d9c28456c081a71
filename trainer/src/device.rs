//! Where a rank computes: on the processors of its host, or on a GPU of its own.

use allfold::Communicator;
use allfold::nccl::Presence;
use candle_core::Device;

use crate::error::{Error, Result};
use crate::options::DeviceKind;

/// Whether this build and this machine can compute there, with so many ranks: one needs no NCCL.
///
/// # Errors
/// [`Error::Gpu`] where this build has no CUDA; [`allfold::ErrorKind::NoGpu`] where the machine has
/// no driver, no GPU or no NCCL.
pub(crate) fn check(kind: DeviceKind, ranks: usize) -> Result<()> {
    match kind {
        DeviceKind::Cpu => Ok(()),
        DeviceKind::Gpu if cfg!(feature = "cuda") => {
            let presence = Presence::find();
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
/// [`Error::Gpu`] where this build has no CUDA (the feature `cuda`);
/// [`allfold::ErrorKind::NoGpu`] where the machine has no driver, no GPU or no NCCL; candle's own.
pub fn gpu(world: &Communicator) -> Result<Device> {
    check(DeviceKind::Gpu, world.size())?;
    // As allfold's own choice; more ranks than GPUs are refused when NCCL connects them.
    let gpus = Presence::find().gpus.len().max(1);
    // A stream of its own: what threads share would be another one in each.
    Ok(Device::new_cuda_with_stream(world.local_rank() % gpus)?)
}

const NOT_BUILT: &str = "this allfold was built without CUDA";
const BUILD: &str = "where CUDA's nvcc and its libraries and NCCL are installed: `cargo build \
                     --release -p allfold-launcher --features cuda`";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_always_there() {
        check(DeviceKind::Cpu, 2).unwrap();
        assert!(open(DeviceKind::Cpu, &Communicator::single()).unwrap().is_cpu());
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_says_how_to_build_one() {
        let error = gpu(&Communicator::single()).unwrap_err();
        assert_eq!((error.to_string().as_str(), error.exit_code()), (NOT_BUILT, 2));
        assert!(error.help().unwrap().contains("--features cuda"));
    }
}
