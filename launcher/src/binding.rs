//! `--bind`: which CPUs each rank may use.

use std::io;
use std::path::Path;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::error::Error;
use crate::options::Bind;
use crate::topology::Topology;

/// The CPUs of all ranks; those of the launcher's own where they are not bound.
pub(crate) struct Binding {
    /// By rank; empty where nothing is bound.
    sets: Vec<CpuSet>,
    own: CpuSet,
    warning: Option<String>,
}

/// While it lives, what this thread starts is bound.
pub(crate) struct Bound(Option<CpuSet>);

impl Binding {
    /// Of ranks that this launcher does not start itself.
    pub(crate) fn none() -> Self {
        Self { sets: Vec::new(), own: CpuSet::new(), warning: None }
    }

    /// Shares out what this process may use.
    pub(crate) fn plan(bind: Bind, ranks: usize) -> Result<Self, Error> {
        if bind == Bind::None {
            return Ok(Self::none());
        }
        let own = sched_getaffinity(None).map_err(|problem| {
            Error::system("cannot see which CPUs may be used")(problem.into())
        })?;
        let allowed: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| own.is_set(*cpu)).collect();
        let topology = Topology::read(Path::new(SYSTEM), &allowed);
        let cores = topology.cores().len();
        let warning = (bind == Bind::Core && ranks > cores).then(|| {
            let cores = if cores == 1 { "1 core".into() } else { format!("{cores} cores") };
            format!("{ranks} ranks on {cores}: some share a core")
        });
        let sets = (0..ranks).map(|rank| set_of(&share(bind, &topology, rank, ranks))).collect();
        Ok(Self { sets, own, warning })
    }

    /// The CPUs of a rank that is bound, as `taskset -c` takes them.
    pub(crate) fn list(&self, rank: usize) -> String {
        let Some(set) = self.sets.get(rank) else {
            return String::new();
        };
        let cpus = (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu));
        cpus.map(|cpu| cpu.to_string()).collect::<Vec<_>>().join(",")
    }

    /// What the user should know before the ranks start.
    pub(crate) fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// Binds this thread as the rank shall be: a child has the CPUs of the thread that starts it.
    pub(crate) fn enter(&self, rank: usize) -> io::Result<Bound> {
        let Some(set) = self.sets.get(rank) else {
            return Ok(Bound(None));
        };
        sched_setaffinity(None, set)?;
        Ok(Bound(Some(self.own)))
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Some(own) = &self.0 {
            // The set was this thread's before, so nothing speaks against it.
            let _ = sched_setaffinity(None, own);
        }
    }
}

/// The CPUs of one rank. Neighbours in rank are neighbours in place, as a ring wants it.
pub(crate) fn share(bind: Bind, topology: &Topology, rank: usize, ranks: usize) -> Vec<usize> {
    match bind {
        Bind::None => topology.cores().concat(),
        Bind::Numa => {
            let nodes = &topology.nodes;
            nodes.get(rank * nodes.len() / ranks).map(|node| node.concat()).unwrap_or_default()
        }
        Bind::Core => {
            let cores = topology.cores();
            let part = match cores.len() {
                0 => 0..0,
                count if ranks > count => rank % count..rank % count + 1,
                count => rank * count / ranks..(rank + 1) * count / ranks,
            };
            cores.get(part).unwrap_or_default().concat()
        }
    }
}

fn set_of(cpus: &[usize]) -> CpuSet {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|cpu| set.set(*cpu));
    set
}

const SYSTEM: &str = "/sys/devices/system";

#[cfg(test)]
mod tests {
    use super::*;

    /// Two nodes, six cores, twelve hardware threads.
    fn topology() -> Topology {
        let core = |core: usize| vec![core, core + 6];
        Topology { nodes: vec![(0..3).map(core).collect(), (3..6).map(core).collect()] }
    }

    fn shares(bind: Bind, ranks: usize) -> Vec<Vec<usize>> {
        (0..ranks).map(|rank| share(bind, &topology(), rank, ranks)).collect()
    }

    #[test]
    fn every_rank_has_its_share_of_cores() {
        assert_eq!(shares(Bind::Core, 3), [[0, 6, 1, 7], [2, 8, 3, 9], [4, 10, 5, 11]]);
        assert_eq!(
            shares(Bind::Core, 4),
            [vec![0, 6], vec![1, 7, 2, 8], vec![3, 9], vec![4, 10, 5, 11]]
        );
        for ranks in 1..=6 {
            let mut all = shares(Bind::Core, ranks).concat();
            all.sort();
            assert_eq!(all, (0..12).collect::<Vec<_>>(), "{ranks} ranks");
        }
    }

    #[test]
    fn more_ranks_than_cores_begin_again() {
        let shares = shares(Bind::Core, 8);
        assert_eq!(shares[5..], [[5, 11], [0, 6], [1, 7]]);
    }

    #[test]
    fn nodes_are_shared_by_neighbours() {
        let cpus: [Vec<usize>; 2] = [vec![0, 6, 1, 7, 2, 8], vec![3, 9, 4, 10, 5, 11]];
        assert_eq!(shares(Bind::Numa, 1), [cpus[0].clone()]);
        let four = shares(Bind::Numa, 4);
        assert_eq!(four, [0, 0, 1, 1].map(|node| cpus[node].clone()));
    }

    #[test]
    fn what_is_bound_comes_back() {
        let before = sched_getaffinity(None).unwrap();
        let binding = Binding::plan(Bind::Core, 2).unwrap();
        for rank in 0..2 {
            let bound = binding.enter(rank).unwrap();
            let inside = sched_getaffinity(None).unwrap();
            assert!(inside.count() >= 1 && inside.count() <= before.count());
            drop(bound);
            assert_eq!(sched_getaffinity(None).unwrap(), before);
        }
    }
}
