//! `run --hosts` over a real sshd on hosts of their own: what ends, and what it says of that.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::Command;
use std::time::Instant;

use allfold_tests::hosts::Hosts;
use allfold_tests::hosts::ssh::{Lets, Ssh};
use allfold_tests::{CAP, Folder, Process, clean_command, machine_lock, skipped};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

const ALLFOLD: &str = env!("CARGO_BIN_EXE_allfold-under-test");
const RANK: &str = env!("CARGO_BIN_EXE_rank-under-test");

/// Two hosts with two slots each, and one from which they are reached.
struct Cluster {
    hosts: Hosts,
    ssh: Ssh,
}

impl Cluster {
    fn new(test: &str) -> Option<Self> {
        Self::letting(test, &[Lets::Keys, Lets::Keys])
    }

    fn letting(test: &str, lets: &[Lets]) -> Option<Self> {
        let made = Hosts::on_a_switch(3).and_then(|hosts| {
            let ssh = Ssh::start(&hosts, lets)?;
            Ok(Self { hosts, ssh })
        });
        made.map_err(|reason| skipped(test, &reason)).ok()
    }

    /// `allfold run` there with these options and this program.
    fn command(&self, options: &[&str], program: &[&str]) -> Command {
        self.command_by(&self.ssh.client(), options, program)
    }

    /// The same with ssh called so.
    fn command_by(&self, ssh: &str, options: &[&str], program: &[&str]) -> Command {
        let mut command = clean_command(ALLFOLD);
        command.args(["run", "--ssh", ssh]).args(options).arg("--").args(program);
        command
    }

    fn start(&self, options: &[&str], program: &[&str]) -> Process {
        let options = [&["--hosts", "host-0:2,host-1:2"], options].concat();
        self.start_command(&self.command(&options, program))
    }

    fn start_command(&self, command: &Command) -> Process {
        Process::start(&mut self.hosts.machine(LEADER, command))
    }
}

/// The host without ranks.
const LEADER: usize = 2;

/// Processes that have this word on their command line, on whatever host.
fn with_word(word: &str) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let has_word = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|part| part == word.as_bytes())
    };
    pids.filter(has_word).filter_map(Pid::from_raw).collect()
}

/// Waits until they are gone.
fn wait_for(pids: &[Pid]) {
    let deadline = Instant::now() + CAP;
    for handle in pids.iter().filter_map(|pid| pidfd_open(*pid, PidfdFlags::empty()).ok()) {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap();
        let ended = poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&timeout)).unwrap();
        assert_eq!(ended, 1, "still there after {CAP:?}");
    }
}

/// A number of seconds that no other process sleeps.
fn long(test: usize) -> String {
    format!("{}.{test}", 1_000_000 + std::process::id())
}

/// Starts ranks that sleep so long, and waits until all do.
fn sleepers(cluster: &Cluster, seconds: &str) -> (Process, Vec<Pid>) {
    let script = format!("echo up; exec sleep {seconds}");
    let mut run = cluster.start(&[], &["sh", "-c", &script]);
    let mut up: Vec<String> = (0..4).map(|_| run.wait_for_line("] up")).collect();
    up.sort();
    assert_eq!(up, ["[0] up", "[1] up", "[2] up", "[3] up"]);
    let deadline = Instant::now() + CAP;
    loop {
        // The line comes before exec.
        let pids = with_word(seconds);
        if pids.len() == 4 {
            return (run, pids);
        }
        assert!(Instant::now() < deadline, "{pids:?}");
        std::thread::yield_now();
    }
}

