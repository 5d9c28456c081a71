//! What a job bears: readers who do not read, processes that are frozen, and other limits than the
//! defaults. Slowness is no death, and nobody's own stop is held against another rank.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, PipeReader, Read, Write, pipe};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use allfold_tests::faults::victim::FAULT;
use allfold_tests::{Ended, Folder, Job, Process, machine_lock};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::Signal;

const RANK: &str = env!("CARGO_BIN_EXE_rank-under-test");

#[test]
fn a_reader_who_does_not_read_ends_no_healthy_job() {
    let _one_at_a_time = machine_lock();
    let folder = Folder::new("unread");
    let go = folder.path().join("go");
    let job = Job::new(3);
    let start = |rank, stderr| {
        let mut command = job.rank(rank, RANK, &["late", "2", go.to_str().unwrap()]);
        command.env("ALLFOLD_LATE_AFTER", "200ms").env("ALLFOLD_DEAD_AFTER", "1s");
        Process::start_with(command.env("ALLFOLD_HEARTBEAT", "100ms"), stderr)
    };
    let (unread, full) = full_pipe();
    let mute = start(0, full);
    let mut ranks = [1, 2].map(|rank| start(rank, Stdio::piped()));
    // Each warning comes twice as late as the one before, and rank 0 cannot write its first.
    for _ in 0..4 {
        ranks[0].wait_for_line("has waited");
    }
    std::fs::write(&go, "").unwrap();
    let ended = ranks.map(Process::wait);
    drop(unread);
    for ended in ended.iter().chain([&mute.wait()]) {
        assert_eq!(ended.code(), 0, "{ended:#?}");
    }
}

#[test]
fn a_reader_who_does_not_read_holds_up_no_verdict() {
    let _one_at_a_time = machine_lock();
    let job = Job::new(3);
    let start = |rank, stderr| {
        let mut command = job.rank(rank, RANK, &["faults"]);
        Process::start_with(command.env(FAULT, "kill/idle/2/3/plain"), stderr)
    };
    let (unread, full) = full_pipe();
    let mut mute = start(0, full);
    let others = [1, 2].map(|rank| start(rank, Stdio::piped()));
    // The call after the one that failed says the same.
    let mark = mute.wait_for_line(" again ");
    assert!(mark.contains(" again 1 "), "{mark}");
    let [survivor, _killed] = others.map(Process::wait);
    survivor.assert_error(75, &["rank 2 (", "is gone: its process ended"]);
    let text = std::thread::spawn(move || read(unread));
    assert_eq!(mute.wait().code(), 75);
    let text = text.join().unwrap();
    assert!(text.trim_start_matches('.').contains("error: rank 2 ("), "{text}");
}

#[test]
fn a_reader_who_does_not_read_holds_up_no_last_words() {
    let _one_at_a_time = machine_lock();
    let folder = Folder::new("last-words");
    let (go, left) = (folder.path().join("go"), folder.path().join("error.json"));
    let job = Job::new(3);
    let start = |rank, stderr| {
        let mut command = job.rank(rank, RANK, &["late", "2", go.to_str().unwrap()]);
        command.env("ALLFOLD_LATE_AFTER", "200ms");
        if rank == 0 {
            command.env("TORCHELASTIC_ERROR_FILE", &left);
        }
        Process::start_with(&mut command, stderr)
    };
    let (unread, full) = full_pipe();
    let mute = start(0, full);
    let [mut other, late] = [1, 2].map(|rank| start(rank, Stdio::piped()));
    // Rank 0 warns as rank 1 does, and its first warning is never written.
    for _ in 0..3 {
        other.wait_for_line("has waited");
    }
    late.signal(Signal::KILL);
    other.wait().assert_error(75, &["rank 2 (", "is gone: its process ended"]);
    let deadline = Instant::now() + Duration::from_secs(60);
    let words = || std::fs::read_to_string(&left).unwrap_or_default();
    while !words().contains("is gone: its process ended") {
        assert!(Instant::now() < deadline, "no last words, but `{}`", words());
        std::thread::yield_now();
    }
    drop(unread);
    assert_eq!(mute.wait().code(), 75);
}

#[test]
fn a_job_that_is_frozen_goes_on_afterwards() {
    let _one_at_a_time = machine_lock();
    let folder = Folder::new("frozen");
    let over = folder.path().join("over");
    let mut ranks = Job::new(3).start(RANK, &["until", over.to_str().unwrap()]);
    ranks.iter_mut().for_each(|rank| _ = rank.wait_for_line("started"));
    ranks.iter().for_each(|rank| rank.signal(Signal::STOP));
    // Longer than a silent death takes to be found.
    freeze(Duration::from_secs(4));
    ranks.iter().for_each(|rank| rank.signal(Signal::CONT));
    all_end_well(ranks, &over);
}

#[test]
fn silence_is_borne_for_ever_where_it_is_no_death() {
    let _one_at_a_time = machine_lock();
    let folder = Folder::new("off");
    let over = folder.path().join("over");
    let job = Job::new(3);
    let start = |rank| {
        let mut command = job.rank(rank, RANK, &["until", over.to_str().unwrap()]);
        Process::start(command.env("ALLFOLD_DEAD_AFTER", "off"))
    };
    let mut ranks: Vec<Process> = (0..3).map(start).collect();
    ranks.iter_mut().for_each(|rank| _ = rank.wait_for_line("started"));
    ranks[2].signal(Signal::STOP);
    // Longer than the default, and than QUIC waits by itself: 30 s.
    freeze(Duration::from_secs(33));
    ranks[2].signal(Signal::CONT);
    all_end_well(ranks, &over);
}

