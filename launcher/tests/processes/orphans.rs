//! Whatever happens, no process and no file stays behind.

use rustix::process::{Signal, kill_process};

use crate::launched::{Launched, Scratch, WAIT, children, runs, state, wait_until};

/// Starts, waits until the ranks are ready, and kills the launcher with -9.
fn kill_launcher(ranks: usize, script: &str) {
    let scratch = Scratch::new();
    let mut launched = Launched::start(scratch.run(ranks, script));
    for rank in 0..ranks {
        launched.expect_line(&format!("[{rank}] ready"));
    }
    let keepers = children(launched.pid(), "allfold keeper of run-");
    assert_eq!(keepers.len(), 1);
    launched.signal(Signal::KILL);
    scratch.expect_nothing_left();
    wait_until("the keeper has ended", || if runs(keepers[0]) { Err(()) } else { Ok(()) });
    launched.finish();
}

#[test]
fn kill_9_of_the_launcher_ends_a_shell_and_its_child() {
    kill_launcher(3, "echo ready; sleep 300; true");
}

#[test]
fn kill_9_of_the_launcher_ends_those_who_left() {
    let script = "setsid sleep 300 & setsid sh -c 'setsid sleep 300 & sleep 300; true' & \
                  (setsid sleep 300 &) ; echo ready; sleep 300; true";
    kill_launcher(2, script);
}

#[test]
fn kill_9_of_the_launcher_ends_those_who_ignore_sigterm() {
    kill_launcher(2, "trap '' TERM; echo ready; while :; do sleep 300; done");
}

#[test]
fn kill_9_of_the_launcher_ends_one_that_is_stopped() {
    let scratch = Scratch::new();
    let script = "echo ready; kill -STOP $$; sleep 300; true";
    let mut launched = Launched::start(scratch.run(1, script));
    launched.expect_line("[0] ready");
    let rank = children(launched.pid(), "sh ")[0];
    wait_until("it is stopped", || if state(rank) == "T" { Ok(()) } else { Err(state(rank)) });
    launched.signal(Signal::KILL);
    scratch.expect_nothing_left();
    launched.finish();
}

#[test]
fn a_rank_without_its_environment_is_found_by_its_group() {
    let scratch = Scratch::new();
    let script = "exec env -i sh -c 'echo pid $$; sleep 300; true'";
    let mut launched = Launched::start(scratch.run(1, script));
    let line = launched.expect(|line| line.starts_with("[0] pid "));
    let pid = rustix::process::Pid::from_raw(line[8..].parse().unwrap()).unwrap();
    assert!(runs(pid));
    launched.signal(Signal::KILL);
    wait_until("the rank has ended", || if runs(pid) { Err(()) } else { Ok(()) });
    scratch.expect_nothing_left();
    launched.finish();
}

#[test]
fn a_daemon_without_its_environment_is_found_at_the_end() {
    let scratch = Scratch::new();
    let script = format!("env -i setsid sh -c 'echo pid $$; sleep 300; true' & {WAIT}");
    let mut launched = Launched::start(scratch.run(1, &script));
    let line = launched.expect(|line| line.starts_with("[0] pid "));
    let pid = rustix::process::Pid::from_raw(line[8..].parse().unwrap()).unwrap();
    launched.expect_line("[0] ready");
    scratch.release(0, "on");
    assert_eq!(launched.finish().code(), Some(0));
    assert!(!runs(pid));
    scratch.expect_nothing_left();
}

#[test]
fn the_children_of_a_killed_rank_end() {
    let scratch = Scratch::new();
    let script = "setsid sleep 300 & sleep 300 & kill -9 $$";
    let launched = Launched::start(scratch.run(2, script));
    assert_eq!(launched.finish().code(), Some(137));
    assert_eq!(scratch.alive(), [""; 0]);
    scratch.expect_nothing_left();
}

#[test]
fn the_launcher_does_the_work_of_a_killed_keeper() {
    let scratch = Scratch::new();
    let script = format!("setsid sleep 300 & {WAIT}");
    let mut launched = Launched::start(scratch.run(1, &script));
    launched.expect_line("[0] ready");
    for keeper in children(launched.pid(), "allfold keeper of run-") {
        kill_process(keeper, Signal::KILL).unwrap();
    }
    scratch.release(0, "on");
    assert_eq!(launched.finish().code(), Some(0));
    assert_eq!(scratch.alive(), [""; 0]);
    scratch.expect_nothing_left();
}

#[test]
fn a_stopped_keeper_holds_nobody_up() {
    let scratch = Scratch::new();
    let script = format!("setsid sleep 300 & {WAIT}");
    let mut launched = Launched::start(scratch.run(1, &script));
    launched.expect_line("[0] ready");
    let keepers = children(launched.pid(), "allfold keeper of run-");
    for keeper in &keepers {
        kill_process(*keeper, Signal::STOP).unwrap();
    }
    scratch.release(0, "on");
    assert_eq!(launched.finish().code(), Some(0));
    assert_eq!((keepers.len(), keepers.iter().any(|keeper| runs(*keeper))), (1, false));
    assert_eq!(scratch.alive(), [""; 0]);
    scratch.expect_nothing_left();
}

#[test]
fn dead_orphans_do_not_pile_up() {
    let scratch = Scratch::new();
    // Each subshell leaves a child that outlives it for a moment.
    let script = format!("for i in 1 2 3 4 5; do (sleep 0.1 &); done; {WAIT}");
    let mut launched = Launched::start(scratch.run(1, &script));
    launched.expect_line("[0] ready");
    let launcher = launched.pid();
    wait_until("the launcher has only its rank and its keeper", || {
        let all = children(launcher, "");
        if all.len() == 2 { Ok(()) } else { Err(all) }
    });
    scratch.release(0, "on");
    assert_eq!(launched.finish().code(), Some(0));
}

#[test]
fn what_was_there_before_the_job_stays() {
    let scratch = Scratch::new();
    let mut command = std::process::Command::new("sh");
    let script = "(read x < $SCRATCH/go.0; echo still here) & exec \"$0\" run -n 1 true";
    command.args(["-c", &format!("mkfifo $SCRATCH/go.0; {script}"), LAUNCHER]);
    scratch.prepare(&mut command);
    let launched = Launched::start(command);
    wait_until("the launcher is through", || match state(launched.pid()).as_str() {
        "Z" => Ok(()),
        other => Err(other.to_owned()),
    });
    scratch.release(0, "on");
    assert_eq!(launched.finish().lines, ["still here"]);
}

const LAUNCHER: &str = env!("CARGO_BIN_EXE_allfold");