#[test]
fn ranks_are_started_as_here() {
    let _one_at_a_time = machine_lock();
    let Some(cluster) = Cluster::new("ranks_are_started_as_here") else { return };
    let folder = Folder::new("ssh-run");
    let script = "echo $RANK $LOCAL_RANK $LOCAL_WORLD_SIZE $ALLFOLD_LANES $WORD $(hostname) $(pwd)
        echo told >&2; exit $((1 - ALLFOLD_RESTART))";
    let logs = folder.path().join("logs").display().to_string();
    let events = folder.path().join("events").display().to_string();
    let hosts = folder.write("hosts", "# two\nhost-0 slots=2\nhost-1:2\n", 0o644);
    let options = ["--hostfile", &hosts, "-n", "3", "--env", "WORD=a b", "--max-restarts", "1"];
    let files = ["--log-dir", &logs, "--json-events", &events];
    let mut command = cluster.command(&[&options[..], &files].concat(), &["sh", "-c", script]);
    command.env("ALLFOLD_LANES", "2").current_dir(folder.path());
    let ended = cluster.start_command(&command).wait();
    assert_eq!(ended.code(), 0, "{ended:#?}");
    let place = folder.path().display();
    for line in [
        format!("[0] 0 0 2 2 a b host-0 {place}"),
        format!("[1] 1 1 2 2 a b host-0 {place}"),
        format!("[2] 2 0 1 2 a b host-1 {place}"),
    ] {
        assert!(ended.output().contains(&&*line), "{line}: {ended:#?}");
        let log = fs::read_to_string(format!("{logs}/rank-{}.restart-1.log", &line[1..2]));
        assert_eq!(log.unwrap().lines().filter(|said| *said == &line[4..]).count(), 1);
    }
    assert!(ended.errors().contains(&"[2] told"), "{ended:#?}");
    let says = |text: &str| ended.errors().iter().any(|line| line.contains(text));
    assert!(says("allfold: restart 1 of 1 after rank "), "{ended:#?}");
    let events = fs::read_to_string(events).unwrap();
    let is_there =
        |line: &str| line.contains("rank-started") && line.contains(r#""host":"host-1""#);
    assert_eq!(events.lines().filter(|line| is_there(line)).count(), 2, "{events}");
}

#[test]
fn a_rank_that_dies_ends_all_with_one_error() {
    let _one_at_a_time = machine_lock();
    let Some(cluster) = Cluster::new("a_rank_that_dies_ends_all_with_one_error") else { return };
    let mut run = cluster.start(&[], &[RANK, "forever"]);
    (0..4).for_each(|_| drop(run.wait_for_line("] started")));
    let is_second = |pid: &&Pid| {
        let environment = fs::read(format!("/proc/{}/environ", pid.as_raw_pid())).unwrap();
        environment.split(|byte| *byte == 0).any(|entry| entry == b"ALLFOLD_RANK=2")
    };
    let pids = with_word("forever");
    let ranks: Vec<Pid> = pids.iter().filter(is_second).copied().collect();
    let [rank] = ranks[..] else { panic!("{ranks:?} of {pids:?}") };
    kill_process(rank, Signal::KILL).unwrap();
    let ended = run.wait();
    let words = ["rank 2 (host-1, pid ", "was killed by signal 9 (SIGKILL)"];
    ended.assert_error(137, &words);
    // Those on the other host have heard it from the launcher, and not missed its heartbeats.
    for rank in [0, 1, 3] {
        // The library's words have the address as well.
        let own = format!("[{rank}] error: rank 2 (host-1, ");
        let line = ended.errors().into_iter().find(|line| line.starts_with(&own));
        assert!(line.is_some_and(|line| line.contains(words[1])), "{ended:#?}");
    }
}

#[test]
fn the_code_is_that_of_the_rank_at_fault() {
    let _one_at_a_time = machine_lock();
    let Some(cluster) = Cluster::new("the_code_is_that_of_the_rank_at_fault") else { return };
    let ended = cluster.start(&[], &[RANK, "exit", "2", "7"]).wait();
    ended.assert_error(7, &["rank 2 (host-1, pid ", "exited with code 7"]);
}

/// A shell lets what it starts in the background ignore SIGINT, and so does all that this starts.
fn is_ignored(signal: Signal) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    (u64::from_str_radix(mask.trim(), 16).unwrap() >> (signal.as_raw() - 1)) & 1 == 1
}

#[test]
fn a_signal_here_ends_all_ranks_there() {
    let _one_at_a_time = machine_lock();
    let Some(cluster) = Cluster::new("a_signal_here_ends_all_ranks_there") else { return };
    for (number, signal, name, code) in
        [(1, Signal::TERM, "SIGTERM", 143), (2, Signal::INT, "SIGINT", 130)]
    {
        if is_ignored(signal) {
            skipped("a_signal_here_ends_all_ranks_there", &format!("{name} is ignored here"));
            continue;
        }
        let (run, pids) = sleepers(&cluster, &long(number));
        cluster.hosts.signal(&run, signal);
        run.wait().assert_error(code, &["stopped by", name]);
        wait_for(&pids);
    }
}

#[test]
fn ranks_end_with_a_launcher_that_is_killed() {
    let _one_at_a_time = machine_lock();
    let Some(cluster) = Cluster::new("ranks_end_with_a_launcher_that_is_killed") else { return };
    let (run, pids) = sleepers(&cluster, &long(3));
    cluster.hosts.signal(&run, Signal::KILL);
    drop(run);
    wait_for(&pids);
}

#[test]
fn a_connection_that_is_lost_is_told() {
    let _one_at_a_time = machine_lock();
    let Some(mut cluster) = Cluster::new("a_connection_that_is_lost_is_told") else { return };
    let (run, pids) = sleepers(&cluster, &long(4));
    cluster.ssh.power_off(1);
    let ended = run.wait();
    ended.assert_error(75, &["lost the connection to host-1 (ranks 2 to 3): "]);
    wait_for(&pids);
}

/// Nothing says that the connection is gone: both ends miss the other.
#[test]
fn a_host_that_is_cut_off_is_told_and_ends_its_ranks() {
    let _one_at_a_time = machine_lock();
    let test = "a_host_that_is_cut_off_is_told_and_ends_its_ranks";
    let Some(cluster) = Cluster::new(test) else { return };
    let (run, pids) = sleepers(&cluster, &long(5));
    cluster.hosts.cut_off(1);
    run.wait().assert_error(75, &["lost the connection to host-1 (ranks 2 to 3): ", "Timeout"]);
    wait_for(&pids);
}

