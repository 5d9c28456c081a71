//! Whether a process that was killed by SIGKILL was killed for want of memory: the kernel counts
//! such ends, for the control group where there is one.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The kernel's count, and how much of it is known.
pub(crate) struct Killings {
    count: Option<PathBuf>,
    known: u64,
    /// Counts beyond it, and when each was first seen.
    seen: VecDeque<(Instant, u64)>,
}

impl Killings {
    /// From now on.
    pub(crate) fn watch() -> Self {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let count = candidates(&groups).into_iter().find(|path| read(path).is_some());
        let known = count.as_deref().and_then(read).unwrap_or(0);
        Self { count, known, seen: VecDeque::new() }
    }

    /// To be called now and then: what was counted long ago was no rank.
    pub(crate) fn forget(&mut self, now: Instant) {
        let count = self.count.as_deref().and_then(read).unwrap_or(0);
        if count > self.seen.back().map_or(self.known, |(_, count)| *count) {
            self.seen.push_back((now, count));
        }
        while let Some(&(when, count)) = self.seen.front()
            && now.duration_since(when) >= LONGEST_END
        {
            self.known = self.known.max(count);
            self.seen.pop_front();
        }
    }

    /// Whether the kernel has killed one more process.
    pub(crate) fn is_one_more(&mut self) -> bool {
        let now = self.count.as_deref().and_then(read).unwrap_or(0);
        let more = now > self.known;
        self.known += u64::from(more);
        more
    }
}

/// Where the count may stand: cgroup version 2, version 1, the whole host. In a container its own
/// group is often all that is mounted.
fn candidates(groups: &str) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (_, Some(controllers), Some(group)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.events"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.oom_control")
            }
            _ => continue,
        };
        let group = Path::new(root).join(group.trim_start_matches('/'));
        paths.extend([group.join(file), Path::new(root).join(file)]);
    }
    paths.push("/proc/vmstat".into());
    paths
}

/// Between the kernel's counting and the end of the process, which must give its memory back first:
/// many gigabytes, perhaps of a device too, on a host that has none left.
const LONGEST_END: Duration = Duration::from_secs(10);

fn read(path: &Path) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_looked_for_in_the_own_group_first() {
        let v1 = candidates("5:devices:/x\n4:memory:/a/b\n");
        assert_eq!(v1[0], Path::new("/sys/fs/cgroup/memory/a/b/memory.oom_control"));
        let v2 = candidates("0::/kubepods/pod1\n");
        assert_eq!(v2[0], Path::new("/sys/fs/cgroup/kubepods/pod1/memory.events"));
        assert_eq!(candidates(""), [Path::new("/proc/vmstat")]);
    }

    #[test]
    fn each_killing_is_told_once() {
        let path = std::env::temp_dir().join(format!("allfold-killings-{}", std::process::id()));
        fs::write(&path, "low 0\noom 7\noom_kill 3\noom_group_kill 9\n").unwrap();
        let mut killings = Killings { known: 1, ..counting(&path) };
        assert_eq!([(); 3].map(|()| killings.is_one_more()), [true, true, false]);
        fs::remove_file(&path).unwrap();
        assert!(!killings.is_one_more());
    }

    fn counting(path: &Path) -> Killings {
        Killings { count: Some(path.into()), known: 0, seen: VecDeque::new() }
    }

    #[test]
    fn a_killing_is_remembered_until_its_process_must_have_ended() {
        let path = std::env::temp_dir().join(format!("allfold-remembered-{}", std::process::id()));
        let count = |killed: u64| fs::write(&path, format!("oom_kill {killed}\n")).unwrap();
        let (mut killings, start) = (counting(&path), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        count(1);
        // Noticed while the process still gives back what it had.
        (0..9).for_each(|second| killings.forget(after(second)));
        assert!(killings.is_one_more());
        assert!(!killings.is_one_more());
        count(2);
        (9..20).for_each(|second| killings.forget(after(second)));
        assert!(!killings.is_one_more(), "that was another process");
        count(3);
        assert!(killings.is_one_more());
        fs::remove_file(&path).unwrap();
    }
}
