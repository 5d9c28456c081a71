//! Under real launchers, where they are installed, and by hand: each rank finds out who it is, and
//! all train to the same parameters.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};

use allfold_tests::hosts::ssh::{Lets, Ssh};
use allfold_tests::hosts::{Hosts, host_name};
use allfold_tests::slurm::Slurm;
use allfold_tests::{Ended, Process, clean_command, free_address, machine_lock, skipped};

const ALLFOLD: &str = env!("CARGO_BIN_EXE_allfold-under-test");
const RANKS: usize = 4;
const TRAIN: [&str; 5] = ["train", "--steps", "3", "--model", "mlp"];
/// A sum depends on its order, and that on who shares memory.
const SETTINGS: [(&str, &str); 2] = [("ALLFOLD_TRANSPORT", "quic"), ("ALLFOLD_ALGORITHM", "ring")];

#[test]
fn open_mpi() {
    let _one_at_a_time = machine_lock();
    let launch = ["mpirun", "--oversubscribe", "--allow-run-as-root", "-n", "4"];
    if is_installed("open_mpi", "mpirun", "Open MPI") {
        under("Open MPI", || start(&launch));
    }
}

#[test]
fn mpich() {
    let _one_at_a_time = machine_lock();
    if is_installed("mpich", "mpiexec.mpich", "HYDRA") {
        under("MPICH or Intel MPI", || start(&["mpiexec.mpich", "-n", "4"]));
    }
}

#[test]
fn slurm() {
    let _one_at_a_time = machine_lock();
    match Slurm::start() {
        Ok(slurm) => under("Slurm", || slurm.srun(&["-n", "4"])),
        Err(reason) => skipped("slurm", &reason),
    }
}

#[test]
fn torchrun() {
    let _one_at_a_time = machine_lock();
    let has_torch = |python: &&str| {
        let mut import = Command::new(python);
        import.args(["-c", "import torch.distributed.run"]).stderr(Stdio::null());
        import.status().is_ok_and(|status| status.success())
    };
    // The system's own has it where it is a package's.
    let Some(python) = ["python3", "/usr/bin/python3"].into_iter().find(has_torch) else {
        skipped("torchrun", "needs a python3 that has torch; its variables are among the recorded");
        return;
    };
    let port = free_address().rsplit_once(':').unwrap().1.to_owned();
    under("torchrun", || {
        let mut launch = start(&[python, "-c", TORCHRUN]);
        launch.args(["--nproc_per_node", "4", "--master_port", &port, "--no_python"]);
        launch
    });
}

/// torchrun's main; 1.13, which Debian has, cannot read its own default on Python 3.11.
const TORCHRUN: &str = "
import sys
from torch.distributed.elastic.multiprocessing import api
if api.Std.from_str('0') is None:
    std = lambda text: api.Std(int(text))
    pairs = lambda text: dict((int(k), std(v)) for k, v in (p.split(':') for p in text.split(',')))
    api.Std.from_str = classmethod(lambda _, text: pairs(text) if ':' in text else std(text))
from torch.distributed.run import main
sys.exit(main())
";

fn start(launch: &[&str]) -> Command {
    let mut command = clean_command(launch[0]);
    command.args(&launch[1..]);
    command
}

/// Whether a program is there whose --version says `mark`.
fn is_installed(test: &str, program: &str, mark: &str) -> bool {
    let version = Command::new(program).arg("--version").output();
    let is_there =
        version.is_ok_and(|version| String::from_utf8_lossy(&version.stdout).contains(mark));
    if !is_there {
        skipped(test, &format!("{program} is not installed, or is another's"));
    }
    is_there
}

