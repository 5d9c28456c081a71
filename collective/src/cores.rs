//! Whether the ranks of a host have a CPU each, so that one that waits may look again and again
//! instead of sleeping, and takes it from nobody.
//!
//! A rank that is bound sees its own CPUs only, which does not say whether others have the same ones:
//! a container's CPUs are all its ranks' alike. So each looks at what the others may use.

use std::fs;
use std::path::Path;

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity};

use crate::world::Peer;

/// Whether they do for this rank and those of its host, so many for each.
pub(crate) fn suffice(rank: u32, peers: &[Peer], each: u16) -> bool {
    let Some(own) = peers.get(rank as usize) else { return false };
    let others = peers.iter().filter(|peer| peer.rank != own.rank && peer.is_beside(own));
    // Elsewhere its number is another process's.
    let pid = |peer: &Peer| (peer.habitat == own.habitat && peer.habitat != 0).then_some(peer.pid);
    let each = usize::from(each);
    let others = others.map(pid).flat_map(|pid| std::iter::repeat_n(pid, each));
    let own = std::iter::repeat_n(Some(std::process::id()), each.saturating_sub(1));
    suffice_beside(&others.chain(own).collect::<Vec<_>>())
}

/// Whether they do for this process and others, by process id where that is known.
pub(crate) fn suffice_beside(others: &[Option<u32>]) -> bool {
    let ranks = others.len() + 1;
    let group = || {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        quota(&groups, |path| fs::read_to_string(Path::new(GROUPS).join(path)).ok())
    };
    if group().is_some_and(|quota| quota < ranks as f64) {
        return false;
    }
    match sched_getaffinity(None) {
        Ok(own) => {
            // Who cannot be asked is taken for one that has the same CPUs.
            let set = |pid: &Option<u32>| pid.and_then(cpus_of).unwrap_or(own);
            are_enough(&own, others.iter().map(set).collect())
        }
        Err(_) => std::thread::available_parallelism().is_ok_and(|cpus| ranks <= cpus.get()),
    }
}

/// What a process may run on, as far as its first thread tells.
fn cpus_of(pid: u32) -> Option<CpuSet> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    sched_getaffinity(Some(pid)).ok()
}

/// Whether a rank that may run on `own` can have one of them to itself: those that can run nowhere
/// else leave it one, and so do those whose CPUs overlap with its own, and with theirs in turn.
fn are_enough(own: &CpuSet, mut others: Vec<CpuSet>) -> bool {
    let confined =
        others.iter().filter(|set| !all().any(|cpu| set.is_set(cpu) && !own.is_set(cpu)));
    let are_left = confined.count() < own.count() as usize;
    let (mut reach, mut ranks) = (*own, 1);
    loop {
        let overlaps = |set: &CpuSet| all().any(|cpu| set.is_set(cpu) && reach.is_set(cpu));
        let (near, far): (Vec<CpuSet>, Vec<CpuSet>) = others.into_iter().partition(overlaps);
        if near.is_empty() {
            return are_left && ranks <= reach.count() as usize;
        }
        ranks += near.len();
        for set in &near {
            all().filter(|cpu| set.is_set(*cpu)).for_each(|cpu| reach.set(cpu));
        }
        others = far;
    }
}

fn all() -> impl Iterator<Item = usize> {
    0..CpuSet::MAX_CPU
}

/// How many CPUs' time the control group that `/proc/self/cgroup` names may use, and those around
/// it; None where nothing limits it.
fn quota(groups: &str, read: impl Fn(&Path) -> Option<String>) -> Option<f64> {
    let number = |text: &str| text.trim().parse::<f64>().ok();
    let of = |folder: &Path| match read(&folder.join("cpu.max")) {
        Some(text) => {
            let (quota, period) = text.trim().split_once(' ')?;
            Some(number(quota)? / number(period)?)
        }
        None => {
            let quota = number(&read(&folder.join("cpu.cfs_quota_us"))?)?;
            let period = number(&read(&folder.join("cpu.cfs_period_us"))?)?;
            // -1 is no limit.
            (quota > 0.0).then_some(quota / period)
        }
    };
    let folders = groups.lines().flat_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let roots = match (parts.next(), parts.clone().next()) {
            (Some(""), Some(_)) => vec!["", "unified"],
            (Some(names), Some(_)) if names.split(',').any(|name| name == "cpu") => {
                vec!["cpu", names]
            }
            _ => Vec::new(),
        };
        let path = parts.next().unwrap_or_default().trim_start_matches('/');
        // Within a container the path may be that of the host, and the root is the container's.
        roots.into_iter().flat_map(move |root| {
            Path::new(path).ancestors().map(move |path| Path::new(root).join(path))
        })
    });
    folders.filter_map(|folder| of(&folder)).min_by(f64::total_cmp)
}

