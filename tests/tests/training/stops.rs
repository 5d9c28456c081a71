//! SIGTERM, at any moment and to any process.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use allfold_tests::{CAP, Job, Process, clean_command, machine_lock, skipped};
use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::process::{Pid, Signal, kill_process};

use crate::command::{ALLFOLD, ends_well, pids, start};
use crate::scratch::Scratch;

#[test]
fn sigterm_to_any_process_stops_all_and_resume_goes_on() {
    let _one_at_a_time = machine_lock();
    for (ranks, target) in [(1, 0), (3, 1), (3, LAUNCHER), (4, TWICE)] {
        let folder = Scratch::new();
        let checkpoints = folder.path("checkpoints");
        let line = |steps: usize| {
            format!(
                "train -n {ranks} --model mlp --hidden 16 --steps {steps} --eval-every 20 \
                 --checkpoint {checkpoints} --checkpoint-every 600s --resume"
            )
        };
        let mut job = start(&line(1_000_000));
        let pids = pids(&job.wait_for_line("  pids  "));
        assert_eq!(pids.len(), ranks);
        job.wait_for_line(" step=20 ");
        match pids.get(target) {
            Some(&pid) => kill_process(pid, Signal::TERM).unwrap(),
            None => job.signal(Signal::TERM),
        }
        if target == TWICE {
            // As `timeout` and systemd do: the process, and then its group.
            std::thread::sleep(Duration::from_millis(20));
            job.signal(Signal::TERM);
        }
        let ended = job.wait();
        assert_eq!(ended.code(), 143, "{ended:#?}");
        let stopped = ended.output().into_iter().find(|line| line.starts_with("stopped by "));
        let stopped = stopped.unwrap_or_else(|| panic!("{ended:#?}"));
        let words = stopped.strip_prefix("stopped by SIGTERM after step ").unwrap();
        let step: usize = words.split(' ').next().unwrap().replace(',', "").parse().unwrap();
        assert!(words.contains(" of 1,000,000, "), "{stopped}");
        let file = format!("{checkpoints}/step-{step:08}.safetensors");
        assert!(ended.output().contains(&&*format!("checkpoint {file}")), "{ended:#?}");
        assert!(Path::new(&file).exists());
        let errors = [
            &*format!("error: stopped by SIGTERM after step {step}"),
            "help: --resume goes on from there",
        ];
        assert_eq!(ended.errors(), errors, "{ended:#?}");

        let resumed = ends_well(&line(step + 5));
        assert!(resumed.contains(&format!(" of {file}\n")), "{resumed}");
        assert!(resumed.contains(&format!(" step={} ", step + 5)), "{resumed}");
    }
}

#[test]
fn the_first_process_of_a_container_stops_too() {
    let test = "the_first_process_of_a_container_stops_too";
    let unshare = || {
        let mut command = clean_command("unshare");
        command.args(["--pid", "--fork", "--kill-child"]);
        command
    };
    if !unshare().arg("true").status().is_ok_and(|status| status.success()) {
        return skipped(test, "no pid namespace can be made here (unshare --pid)");
    }
    let _one_at_a_time = machine_lock();
    let terminate = |job: &Process| {
        let children = format!("/proc/{pid}/task/{pid}/children", pid = job.id());
        let first = fs::read_to_string(children).unwrap().trim().parse().unwrap();
        kill_process(Pid::from_raw(first).unwrap(), Signal::TERM).unwrap();
    };
    let folder = Scratch::new();
    let checkpoints = folder.path("checkpoints");
    let mut command = unshare();
    command.arg(ALLFOLD).args(["train", "--model", "mlp", "--steps", "1000000"]);
    command.args(["--eval-every", "20", "--checkpoint", &checkpoints]);
    let mut job = Process::start(&mut command);
    job.wait_for_line("  pids   1");
    job.wait_for_line(" step=20 ");
    terminate(&job);
    let ended = job.wait();
    ended.assert_error(143, &["stopped by SIGTERM after step "]);
    let saved = format!("checkpoint {checkpoints}/step-");
    assert!(ended.output().iter().any(|line| line.starts_with(&saved)), "{ended:#?}");

    // Also while it waits for another rank: longer than this test would.
    let of_two = Job::new(2);
    let arguments = ["--pid", "--fork", "--kill-child", ALLFOLD, "train", "--steps", "2"];
    let mut command = of_two.rank(0, "unshare", &arguments);
    let waiting = Process::start(command.env("ALLFOLD_CONNECT_TIMEOUT", "10m"));
    let (_, port) = of_two.rendezvous.rsplit_once(':').unwrap();
    let socket = format!(" 0100007F:{:04X} ", port.parse::<u16>().unwrap());
    let begun = Instant::now();
    while !fs::read_to_string("/proc/net/udp").unwrap().contains(&socket) {
        assert!(begun.elapsed() < CAP, "it does not listen for the other");
        std::thread::yield_now();
    }
    terminate(&waiting);
    let ended = waiting.wait();
    assert_eq!(ended.code(), 143, "{ended:#?}");
}

