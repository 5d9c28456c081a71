//! What a host's memory allows: processes whose buffers already lie in memory that all of them see
//! add them up with nothing around it, one pass and two meetings by flags.
//!
//! Each rank sums its part of all ranks' buffers, in rank order, and writes the sum into all of
//! them. There is no copy, no contract, no sleep and no way to lose a rank.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mm::{Advice, madvise};

use crate::cores;
use crate::link::shared_memory::{Arena, Attached};

/// The memory, which one process holds while the ranks are other processes of its user.
pub struct SharedBuffers {
    arena: Arena,
    ranks: usize,
    bytes: usize,
}

/// One rank's view.
pub struct SharedSum {
    memory: Attached,
    rank: usize,
    ranks: usize,
    bytes: usize,
    /// Meetings so far.
    meetings: u32,
    /// How long it looks at a flag before it lets another process have the core. Whether each has
    /// one is known when all have come.
    spins: u32,
}

impl SharedBuffers {
    /// Buffers of at least so many bytes for so many ranks.
    ///
    /// # Errors
    /// Where the system has no such memory.
    pub fn new(ranks: usize, bytes: usize) -> io::Result<Self> {
        Ok(Self { arena: Arena::new(total(ranks, bytes)?)?, ranks, bytes })
    }

    /// What a rank opens, for as long as this process holds the memory.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.arena.file().as_raw_fd()).into()
    }

    /// One of the ranks, in this process or another. Each rank is there once.
    ///
    /// # Errors
    /// As [`SharedSum::open`].
    pub fn rank(&self, rank: usize) -> io::Result<SharedSum> {
        SharedSum::open(&self.path(), rank, self.ranks, self.bytes)
    }
}

impl SharedSum {
    /// Rank `rank` of `ranks`, in the memory that [`SharedBuffers`] made for as many ranks and
    /// bytes. Each rank is there once.
    ///
    /// # Errors
    /// Where the path is not that of such memory.
    pub fn open(path: &Path, rank: usize, ranks: usize, bytes: usize) -> io::Result<Self> {
        if rank >= ranks {
            return Err(io::Error::other("there is no such rank"));
        }
        let file: OwnedFd = std::fs::File::options().read(true).write(true).open(path)?.into();
        let length = total(ranks, bytes)?;
        let memory = Attached::new(&file, length)?;
        let start = memory.place().at(0, length);
        // SAFETY: the whole mapping; only advice.
        let _ = unsafe { madvise(start.cast(), length, Advice::LinuxHugepage) };
        let own = Self { memory, rank, ranks, bytes, meetings: 0, spins: SPINS_CROWDED };
        // The first meeting makes it known.
        own.word(rank, PID).store(std::process::id(), Ordering::Relaxed);
        Ok(own)
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many ranks there are.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// This rank's buffer.
    pub fn buffer(&mut self) -> &mut [f32] {
        // SAFETY: within the mapping and aligned, any bytes are numbers; the others write to it
        // only during `all_reduce`, which has this rank borrowed on all of them.
        unsafe { std::slice::from_raw_parts_mut(self.start(self.rank), self.bytes / ELEMENT) }
    }

    /// Adds up the first `count` elements of all ranks' buffers; every rank calls it with as many.
    ///
    /// # Panics
    /// If a buffer has fewer.
    pub fn all_reduce(&mut self, count: usize) {
        assert!(count <= self.bytes / ELEMENT, "{count} elements of {} bytes", self.bytes);
        self.meet();
        let part = |rank: usize| (count * rank / self.ranks).next_multiple_of(LINE / ELEMENT);
        let end = if self.rank + 1 == self.ranks { count } else { part(self.rank + 1).min(count) };
        let begin = part(self.rank).min(end);
        if begin < end {
            self.sum(begin, end - begin);
        }
        self.meet();
    }

    /// All ranks' elements from `begin` on.
    fn sum(&self, begin: usize, count: usize) {
        // SAFETY: between the two meetings this part of all buffers is this rank's alone; parts of
        // different ranks lie apart.
        let part = |rank: usize, from: usize, count: usize| unsafe {
            std::slice::from_raw_parts_mut(self.start(rank).add(begin + from), count)
        };
        if self.ranks == 2 {
            return both(part(0, 0, count), part(1, 0, count));
        }
        let mut sum = [0.0; BLOCK];
        for from in (0..count).step_by(BLOCK) {
            let sum = &mut sum[..BLOCK.min(count - from)];
            sum.copy_from_slice(part(0, from, sum.len()));
            for rank in 1..self.ranks {
                add(sum, part(rank, from, sum.len()));
            }
            for rank in 0..self.ranks {
                part(rank, from, sum.len()).copy_from_slice(sum);
            }
        }
    }

    /// Waits until all ranks are here.
    fn meet(&mut self) {
        self.meetings = self.meetings.wrapping_add(1);
        self.flag(self.rank).store(self.meetings, Ordering::Release);
        for rank in (0..self.ranks).filter(|rank| *rank != self.rank) {
            let flag = self.flag(rank);
            let mut looks = 0;
            // One that is ahead is at most one meeting ahead.
            while flag.load(Ordering::Acquire).wrapping_sub(self.meetings) > 1 {
                looks += 1;
                if looks < self.spins {
                    std::hint::spin_loop();
                } else {
                    std::thread::yield_now();
                }
            }
        }
        if self.meetings == 1 && self.have_cores() {
            self.spins = SPINS;
        }
    }

    /// Whether each rank has a core.
    fn have_cores(&self) -> bool {
        let others = (0..self.ranks).filter(|rank| *rank != self.rank);
        let pid = |rank| Some(self.word(rank, PID).load(Ordering::Relaxed));
        cores::suffice_beside(&others.map(pid).collect::<Vec<_>>())
    }

    fn flag(&self, rank: usize) -> &AtomicU32 {
        self.word(rank, FLAG)
    }

    fn word(&self, rank: usize, offset: usize) -> &AtomicU32 {
        let start = self.memory.place().at(rank * FLAG_STRIDE + offset, size_of::<AtomicU32>());
        // SAFETY: within the mapping, aligned, and nothing but an atomic.
        unsafe { AtomicU32::from_ptr(start.cast()) }
    }

    fn start(&self, rank: usize) -> *mut f32 {
        let at = HUGE_PAGE + rank * self.bytes.next_multiple_of(HUGE_PAGE);
        self.memory.place().at(at, self.bytes).cast()
    }
}

/// Flags, then each rank's buffer.
fn total(ranks: usize, bytes: usize) -> io::Result<usize> {
    let buffers =
        bytes.checked_next_multiple_of(HUGE_PAGE).and_then(|each| each.checked_mul(ranks));
    match buffers.and_then(|buffers| buffers.checked_add(HUGE_PAGE)) {
        Some(total) if ranks > 0 && ranks * FLAG_STRIDE <= HUGE_PAGE => Ok(total),
        _ => Err(io::Error::other("no memory is that large")),
    }
}

fn both(a: &mut [f32], b: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has the instructions that the function is compiled for.
        return unsafe { both_avx2(a, b) };
    }
    both_portably(a, b);
}

