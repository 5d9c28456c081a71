//! What a job says of itself, and where: warnings of late ranks, lines for programs, the line that
//! ends a rank.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use allfold_tests::{Ended, Job, Process, clean_command, machine_lock, skipped};
use rustix::process::{Signal, getuid};
use serde_json::Value;

const RANK: &str = env!("CARGO_BIN_EXE_rank-under-test");
const ALLFOLD: &str = env!("CARGO_BIN_EXE_allfold-under-test");

/// Three ranks of which rank 2 comes to its second call only after the others have warned of it
/// twice; how they ended.
fn while_rank_2_is_late(name: &str, setting: (&str, &str)) -> Vec<Ended> {
    let file = folder(name).join("go");
    let job = Job::new(3);
    let script = ["late", "2", file.to_str().unwrap()];
    let start = |rank| {
        let mut command = job.rank(rank, RANK, &script);
        Process::start(command.env("ALLFOLD_LATE_AFTER", "200ms").env(setting.0, setting.1))
    };
    let mut ranks: Vec<Process> = (0..3).map(start).collect();
    for rank in &mut ranks[..2] {
        rank.wait_for_line("has waited");
        // A heartbeat has said it.
        rank.wait_for_line(") is computing after 1 call");
    }
    std::fs::write(file, "").unwrap();
    ranks.into_iter().map(Process::wait).collect()
}

#[test]
fn a_late_rank_is_named_again_and_again_and_the_call_succeeds() {
    let _one_at_a_time = machine_lock();
    let ended = while_rank_2_is_late("late", ("ALLFOLD_JOB", "late"));
    for (rank, ended) in ended.iter().enumerate() {
        assert_eq!(ended.code(), 0, "{ended:#?}");
        for line in ended.errors() {
            assert!(
                line.starts_with(&format!("allfold: warning: rank {rank} has waited ")),
                "{line}"
            );
            assert!(line.contains(" s in all_reduce #1 ("), "{line}");
        }
        let names = |line: &&str| line.contains(": rank 2 (") && line.contains(" after 1 call");
        let is_late = rank == 2;
        assert!(is_late || ended.errors().iter().any(names), "{ended:#?}");
    }
}

#[test]
fn lines_for_programs_say_who_speaks_and_of_which_call() {
    let _one_at_a_time = machine_lock();
    let ended = while_rank_2_is_late("json", ("ALLFOLD_LOG_FORMAT", "json"));
    let mut epochs = Vec::new();
    for (rank, ended) in ended[..2].iter().enumerate() {
        for line in ended.errors() {
            let line = object(line);
            assert_eq!((&line["level"], &line["rank"]), (&"warning".into(), &rank.into()));
            assert_eq!(line["job"], "default");
            assert!(line["message"].as_str().unwrap().contains("has waited"), "{line}");
            assert!(line["call"].as_str().unwrap().starts_with("all_reduce #1 ("), "{line}");
            assert!(!line["host"].as_str().unwrap().is_empty());
            assert!(line["time"].as_str().unwrap().ends_with('Z'));
            epochs.push(line["epoch"].as_u64().unwrap());
        }
    }
    assert!(epochs.iter().all(|epoch| *epoch == epochs[0]), "{epochs:?}");
}

#[test]
fn the_end_of_a_rank_is_a_line_for_programs() {
    let _one_at_a_time = machine_lock();
    let job = Job::new(2);
    let start = |rank| {
        let mut command = job.rank(rank, RANK, &["forever"]);
        Process::start(command.env("ALLFOLD_LOG_FORMAT", "json"))
    };
    let mut ranks: Vec<Process> = (0..2).map(start).collect();
    ranks.iter_mut().for_each(|rank| drop(rank.wait_for_line("started")));
    ranks[1].signal(Signal::KILL);
    let ended = ranks.remove(0).wait();
    let objects: Vec<&str> =
        ended.errors().into_iter().filter(|line| line.starts_with('{')).collect();
    assert_eq!(objects.len(), 1, "{ended:#?}");
    let line = object(objects[0]);
    assert_eq!((&line["level"], &line["rank"]), (&"error".into(), &0.into()));
    assert!(line["message"].as_str().unwrap().starts_with("rank 1 ("), "{line}");
    assert!(line["call"].as_str().unwrap().contains("all_reduce"), "{line}");
}

