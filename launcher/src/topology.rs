//! The cores and NUMA nodes of this host, as /sys shows them, of the CPUs this process may use.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Nodes hold cores, and cores hold CPUs: as many as they have hardware threads. None is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Topology {
    pub(crate) nodes: Vec<Vec<Vec<usize>>>,
}

impl Topology {
    /// Reads it from `/sys/devices/system`. Where that says nothing, each CPU is a core, and all
    /// are one node.
    pub(crate) fn read(root: &Path, allowed: &[usize]) -> Self {
        let mut left: BTreeSet<usize> = allowed.iter().copied().collect();
        let mut nodes: Vec<_> = node_lists(root)
            .into_iter()
            .map(|cpus| take_cores(root, &mut left, &cpus))
            .filter(|cores| !cores.is_empty())
            .collect();
        let rest: Vec<usize> = left.iter().copied().collect();
        let rest = take_cores(root, &mut left, &rest);
        if !rest.is_empty() {
            nodes.push(rest);
        }
        Self { nodes }
    }

    /// All cores, those of a node beside each other.
    pub(crate) fn cores(&self) -> Vec<&[usize]> {
        self.nodes.iter().flatten().map(Vec::as_slice).collect()
    }
}

/// The CPUs of each node, by the nodes' numbers.
fn node_lists(root: &Path) -> Vec<Vec<usize>> {
    let Ok(entries) = fs::read_dir(root.join("node")) else {
        return Vec::new();
    };
    let mut lists: Vec<(usize, Vec<usize>)> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let number = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
            let list = fs::read_to_string(entry.path().join("cpulist")).ok()?;
            Some((number, parse_list(&list)))
        })
        .collect();
    lists.sort();
    lists.into_iter().map(|(_, cpus)| cpus).collect()
}

/// The cores of these CPUs, as far as they are left, which they then are no longer.
fn take_cores(root: &Path, left: &mut BTreeSet<usize>, cpus: &[usize]) -> Vec<Vec<usize>> {
    let mut cores = Vec::new();
    for cpu in cpus {
        if !left.remove(cpu) {
            continue;
        }
        let path = root.join(format!("cpu/cpu{cpu}/topology/thread_siblings_list"));
        let siblings = fs::read_to_string(path).map(|list| parse_list(&list)).unwrap_or_default();
        let mut core = vec![*cpu];
        core.extend(siblings.into_iter().filter(|sibling| left.remove(sibling)));
        cores.push(core);
    }
    cores
}

/// `0-3,8,10-11`; what is not understood is left out.
fn parse_list(text: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        (last < MAX_CPUS).then_some(first..=last)
    };
    text.trim().split(',').filter_map(range).flatten().collect()
}

/// The kernel's own limit on x86-64 is 8192; a list that says more is not one.
const MAX_CPUS: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        assert_eq!(parse_list("0-3,8,10-11\n"), [0, 1, 2, 3, 8, 10, 11]);
        assert_eq!(parse_list("\n"), Vec::<usize>::new());
        assert_eq!(parse_list("5,x,7-,9-8,0-99999999999"), [5]);
    }

    /// Two nodes of four CPUs, each core with two hardware threads, numbered as Linux does.
    fn two_nodes() -> std::path::PathBuf {
        let name = format!("allfold-topology-{}", crate::random::hex().unwrap());
        let root = std::env::temp_dir().join(name);
        for (node, cpus) in [(0, "0-1,4-5\n"), (1, "2-3,6-7\n")] {
            let directory = root.join(format!("node/node{node}"));
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("cpulist"), cpus).unwrap();
        }
        for cpu in 0..8 {
            let directory = root.join(format!("cpu/cpu{cpu}/topology"));
            fs::create_dir_all(&directory).unwrap();
            let siblings = format!("{},{}\n", cpu % 4, cpu % 4 + 4);
            fs::write(directory.join("thread_siblings_list"), siblings).unwrap();
        }
        root
    }

    #[test]
    fn hardware_threads_are_one_core() {
        let root = two_nodes();
        let all: Vec<usize> = (0..8).collect();
        let topology = Topology::read(&root, &all);
        assert_eq!(topology.nodes, [[[0, 4], [1, 5]], [[2, 6], [3, 7]]]);
        assert_eq!(topology.cores(), [[0, 4], [1, 5], [2, 6], [3, 7]]);
        // a set that a cgroup has cut
        let some = Topology::read(&root, &[3, 4, 7]);
        assert_eq!(some.nodes, [vec![vec![4]], vec![vec![3, 7]]]);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn without_sys_every_cpu_is_a_core() {
        let topology = Topology::read(Path::new("/no/such"), &[1, 3]);
        assert_eq!(topology.nodes, [vec![vec![1], vec![3]]]);
    }
}