/// Where control groups are.
const GROUPS: &str = "/sys/fs/cgroup";

#[cfg(test)]
mod tests {
    use super::*;

    fn set(cpus: impl IntoIterator<Item = usize>) -> CpuSet {
        let mut set = CpuSet::new();
        cpus.into_iter().for_each(|cpu| set.set(cpu));
        set
    }

    #[test]
    fn a_rank_that_is_bound_to_its_own_cpu_has_one() {
        // As `--bind core` shares out four, and the same with two ranks each.
        let bound: Vec<CpuSet> = (0..4).map(|cpu| set([cpu])).collect();
        assert!(are_enough(&bound[0], bound[1..].to_vec()));
        assert!(!are_enough(&bound[0], [&bound[1..], &bound[..]].concat()));
    }

    #[test]
    fn ranks_that_share_their_cpus_need_as_many_as_they_are() {
        // A container's two CPUs of a host that has many.
        let two = set([6, 7]);
        assert!(are_enough(&two, vec![two]));
        assert!(!are_enough(&two, vec![two; 3]));
        // Half a host each.
        assert!(are_enough(&set(0..4), [vec![set(0..4); 3], vec![set(4..8); 4]].concat()));
        assert!(!are_enough(&set(0..4), vec![set(0..4); 4]));
    }

    #[test]
    fn ranks_that_overlap_are_counted_with_those_that_they_overlap_with() {
        assert!(are_enough(&set([0, 1]), vec![set([1, 2]), set([2, 3]), set([3])]));
        assert!(!are_enough(&set([0, 1]), vec![set([1, 2]), set([2]), set([2])]));
        // One may go anywhere, two are in each other's way.
        assert!(are_enough(&set(0..8), vec![set([0]), set([0])]));
        assert!(!are_enough(&set([0]), vec![set([0]), set(0..8)]));
    }

    #[test]
    fn a_process_can_be_asked_what_it_runs_on() {
        assert!(cpus_of(std::process::id()).is_some_and(|cpus| cpus.count() > 0));
        assert!(cpus_of(0).is_none() && cpus_of(u32::MAX).is_none());
        let crowd = vec![Some(std::process::id()); CpuSet::MAX_CPU];
        assert!(!suffice_beside(&crowd));
    }

    #[test]
    fn the_lowest_quota_counts() {
        let files = |files: &'static [(&str, &str)]| {
            move |path: &Path| {
                let found = files.iter().find(|(name, _)| Path::new(name) == path);
                found.map(|(_, text)| (*text).to_string())
            }
        };
        let version_2 = files(&[("a/cpu.max", "400000 100000\n"), ("a/b/cpu.max", "max 100000\n")]);
        assert_eq!(quota("0::/a/b\n", version_2), Some(4.0));
        // Half a CPU, in a container that is told its host's path.
        let container = files(&[("cpu.max", "50000 100000\n")]);
        assert_eq!(quota("0::/kubepods/pod1\n", container), Some(0.5));
        let version_1 = files(&[
            ("cpu,cpuacct/a/cpu.cfs_quota_us", "150000\n"),
            ("cpu,cpuacct/a/cpu.cfs_period_us", "100000\n"),
            ("cpu,cpuacct/cpu.cfs_quota_us", "-1\n"),
            ("cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
        ]);
        assert_eq!(quota("5:memory:/m\n4:cpu,cpuacct:/a\n", version_1), Some(1.5));
        for groups in ["", "0::/\n", "7:cpuset:/a\n", "nonsense"] {
            assert_eq!(quota(groups, |_| None), None, "{groups}");
        }
    }

    #[test]
    fn ranks_of_one_host_are_not_told_by_its_name() {
        let on = |habitat, home| Peer { habitat, home, ..Peer::new(0, "node", 1) };
        // Hosts of the same name.
        assert!(!on(1, Some(1)).is_beside(&on(2, Some(2))));
        assert!(!on(1, None).is_beside(&on(2, None)));
        // Without shared memory, or as two containers that share their network.
        assert!(on(1, None).is_beside(&on(1, None)));
        assert!(on(1, Some(3)).is_beside(&on(2, Some(3))));
        // Nothing else is known.
        assert!(on(0, None).is_beside(&on(0, None)));
        assert!(!on(0, None).is_beside(&Peer::new(0, "other", 1)));
    }
}