#[test]
fn the_binary_writes_lines_for_programs() {
    let run = |arguments: &[&str], name: &str, value: &str| {
        let mut command = clean_command(ALLFOLD);
        Process::start(command.args(arguments).env(name, value)).wait()
    };
    let ended = run(&["train", "--lr", "-1"], "ALLFOLD_LOG_FORMAT", "json");
    let errors = ended.errors();
    assert_eq!((ended.code(), errors.len()), (2, 1), "{ended:#?}");
    let line = object(errors[0]);
    assert_eq!(line["level"], "error");
    assert!(line["message"].as_str().unwrap().contains("--lr"), "{line}");
    // The launcher's own, and that of a job.
    let script = ["run", "-n", "2", "sh", "-c", "[ $RANK = 0 ] && exit 7; sleep 60"];
    let ended = run(&script, "ALLFOLD_LOG_FORMAT", "json");
    assert_eq!(ended.code(), 7, "{ended:#?}");
    let lines: Vec<Value> = ended.errors().into_iter().map(object).collect();
    assert!(lines.iter().all(|line| line["job"].as_str().unwrap().starts_with("run-")));
    let levels: Vec<_> = lines.iter().map(|line| line["level"].as_str().unwrap()).collect();
    assert_eq!(levels, ["warning", "error"], "{ended:#?}");
    let ended = run(&["train"], "ALLFOLD_LOG_FORMAT", "xml");
    ended.assert_error(2, &["ALLFOLD_LOG_FORMAT=xml: must be text or json"]);
}

#[test]
fn torchrun_finds_the_line_that_ended_a_rank() {
    let _one_at_a_time = machine_lock();
    let folder = folder("torchrun");
    let job = Job::new(3);
    let file = |rank: usize| folder.join(format!("error-{rank}.json"));
    let start = |rank| {
        let mut command = job.rank(rank, RANK, &["exit", "1", "4"]);
        Process::start(command.env("TORCHELASTIC_ERROR_FILE", file(rank)))
    };
    let ended: Vec<Ended> =
        (0..3).map(start).collect::<Vec<_>>().into_iter().map(Process::wait).collect();
    for rank in [0, 2] {
        let message = object(&std::fs::read_to_string(file(rank)).unwrap())["message"].clone();
        let words = message["message"].as_str().unwrap();
        assert!(words.starts_with("rank 1 ("), "{words}");
        assert!(ended[rank].errors().contains(&&*format!("error: {words}")), "{ended:#?}");
        let extra = &message["extraInfo"];
        assert!(extra["py_callstack"].as_str().unwrap().starts_with(words));
        assert!(extra["timestamp"].as_str().unwrap().parse::<u64>().is_ok());
    }
    let own = object(&std::fs::read_to_string(file(1)).unwrap())["message"]["message"].clone();
    assert!(own.as_str().unwrap().contains(") exited without closing its communicator"), "{own}");
}

#[test]
fn kubernetes_finds_the_line_that_ended_a_rank() {
    let test = "kubernetes_finds_the_line_that_ended_a_rank";
    if !getuid().is_root() {
        return skipped(test, "needs root, to have a /dev of its own");
    }
    let folder = folder("kubernetes");
    // As in a container: a /dev of its own, in which the kubelet has made the file.
    let script = "cp -a /dev/null /dev/zero /dev/urandom /dev/random \"$1\" && \
                  mount --bind \"$1\" /dev && : > /dev/termination-log || exit 99; \
                  shift; exec \"$@\"";
    let mut command = clean_command("unshare");
    command.args(["-m", "sh", "-c", script, "sh"]).arg(&folder).arg(ALLFOLD);
    command.args(["train", "--data", "nowhere"]).env("KUBERNETES_SERVICE_HOST", "10.96.0.1");
    let ended = Process::start(&mut command).wait();
    if ended.code() == 99 || ended.code() == 1 {
        return skipped(test, "no mount namespace, or no device nodes");
    }
    let said = std::fs::read_to_string(folder.join("termination-log")).unwrap();
    let shown = ended.errors().join("\n").replace("error: ", "") + "\n";
    assert_eq!((ended.code(), said), (2, shown), "{ended:#?}");
    remove_devices(&folder);
}

fn remove_devices(folder: &Path) {
    let _ = Command::new("rm").arg("-rf").arg(folder).status();
}

fn object(line: &str) -> Value {
    match serde_json::from_str(line) {
        Ok(object) => object,
        Err(error) => panic!("{error}: {line}"),
    }
}

/// A folder of the test's own.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("reporting-{name}"));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}
