//! libnccl as it is found at run time: the functions that allfold calls, looked up once.
//!
//! cudarc has these functions too, but it looks for `libnccl.so` only, which is in packages for
//! development, and panics where the library or a function is missing. The types are cudarc's.

use std::ffi::{c_char, c_int, c_void};
use std::path::PathBuf;
use std::sync::OnceLock;

use cudarc::nccl::sys::{
    cudaStream_t, ncclComm_t, ncclConfig_t, ncclDataType_t, ncclRedOp_t, ncclUniqueId,
};
use libloading::Library;

use super::presence::{Absence, Version};

/// What a function returns: a number, as a later NCCL may know more than cudarc's enumeration.
pub(super) type Code = c_int;

macro_rules! functions {
    ($($name:ident as $field:ident: fn($($argument:ty),*) -> $returns:ty;)*) => {
        /// The functions; all are there.
        pub(super) struct Functions {
            $(pub(super) $field: unsafe extern "C" fn($($argument),*) -> $returns,)*
        }

        impl Functions {
            /// Those of `library`, or the name of the first that is missing.
            fn of(library: &Library) -> Result<Self, &'static str> {
                Ok(Self {
                    $($field: {
                        // SAFETY: the type is that of nccl.h since 2.18, before the oldest that is used.
                        let found = unsafe { library.get(stringify!($name).as_bytes()) };
                        *found.map_err(|_| stringify!($name))?
                    },)*
                })
            }
        }
    };
}

functions! {
    ncclGetUniqueId as get_unique_id: fn(*mut ncclUniqueId) -> Code;
    ncclCommInitRankConfig as comm_init_rank_config:
        fn(*mut ncclComm_t, c_int, ncclUniqueId, c_int, *mut ncclConfig_t) -> Code;
    ncclCommSplit as comm_split:
        fn(ncclComm_t, c_int, c_int, *mut ncclComm_t, *mut ncclConfig_t) -> Code;
    ncclCommGetAsyncError as comm_get_async_error: fn(ncclComm_t, *mut Code) -> Code;
    ncclCommFinalize as comm_finalize: fn(ncclComm_t) -> Code;
    ncclCommDestroy as comm_destroy: fn(ncclComm_t) -> Code;
    ncclCommAbort as comm_abort: fn(ncclComm_t) -> Code;
    ncclGetErrorString as get_error_string: fn(Code) -> *const c_char;
    ncclGetLastError as get_last_error: fn(ncclComm_t) -> *const c_char;
    ncclAllReduce as all_reduce: fn(
        *const c_void, *mut c_void, usize, ncclDataType_t, ncclRedOp_t, ncclComm_t, cudaStream_t
    ) -> Code;
    ncclReduceScatter as reduce_scatter: fn(
        *const c_void, *mut c_void, usize, ncclDataType_t, ncclRedOp_t, ncclComm_t, cudaStream_t
    ) -> Code;
    ncclAllGather as all_gather:
        fn(*const c_void, *mut c_void, usize, ncclDataType_t, ncclComm_t, cudaStream_t) -> Code;
    ncclBroadcast as broadcast: fn(
        *const c_void, *mut c_void, usize, ncclDataType_t, c_int, ncclComm_t, cudaStream_t
    ) -> Code;
    ncclReduce as reduce: fn(
        *const c_void, *mut c_void, usize, ncclDataType_t, ncclRedOp_t, c_int, ncclComm_t,
        cudaStream_t
    ) -> Code;
    ncclSend as send:
        fn(*const c_void, usize, ncclDataType_t, c_int, ncclComm_t, cudaStream_t) -> Code;
    ncclRecv as recv:
        fn(*mut c_void, usize, ncclDataType_t, c_int, ncclComm_t, cudaStream_t) -> Code;
    ncclGroupStart as group_start: fn() -> Code;
    ncclGroupEnd as group_end: fn() -> Code;
}

/// libnccl of this process.
pub(super) struct Nccl {
    pub(super) version: Version,
    pub(super) path: Option<PathBuf>,
    pub(super) functions: Functions,
    /// Never unloaded: its threads may outlive whoever used it.
    _library: Library,
}

