//! --max-restarts: all ranks anew.

use std::collections::BTreeSet;

use rustix::process::{Signal, kill_process};

use crate::launched::{Launched, Scratch, children, finish, wait_until};

#[test]
fn all_ranks_start_anew_after_one_was_killed() {
    let scratch = Scratch::new();
    let logs = scratch.path().join("logs");
    let script = "echo try $ALLFOLD_RESTART; echo fresh $ALLFOLD_JOB; \
                  echo fresh $(cat $ALLFOLD_SECRET_FILE); \
                  [ $RANK = 1 ] && [ $ALLFOLD_RESTART -lt 2 ] && kill -9 $$; exit 0";
    let options = ["-n", "2", "--max-restarts", "3", "--log-dir", logs.to_str().unwrap()];
    let ended = finish(scratch.run_with(&options, script));
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
    for rank in 0..2 {
        for restart in 0..3 {
            assert!(ended.lines.contains(&format!("[{rank}] try {restart}")), "{:?}", ended.lines);
        }
    }
    let of_rank_0 = |line: &&String| line.starts_with("[0] fresh ");
    let fresh: BTreeSet<&String> = ended.lines.iter().filter(of_rank_0).collect();
    assert_eq!(fresh.len(), 6, "{fresh:?}");

    let said: Vec<&str> = ended.stderr.lines().filter(|line| line.contains("restart")).collect();
    assert_eq!(said.len(), 2, "{}", ended.stderr);
    for (index, line) in said.iter().enumerate() {
        let begin = format!("allfold: restart {} of 3 after rank 1 (pid ", index + 1);
        assert!(line.starts_with(&begin), "{line}");
        assert!(line.ends_with(") was killed by signal 9 (SIGKILL)"), "{line}");
    }
    for (name, word) in [("", "try 0"), (".restart-1", "try 1"), (".restart-2", "try 2")] {
        let path = logs.join(format!("rank-0{name}.log"));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(word), "{}: {text}", path.display());
    }
    scratch.expect_nothing_left();
}

#[test]
fn it_gives_up_after_that_many() {
    let scratch = Scratch::new();
    let options = ["-n", "2", "--max-restarts", "1"];
    let ended = finish(scratch.run_with(&options, "[ $RANK = 0 ] && exit 9; exit 75"));
    assert_eq!(ended.code(), Some(9));
    let error = ended.error();
    assert!(error.starts_with("rank 0 (pid "), "{error}");
    assert!(error.ends_with(") exited with code 9; gave up after 1 restart"), "{error}");
    assert_eq!(ended.stderr.matches("allfold: restart 1 of 1 after").count(), 1);
}

#[test]
fn what_would_fail_again_is_not_started_again() {
    let scratch = Scratch::new();
    for code in ["2", "3", "143"] {
        let script = format!("[ $RANK = 0 ] && exit {code}; exit 75");
        let ended = finish(scratch.run_with(&["-n", "2", "--max-restarts", "5"], &script));
        assert_eq!(ended.code().unwrap().to_string(), code);
        let reason = format!("; not restarted: exit code {code} ");
        assert!(ended.error().contains(&reason), "{}", ended.stderr);
        assert!(!ended.stderr.contains("restart 1"), "{}", ended.stderr);
    }
    scratch.expect_nothing_left();
}

#[test]
fn a_training_that_is_done_is_not_started_again() {
    let scratch = Scratch::new();
    // No directory can be made there.
    let words = "train -n 2 --max-restarts 2 --model mlp --steps 3 --tensorboard /proc/events";
    let words: Vec<&str> = words.split(' ').collect();
    let ended = finish(scratch.allfold(&words));
    assert_eq!(ended.code(), Some(1), "{}", ended.stderr);
    assert!(ended.error().contains("; not restarted: exit code 1 "), "{}", ended.stderr);
    assert!(!ended.stderr.contains("restart 1"), "{}", ended.stderr);
    scratch.expect_nothing_left();
}

#[test]
fn a_job_that_was_stopped_stays_so() {
    let scratch = Scratch::new();
    // Before any failure, and after one.
    let trap = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.2; done";
    let late = "[ $RANK = 0 ] && exit 9; ";
    for (script, code) in [(trap.to_owned(), 143), (format!("{late}{trap}"), 9)] {
        let options = ["-n", "2", "--max-restarts", "5"];
        let mut launched = Launched::start(scratch.run_with(&options, &script));
        launched.expect_line("[1] ready");
        if code == 9 {
            let launcher = launched.pid();
            wait_until("rank 0 has ended", || match children(launcher, "sh ").len() {
                1 => Ok(()),
                count => Err(count),
            });
        } else {
            launched.expect_line("[0] ready");
        }
        launched.signal(Signal::TERM);
        let ended = launched.finish();
        assert_eq!(ended.code(), Some(code));
        assert!(!ended.stderr.contains("restart"), "{}", ended.stderr);
    }
    scratch.expect_nothing_left();
}

#[test]
fn training_starts_anew() {
    let scratch = Scratch::new();
    let words = "train -n 2 --max-restarts 1 --model mlp --steps 3 --progress none";
    let words: Vec<&str> = words.split(' ').collect();
    let launched = Launched::start(scratch.allfold(&words));
    let launcher = launched.pid();
    let binary = env!("CARGO_BIN_EXE_allfold");
    let ranks = || children(launcher, &format!("{binary} train"));
    wait_until("both ranks are there", || match &ranks()[..] {
        [_, second] => kill_process(*second, Signal::KILL),
        _ => Err(rustix::io::Errno::AGAIN),
    });
    let ended = launched.finish();
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
    assert_eq!(ended.stderr.matches("allfold: restart 1 of 1 after rank ").count(), 1);
    assert!(ended.lines.iter().any(|line| line.starts_with("test accuracy")), "{:?}", ended.lines);
    scratch.expect_nothing_left();
}
