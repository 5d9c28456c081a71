//! The CUDA driver as it is found at run time. cudarc makes the calls; this only finds out first
//! whether it can, because it panics where it cannot.

use std::ffi::{CStr, c_char, c_int};
use std::sync::OnceLock;

use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;
use libloading::Library;

use super::presence::{Absence, Version, loader_words, telling};

/// A driver that has been initialised and shows at least one GPU.
pub(super) struct Driver {
    pub(super) version: Version,
    pub(super) gpus: usize,
    /// Never unloaded: cudarc holds functions of it.
    _library: Library,
}

impl Driver {
    /// The driver, initialised at the first call, or why it cannot be used.
    pub(super) fn find() -> Result<&'static Self, &'static Absence> {
        static FOUND: OnceLock<Result<Driver, Absence>> = OnceLock::new();
        FOUND.get_or_init(Self::load).as_ref()
    }

    /// What each GPU calls itself.
    pub(super) fn names(&self) -> Vec<String> {
        let name = |index| {
            let device = cudarc::driver::result::device::get(index).ok()?;
            cudarc::driver::result::device::get_name(device).ok()
        };
        let unknown = || "a GPU without a name".to_string();
        (0..self.gpus as i32).map(|index| name(index).unwrap_or_else(unknown)).collect()
    }

    fn load() -> Result<Self, Absence> {
        let mut missing = Vec::new();
        for name in NAMES {
            // SAFETY: the driver's initialisers touch no state of this program.
            match unsafe { Library::new(name) } {
                Ok(library) => return Self::of(library),
                Err(error) => missing.push(loader_words(name, &error)),
            }
        }
        Err(Absence::new(format!("there is no CUDA driver: {}", telling(&missing)), INSTALL))
    }

    fn of(library: Library) -> Result<Self, Absence> {
        for name in CALLED {
            // SAFETY: it is only looked up.
            if unsafe { library.get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_err() {
                let problem = format!("the CUDA driver lacks the function {name}");
                return Err(Absence::new(problem, UPDATE));
            }
        }
        let mut number: c_int = 0;
        let mut gpus: c_int = 0;
        // SAFETY: the types are those of cuda.h, and both functions write one number.
        unsafe {
            let version = library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(VERSION);
            let init = library.get::<unsafe extern "C" fn(u32) -> c_int>(b"cuInit");
            let count = library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(COUNT);
            if let Ok(version) = version {
                version(&mut number);
            }
            let code = init.map_or(NOT_FOUND, |init| init(0));
            if code != SUCCESS {
                return Err(refused(&library, code, Version::of_cuda(number)));
            }
            let code = count.map_or(NOT_FOUND, |count| count(&mut gpus));
            if code != SUCCESS {
                return Err(refused(&library, code, Version::of_cuda(number)));
            }
        }
        // cudarc may find another one: that of CUDA's development files is only for linking.
        if cudarc::driver::result::init() == Err(DriverError(CUresult::CUDA_ERROR_STUB_LIBRARY)) {
            return Err(Absence::new(
                "libcuda.so is a stub of CUDA's development files, and no driver",
                "take the folder `stubs` of CUDA out of LD_LIBRARY_PATH",
            ));
        }
        let version = Version::of_cuda(number);
        if gpus < 1 {
            return Err(no_gpu());
        }
        if version < OLDEST {
            let problem = format!("the CUDA driver has CUDA {version}; {OLDEST} is the oldest");
            return Err(Absence::new(problem, UPDATE));
        }
        Ok(Self { version, gpus: gpus as usize, _library: library })
    }
}

/// Why the driver does not start.
fn refused(library: &Library, code: c_int, version: Version) -> Absence {
    if code == NO_DEVICE {
        return no_gpu();
    }
    let name = error_name(library, code).unwrap_or_else(|| "an error without a name".into());
    let problem = format!("the CUDA driver ({version}) does not start: {name} ({code})");
    let help = match code {
        MISMATCH => {
            "the driver's library and its kernel module are of different versions: restart \
                     the host, or the container with the host's driver"
        }
        _ => "`nvidia-smi` on this host says more",
    };
    Absence::new(problem, help)
}

fn no_gpu() -> Absence {
    match std::env::var("CUDA_VISIBLE_DEVICES") {
        Ok(visible) => Absence::new(
            format!("CUDA_VISIBLE_DEVICES={visible} shows no GPU"),
            "unset it, or give it the numbers that `nvidia-smi -L` lists",
        ),
        Err(_) => Absence::new("the CUDA driver finds no GPU", INSTALL),
    }
}

fn error_name(library: &Library, code: c_int) -> Option<String> {
    type GetName = unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int;
    let mut name = std::ptr::null();
    // SAFETY: the type is that of cuda.h; it writes a pointer to a constant, or null.
    unsafe {
        let get_name = library.get::<GetName>(b"cuGetErrorName").ok()?;
        let is_known = get_name(code, &mut name) == SUCCESS && !name.is_null();
        is_known.then(|| CStr::from_ptr(name).to_string_lossy().into_owned())
    }
}

/// The first is in every installation, the second in those for development.
const NAMES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];
const VERSION: &[u8] = b"cuDriverGetVersion";
const COUNT: &[u8] = b"cuDeviceGetCount";
/// What is called by way of cudarc, which panics where a function is missing.
const CALLED: [&str; 37] = [
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceGetUuid",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime",
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuInit",
    "cuMemAllocAsync",
    "cuMemAlloc_v2",
    "cuMemFreeAsync",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuMemsetD8_v2",
    "cuStreamCreate",
    "cuStreamCreateWithPriority",
    "cuStreamDestroy_v2",
    "cuStreamIsCapturing",
    "cuStreamQuery",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];
const SUCCESS: c_int = 0;
const NO_DEVICE: c_int = 100;
const NOT_FOUND: c_int = 500;
const MISMATCH: c_int = 803;
/// What cudarc is built for; later drivers have all of it.
const OLDEST: Version = Version { major: 12, minor: 0, patch: 0 };

const INSTALL: &str = "install NVIDIA's driver on the host; a container needs `--gpus all`, a pod \
                       the resource nvidia.com/gpu (`allfold manifest --gpu 1`)";
const UPDATE: &str = "install a driver of NVIDIA's that has CUDA 12.0 or later (525 or later)";
