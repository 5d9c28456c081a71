//! --json-events: the job's story for a program to read.

use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;

use crate::launched::{Launched, Scratch, finish};

fn read(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut last = 0.0;
    for event in &events {
        assert!(event["time"].as_str().unwrap().ends_with('Z'), "{event}");
        let elapsed = event["elapsed"].as_f64().unwrap();
        assert!(elapsed >= last, "{event}");
        last = elapsed;
    }
    events
}

fn names(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["event"].as_str().unwrap()).collect()
}

#[test]
fn a_job_with_a_restart() {
    let scratch = Scratch::new();
    let file = scratch.path().join("events");
    let options = ["-n", "2", "--max-restarts", "1", "--json-events", file.to_str().unwrap()];
    let script = "[ $RANK = 0 ] && exit 75; [ $ALLFOLD_RESTART = 0 ] && kill -9 $$; exit 7";
    let ended = finish(scratch.run_with(&options, script));
    assert_eq!(ended.code(), Some(7));
    let events = read(&file);
    let (start, end) = ("rank-started", "rank-ended");
    assert_eq!(
        names(&events),
        ["job-started", start, start, end, end, "restart", start, start, end, end, "job-ended"]
    );
    assert_eq!(events[0]["ranks"], 2);
    assert_eq!(events[0]["program"][0], "sh");
    assert_eq!(events[0]["program"][2], script);
    let of_rank = |range: std::ops::Range<usize>, rank: u64| {
        events[range].iter().find(|event| event["rank"] == rank).unwrap()
    };
    assert_eq!(of_rank(1..3, 1)["pid"], of_rank(3..5, 1)["pid"]);
    assert_eq!(of_rank(3..5, 1)["signal"], "SIGKILL");
    assert_eq!(of_rank(3..5, 1).get("code"), None);
    assert_eq!(of_rank(3..5, 0)["code"], 75);
    assert_eq!(of_rank(3..5, 0)["by_itself"], true);
    assert_eq!((&events[5]["restart"], &events[5]["of"]), (&1.into(), &1.into()));
    assert!(events[5]["after"].as_str().unwrap().ends_with("(SIGKILL)"), "{}", events[5]);
    assert_ne!(events[5]["job"], events[0]["job"]);
    assert_eq!(of_rank(8..10, 1)["code"], 7);
    assert_eq!(events[10]["code"], 7);
    assert_eq!(events[10]["error"], ended.error());
}

#[test]
fn a_job_that_is_stopped() {
    let scratch = Scratch::new();
    let file = scratch.path().join("events");
    let options = ["-n", "1", "--json-events", file.to_str().unwrap()];
    let mut launched = Launched::start(scratch.run_with(&options, "echo ready; exec sleep 300"));
    launched.expect_line("[0] ready");
    launched.signal(Signal::TERM);
    assert_eq!(launched.finish().code(), Some(143));
    let events = read(&file);
    let story = ["job-started", "rank-started", "stopping", "rank-ended", "job-ended"];
    assert_eq!(names(&events), story);
    assert_eq!(events[2]["signal"], "SIGTERM");
    assert_eq!(events[3]["signal"], "SIGTERM");
    assert_eq!(events[4]["code"], 143);
}

#[test]
fn copies_of_allfold_say_why() {
    let scratch = Scratch::new();
    let file = scratch.path().join("events");
    let words = "train -n 2 --model mlp --steps 2 --progress none --json-events";
    let words: Vec<&str> = words.split(' ').chain([file.to_str().unwrap()]).collect();
    let mut command = scratch.allfold(&words);
    // Below what the library takes, so each rank refuses it.
    command.env("ALLFOLD_TIMEOUT", "x");
    let ended = finish(command);
    assert_eq!(ended.code(), Some(2), "{}", ended.stderr);
    let events = read(&file);
    let said = events.iter().filter_map(|event| event.get("said")?.as_str());
    assert!(said.clone().count() >= 1, "{events:?}");
    for said in said {
        assert!(said.contains("ALLFOLD_TIMEOUT"), "{said}");
    }
}

#[test]
fn a_file_that_cannot_be_made_stops_everything_before_it_starts() {
    let scratch = Scratch::new();
    let inside = scratch.path().join("no/such");
    for (file, error) in [
        ("-", "--json-events -: standard output is for what the ranks print".to_owned()),
        (
            inside.to_str().unwrap(),
            format!("--json-events: cannot write {}: No such file or directory", inside.display()),
        ),
    ] {
        let options = ["-n", "2", "--json-events", file];
        let ended = finish(scratch.run_with(&options, "touch $SCRATCH/started"));
        assert_eq!(ended.code(), Some(2));
        assert_eq!(ended.error(), error);
        assert_eq!(ended.stderr.lines().count(), 2, "{}", ended.stderr);
        assert!(!scratch.path().join("started").exists());
    }
}

#[test]
fn a_full_disk_does_not_stop_the_job() {
    let scratch = Scratch::new();
    let ended = finish(scratch.run_with(&["-n", "2", "--json-events", "/dev/full"], "echo x"));
    assert_eq!(ended.code(), Some(1));
    assert_eq!(ended.lines, ["[0] x", "[1] x"]);
    assert_eq!(ended.error(), "/dev/full is incomplete: No space left on device");
    assert_eq!(ended.stderr.lines().count(), 3, "{}", ended.stderr);
}
