//! What this process asks of its allocator.

/// Has free memory kept for so long that a training's steps find their gradients' pages again.
/// `MIMALLOC_PURGE_DELAY` in the environment wins. Nothing where another allocator is at work.
pub(crate) fn keep_free_memory() {
    // SAFETY: it stores a number, which the allocator reads when it next looks.
    unsafe { libmimalloc_sys::mi_option_set_default(PURGE_DELAY, PURGE_DELAY_MILLIS) };
}

/// `mi_option_purge_delay` of mimalloc 2 and 3, which the bindings do not name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
/// At mimalloc's 10 ms every step of a training (80 ms for 4 layers of 1,024) takes its gradients'
/// pages anew, which cost it a tenth of its speed.
const PURGE_DELAY_MILLIS: std::ffi::c_long = 1_000;
