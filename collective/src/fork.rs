//! Whether this process is still the one that connected: a fork has its memory, but none of its
//! threads. Asked before each call, so it must cost less than to ask the system for a number.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// A process, as it marked itself.
pub(crate) struct Process {
    /// A page that the kernel clears in every fork; None where it does not know how.
    mark: Option<NonNull<AtomicU8>>,
    pub(crate) id: u32,
}

// SAFETY: the mark is an atomic, in memory that lives as long as this.
unsafe impl Send for Process {}
// SAFETY: as above.
unsafe impl Sync for Process {}

impl Process {
    pub(crate) fn this() -> Self {
        Self { mark: mark(), id: std::process::id() }
    }

    /// Whether this is the process that marked itself.
    pub(crate) fn is_this(&self) -> bool {
        match self.mark {
            // SAFETY: mapped until this is dropped.
            Some(mark) => unsafe { mark.as_ref() }.load(Ordering::Relaxed) == MARKED,
            None => self.id == std::process::id(),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mark) = self.mark {
            // SAFETY: nobody else has it.
            let _ = unsafe { munmap(mark.as_ptr().cast(), PAGE) };
        }
    }
}

fn mark() -> Option<NonNull<AtomicU8>> {
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping; the advice is about nothing else.
    let page = unsafe {
        let page = mmap_anonymous(std::ptr::null_mut(), PAGE, prot, MapFlags::PRIVATE).ok()?;
        if madvise(page, PAGE, Advice::LinuxWipeOnFork).is_err() {
            let _ = munmap(page, PAGE);
            return None;
        }
        page
    };
    let mark = NonNull::new(page.cast::<AtomicU8>())?;
    // SAFETY: it was just mapped, all zero, which is an atomic's value.
    unsafe { mark.as_ref() }.store(MARKED, Ordering::Relaxed);
    Some(mark)
}

const MARKED: u8 = 1;
const PAGE: usize = 4096;