#[test]
fn the_secret_goes_through_standard_input_alone() {
    let _one_at_a_time = machine_lock();
    let test = "the_secret_goes_through_standard_input_alone";
    let Some(cluster) = Cluster::new(test) else { return };
    let script = "printf 'it is '; cat $ALLFOLD_SECRET_FILE; exec sleep 1000";
    let mut run = cluster.start(&["--only-rank", "3"], &["sh", "-c", script]);
    let line = run.wait_for_line("it is ");
    let secret = line.rsplit_once("it is ").unwrap().1.as_bytes();
    assert_eq!(secret.len(), 64);
    let mut seen = 0;
    for process in fs::read_dir("/proc").unwrap().flatten() {
        for name in ["cmdline", "environ"] {
            let text = fs::read(process.path().join(name)).unwrap_or_default();
            seen += usize::from(!text.is_empty());
            let shows = text.windows(secret.len()).any(|part| part == secret);
            assert!(!shows, "{}: {}", process.path().display(), String::from_utf8_lossy(&text));
        }
    }
    assert!(seen > 20, "{seen}");
    cluster.hosts.signal(&run, Signal::TERM);
    assert_eq!(run.wait().code(), 143);
}

#[test]
fn what_keeps_a_host_from_taking_part_is_one_line() {
    let _one_at_a_time = machine_lock();
    let test = "what_keeps_a_host_from_taking_part_is_one_line";
    let Some(cluster) = Cluster::letting(test, &[Lets::Keys, Lets::Passwords]) else { return };
    let folder = Folder::new("ssh-refused");
    let other = "#!/bin/sh\necho allfold-host 1 9.9.9\ncat > /dev/null\n";
    let other = folder.write("other", other, 0o755);
    let told_by = |ssh: &str, options: &[&str], code: i32, words: &[&str], help: &str| {
        let ended = cluster.start_command(&cluster.command_by(ssh, options, &["true"])).wait();
        ended.assert_error(code, words);
        let is_help = |line: &&str| line.starts_with("help: ") && line.contains(help);
        assert!(ended.errors().iter().any(is_help), "{help}: {ended:#?}");
    };
    let client = cluster.ssh.client();
    let told = |options: &[&str], code, words: &[&str], help: &str| {
        told_by(&client, options, code, words, help);
    };
    // No name server answers there, so it may be known later.
    let unknown = "the name host-9 cannot be resolved now: ";
    told(&["--hosts", "host-0:2,host-9:2"], 75, &[unknown], "`getent hosts host-9`");
    told(
        &["--hosts", "host-0:2,host-1:2"],
        2,
        &["ssh to host-1 asks for a password: root@host-1: Permission denied"],
        "ssh-copy-id host-1",
    );
    told(
        &["--hosts", "host-0:2,host-1:2", "-n", "5"],
        2,
        &["5 ranks, but the hosts of --hosts have only 4 slots"],
        "raise the slots in --hosts",
    );
    told(
        &["--hosts", "host-0:2", "--remote-path", "/no/such/allfold"],
        2,
        &["allfold is not at /no/such/allfold on host-0"],
        "--remote-path",
    );
    let own = env!("CARGO_PKG_VERSION");
    told(
        &["--hosts", "host-0:2", "--remote-path", &other],
        2,
        &[&format!("on host-0 is allfold 9.9.9, this is {own}")],
        own,
    );
    let one = ["--hosts", "host-0:2"];
    let refused = "host-0 refuses ssh's connection";
    told_by(&format!("{client} -p 4711"), &one, 75, &[refused], "start sshd on host-0");
    let stranger = format!("{client} -o UserKnownHostsFile=/dev/null");
    told_by(&stranger, &one, 2, &["ssh to host-0 does not know its host key"], "`ssh host-0 true`");
    told_by("no-such-ssh -v", &one, 2, &["program `no-such-ssh` not found"], "--ssh");
    let ended = cluster.start_command(&cluster.command(&["--hosts", "host-0:2"], &["nosuch"]));
    ended.wait().assert_error(2, &["host-0: program `nosuch` not found"]);
    // A directory that only the host has from which all is started.
    let mut elsewhere = Command::new("sh");
    let words = "mount -t tmpfs none \"$1\" && mkdir \"$1/here\" && cd \"$1/here\" && shift && \
                 exec \"$@\"";
    let command = cluster.command(&["--hosts", "host-0:2"], &["true"]);
    elsewhere.args(["-c", words, "sh"]).arg(folder.path()).arg(command.get_program());
    let ended = cluster.start_command(elsewhere.args(command.get_args())).wait();
    ended.assert_error(2, &["host-0: no directory ", "/here: No such file or directory"]);
}
