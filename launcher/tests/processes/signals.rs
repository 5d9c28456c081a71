//! Ctrl-C and SIGTERM.

use std::fs;
use std::io::Write;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

// A shell may miss that a trap is due when it is about to wait for a child: so the children of
// those that trap are short.

use crate::launched::{Launched, Scratch, WAIT, children, runs, state, wait_until};

#[test]
fn the_first_ctrl_c_is_forwarded() {
    let scratch = Scratch::new();
    let script = "trap 'echo bye; exit 0' INT; echo ready; while :; do sleep 0.2; done";
    let mut launched = Launched::start(scratch.run(2, script));
    launched.expect_line("[0] ready");
    launched.expect_line("[1] ready");
    launched.signal(Signal::INT);
    let ended = launched.finish();
    assert_eq!(ended.code(), Some(130));
    assert_eq!(ended.lines, ["[0] bye", "[0] ready", "[1] bye", "[1] ready"]);
    assert_eq!(ended.error(), "stopped by SIGINT");
    scratch.expect_nothing_left();
}

#[test]
fn the_second_kills() {
    let scratch = Scratch::new();
    let script = "trap 'echo once' INT; trap '' TERM; echo ready; \
                  setsid sleep 300 & while :; do sleep 0.2; done";
    let mut launched = Launched::start(scratch.run(2, script));
    for line in ["[0] ready", "[1] ready"] {
        launched.expect_line(line);
    }
    launched.signal(Signal::INT);
    for line in ["[0] once", "[1] once"] {
        launched.expect_line(line);
    }
    // One that comes within 100 ms is the same wish.
    let launcher = launched.pid();
    wait_until("it has ended", || {
        launched.signal(Signal::INT);
        if runs(launcher) { Err("it runs") } else { Ok(()) }
    });
    assert_eq!(launched.finish().code(), Some(130));
    scratch.expect_nothing_left();
}

#[test]
fn sigterm_counts_143() {
    let scratch = Scratch::new();
    let mut launched = Launched::start(scratch.run(2, "echo ready; sleep 300; true"));
    launched.expect_line("[0] ready");
    launched.expect_line("[1] ready");
    launched.signal(Signal::TERM);
    let ended = launched.finish();
    assert_eq!(ended.code(), Some(143));
    assert_eq!(ended.error(), "stopped by SIGTERM");
    scratch.expect_nothing_left();
}

#[test]
fn who_does_not_end_after_the_grace_is_killed() {
    let scratch = Scratch::new();
    // Rank 1 takes no notice of SIGTERM, and neither of them of Ctrl-C.
    let script = "trap '' INT; [ $RANK = 1 ] && trap '' TERM; echo ready; \
                  while :; do sleep 0.2; done";
    for (signal, code, name, killed) in [
        (Signal::TERM, 143, "SIGTERM", "rank 1 did not end and was killed"),
        (Signal::INT, 130, "SIGINT", "ranks 0 and 1 did not end and were killed"),
    ] {
        let options = ["-n", "2", "--grace", "300ms"];
        let mut launched = Launched::start(scratch.run_with(&options, script));
        launched.expect_line("[0] ready");
        launched.expect_line("[1] ready");
        launched.signal(signal);
        let ended = launched.finish();
        assert_eq!(ended.code(), Some(code));
        assert_eq!(ended.error(), format!("stopped by {name}; {killed}"));
        scratch.expect_nothing_left();
    }
}

#[test]
fn signals_pass_through_the_first_process_of_a_container() {
    let scratch = Scratch::new();
    if !has_containers("signals_pass_through_the_first_process_of_a_container") {
        return;
    }
    let mut command = Command::new("unshare");
    let script = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.2; done";
    command
        .args(["--pid", "--fork", "--mount-proc", env!("CARGO_BIN_EXE_allfold")])
        .args(["run", "-n", "2", "sh", "-c", script]);
    scratch.prepare(&mut command);
    let mut launched = Launched::start(command);
    launched.expect_line("[0] ready");
    launched.expect_line("[1] ready");
    let first = children(launched.pid(), env!("CARGO_BIN_EXE_allfold"));
    kill_process(first[0], Signal::TERM).unwrap();
    let ended = launched.finish();
    assert_eq!(ended.code(), Some(143), "{}", ended.stderr);
    assert_eq!(ended.lines, ["[0] bye", "[0] ready", "[1] bye", "[1] ready"]);
    assert_eq!(ended.error(), "stopped by SIGTERM");
}

