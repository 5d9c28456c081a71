//! The one shipped binary.

/// It keeps the large blocks that packets and tensors come in; the system's gives them back and
/// takes them anew.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    // SAFETY: it stores a number, which the allocator reads when it next looks; the environment wins.
    unsafe { libmimalloc_sys::mi_option_set_default(PURGE_DELAY, PURGE_DELAY_MILLIS) };
    allfold_launcher::main()
}

/// `mi_option_purge_delay` of mimalloc 2 and 3, which the bindings do not name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
/// Free memory is given back after so long. At mimalloc's 10 ms every step of a training (80 ms for
/// 4 layers of 1,024) takes its gradients' pages anew, which cost it a tenth of its speed.
const PURGE_DELAY_MILLIS: std::ffi::c_long = 1_000;
