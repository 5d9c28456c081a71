//! What the program's own threads do while its calls wait: one that computes may be about to make
//! the call that is missing. Of one that sleeps by itself, or waits for somebody outside, nothing
//! can be known.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use rustix::thread::gettid;

/// The program's threads, from the moment at which they were first looked at.
#[derive(Debug)]
pub(crate) struct Rest {
    since: Instant,
    /// None where they cannot be read.
    threads: Option<BTreeMap<u32, Thread>>,
}

/// As the kernel counts it.
#[derive(Clone, Copy, Debug)]
struct Thread {
    /// Processor time, in ticks.
    ticks: u64,
    /// It waits neither for a processor nor for a disk.
    sleeps: bool,
}

impl Rest {
    pub(crate) fn begin(now: Instant) -> Self {
        Self { since: now, threads: others() }
    }

    /// Whether no thread of the program has done anything worth the name for at least `time`; if
    /// one has, the rest begins anew. Those that are `waiting` in calls do not count: NCCL looks for
    /// its peers without a pause.
    pub(crate) fn lasts(&mut self, now: Instant, time: Duration, waiting: &[u32]) -> bool {
        let lasted = now.saturating_duration_since(self.since);
        if lasted < time {
            return false;
        }
        let threads = others();
        if let (Some(before), Some(now)) = (&self.threads, &threads)
            && is_rest(before, now, waiting, lasted)
        {
            return true;
        }
        *self = Self { since: now, threads };
        false
    }
}

/// Whether the program has one thread only, next to those of this crate.
pub(crate) fn is_only_thread() -> bool {
    threads().len() == 1
}

fn is_rest(
    before: &BTreeMap<u32, Thread>,
    now: &BTreeMap<u32, Thread>,
    waiting: &[u32],
    lasted: Duration,
) -> bool {
    let mut worked = 0;
    for (id, thread) in now.iter().filter(|(id, _)| !waiting.contains(id)) {
        match before.get(id) {
            Some(before) if thread.sleeps => worked += thread.ticks.saturating_sub(before.ticks),
            _ => return false,
        }
    }
    worked <= (lasted.as_millis() as u64 / (TICK_MS * BUSY)).max(MIN_TICKS)
}

/// The threads of the program but this one, which may be waiting in a call and looks meanwhile.
fn others() -> Option<BTreeMap<u32, Thread>> {
    let mut threads = threads();
    // Where nothing can be read nothing is known.
    if threads.is_empty() {
        return None;
    }
    threads.remove(&this_thread());
    Some(threads)
}

/// The kernel's number of this thread.
pub(super) fn this_thread() -> u32 {
    gettid().as_raw_nonzero().get().unsigned_abs()
}

/// The threads of the program, without those of this crate.
fn threads() -> BTreeMap<u32, Thread> {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return BTreeMap::new() };
    let stats = tasks.flatten().map(|task| fs::read_to_string(task.path().join("stat")));
    stats.flatten().filter_map(|stat| parse(&stat)).collect()
}

/// A thread and what it does, if it is the program's.
fn parse(stat: &str) -> Option<(u32, Thread)> {
    let (id, rest) = stat.split_once(" (")?;
    // The name, in parentheses, may hold any character.
    let (name, rest) = rest.rsplit_once(") ")?;
    if name.starts_with("allfold-") {
        return None;
    }
    let mut fields = rest.split(' ');
    let sleeps = !matches!(fields.next()?, "R" | "D" | "T" | "t");
    let mut times = fields.skip(UTIME - STATE - 1).map_while(|field| field.parse::<u64>().ok());
    let ticks = times.next()? + times.next()?;
    Some((id.parse().ok()?, Thread { ticks, sleeps }))
}

/// Places of fields in `/proc/PID/stat`, see proc(5); the system's time follows the user's.
const STATE: usize = 3;
const UTIME: usize = 14;
/// Linux counts the time of processes in hundredths of a second on all that allfold runs on.
const TICK_MS: u64 = 10;
/// Less than this part of one processor's time is no computing: timers and watchers use less.
const BUSY: u64 = 50;
/// The time is given in whole ticks.
const MIN_TICKS: u64 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(id: u32, name: &str, state: &str, ticks: u64) -> Option<(u32, Thread)> {
        let zeros = "0 ".repeat(UTIME - STATE - 1);
        parse(&format!("{id} ({name}) {state} {zeros}{ticks} 1 0 0 20 0 1 0 7"))
    }

    #[test]
    fn threads_of_the_program_are_read() {
        let (id, thread) = stat(71, "a ) S (b", "R", 5).unwrap();
        assert_eq!((id, thread.ticks, thread.sleeps), (71, 6, false));
        assert!(stat(71, "main", "S", 5).unwrap().1.sleeps);
        assert!(stat(71, "allfold-lane-0", "S", 5).is_none());
        assert!(parse("71 (main) S 1 2").is_none());
        let own = gettid().as_raw_nonzero().get() as u32;
        assert!(threads().contains_key(&own));
    }

    #[test]
    fn a_thread_that_is_new_or_computes_is_no_rest() {
        let threads = |stats: &[(u32, &str, u64)]| -> BTreeMap<u32, Thread> {
            stats.iter().filter_map(|(id, state, ticks)| stat(*id, "x", state, *ticks)).collect()
        };
        let before = threads(&[(1, "S", 100), (2, "S", 7)]);
        let rests = |now: &[(u32, &str, u64)]| {
            is_rest(&before, &threads(now), &[4], Duration::from_secs(5))
        };
        assert!(rests(&[(1, "S", 100), (2, "S", 7)]));
        assert!(rests(&[(1, "S", 110)]), "a tenth of a second in five, and one has ended");
        assert!(!rests(&[(1, "S", 100), (2, "S", 18)]));
        assert!(!rests(&[(1, "S", 100), (2, "R", 7)]));
        assert!(!rests(&[(1, "S", 100), (2, "S", 7), (3, "S", 0)]));
        assert!(rests(&[(1, "S", 100), (2, "S", 7), (4, "R", 99)]), "the last one waits in a call");
    }
}
