//! --bind: what each rank may use.

use std::collections::BTreeSet;
use std::process::Command;

use crate::launched::{Ended, Scratch, finish};

const SHOW: &str = "echo cpus $(sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' /proc/self/status)";

fn parse(list: &str) -> BTreeSet<usize> {
    let mut cpus = BTreeSet::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(first.parse::<usize>().unwrap()..=last.parse().unwrap());
    }
    cpus
}

/// What this process may use itself.
fn own() -> BTreeSet<usize> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    parse(status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap())
}

/// The CPUs of each rank.
fn sets(ended: &Ended) -> Vec<BTreeSet<usize>> {
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
    ended.lines.iter().map(|line| parse(line.split_once("cpus ").unwrap().1)).collect()
}

#[test]
fn two_ranks_share_out_the_cores() {
    let scratch = Scratch::new();
    let ended = finish(scratch.run_with(&["-n", "2", "--bind", "core"], SHOW));
    let sets = sets(&ended);
    assert_eq!(&sets[0] | &sets[1], own());
    let is_said = ended.stderr == "allfold: 2 ranks on 1 core: some share a core\n";
    // Apart, wherever there is more than one core.
    assert_eq!(is_said, !sets[0].is_disjoint(&sets[1]), "{}", ended.stderr);
}

#[test]
fn more_ranks_than_cores_share_them_and_it_is_said_once() {
    let scratch = Scratch::new();
    let ranks = own().len() + 1;
    let options = ["-n", &ranks.to_string(), "--bind", "core"];
    let ended = finish(scratch.run_with(&options, SHOW));
    let sets = sets(&ended);
    assert_eq!(sets.len(), ranks);
    assert_eq!(sets.iter().flatten().copied().collect::<BTreeSet<_>>(), own());
    assert!(ended.stderr.starts_with(&format!("allfold: {ranks} ranks on ")), "{}", ended.stderr);
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
}

#[test]
fn a_set_that_somebody_else_has_cut_is_respected() {
    let scratch = Scratch::new();
    let cpu = *own().first().unwrap();
    for bind in ["core", "numa", "none"] {
        let mut command = Command::new("taskset");
        command
            .args(["-c", &cpu.to_string(), env!("CARGO_BIN_EXE_allfold")])
            .args(["run", "-n", "2", "--bind", bind, "sh", "-c", SHOW]);
        scratch.prepare(&mut command);
        let ended = finish(command);
        assert_eq!(sets(&ended), [BTreeSet::from([cpu]), BTreeSet::from([cpu])], "{bind}");
    }
}

#[test]
fn numa_nodes_are_whole() {
    let scratch = Scratch::new();
    let ended = finish(scratch.run_with(&["-n", "2", "--bind", "numa"], SHOW));
    assert_eq!(ended.stderr, "");
    for set in sets(&ended) {
        let node = std::fs::read_dir("/sys/devices/system/node").ok().and_then(|nodes| {
            nodes
                .filter_map(|node| std::fs::read_to_string(node.ok()?.path().join("cpulist")).ok())
                .map(|list| &parse(&list) & &own())
                .find(|node| !node.is_disjoint(&set))
        });
        assert_eq!(set, node.unwrap_or_else(own));
    }
}