/// Four ranks of `allfold env` and `allfold train` by this launcher.
fn under(launcher: &str, launch: impl Fn() -> Command) {
    let start =
        |words: &[&str]| Process::start(launch().envs(SETTINGS).arg(ALLFOLD).args(words)).wait();
    let ended = start(&["env", "--json"]);
    assert_eq!(ended.code(), 0, "{ended:#?}");
    let mut ranks: Vec<serde_json::Value> =
        ended.output().into_iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    ranks.sort_by_key(|rank| rank["rank"]["value"].as_u64());
    assert_eq!(ranks.len(), RANKS, "{ended:#?}");
    for (number, rank) in ranks.iter().enumerate() {
        assert_eq!(rank["launcher"], launcher);
        assert_eq!(rank["rank"]["value"], number);
        assert_eq!(rank["world_size"]["value"], RANKS);
        assert_eq!(rank["local_rank"]["value"], number);
        assert_eq!(rank["local_world_size"]["value"], RANKS);
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
    let peers = [(); RANKS].map(|()| free_address()).join(",");
    let start = |rank: &str| {
        let mut command = clean_command(ALLFOLD);
        command.args(TRAIN).envs(SETTINGS);
        Process::start(command.args(["--peers", &peers, "--rank", rank]))
    };
    let ranks = ["2", "0", "3", "1"].map(start).map(Process::wait);
    for ended in &ranks {
        assert_eq!(ended.code(), 0, "{ended:#?}");
    }
    assert_eq!(digest(&ranks[1]), by_allfold_run());
}

#[test]
fn one_launcher_on_each_of_two_hosts() {
    let _one_at_a_time = machine_lock();
    let test = "one_launcher_on_each_of_two_hosts";
    let hosts = match Hosts::on_a_switch(2) {
        Ok(hosts) => hosts,
        Err(reason) => return skipped(test, &reason),
    };
    let secret = allfold::Secret::random().unwrap().to_line().to_string();
    let start = |host: usize| {
        let mut command = clean_command(ALLFOLD);
        command.env("ALLFOLD_SECRET", &secret).envs(SETTINGS).args(["run", "--nnodes", "2"]);
        command.args(["--node-rank", &host.to_string(), "--nproc-per-node", "2"]);
        command.args(["--rdzv", &format!("{}:29500", host_name(0)), "--", ALLFOLD]);
        Process::start(&mut hosts.machine(host, command.args(TRAIN)))
    };
    let [second, first] = [1, 0].map(start).map(Process::wait);
    for ended in [&first, &second] {
        assert_eq!(ended.code(), 0, "{ended:#?}");
        let fingerprint = "the secret must be the same on all hosts: ";
        assert!(ended.errors().iter().any(|line| line.contains(fingerprint)), "{ended:#?}");
        assert!(!ended.lines.iter().any(|line| line.contains(&secret)), "{ended:#?}");
    }
    assert_eq!(digest(&first), by_allfold_run());
}

#[test]
fn two_hosts_by_ssh() {
    let _one_at_a_time = machine_lock();
    // Two with ranks, and one where the command is given.
    let made = Hosts::on_a_switch(3).and_then(|hosts| {
        let ssh = Ssh::start(&hosts, &[Lets::Keys, Lets::Keys])?;
        Ok((hosts, ssh))
    });
    let (hosts, ssh) = match made {
        Ok(made) => made,
        Err(reason) => return skipped("two_hosts_by_ssh", &reason),
    };
    let on_both = ["--hosts", "host-0:2,host-1:2", "--ssh", &ssh.client()];
    let start = |host: usize, words: &[&str]| {
        let mut command = clean_command(ALLFOLD);
        // A login there has none of these.
        Process::start(&mut hosts.machine(host, command.envs(SETTINGS).args(words))).wait()
    };
    let program = [&["run"], &on_both[..], &["--", ALLFOLD], &TRAIN].concat();
    let copies = [&TRAIN[..], &on_both].concat();
    // From a host with ranks no ssh leads to itself.
    for (host, words) in [(2, &program), (2, &copies), (0, &copies)] {
        let ended = start(host, words);
        assert_eq!(ended.code(), 0, "{words:?}: {ended:#?}");
        assert_eq!(digest(&ended), by_allfold_run(), "{words:?}");
    }
}

/// The digest of the same training under allfold's own launcher.
fn by_allfold_run() -> String {
    let mut command = clean_command(ALLFOLD);
    command.envs(SETTINGS).args(TRAIN).args(["-n", "4"]);
    let ended = Process::start(&mut command).wait();
    assert_eq!(ended.code(), 0, "{ended:#?}");
    digest(&ended)
}

/// What `train` says of the parameters of all four.
fn digest(ended: &Ended) -> String {
    let start = "parameters identical on all 4 ranks, digest ";
    let output = ended.output();
    // Behind a rank's number under some launchers.
    let line = output.iter().find_map(|line| line.split_once(start));
    line.unwrap_or_else(|| panic!("no digest: {ended:#?}")).1.to_string()
}
