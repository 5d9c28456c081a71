//! `run --dry-run`: the script that it prints does the same without allfold.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use crate::launched::{Launched, Scratch, WAIT, finish, is_here, wait_until};

/// The script for these options and this program, in a file.
fn print(scratch: &Scratch, options: &[&str], program: &[&str]) -> PathBuf {
    let words = [&["run", "--dry-run"], options, program].concat();
    let output = scratch.allfold(&words).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{errors}");
    assert_eq!(errors, "");
    let path = scratch.path().join("script.sh");
    fs::write(&path, output.stdout).unwrap();
    path
}

/// A shell that runs the script, whose temporary files lie in the test's own directory.
fn run(scratch: &Scratch, shell: &str, script: &Path) -> Command {
    let mut command = Command::new(shell);
    command.arg(script);
    scratch.prepare(&mut command);
    command.env("TMPDIR", scratch.path().join("runtime"));
    command
}

#[test]
fn ranks_of_allfold_meet_and_compute() {
    let scratch = Scratch::new();
    let allfold = env!("CARGO_BIN_EXE_allfold");
    let program = [allfold, "bench", "-b", "1K", "-e", "1K", "-n", "2"];
    let script = print(&scratch, &["-n", "3", "--bind", "core"], &program);
    for shell in ["sh", "dash", "bash"].into_iter().filter(|shell| is_here(shell)) {
        let ended = finish(run(&scratch, shell, &script));
        assert_eq!(ended.code(), Some(0), "{shell}: {}", ended.stderr);
        let right = "# Out of bounds values : 0 OK";
        let rows = ended.lines.iter().filter(|line| line.starts_with(right)).count();
        assert_eq!(rows, 1, "{shell}: {:?}", ended.lines);
        scratch.expect_nothing_left();
    }
}

#[test]
fn a_rank_finds_what_run_gives_it() {
    let scratch = Scratch::new();
    let program = "echo $ALLFOLD_RANK/$ALLFOLD_WORLD_SIZE $ALLFOLD_LOCAL_RANK/$LOCAL_WORLD_SIZE \
                   $RANK/$WORLD_SIZE \"$1\" \"$A\" $ALLFOLD_RESTART ${ALLFOLD_SECRET-none}; \
                   [ $ALLFOLD_RENDEZVOUS = $MASTER_ADDR:$MASTER_PORT ] || echo another address; \
                   cat; stat -c %a $ALLFOLD_SECRET_FILE; wc -c < $ALLFOLD_SECRET_FILE; umask";
    let options = ["-n", "2", "--env", "A=it's $HOME;  `x`"];
    let script = print(&scratch, &options, &["sh", "-c", program, "name", "a 'b'  $c"]);
    let (read, mut write) = std::io::pipe().unwrap();
    let mut command = run(&scratch, "sh", &script);
    command.stdin(read).env("ALLFOLD_SECRET", "not this one");
    let launched = Launched::start(command);
    write.write_all(b"for rank 0\n").unwrap();
    drop(write);
    let ended = launched.finish();
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
    let of_rank = |rank| format!("{rank}/2 {rank}/2 {rank}/2 a 'b'  $c it's $HOME;  `x` 0 none");
    for line in [of_rank(0), of_rank(1), "for rank 0".into()] {
        assert_eq!(ended.lines.iter().filter(|seen| **seen == line).count(), 1, "{line}");
    }
    for line in ["600".into(), "64".into(), shell_umask()] {
        assert_eq!(ended.lines.iter().filter(|seen| **seen == line).count(), 2, "{line}");
    }
    assert_eq!(ended.lines.len(), 9, "{:?}", ended.lines);
    scratch.expect_nothing_left();
}