#[test]
fn the_first_process_of_a_container_can_be_stopped_while_it_reads_its_data() {
    if !has_containers("the_first_process_of_a_container_can_be_stopped_while_it_reads_its_data") {
        return;
    }
    let scratch = Scratch::new();
    // 8 GB of empty lines: it ends well before their end, or with another code.
    let script = "head -c 40000000 /dev/zero | tr '\\0' '\\n' | gzip > piece && \
                  for _ in $(seq 200); do cat piece; done > mnist_train.csv.gz && \
                  echo 1,2 > mnist_test.csv";
    let made = Command::new("sh").args(["-ec", script]).current_dir(scratch.path()).status();
    assert!(made.unwrap().success());
    for ranks in ["1", "2"] {
        let mut command = Command::new("unshare");
        command
            .args(["--pid", "--fork", "--mount-proc", env!("CARGO_BIN_EXE_allfold")])
            .args(["train", "--model", "mlp", "-n", ranks, "--data"])
            .arg(scratch.path());
        scratch.prepare(&mut command);
        let launched = Launched::start(command);
        let unshare = launched.pid();
        wait_until("it reads", || {
            let first = children(unshare, env!("CARGO_BIN_EXE_allfold"));
            let pid = *first.first().ok_or("it is not there")?;
            if !has_open(pid, "mnist_train.csv.gz") {
                return Err("it does not read");
            }
            kill_process(pid, Signal::TERM).map_err(|_| "it has ended")
        });
        let ended = launched.finish();
        assert_eq!(ended.code(), Some(143), "{}", ended.stderr);
        assert!(ended.lines.is_empty() && ended.stderr.is_empty(), "{}", ended.stderr);
        scratch.expect_nothing_left();
    }
}

#[test]
fn a_failure_before_the_stop_keeps_its_code() {
    let scratch = Scratch::new();
    let script = "[ $RANK = 0 ] && exit 9; trap 'echo bye; exit 0' TERM; echo ready; \
                  while :; do sleep 0.2; done";
    let mut launched = Launched::start(scratch.run(2, script));
    launched.expect_line("[1] ready");
    // Rank 0 may end after the others are ready.
    let launcher = launched.pid();
    wait_until("rank 0 has ended", || {
        let ranks = children(launcher, "sh ");
        if ranks.len() == 1 { Ok(()) } else { Err(ranks) }
    });
    launched.signal(Signal::TERM);
    assert_eq!(launched.finish().code(), Some(9));
    scratch.expect_nothing_left();
}

#[test]
fn a_signal_that_was_ignored_at_the_start_stays_so() {
    let scratch = Scratch::new();
    let mut command = Command::new("sh");
    let allfold = env!("CARGO_BIN_EXE_allfold");
    let script = "trap '' INT; exec \"$0\" run -n 1 sh -c 'echo ready; sleep 300; true'";
    command.args(["-c", script, allfold]);
    scratch.prepare(&mut command);
    let mut launched = Launched::start(command);
    launched.expect_line("[0] ready");
    launched.signal(Signal::INT);
    launched.signal(Signal::TERM);
    assert_eq!(launched.finish().code(), Some(143));
    scratch.expect_nothing_left();
}

#[test]
fn ctrl_z_stops_the_ranks_as_well() {
    let scratch = Scratch::new();
    let mut launched = Launched::start(scratch.run(1, WAIT));
    launched.expect_line("[0] ready");
    let launcher = launched.pid();
    let rank = children(launcher, "sh ")[0];
    launched.signal(Signal::TSTP);
    for pid in [launcher, rank] {
        wait_until("it is stopped", || if state(pid) == "T" { Ok(()) } else { Err(state(pid)) });
    }
    launched.signal(Signal::CONT);
    scratch.release(0, "on");
    assert_eq!(launched.finish().code(), Some(0));
}

/// Whether this host lets a test make a container; says so where it does not.
fn has_containers(test: &str) -> bool {
    let may = Command::new("unshare").args(["--pid", "--fork", "--mount-proc", "true"]).output();
    let has = may.is_ok_and(|output| output.status.success());
    if !has {
        let mut stderr = std::io::stderr();
        writeln!(stderr, "skipped: {test}: unshare --pid is missing or refused").unwrap();
    }
    has
}

/// Whether the process has a file of that name open.
fn has_open(pid: Pid, name: &str) -> bool {
    let files = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_pid())).into_iter().flatten();
    files.flatten().any(|file| fs::read_link(file.path()).is_ok_and(|path| path.ends_with(name)))
}