#[test]
fn a_stop_is_heard_while_data_is_read() {
    let test = "a_stop_is_heard_while_data_is_read";
    let folder = Scratch::new();
    let pipe = folder.path("text.txt");
    mkfifoat(CWD, &pipe, Mode::RUSR | Mode::WUSR).unwrap();
    let job = start(&format!("train --model lm --data {pipe}"));
    // Where the kernel says what it waits for: nobody writes to the pipe.
    let wait = || fs::read_to_string(format!("/proc/{}/wchan", job.id())).unwrap_or_default();
    let begun = Instant::now();
    while !wait().contains("wait_for_partner") {
        if begun.elapsed() > CAP / 4 {
            return skipped(test, "/proc does not say what a process waits for");
        }
        std::thread::yield_now();
    }
    job.signal(Signal::TERM);
    assert_eq!(job.wait().code(), 143);
}

#[test]
fn a_stop_without_checkpoints_says_that_nothing_was_saved() {
    let _one_at_a_time = machine_lock();
    let mut job = start("train -n 2 --model mlp --steps 1000000 --eval-every 20");
    job.wait_for_line(" step=20 ");
    job.signal(Signal::TERM);
    let ended = job.wait();
    ended.assert_error(143, &["stopped by SIGTERM after step "]);
    let help = "help: nothing was saved: --checkpoint DIR saves, --resume goes on";
    assert_eq!(ended.errors()[1..], [help], "{ended:#?}");
}

#[test]
fn a_stop_that_cannot_be_saved_does_not_promise_to_go_on() {
    let _one_at_a_time = machine_lock();
    let folder = Scratch::new();
    folder.write("file", b"in the way");
    let below = folder.path("file/below");
    for ranks in [1, 2] {
        let line = format!("train -n {ranks} --model mlp --steps 1000000 --eval-every 20");
        let mut job = start(&format!("{line} --checkpoint {below} --checkpoint-every 600s"));
        job.wait_for_line(" step=20 ");
        job.signal(Signal::TERM);
        let ended = job.wait();
        ended.assert_error(143, &["stopped by SIGTERM after step "]);
        let help = "help: this step could not be saved: see the warnings";
        assert_eq!(ended.errors().last(), Some(&help), "{ended:#?}");
    }
}

#[test]
fn when_done_a_training_can_wait() {
    let _one_at_a_time = machine_lock();
    for ranks in [1, 2] {
        let line = format!("train -n {ranks} --model mlp --steps 5 --when-done wait");
        let mut job = start(&line);
        job.wait_for_line("digest ");
        job.wait_for_line("training complete, waiting for SIGTERM");
        job.signal(Signal::TERM);
        let ended = job.wait();
        assert_eq!(ended.code(), 0, "{ended:#?}");
        assert!(ended.errors().is_empty(), "{ended:#?}");
    }
}

/// No rank's number.
const LAUNCHER: usize = usize::MAX;
/// The launcher, by two signals.
const TWICE: usize = LAUNCHER - 1;