impl Nccl {
    /// The library, loaded at the first call, or why it cannot be used.
    pub(super) fn find() -> Result<&'static Self, &'static Absence> {
        static FOUND: OnceLock<Result<Nccl, Absence>> = OnceLock::new();
        FOUND.get_or_init(Self::load).as_ref()
    }

    fn load() -> Result<Self, Absence> {
        let mut missing = Vec::new();
        for name in NAMES {
            // SAFETY: NCCL's initialisers only register what it exports; whoever sets the library
            // path decides what is run here, as with every library.
            match unsafe { Library::new(name) } {
                Ok(library) => return Self::of(library),
                Err(error) => missing.push(super::presence::loader_words(name, &error)),
            }
        }
        Err(Absence::no_nccl(&missing))
    }

    fn of(library: Library) -> Result<Self, Absence> {
        let path = super::presence::mapped("libnccl.so");
        let mut number: c_int = 0;
        // SAFETY: the type is that of nccl.h since the first version.
        let get_version =
            unsafe { library.get::<unsafe extern "C" fn(*mut c_int) -> Code>(b"ncclGetVersion") };
        let Ok(get_version) = get_version else {
            return Err(Absence::nccl_lacks("ncclGetVersion", None, path.as_deref()));
        };
        // SAFETY: it writes one number.
        if unsafe { get_version(&mut number) } != SUCCESS {
            return Err(Absence::nccl_lacks("ncclGetVersion", None, path.as_deref()));
        }
        let version = Version::of_nccl(number);
        if version < OLDEST {
            return Err(Absence::nccl_too_old(version, OLDEST, path.as_deref()));
        }
        match Functions::of(&library) {
            Ok(functions) => Ok(Self { version, path, functions, _library: library }),
            Err(name) => Err(Absence::nccl_lacks(name, Some(version), path.as_deref())),
        }
    }

    /// `unhandled cuda error (NCCL 1); last error: ...`: a result in NCCL's words.
    pub(super) fn describe(&self, code: Code) -> String {
        // SAFETY: it takes any number, and gives a constant.
        let words = unsafe { text((self.functions.get_error_string)(code)) };
        // SAFETY: it does not look at the communicator, and gives text of its own.
        let last = unsafe { text((self.functions.get_last_error)(std::ptr::null_mut())) };
        let words = words.unwrap_or_else(|| "unknown result".into());
        match last.filter(|last| !last.is_empty()) {
            Some(last) => format!("{words} (NCCL result {code}): {last}"),
            None => format!("{words} (NCCL result {code})"),
        }
    }
}

/// The text at a C string, on one line. NCCL's threads may be writing another one there: what is
/// read may be of both, but never goes on beyond the buffer.
///
/// # Safety
/// `start` is null, or a C string, or of `MAX_TEXT` bytes.
unsafe fn text(start: *const c_char) -> Option<String> {
    if start.is_null() {
        return None;
    }
    let mut bytes = Vec::new();
    while bytes.len() < MAX_TEXT {
        // SAFETY: as the caller says; no byte before this one ended the string.
        match unsafe { start.add(bytes.len()).read_volatile() } {
            0 => break,
            byte => bytes.push(byte as u8),
        }
    }
    Some(crate::report::printable(String::from_utf8_lossy(&bytes).trim()))
}

/// The first is in every package, the second in those for development.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];
/// Calls are made and aborted by `ncclCommSplit`, of 2.18.1; but up to 2.25 a kernel that waits looks
/// at the abort flag once in a million tries, which takes a second for each call that is queued, and
/// there are waits of NCCL's own that never look at it.
const OLDEST: Version = Version { major: 2, minor: 26, patch: 2 };

pub(super) const SUCCESS: Code = 0;
pub(super) const INVALID_ARGUMENT: Code = 4;
pub(super) const INVALID_USAGE: Code = 5;
pub(super) const IN_PROGRESS: Code = 7;
/// NCCL's own buffer has as many.
const MAX_TEXT: usize = 1024;
