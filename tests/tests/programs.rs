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
    for words in ["4 ranks", "shared memory", "epoch=2 ", "test accuracy ", " of 359)"] {
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

/// The cells of the bench's rows, after a run that ended well and found nothing wrong.
fn right_rows(line: &str) -> Vec<Vec<String>> {
    let ended = allfold(&line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(ended.code(), 0, "{line}: {ended:#?}");
    let is_row = |line: &&str| !line.starts_with('#') && !line.trim().is_empty();
    let cells = |line: &str| line.split_whitespace().map(str::to_string).collect();
    let rows: Vec<Vec<String>> = ended.output().into_iter().filter(is_row).map(cells).collect();
    for row in &rows {
        // Of one half or of both: time, algbw, busbw, #wrong.
        assert!(row.len() == 9 || row.len() == 13, "{line}: {ended:#?}");
        assert!(row[8..].iter().step_by(4).all(|wrong| wrong == "0"), "{line}: {ended:#?}");
    }
    rows
}

#[test]
fn the_bench_prints_the_table_and_finds_nothing_wrong() {
    let _one_at_a_time = machine_lock();
    let rows = right_rows("bench all-reduce --ranks 4 -b 8 -e 1M -f 8");
    assert_eq!(rows.len(), 6);
    for row in rows {
        assert_eq!(row[2..5], ["float", "sum", "-1"]);
        assert_eq!(row.len(), 13);
    }
}

#[test]
fn three_ranks_reduce_every_type_by_every_operation() {
    let _one_at_a_time = machine_lock();
    let line = "bench all_reduce --ranks 3 -d all -o all -b 8 -e 4K -f 8 -n 2 -w 1";
    // 10 types, 5 operations, 4 sizes.
    assert_eq!(right_rows(line).len(), 200);
}

#[test]
fn the_bench_finds_nothing_wrong_with_any_collective() {
    let _one_at_a_time = machine_lock();
    for (collective, rows) in [
        ("all_reduce", 200),
        ("all_gather_perf", 40),
        ("reduce_scatter", 200),
        ("broadcast_perf", 40),
        ("reduce_perf", 200),
        ("alltoall", 40),
        ("gather_perf", 40),
        ("scatter", 40),
        ("all_gather_v", 40),
    ] {
        let found = right_rows(&format!("bench {collective} --ranks 2 {EVERYTHING}"));
        assert_eq!(found.len(), rows, "{collective}");
    }
    let ended = allfold(&["bench", "barrier", "--ranks", "2"]);
    assert_eq!(ended.code(), 0, "{ended:#?}");
}

#[test]
fn the_bench_finds_nothing_wrong_with_sendrecv() {
    let _one_at_a_time = machine_lock();
    let rows = right_rows(&format!("bench sendrecv_perf --ranks 2 {EVERYTHING}"));
    assert_eq!(rows.len(), 40);
}

#[test]
fn the_bench_forces_an_algorithm() {
    let _one_at_a_time = machine_lock();
    let line = ["bench", "--ranks", "3", "-b", "8", "-e", "8", "--algorithm", "tree"];
    let ended = allfold(&line);
    assert_eq!(ended.code(), 0, "{ended:#?}");
    let header = ended.output().into_iter().next().unwrap_or_default().to_string();
    assert!(header.ends_with(" algorithm: tree"), "{ended:#?}");

    // It reaches the ranks' settings, which refuse to differ.
    let script = "if [ $ALLFOLD_RANK = 0 ]; then name=ring; else name=tree; fi; \
                  exec \"$0\" bench --algorithm $name -b 8 -e 8";
    let ended = allfold(&["run", "-n", "2", "sh", "-c", script, ALLFOLD]);
    assert_eq!(ended.code(), 2, "{ended:#?}");
    let errors = ended.errors().join("\n");
    assert!(errors.contains("ALLFOLD_ALGORITHM is ring on rank 0, but tree on rank 1"), "{errors}");
}

#[test]
fn training_forces_an_algorithm() {
    let _one_at_a_time = machine_lock();
    let ended = allfold(&["train", "-n", "2", "--steps", "2", "--algorithm", "tree"]);
    assert_eq!(ended.code(), 0, "{ended:#?}");
    let ended = allfold(&["train", "-n", "2", "--steps", "2", "--algorithm", "star"]);
    assert_eq!(ended.code(), 2, "{ended:#?}");
    assert!(ended.errors().join("\n").contains("recursive-doubling"), "{ended:#?}");
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
    // It is woken to hear SIGTERM, and may even find out by itself that it was declared dead.
    ended.assert_error(75, &["rank 1 (", "stopped answering", "; rank 1 "]);
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

/// Every type and operation at a few small sizes.
const EVERYTHING: &str = "-d all -o all -b 8 -e 4K -f 8 -n 2 -w 1";
