//! Where the ranks' lines go: --log-dir, --only-rank, --prefix, --timestamp.

use std::fs;
use std::path::Path;

use crate::launched::{Scratch, finish};

const BOTH: &str = "echo out $RANK; echo err $RANK >&2";

fn sorted_lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    let mut lines: Vec<String> = text.lines().map(Into::into).collect();
    lines.sort();
    lines
}

#[test]
fn every_rank_has_its_log() {
    let scratch = Scratch::new();
    let logs = scratch.path().join("new/logs");
    let options = ["-n", "3", "--log-dir", logs.to_str().unwrap()];
    let ended = finish(scratch.run_with(&options, BOTH));
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
    assert_eq!(ended.lines, ["[0] out 0", "[1] out 1", "[2] out 2"]);
    for rank in 0..3 {
        let lines = sorted_lines(&logs.join(format!("rank-{rank}.log")));
        assert_eq!(lines, [format!("err {rank}"), format!("out {rank}")]);
    }
    // A second run begins them anew.
    finish(scratch.run_with(&options, "printf 'no end'"));
    assert_eq!(fs::read_to_string(logs.join("rank-2.log")).unwrap(), "no end\n");
}

#[test]
fn one_rank_is_shown_and_all_are_logged() {
    let scratch = Scratch::new();
    let logs = scratch.path().join("logs");
    let logs = logs.to_str().unwrap();
    let shown = |options: &[&str]| {
        let ended = finish(scratch.run_with(&[&["-n", "3"], options].concat(), BOTH));
        assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
        let mut errors: Vec<String> = ended.stderr.lines().map(Into::into).collect();
        errors.sort();
        (ended.lines, errors)
    };
    let pair = |out: &[&str], err: &[&str]| {
        let own = |lines: &[&str]| lines.iter().map(|line| line.to_string()).collect::<Vec<_>>();
        (own(out), own(err))
    };
    assert_eq!(shown(&["--only-rank", "1", "--log-dir", logs]), pair(&["out 1"], &["err 1"]));
    assert_eq!(sorted_lines(&Path::new(logs).join("rank-2.log")), ["err 2", "out 2"]);
    assert_eq!(shown(&["--only-rank", "1"]), pair(&["out 1"], &["err 1"]));
    assert_eq!(
        shown(&["--only-rank", "1", "--prefix", "always"]),
        pair(&["[1] out 1"], &["[1] err 1"])
    );
    assert_eq!(
        shown(&["--only-rank=0,2"]),
        pair(&["[0] out 0", "[2] out 2"], &["[0] err 0", "[2] err 2"])
    );
    assert_eq!(
        shown(&["--only-rank=0,2", "--prefix=never"]),
        pair(&["out 0", "out 2"], &["err 0", "err 2"])
    );
}

#[test]
fn a_rank_that_is_not_shown_goes_on_when_nobody_reads() {
    let scratch = Scratch::new();
    let logs = scratch.path().join("logs");
    let (read, write) = std::io::pipe().unwrap();
    drop(read);
    // Rank 0 is shown, to nobody, and dies of it; rank 1 still writes its log to the end.
    let script = "trap 'exit 0' PIPE; [ $RANK = 0 ] && { echo x; exit 0; }; \
                  for i in 1 2 3; do echo $i; sleep 0.2; done";
    let options = ["-n", "2", "--only-rank", "0", "--log-dir", logs.to_str().unwrap()];
    let mut command = scratch.run_with(&options, script);
    let status = command.stdout(write).status().unwrap();
    assert_eq!(status.code(), Some(0));
    assert_eq!(sorted_lines(&logs.join("rank-1.log")), ["1", "2", "3"]);
}

