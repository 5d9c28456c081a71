//! Under real launchers, where they are installed, and by hand: each rank finds out who it is, and
//! all train to the same parameters.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use allfold_tests::{Ended, Process, clean_command, free_address, machine_lock};

const ALLFOLD: &str = env!("CARGO_BIN_EXE_allfold-under-test");
const TRAIN: [&str; 5] = ["train", "--steps", "3", "--model", "mlp"];
/// A sum depends on its order, and that on who shares memory.
const SETTINGS: [(&str, &str); 2] = [("ALLFOLD_TRANSPORT", "quic"), ("ALLFOLD_ALGORITHM", "ring")];

#[test]
fn open_mpi() {
    let _one_at_a_time = machine_lock();
    let launch = ["mpirun", "--oversubscribe", "--allow-run-as-root", "-n", "3"];
    under("open_mpi", "Open MPI", "Open MPI", &launch);
}

#[test]
fn mpich() {
    let _one_at_a_time = machine_lock();
    under("mpich", "HYDRA", "MPICH or Intel MPI", &["mpiexec.mpich", "-n", "3"]);
}

/// Three ranks of `allfold env` and `allfold train` by this launcher, whose --version says `mark`.
fn under(test: &str, mark: &str, launcher: &str, launch: &[&str]) {
    let (program, options) = launch.split_first().unwrap();
    let version = Command::new(program).arg("--version").output();
    if !version.is_ok_and(|version| String::from_utf8_lossy(&version.stdout).contains(mark)) {
        eprintln!("skipped: {test}: {program} is not installed, or is another's");
        return;
    }
    let start = |words: &[&str]| {
        let mut command = clean_command(program);
        command.envs(SETTINGS);
        Process::start(command.args(options).arg(ALLFOLD).args(words)).wait()
    };
    let ended = start(&["env", "--json"]);
    assert_eq!(ended.code(), 0, "{ended:#?}");
    let mut ranks: Vec<serde_json::Value> =
        ended.output().into_iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    ranks.sort_by_key(|rank| rank["rank"]["value"].as_u64());
    assert_eq!(ranks.len(), 3, "{ended:#?}");
    for (number, rank) in ranks.iter().enumerate() {
        assert_eq!(rank["launcher"], launcher);
        assert_eq!(rank["rank"]["value"], number);
        assert_eq!(rank["world_size"]["value"], 3);
        assert_eq!(rank["local_rank"]["value"], number);
        assert_eq!(rank["local_world_size"]["value"], 3);
        assert_eq!(rank["rendezvous"], ranks[0]["rendezvous"]);
        assert_eq!(rank["job"], ranks[0]["job"]);
    }
    let ended = start(&TRAIN);
    assert_eq!(ended.code(), 0, "{ended:#?}");
    assert_eq!(digest(&ended), by_allfold_run(), "{ended:#?}");
}

#[test]
fn by_hand() {
    let _one_at_a_time = machine_lock();
    let peers = [(); 3].map(|()| free_address()).join(",");
    let start = |rank: &str| {
        let mut command = clean_command(ALLFOLD);
        command.envs(SETTINGS);
        Process::start(command.args(TRAIN).args(["--peers", &peers, "--rank", rank]))
    };
    let ranks = ["2", "0", "1"].map(start).map(Process::wait);
    for ended in &ranks {
        assert_eq!(ended.code(), 0, "{ended:#?}");
    }
    assert_eq!(digest(&ranks[1]), by_allfold_run());
}

/// The digest of the same training under allfold's own launcher.
fn by_allfold_run() -> String {
    let mut command = clean_command(ALLFOLD);
    command.args(TRAIN).args(["-n", "3"]).envs(SETTINGS);
    let ended = Process::start(&mut command).wait();
    assert_eq!(ended.code(), 0, "{ended:#?}");
    digest(&ended)
}

/// What `train` says of the parameters of all three.
fn digest(ended: &Ended) -> String {
    let start = "parameters identical on all 3 ranks, digest ";
    let output = ended.output();
    let line = output.iter().find_map(|line| line.strip_prefix(start));
    line.unwrap_or_else(|| panic!("no digest: {ended:#?}")).to_string()
}