fn add(sum: &mut [f32], operand: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has the instructions that the function is compiled for.
        return unsafe { add_avx2(sum, operand) };
    }
    add_portably(sum, operand);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn both_avx2(a: &mut [f32], b: &mut [f32]) {
    both_portably(a, b);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn add_avx2(sum: &mut [f32], operand: &[f32]) {
    add_portably(sum, operand);
}

#[inline(always)]
fn both_portably(a: &mut [f32], b: &mut [f32]) {
    for (a, b) in a.iter_mut().zip(b) {
        let sum = *a + *b;
        *a = sum;
        *b = sum;
    }
}

#[inline(always)]
fn add_portably(sum: &mut [f32], operand: &[f32]) {
    for (sum, operand) in sum.iter_mut().zip(operand) {
        *sum += *operand;
    }
}

const ELEMENT: usize = size_of::<f32>();
/// Parts of two ranks share no line.
const LINE: usize = 64;
/// Two lines: processors fetch lines in pairs.
const FLAG_STRIDE: usize = 128;
/// Within those: how many meetings a rank has come to, and its process id.
const FLAG: usize = 0;
const PID: usize = LINE;
/// Buffers begin where a huge page can.
const HUGE_PAGE: usize = 2 << 20;
/// Elements that are summed in the first-level cache.
const BLOCK: usize = 1024;
/// A core for each rank: nobody else needs it, but for the system now and then.
const SPINS: u32 = 100_000;
/// Somebody else must run for the flag to change.
const SPINS_CROWDED: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rank_has_the_sum_of_all() {
        for ranks in [1, 2, 3, 5] {
            let counts = [1, 15, 16, 17, 1000, 5000];
            let buffers = SharedBuffers::new(ranks, 5000 * ELEMENT).unwrap();
            std::thread::scope(|scope| {
                for rank in 0..ranks {
                    let buffers = &buffers;
                    scope.spawn(move || {
                        let mut own = buffers.rank(rank).unwrap();
                        for count in counts {
                            let value = |index: usize, scale: usize| (scale * (index % 7)) as f32;
                            for (index, element) in own.buffer().iter_mut().enumerate() {
                                *element = value(index, rank + 1);
                            }
                            own.all_reduce(count);
                            let all = ranks * (ranks + 1) / 2;
                            for (index, sum) in own.buffer().iter().enumerate() {
                                let scale = if index < count { all } else { rank + 1 };
                                assert_eq!(*sum, value(index, scale), "{index} of {count}");
                            }
                        }
                    });
                }
            });
        }
    }

    #[test]
    fn a_rank_that_is_bound_to_a_core_of_its_own_looks_as_long_as_one_that_is_not() {
        use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
        if !cores::suffice_beside(&[Some(std::process::id())]) {
            eprintln!("skipped: a_rank_that_is_bound: there are no two cores");
            return;
        }
        let buffers = SharedBuffers::new(2, 64).unwrap();
        let rank = |rank| {
            let may_use = sched_getaffinity(None).unwrap();
            let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| may_use.is_set(*cpu));
            let mut own = CpuSet::new();
            own.set(cpus.nth(rank).unwrap());
            sched_setaffinity(None, &own).unwrap();
            let mut sum = buffers.rank(rank).unwrap();
            assert_eq!(sum.spins, SPINS_CROWDED);
            sum.all_reduce(1);
            sum.spins
        };
        let found = std::thread::scope(|scope| {
            let ranks = [0, 1].map(|number| scope.spawn(move || rank(number)));
            ranks.map(|rank| rank.join().unwrap())
        });
        assert_eq!(found, [SPINS; 2]);
    }

    #[test]
    fn other_memory_is_refused() {
        let buffers = SharedBuffers::new(2, 64).unwrap();
        assert!(SharedSum::open(&buffers.path(), 2, 2, 64).is_err());
        assert!(SharedSum::open(&buffers.path(), 0, 3, 64).is_err());
        assert!(SharedSum::open(Path::new("/proc/self/exe"), 0, 2, 64).is_err());
        assert!(SharedBuffers::new(2, usize::MAX).is_err());
    }
}