#[test]
fn the_time_stands_before_each_line() {
    let scratch = Scratch::new();
    let logs = scratch.path().join("logs");
    let options = ["-n", "2", "--timestamp", "--log-dir", logs.to_str().unwrap()];
    let ended = finish(scratch.run_with(&options, "echo x"));
    let after_time = |line: &str| {
        let (time, rest) = line.split_once(' ').unwrap();
        let figures: String =
            time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        assert_eq!(figures, "0000-00-00T00:00:00.000Z");
        rest.to_owned()
    };
    let mut lines: Vec<String> = ended.lines.iter().map(|line| after_time(line)).collect();
    lines.sort();
    assert_eq!(lines, ["[0] x", "[1] x"]);
    let log = fs::read_to_string(logs.join("rank-1.log")).unwrap();
    assert_eq!(after_time(&log), "x\n");
}

#[test]
fn a_log_that_cannot_be_made_stops_everything_before_it_starts() {
    let scratch = Scratch::new();
    let file = scratch.path().join("file");
    fs::write(&file, "").unwrap();
    let below = file.join("logs");
    let taken = scratch.path().join("taken");
    fs::create_dir_all(taken.join("rank-1.log")).unwrap();
    for (directory, named, why) in [
        (&below, below.clone(), "Not a directory"),
        (&taken, taken.join("rank-1.log"), "Is a directory"),
    ] {
        let options = ["-n", "2", "--log-dir", directory.to_str().unwrap()];
        let ended = finish(scratch.run_with(&options, "touch $SCRATCH/started"));
        assert_eq!(ended.code(), Some(2));
        let error = format!("--log-dir: cannot write {}: {why}", named.display());
        assert_eq!(ended.error(), error);
        assert_eq!(ended.stderr.lines().count(), 2, "{}", ended.stderr);
        assert!(!scratch.path().join("started").exists());
    }
    scratch.expect_nothing_left();
}

#[test]
fn a_full_disk_costs_the_log_and_the_exit_code_but_not_the_job() {
    let scratch = Scratch::new();
    let logs = scratch.path().join("logs");
    fs::create_dir(&logs).unwrap();
    let full = logs.join("rank-0.log");
    std::os::unix::fs::symlink("/dev/full", &full).unwrap();
    let options = ["-n", "2", "--log-dir", logs.to_str().unwrap()];
    let ended = finish(scratch.run_with(&options, "echo one; sleep 0.1; echo two; exit $CODE"));
    let full = full.display();
    let warning = format!(
        "allfold: cannot write {full}: No space left on device; the job goes on without it"
    );
    assert_eq!(ended.lines, ["[0] one", "[0] two", "[1] one", "[1] two"]);
    assert_eq!(ended.stderr.matches("cannot write").count(), 1, "{}", ended.stderr);
    assert!(ended.stderr.contains(&warning), "{}", ended.stderr);
    assert_eq!(ended.error(), format!("{full} is incomplete: No space left on device"));
    assert_eq!(ended.code(), Some(1));
    assert_eq!(sorted_lines(&logs.join("rank-1.log")), ["one", "two"]);

    // A failure of the ranks says more.
    let mut command = scratch.run_with(&options, "echo one; exit $CODE");
    command.env("CODE", "7");
    assert_eq!(finish(command).code(), Some(7));
}

#[test]
fn an_error_says_where_the_rank_s_words_are() {
    let scratch = Scratch::new();
    let logs = scratch.path().join("logs");
    let script = "[ $RANK = 1 ] && exit 7; exit 0";
    let help = |options: &[&str]| {
        let ended = finish(scratch.run_with(&[&["-n", "2"], options].concat(), script));
        assert_eq!(ended.code(), Some(7));
        ended.stderr.lines().find_map(|line| line.strip_prefix("help: ")).map(str::to_owned)
    };
    let log = logs.join("rank-1.log");
    assert_eq!(
        help(&["--log-dir", logs.to_str().unwrap()]),
        Some(format!("see {}", log.display()))
    );
    assert_eq!(
        help(&["--only-rank", "0"]).unwrap(),
        "rank 1's output was not shown: drop --only-rank, or add --log-dir DIR"
    );
    assert_eq!(help(&["--only-rank", "1"]), None);
    assert_eq!(help(&[]), None);
}
