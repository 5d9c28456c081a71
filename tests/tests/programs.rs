//! The shipped programs from end to end, as the README runs them.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use allfold_tests::{Ended, Process, clean_command, machine_lock};
use rustix::process::{Pid, Signal, kill_process};

const RANK: &str = env!("CARGO_BIN_EXE_rank-under-test");
const ALLFOLD: &str = env!("CARGO_BIN_EXE_allfold-under-test");

fn allfold(arguments: &[&str]) -> Ended {
    Process::start(clean_command(ALLFOLD).args(arguments)).wait()
}

#[test]
fn four_ranks_train_and_end_with_the_same_parameters() {
    let _one_at_a_time = machine_lock();
    let ended = allfold(&["train", "-n", "4", "--epochs", "2", "--model", "mlp"]);
    assert_eq!(ended.code(), 0, "{ended:#?}");
    let output = ended.output().join("\n");
    for words in ["4 ranks", "quic on 127.0.0.1", "epoch=2 ", "test accuracy ", " of 359)"] {
        assert!(output.contains(words), "`{words}` is missing: {ended:#?}");
    }
    assert!(output.contains("parameters identical on all 4 ranks, digest "), "{ended:#?}");
    assert!(ended.errors().is_empty(), "{ended:#?}");
}

#[test]
fn one_and_three_ranks_train_alike() {
    let _one_at_a_time = machine_lock();
    let accuracy = |ranks| {
        let ended = allfold(&["train", "-n", ranks, "--epochs", "3", "--model", "mlp"]);
        assert_eq!(ended.code(), 0, "{ended:#?}");
        let line = ended.output().into_iter().find(|line| line.starts_with("test accuracy "));
        let line = line.unwrap_or_else(|| panic!("{ended:#?}")).to_string();
        line.split_whitespace().nth(2).and_then(|n| n.parse::<f64>().ok()).unwrap()
    };
    let (alone, together) = (accuracy("1"), accuracy("3"));
    assert!((alone - together).abs() <= 0.5, "{alone} % alone, {together} % on three ranks");
}

#[test]
fn the_bench_prints_the_table_and_finds_nothing_wrong() {
    let _one_at_a_time = machine_lock();
    let ended = allfold(&["bench", "all-reduce", "--ranks", "4", "-b", "8", "-e", "1M", "-f", "8"]);
    assert_eq!(ended.code(), 0, "{ended:#?}");
    let rows: Vec<Vec<&str>> = ended
        .output()
        .into_iter()
        .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows.len(), 6, "{ended:#?}");
    for row in rows {
        assert_eq!(row[2..5], ["float", "sum", "-1"], "{ended:#?}");
        assert_eq!(row.last(), Some(&"0"), "{ended:#?}");
    }
}

#[test]
fn run_starts_ranks_that_find_each_other() {
    let _one_at_a_time = machine_lock();
    let ended = allfold(&["run", "-n", "4", RANK, "calls", "3"]);
    assert_eq!(ended.code(), 0, "{ended:#?}");
    assert!(ended.lines.is_empty(), "{ended:#?}");
}

#[test]
fn a_rank_killed_under_run_is_the_one_at_fault() {
    let _one_at_a_time = machine_lock();
    let mut job = Process::start(clean_command(ALLFOLD).args([
        "run",
        "-n",
        "4",
        "sh",
        "-c",
        "echo rank $ALLFOLD_RANK is pid $$; exec \"$0\" forever",
        RANK,
    ]));
    let line = job.wait_for_line("rank 2 is pid ");
    let pid = line.rsplit(' ').next().and_then(|pid| pid.parse().ok()).and_then(Pid::from_raw);
    for _ in 0..4 {
        job.wait_for_line("started");
    }
    kill_process(pid.unwrap(), Signal::KILL).unwrap();
    let ended = job.wait();
    assert_eq!(ended.code(), 137, "{ended:#?}");
    let errors = ended.errors();
    let survivors: Vec<_> = errors
        .iter()
        .filter(|line| {
            line.contains("was killed by signal 9 (SIGKILL)") && line.contains("; rank ")
        })
        .collect();
    assert_eq!(survivors.len(), 3, "not all survivors name it: {ended:#?}");
    assert!(errors.iter().any(|line| line.starts_with("error: rank 2 (")), "{ended:#?}");
}

#[test]
fn a_stopped_rank_ends_the_training_and_is_named() {
    let _one_at_a_time = machine_lock();
    let arguments = ["train", "-n", "3", "--epochs", "100000", "--model", "mlp"];
    let mut job = Process::start(clean_command(ALLFOLD).args(arguments));
    let line = job.wait_for_line("  pids  ");
    let pid = line.split_whitespace().nth(2).and_then(|pid| pid.parse().ok());
    job.wait_for_line("epoch=1 ");
    kill_process(pid.and_then(Pid::from_raw).unwrap(), Signal::STOP).unwrap();
    // Far more than the 3 s in which the others have their error, and far less than forever.
    let begun = Instant::now();
    let ended = job.wait();
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    ended.assert_error(75, &["rank 1 (", "stopped answering", "rank 1 did not end and was killed"]);
}

#[test]
fn a_rank_that_exits_while_others_need_it_is_code_75() {
    let _one_at_a_time = machine_lock();
    let ended = allfold(&["run", "-n", "3", RANK, "exit", "1", "0"]);
    assert_eq!(ended.code(), 75, "{ended:#?}");
    let text = ended.errors().join("\n");
    assert!(text.contains("exited without closing its communicator"), "{ended:#?}");
    let last = ended.errors().into_iter().rfind(|line| line.starts_with("error: ")).unwrap();
    assert!(last.starts_with("error: rank 1 (pid "), "{ended:#?}");
    assert!(last.ends_with(") exited while others still needed it"), "{ended:#?}");
}

#[test]
fn a_job_leaves_no_process_behind() {
    let _one_at_a_time = machine_lock();
    let mark = format!("allfold-left-behind-{}", std::process::id());
    let mut command = clean_command(ALLFOLD);
    command.args(["run", "-n", "2", "sh", "-c", "sleep 300 & true"]).env(&mark, "1");
    let ended = Process::start(&mut command).wait();
    assert_eq!(ended.code(), 0, "{ended:#?}");
    let left: Vec<String> = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| std::fs::read(entry.path().join("environ")).ok().map(|e| (entry, e)))
        .filter(|(_, environ)| String::from_utf8_lossy(environ).contains(&format!("{mark}=")))
        .map(|(entry, _)| entry.file_name().to_string_lossy().into_owned())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_secret_is_64_hex_digits_and_new_each_time() {
    let secrets: Vec<_> = (0..2).map(|_| allfold(&["secret"]).output().join("")).collect();
    assert!(secrets.iter().all(|s| s.len() == 64 && s.bytes().all(|b| b.is_ascii_hexdigit())));
    assert_ne!(secrets[0], secrets[1]);
}