#[test]
fn a_stopped_rank_is_named_at_any_limits() {
    let _one_at_a_time = machine_lock();
    for (heartbeat, dead_after) in [("50ms", "300ms"), ("100ms", "3s"), ("1s", "3s")] {
        let settings = [("ALLFOLD_HEARTBEAT", heartbeat), ("ALLFOLD_DEAD_AFTER", dead_after)];
        let (mut ranks, _folder) = running(4, &settings);
        let stopped = ranks.remove(2);
        stopped.signal(Signal::STOP);
        for ended in ranks.into_iter().map(Process::wait) {
            ended.assert_error(75, &["rank 2 (", "stopped answering", "process is stopped"]);
        }
    }
}

#[test]
fn where_all_others_of_the_host_are_stopped_nobody_is_cut_off() {
    let _one_at_a_time = machine_lock();
    let (mut ranks, _folder) = running(3, &[]);
    let stopped = [ranks.remove(1), ranks.remove(1)];
    stopped.iter().for_each(|rank| rank.signal(Signal::STOP));
    let ended = ranks.remove(0).wait();
    ended.assert_error(75, &["stopped answering", "process is stopped"]);
    assert!(!ended.lines.join("\n").contains("is cut off"), "{ended:#?}");
}

#[test]
fn processes_are_watched_although_the_launcher_is_none() {
    let _one_at_a_time = machine_lock();
    let (mut ranks, _folder) = running(3, &[("ALLFOLD_LAUNCHER", "/none")]);
    let killed = ranks.remove(1);
    killed.signal(Signal::KILL);
    for ended in ranks.into_iter().map(Process::wait) {
        ended.assert_error(75, &["rank 1 (", "is gone: its process ended"]);
    }
}

#[test]
fn a_rank_does_not_hold_its_own_stop_against_the_others() {
    let _one_at_a_time = machine_lock();
    let folder = Folder::new("own-stop");
    let over = folder.path().join("over");
    let job = Job::new(3);
    let start = |rank: usize| {
        let mut command = job.rank(rank, RANK, &["until", over.to_str().unwrap()]);
        if rank == 1 {
            command.env("ALLFOLD_TIMEOUT", "500ms").env("ALLFOLD_LATE_AFTER", "300ms");
        }
        Process::start(&mut command)
    };
    let mut ranks: Vec<Process> = (0..3).map(start).collect();
    ranks.iter_mut().for_each(|rank| _ = rank.wait_for_line("started"));
    for _ in 0..5 {
        ranks[1].signal(Signal::STOP);
        freeze(Duration::from_millis(800));
        ranks[1].signal(Signal::CONT);
        ranks[0].wait_for_line("calls ");
    }
    all_end_well(ranks, &over);
}

#[test]
fn a_subscriber_of_the_program_leaves_its_exit_code_alone() {
    let _one_at_a_time = machine_lock();
    for code in ["0", "7"] {
        let mut ranks = Job::new(2).start(RANK, &["exit-subscribed", "1", code]);
        let exited = ranks.remove(1).wait();
        assert_eq!(exited.code().to_string(), code, "{exited:#?}");
        let words = ["rank 1 (", "exited without closing its communicator"];
        ranks.remove(0).wait().assert_error(75, &words);
    }
}

/// A job in the middle of its calls; its file never comes.
fn running(size: usize, settings: &[(&str, &str)]) -> (Vec<Process>, Folder) {
    let folder = Folder::new("running");
    let over = folder.path().join("over");
    let job = Job::new(size);
    let start = |rank| {
        let mut command = job.rank(rank, RANK, &["until", over.to_str().unwrap()]);
        Process::start(command.envs(settings.iter().copied()))
    };
    let mut ranks: Vec<Process> = (0..size).map(start).collect();
    ranks.iter_mut().for_each(|rank| _ = rank.wait_for_line("started"));
    (ranks, folder)
}

/// Ends a job by its file: all ranks made the same calls, and none had a word to say but of lateness.
fn all_end_well(ranks: Vec<Process>, over: &Path) {
    std::fs::write(over, "").unwrap();
    let ended: Vec<Ended> = ranks.into_iter().map(Process::wait).collect();
    for one in &ended {
        assert_eq!(one.code(), 0, "{ended:#?}");
        assert_eq!(one.output().last(), ended[0].output().last(), "{ended:#?}");
        let is_late = |line: &&str| line.starts_with("allfold: warning: ");
        assert!(one.errors().iter().all(is_late), "{ended:#?}");
    }
}

/// How long something is stopped is what the test is about: it waits for nothing.
fn freeze(span: Duration) {
    std::thread::sleep(span);
}

/// A pipe that takes no byte more, and its end to read.
fn full_pipe() -> (PipeReader, Stdio) {
    let (reader, mut writer) = pipe().unwrap();
    let flags = fcntl_getfl(&writer).unwrap();
    fcntl_setfl(&writer, flags | OFlags::NONBLOCK).unwrap();
    loop {
        match writer.write(&[b'.'; 4096]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    fcntl_setfl(&writer, flags).unwrap();
    (reader, writer.into())
}

fn read(mut pipe: PipeReader) -> String {
    let mut text = String::new();
    pipe.read_to_string(&mut text).unwrap();
    text
}
