//! What the ranks print and read, and the environment they find.

use std::io::Write;
use std::process::Stdio;

use crate::launched::{Launched, Scratch, finish};

#[test]
fn lines_are_never_torn_or_lost() {
    let scratch = Scratch::new();
    // Each line in two writes, so that other ranks come between.
    let script = "i=0; while [ $i -lt 1000 ]; do printf 'begin'; printf ' %s end\\n' $i; \
                  i=$((i+1)); done";
    let ended = finish(scratch.run(4, script));
    assert_eq!(ended.code(), Some(0));
    let mut expected = Vec::new();
    for rank in 0..4 {
        expected.extend((0..1000).map(|i| format!("[{rank}] begin {i} end")));
    }
    expected.sort();
    assert!(ended.lines == expected, "{} lines", ended.lines.len());
}

#[test]
fn a_line_may_be_long_and_the_last_one_without_end() {
    let scratch = Scratch::new();
    let script = "head -c 2000000 /dev/zero | tr '\\0' x; echo; printf 'last of %s' $RANK";
    let ended = finish(scratch.run(3, script));
    assert_eq!(ended.code(), Some(0));
    let long = "x".repeat(2_000_000);
    let mut expected: Vec<String> = (0..3)
        .flat_map(|rank| [format!("[{rank}] {long}"), format!("[{rank}] last of {rank}")])
        .collect();
    expected.sort();
    assert!(ended.lines == expected, "{} lines", ended.lines.len());
}

#[test]
fn bytes_pass_as_they_are_and_streams_stay_apart() {
    let scratch = Scratch::new();
    let script = "printf '\\377\\376\\n'; echo to stderr >&2";
    let output = scratch.run(1, script).output().unwrap();
    assert_eq!(output.stdout, b"[0] \xff\xfe\n");
    assert_eq!(output.stderr, b"[0] to stderr\n");
}

#[test]
fn prefixes_are_aligned() {
    let scratch = Scratch::new();
    let ended = finish(scratch.run(11, "echo x"));
    assert_eq!(ended.lines.first().unwrap(), "[ 0] x");
    assert_eq!(ended.lines.last().unwrap(), "[10] x");
}

#[test]
fn what_a_rank_leaves_behind_holds_nobody_up() {
    let scratch = Scratch::new();
    // One in the rank's process group, one that left it; both hold the pipes open.
    let script = "sleep 300 & setsid sleep 300 & printf 'last line'";
    let ended = finish(scratch.run(2, script));
    assert_eq!(ended.code(), Some(0));
    assert_eq!(ended.lines, ["[0] last line", "[1] last line"]);
    scratch.expect_nothing_left();
}

#[test]
fn a_child_may_finish_writing_after_its_rank() {
    let scratch = Scratch::new();
    let script = "(read x; echo after $RANK) < /dev/null & exit 0";
    let ended = finish(scratch.run(2, script));
    assert_eq!(ended.lines, ["[0] after 0", "[1] after 1"]);
}

#[test]
fn standard_input_goes_to_rank_0_only() {
    let scratch = Scratch::new();
    let mut command = scratch.run(3, "sed 's/^/got /'; echo end");
    let (read, mut write) = std::io::pipe().unwrap();
    command.stdin(read);
    let launched = Launched::start(command);
    write.write_all(b"one\ntwo\n").unwrap();
    drop(write);
    let ended = launched.finish();
    assert_eq!(ended.lines, ["[0] end", "[0] got one", "[0] got two", "[1] end", "[2] end"]);
}

#[test]
fn ranks_die_of_a_broken_pipe_as_without_launcher() {
    let scratch = Scratch::new();
    let (read, write) = std::io::pipe().unwrap();
    drop(read);
    let mut child = scratch.run(2, "exec yes").stdout(write).stderr(Stdio::null()).spawn().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(141));
    scratch.expect_nothing_left();
}

#[test]
fn a_full_disk_is_no_ranks_fault() {
    let scratch = Scratch::new();
    for script in ["echo hi", "exec yes"] {
        let full = std::fs::File::create("/dev/full").unwrap();
        let output = scratch.run(2, script).stdout(full).stderr(Stdio::piped()).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        let error = "error: cannot print the ranks' output: No space left on device\n";
        assert!(text.ends_with(error), "{text}");
        assert_eq!(output.status.code(), Some(2));
    }
    scratch.expect_nothing_left();
}

#[test]
fn the_environment_of_a_rank() {
    let scratch = Scratch::new();
    let mut command = scratch.run(
        2,
        "echo $ALLFOLD_RANK/$ALLFOLD_WORLD_SIZE $ALLFOLD_LOCAL_RANK/$ALLFOLD_LOCAL_WORLD_SIZE \
         $RANK/$WORLD_SIZE $LOCAL_RANK/$LOCAL_WORLD_SIZE; \
         [ $ALLFOLD_RENDEZVOUS = $MASTER_ADDR:$MASTER_PORT ] && echo same address $MASTER_ADDR; \
         echo secret ${ALLFOLD_SECRET-none} $(wc -c < $ALLFOLD_SECRET_FILE) \
         $(stat -c %a $ALLFOLD_SECRET_FILE $(dirname $ALLFOLD_SECRET_FILE)); \
         echo job $ALLFOLD_JOB; echo threads $RAYON_NUM_THREADS $OMP_NUM_THREADS",
    );
    command.env("ALLFOLD_SECRET", "not this one").env("OMP_NUM_THREADS", "77");
    let ended = finish(command);
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
    for rank in 0..2 {
        let has = |line: &str| ended.lines.contains(&format!("[{rank}] {line}"));
        assert!(has(&format!("{rank}/2 {rank}/2 {rank}/2 {rank}/2")), "{:?}", ended.lines);
        assert!(has("same address 127.0.0.1"), "{:?}", ended.lines);
        assert!(has("secret none 65 600 700"), "{:?}", ended.lines);
        let cores = std::thread::available_parallelism().unwrap().get();
        assert!(has(&format!("threads {} 77", (cores / 2).max(1))), "{:?}", ended.lines);
    }
    let jobs: Vec<&str> =
        ended.lines.iter().filter_map(|line| line[4..].strip_prefix("job run-")).collect();
    assert_eq!(jobs.len(), 2);
    assert_eq!(jobs[0], jobs[1]);
    assert!(jobs[0].len() == 16 && jobs[0].bytes().all(|byte| byte.is_ascii_hexdigit()));
    scratch.expect_nothing_left();
}