fn shell_umask() -> String {
    let output = Command::new("sh").args(["-c", "umask"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn the_rank_at_fault_gives_the_code_and_the_others_end() {
    let scratch = Scratch::new();
    let program = "case $RANK in 0) exit 75 ;; 1) exit 7 ;; esac; trap '' TERM; \
                   while :; do sleep 0.2; done";
    let script = print(&scratch, &["-n", "3"], &["sh", "-c", program]);
    let ended = finish(run(&scratch, "sh", &script));
    assert_eq!(ended.code(), Some(7), "{}", ended.stderr);
    assert_eq!(ended.error(), "rank 1 exited with code 7");
    // The first that it sees, which may be the survivor.
    let [warning, _] = &ended.stderr.lines().collect::<Vec<_>>()[..] else {
        panic!("{}", ended.stderr)
    };
    assert!(warning.ends_with("; the others have 5 s to end"), "{warning}");
    scratch.expect_nothing_left();
}

#[test]
fn a_signal_to_the_script_reaches_the_ranks() {
    let scratch = Scratch::new();
    let program = "trap 'echo bye; exit 0' TERM; echo ready $RANK; while :; do sleep 0.2; done";
    let script = print(&scratch, &["-n", "2"], &["sh", "-c", program]);
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let mut launched = Launched::start(run(&scratch, "sh", &script));
        launched.expect_line("ready 0");
        launched.expect_line("ready 1");
        launched.signal(signal);
        let ended = launched.finish();
        assert_eq!(ended.code(), Some(code), "{}", ended.stderr);
        assert_eq!(ended.lines, ["bye", "bye", "ready 0", "ready 1"]);
        scratch.expect_nothing_left();
    }
}

#[test]
fn who_takes_no_notice_is_killed_after_the_grace() {
    let scratch = Scratch::new();
    let program = format!("trap '' TERM; {WAIT}");
    let script = print(&scratch, &["-n", "1", "--grace", "300ms"], &["sh", "-c", &program]);
    let mut launched = Launched::start(run(&scratch, "sh", &script));
    launched.expect_line("ready");
    launched.signal(Signal::TERM);
    assert_eq!(launched.finish().code(), Some(143));
    wait_until("nothing runs", || match scratch.alive() {
        left if left.is_empty() => Ok(()),
        left => Err(left),
    });
}

#[test]
fn output_goes_where_the_options_say() {
    let scratch = Scratch::new();
    let program = ["sh", "-c", "echo out $RANK; echo err $RANK >&2"];
    let ended = {
        let script = print(&scratch, &["-n", "3", "--only-rank", "0,2"], &program);
        finish(run(&scratch, "sh", &script))
    };
    assert_eq!(ended.lines, ["out 0", "out 2"]);
    let logs = scratch.path().join("my logs");
    let script = print(&scratch, &["-n", "2", "--log-dir", logs.to_str().unwrap()], &program);
    let ended = finish(run(&scratch, "sh", &script));
    assert_eq!((ended.code(), ended.lines.len()), (Some(0), 0));
    assert_eq!(fs::read_to_string(logs.join("rank-1.log")).unwrap(), "out 1\nerr 1\n");
}

#[test]
fn what_a_shell_cannot_do_is_said() {
    let scratch = Scratch::new();
    for (options, listed) in [
        (&["--timestamp"][..], "--timestamp"),
        (&["--timestamp", "--max-restarts", "2"], "--max-restarts and --timestamp"),
        (
            &["--max-restarts", "2", "--timestamp", "--prefix", "always"],
            "--max-restarts, --prefix and --timestamp",
        ),
    ] {
        // The program need not be here.
        let words = [&["run", "-n", "2", "--dry-run"], options, &["no-such-program"]].concat();
        let ended = finish(scratch.allfold(&words));
        assert_eq!(ended.code(), Some(0));
        assert_eq!(ended.stderr, format!("allfold: the script does without {listed}\n"));
    }
    let words = ["run", "-n", "2", "--dry-run", "--env", "A.B=1", "true"];
    let ended = finish(scratch.allfold(&words));
    assert_eq!(ended.code(), Some(2));
    assert_eq!(ended.error(), "--env A.B: no shell can set such a name");
}

#[test]
fn shellcheck_finds_nothing() {
    if !is_here("shellcheck") {
        let mut stderr = std::io::stderr();
        writeln!(stderr, "skipped: shellcheck_finds_nothing: shellcheck is missing").unwrap();
        return;
    }
    let scratch = Scratch::new();
    for options in [
        &["-n", "4"][..],
        &["-n", "2", "--only-rank", "0", "--bind", "numa", "-x", "A=b c", "--timestamp"],
        &["-n", "2", "--log-dir", "a 'b'", "--grace", "2m"],
    ] {
        let words = [&["run", "--dry-run"], options, &["python3", "x y.py", "--z=a;b"]].concat();
        let script = scratch.path().join("script.sh");
        fs::write(&script, scratch.allfold(&words).output().unwrap().stdout).unwrap();
        let output = Command::new("shellcheck").arg(&script).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}
