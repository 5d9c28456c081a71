//! SIGTERM in processes of their own.

#![allow(clippy::unwrap_used, reason = "a test says by a panic that it failed")]

mod skipped;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use allfold_trainer::Stop;
use rustix::process::{Pid, Signal, kill_process};
use skipped::skip;

/// A test of this file that runs as a process, and what it says.
struct Process {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    fn says(&mut self, expected: &str) {
        let mut said = self
            .lines
            .by_ref()
            .filter_map(|line| line.unwrap().strip_prefix(SAID).map(str::to_string));
        assert_eq!(said.next().as_deref(), Some(expected));
    }

    fn signal(&self, pid: u32) {
        let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn child(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", name, "--nocapture"]);
    command
}

#[test]
fn sigterm_asks_for_a_stop_and_ends_nothing() {
    let mut process = Process::start(child("child_that_stops_when_asked"));
    process.says("requested: false");
    process.signal(process.pid());
    process.says("requested: true");
    assert_eq!(process.child.wait().unwrap().code(), Some(42), "it ended as it wanted");
}

#[test]
fn sigterm_again_ends_at_once() {
    let mut process = Process::start(child("child_that_never_ends"));
    process.says("begun");
    let status = loop {
        process.signal(process.pid());
        match process.child.try_wait().unwrap() {
            Some(status) => break status,
            // Any number within the first second is one wish.
            None => thread::sleep(Duration::from_millis(10)),
        }
    };
    assert_eq!((status.code(), status.signal()), (Some(143), None));
    process.says("requested: true");
}

#[test]
fn sigterm_is_heard_as_pid_1() {
    let test = "sigterm_is_heard_as_pid_1";
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child"]);
        command
    };
    if !unshare().arg("true").status().is_ok_and(|status| status.success()) {
        skip(test, "no pid namespace can be made here (unshare --pid)");
        return;
    }
    let mut command = unshare();
    let inner = child("child_that_stops_when_asked");
    command.arg(inner.get_program()).args(inner.get_args());
    let mut process = Process::start(command);
    process.says("requested: false");
    let children = format!("/proc/{pid}/task/{pid}/children", pid = process.pid());
    let first = std::fs::read_to_string(children).unwrap();
    process.signal(first.trim().parse().unwrap());
    process.says("requested: true");
    assert_eq!(process.child.wait().unwrap().code(), Some(42));
}

#[test]
#[ignore = "run by other tests, and stopped"]
fn child_that_stops_when_asked() {
    let stop = Stop::install().unwrap();
    say(&format!("requested: {}", stop.requested()));
    stop.wait();
    // A second installation is the first.
    say(&format!("requested: {}", Stop::install().unwrap().requested()));
    std::process::exit(42);
}

#[test]
#[ignore = "run by another test, and stopped"]
fn child_that_never_ends() {
    let stop = Stop::install().unwrap();
    say("begun");
    stop.wait();
    say(&format!("requested: {}", stop.requested()));
    loop {
        thread::park();
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{SAID}{line}").and_then(|()| out.flush()).unwrap();
}

/// What the lines of children begin with, among those of the test runner.
const SAID: &str = "child: ";
