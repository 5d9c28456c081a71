//! Arenas: memory of one rank that ranks on the same host map as well.

use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, fcntl_get_seals, fstat,
    ftruncate, memfd_create,
};
use rustix::io::Errno;
use rustix::mm::{
    Advice, MapFlags, MremapFlags, ProtFlags, madvise, mmap, mmap_anonymous, mremap_fixed, munmap,
};
use rustix::param::page_size;
use rustix::process::{Resource, getrlimit};

use crate::host_memory::HostMemory;

/// This rank's own arena.
pub(crate) struct Arena {
    mapping: Mapping,
    /// What the others map.
    file: OwnedFd,
}

/// Another rank's arena, mapped here.
pub(crate) struct Attached(Mapping);

/// The parts of all ranks' arenas that belong to a communicator, in rank order, this rank's own
/// among them.
pub(crate) struct Peers {
    pub(crate) own: usize,
    /// Each arena, and where the part begins.
    pub(crate) arenas: Vec<(Place, usize)>,
    /// What keeps them mapped.
    pub(crate) _memory: Arc<HostMemory>,
}

/// Where an arena begins in this process. It stays mapped for as long as the world lives.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: an address; what is done with it is said where it is done.
unsafe impl Send for Place {}
// SAFETY: as above.
unsafe impl Sync for Place {}

struct Mapping(Place);

impl Arena {
    /// Makes one of `length` bytes, all zero. Only pages that are touched cost memory.
    pub(crate) fn new(length: usize) -> std::io::Result<Self> {
        // Beyond this limit the system would not refuse, but end the process.
        if getrlimit(Resource::Fsize).current.is_some_and(|limit| limit < length as u64) {
            return Err(std::io::Error::other("the limit of file sizes (ulimit -f) is below it"));
        }
        let file = anonymous_file()?;
        ftruncate(&file, length as u64)?;
        // Whoever maps it must not find it shorter one day: that would be SIGBUS.
        fcntl_add_seals(&file, SEALS)?;
        let mapping = Mapping::new(&file, length)?;
        Ok(Self { mapping, file })
    }

    /// What another process maps.
    pub(crate) fn file(&self) -> &OwnedFd {
        &self.file
    }

    pub(crate) fn place(&self) -> Place {
        self.mapping.0
    }

    /// Makes a part all zero; nobody else uses it.
    pub(crate) fn clear(&self, part: Range<usize>) {
        if part.len() < WORTH_A_CALL {
            // SAFETY: within the arena, and nobody else's.
            unsafe { std::ptr::write_bytes(self.place().at(part.start, part.len()), 0, part.len()) }
        } else {
            self.forget(part.clone());
            // Where the system has huge pages for shared memory, a large buffer is worth them.
            let start = self.place().at(part.start, part.len());
            // SAFETY: within the mapping; only advice.
            let _ = unsafe { madvise(start.cast(), part.len(), Advice::LinuxHugepage) };
        }
    }

    /// Gives the memory of a part back to the system; it reads as zeros then.
    pub(crate) fn forget(&self, part: Range<usize>) {
        if part.len() < WORTH_A_CALL {
            return;
        }
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if fallocate(&self.file, mode, part.start as u64, part.len() as u64).is_err() {
            // SAFETY: within the arena, and nobody else's.
            unsafe { std::ptr::write_bytes(self.place().at(part.start, part.len()), 0, part.len()) }
        }
    }

    /// Puts private memory with the same contents in the place of a part, in one stroke.
    pub(crate) fn make_private(&self, part: Range<usize>) {
        let page = page_size();
        let start = part.start / page * page;
        let length = part.end.next_multiple_of(page) - start;
        let place = self.place().at(start, length);
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, filled from memory that is mapped, and put in its place; whoever
        // has a pointer there finds the same contents.
        unsafe {
            if let Ok(copy) = mmap_anonymous(std::ptr::null_mut(), length, prot, MapFlags::PRIVATE)
            {
                std::ptr::copy_nonoverlapping(place, copy.cast(), length);
                let flags = MremapFlags::MAYMOVE;
                if mremap_fixed(copy, length, length, flags, place.cast()).is_ok() {
                    return;
                }
                let _ = munmap(copy, length);
            }
            // Without room for a copy: what a failed call leaves in a buffer is not said, but
            // nobody else may change it.
            let _ = mmap_anonymous(place.cast(), length, prot, MapFlags::PRIVATE | MapFlags::FIXED);
        }
    }
}

/// One that cannot be executed: a system may insist on it (vm.memfd_noexec).
fn anonymous_file() -> std::io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match memfd_create(NAME, flags | MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3.
        Err(Errno::INVAL) => Ok(memfd_create(NAME, flags)?),
        made => Ok(made?),
    }
}

impl Attached {
    /// Maps another rank's arena of `length` bytes.
    ///
    /// # Errors
    /// Where it is not the memory that a rank makes: shorter, or one that could become so.
    pub(crate) fn new(file: &OwnedFd, length: usize) -> std::io::Result<Self> {
        let is_sealed = fcntl_get_seals(file)?.contains(SEALS);
        if !is_sealed || fstat(file)?.st_size as u64 != length as u64 {
            return Err(std::io::Error::other("it is no arena of a rank"));
        }
        Ok(Self(Mapping::new(file, length)?))
    }

    pub(crate) fn place(&self) -> Place {
        self.0.0
    }
}

impl Mapping {
    fn new(file: impl AsFd, length: usize) -> std::io::Result<Self> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe { mmap(std::ptr::null_mut(), length, prot, MapFlags::SHARED, file, 0) }?;
        let start = NonNull::new(start.cast::<u8>()).ok_or(Errno::NOMEM)?;
        // A dump would touch all of it, in every rank that ends so.
        // SAFETY: only advice.
        let _ = unsafe { madvise(start.as_ptr().cast(), length, Advice::LinuxDontDump) };
        Ok(Self(Place { start, length }))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nobody has a `Place` of it any more: they live in the world that owns it.
        let _ = unsafe { munmap(self.0.start.as_ptr().cast(), self.0.length) };
    }
}

impl Place {
    /// `length` bytes from `offset` on.
    pub(crate) fn at(self, offset: usize, length: usize) -> *mut u8 {
        assert!(offset <= self.length && length <= self.length - offset);
        // SAFETY: within the mapping.
        unsafe { self.start.as_ptr().add(offset) }
    }

    /// `length` bytes from `offset` on.
    pub(crate) fn part(self, offset: usize, length: usize) -> Self {
        let start = NonNull::new(self.at(offset, length)).unwrap_or(self.start);
        Self { start, length }
    }

    /// Where in the arena a slice of this process lies, if it does.
    pub(crate) fn offset_of(self, start: *const u8, length: usize) -> Option<usize> {
        let offset = (start as usize).checked_sub(self.start.as_ptr() as usize)?;
        (offset < self.length && length <= self.length - offset).then_some(offset)
    }
}

/// As /proc shows it.
const NAME: &str = "allfold";
/// Smaller parts share pages with others.
const WORTH_A_CALL: usize = 4096;
/// Of a file that can neither shrink nor grow.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);
