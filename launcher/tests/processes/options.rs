//! The options of `allfold run` that say what a rank is given, and what is refused.

use crate::launched::{Scratch, finish};

#[test]
fn variables_for_all_ranks() {
    let scratch = Scratch::new();
    let options = ["-n", "2", "--env", "A=b c=d", "-x", "HERE", "-x", "OMP_NUM_THREADS=7"];
    let mut command = scratch.run_with(&options, "echo \"$A/$HERE/$OMP_NUM_THREADS\"");
    command.env("HERE", "yes");
    let ended = finish(command);
    assert_eq!(ended.lines, ["[0] b c=d/yes/7", "[1] b c=d/yes/7"]);
}

#[test]
fn as_many_ranks_as_cores() {
    let scratch = Scratch::new();
    let cores = std::thread::available_parallelism().unwrap().get();
    for option in ["-n", "-np", "--np", "--ranks"] {
        let ended = finish(scratch.run_with(&[option, "auto"], "echo of $WORLD_SIZE"));
        assert_eq!(ended.lines.len(), cores, "{}", ended.stderr);
        assert!(ended.lines[0].ends_with(&format!("of {cores}")), "{:?}", ended.lines);
    }
}

#[test]
fn what_makes_no_sense_is_refused_before_any_rank_starts() {
    let scratch = Scratch::new();
    for (options, error) in [
        (&["-n", "2", "--only-rank", "2"][..], "--only-rank 2: there is no such rank"),
        (&["-n", "2", "-x", "NOT_SET"], "--env NOT_SET: not set here"),
        (
            &["-n", "2", "--env", "ALLFOLD_RANK=1"],
            "--env ALLFOLD_RANK: allfold run itself sets or removes ALLFOLD_RANK",
        ),
        (
            &["-n", "2", "--grace", "soon"],
            "invalid value 'soon' for '--grace <TIME>': must be a duration such as 90, 90s, 500ms \
             or 2m",
        ),
        (
            &["-n", "2", "--bind", "socket"],
            "invalid value 'socket' for '--bind <TO>' [possible values: none, core, numa]",
        ),
        (
            &["-n", "2", "--prefix", "yes"],
            "invalid value 'yes' for '--prefix <WHEN>' [possible values: auto, always, never]",
        ),
        (
            &["-n", "gpus"],
            "invalid value 'gpus' for '--ranks <N|auto|gpu>': must be a number, auto or gpu",
        ),
    ] {
        let ended = finish(scratch.run_with(options, "touch $SCRATCH/started"));
        assert_eq!(ended.code(), Some(2), "{options:?}");
        assert_eq!(ended.error(), error);
        assert_eq!(ended.stderr.lines().count(), 2, "{}", ended.stderr);
        assert!(!scratch.path().join("started").exists());
    }
}

#[test]
fn within_a_job_there_is_nothing_to_restart() {
    let scratch = Scratch::new();
    let allfold = env!("CARGO_BIN_EXE_allfold");
    let script = format!("exec {allfold} train --max-restarts 1");
    let ended = finish(scratch.run_with(&["-n", "1"], &script));
    assert_eq!(ended.code(), Some(2));
    let words = "[0] error: already rank 0 of 1 under allfold run";
    assert!(ended.stderr.contains(words), "{}", ended.stderr);
    assert!(ended.stderr.contains("[0] help: drop --max-restarts"), "{}", ended.stderr);
}
