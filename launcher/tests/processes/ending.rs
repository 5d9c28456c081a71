//! Exit codes, and the one error line.

use crate::launched::{Ended, Scratch, finish};

fn run(ranks: usize, script: &str) -> Ended {
    let scratch = Scratch::new();
    let ended = finish(scratch.run(ranks, script));
    scratch.expect_nothing_left();
    ended
}

#[test]
fn all_ranks_done() {
    let ended = run(4, "exit 0");
    assert_eq!(ended.code(), Some(0));
    assert_eq!(ended.stderr, "");
}

#[test]
fn the_code_of_the_rank_at_fault() {
    let ended = run(3, "[ $RANK = 1 ] && exit 7; exit 0");
    assert_eq!(ended.code(), Some(7));
    let error = ended.error();
    assert!(
        error.starts_with("rank 1 (pid ") && error.ends_with(") exited with code 7"),
        "{error}"
    );
}

#[test]
fn a_signal_counts_128_and_more() {
    let ended = run(2, "[ $RANK = 0 ] && kill -9 $$; exit 0");
    assert_eq!(ended.code(), Some(137));
    let error = ended.error();
    assert!(error.starts_with("rank 0 (pid "), "{error}");
    assert!(error.ends_with(") was killed by signal 9 (SIGKILL)"), "{error}");
}

#[test]
fn a_survivor_is_never_at_fault() {
    // Rank 0 notices the loss of rank 1 and says 75, whichever the launcher sees first.
    let script = "[ $RANK = 0 ] && exit 75; mkfifo $SCRATCH/x; (echo > $SCRATCH/x) & \
                  read y < $SCRATCH/x; exit 3";
    assert_eq!(run(2, script).code(), Some(3));
}

#[test]
fn only_survivors_left() {
    let ended = run(2, "exit 75");
    assert_eq!(ended.code(), Some(75));
    assert!(ended.error().contains("exited with code 75"), "{}", ended.stderr);
}

#[test]
fn ranks_that_go_on_after_a_failure_are_killed() {
    // Rank 1 ends by SIGTERM after the grace time, rank 2 only by SIGKILL.
    let script = "[ $RANK = 0 ] && exit 3; [ $RANK = 2 ] && trap '' TERM; \
                  while :; do sleep 300; done";
    let ended = run(3, script);
    assert_eq!(ended.code(), Some(3));
    let error = ended.error();
    assert!(error.starts_with("rank 0 (pid "), "{error}");
    assert!(
        error.ends_with("exited with code 3; ranks 1 and 2 did not end and were killed"),
        "{error}"
    );
    let warning = ended.stderr.lines().next().unwrap_or_default();
    assert!(warning.starts_with("allfold: rank 0 (pid "), "{}", ended.stderr);
    assert!(warning.ends_with(") ended with code 3; the others have 5 s to end"), "{warning}");
}

#[test]
fn the_grace_lets_a_survivor_save_its_work() {
    let scratch = Scratch::new();
    // Longer than the second that it has without.
    let script = "[ $RANK = 0 ] && exit 3; trap 'sleep 2; echo saved; exit 0' TERM; \
                  while :; do sleep 0.2; done";
    let ended = finish(scratch.run_with(&["-n", "2", "--grace", "1m"], script));
    assert_eq!(ended.code(), Some(3));
    assert_eq!(ended.lines, ["[1] saved"]);
    let end = " exited with code 3; rank 1 ended only when told to by SIGTERM";
    assert!(ended.error().ends_with(end), "{}", ended.stderr);
    scratch.expect_nothing_left();
}

#[test]
fn a_rank_that_is_done_does_not_end_the_others() {
    let ended = run(2, "[ $RANK = 0 ] && exit 0; (exec sleep 3); echo late");
    assert_eq!(ended.code(), Some(0));
    assert_eq!(ended.lines, ["[1] late"]);
}

#[test]
fn a_program_that_cannot_run_is_one_error() {
    let scratch = Scratch::new();
    let plain = scratch.path().join("plain");
    std::fs::write(&plain, "text").unwrap();
    let plain = plain.to_str().unwrap();
    for (words, error) in [
        (vec!["run", "-n", "4", "no-such-program"], "program `no-such-program` not found".into()),
        (vec!["run", "-n", "4", "/no/such"], "program `/no/such` not found".into()),
        (vec!["run", "-n", "4", plain], format!("cannot run {plain}: permission denied")),
        (vec!["run", "-n", "4", "/"], "cannot run /: it is a directory".into()),
        (vec!["run", "-n", "0", "true"], "0 ranks: a job has 1 to 4096 on one host".into()),
    ] {
        let ended = finish(scratch.allfold(&words));
        assert_eq!(ended.code(), Some(2), "{words:?}");
        assert_eq!(ended.error(), error);
        assert_eq!(ended.stderr.matches("error:").count(), 1, "{}", ended.stderr);
    }
    scratch.expect_nothing_left();
}

#[test]
fn a_script_without_an_interpreter_leaves_nothing() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::new();
    let script = scratch.path().join("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let ended = finish(scratch.allfold(&["run", "-n", "3", script.to_str().unwrap()]));
    assert_eq!(ended.code(), Some(2));
    assert!(ended.error().starts_with("cannot start rank 0 ("), "{}", ended.stderr);
    scratch.expect_nothing_left();
}

#[test]
fn usage_errors_are_short() {
    let scratch = Scratch::new();
    for words in
        [&[][..], &["frob"], &["run"], &["run", "-n", "x", "true"], &["train", "--no-such-option"]]
    {
        let ended = finish(scratch.allfold(words));
        assert_eq!(ended.code(), Some(2), "{words:?}");
        assert!(ended.stderr.starts_with("error: "), "{}", ended.stderr);
        assert!(ended.stderr.lines().count() <= 2, "{}", ended.stderr);
    }
    let ended = finish(scratch.allfold(&["-V"]));
    assert_eq!((ended.code(), ended.stderr.as_str()), (Some(0), ""));
    assert_eq!(ended.lines, [format!("allfold {}", env!("CARGO_PKG_VERSION"))]);
}

#[test]
fn a_secret_is_a_line_of_64_digits() {
    let scratch = Scratch::new();
    let ended = finish(scratch.allfold(&["secret"]));
    assert_eq!(ended.code(), Some(0));
    let [secret] = &ended.lines[..] else { panic!("{:?}", ended.lines) };
    assert!(secret.len() == 64 && secret.bytes().all(|byte| byte.is_ascii_hexdigit()), "{secret}");
}
