//! Ranks on several hosts, of which here there is only this one: the launcher that leads starts
//! another without ssh, and launchers that are started by hand meet on loopback.

use std::io::{BufRead, BufReader};
use std::net::UdpSocket;

use rustix::process::Signal;

use crate::launched::{Launched, Scratch, WAIT, finish, wait_until};

#[test]
fn ranks_of_a_host_are_as_ranks_without_one() {
    let scratch = Scratch::new();
    let script = "echo $RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $ALLFOLD_RESTART $A $PWD
        printf 'no end'; printf 'half ' >&2; echo 'told' >&2; stat -c %a $ALLFOLD_SECRET_FILE
        head -c 300000 /dev/zero | tr '\\0' x; cat; test $RANK != 2 || exit 7";
    let run = |options: &[&str]| finish(scratch.run_with(options, script));
    for options in [&["--env", "A=b c"][..], &["--only-rank", "1,2"], &["--prefix", "never"]] {
        let here = run(&[&["-n", "3"], options].concat());
        let there = run(&[&["--hosts", "localhost:3"], options].concat());
        assert_eq!(there.lines, here.lines);
        assert_eq!((there.code(), here.code()), (Some(7), Some(7)));
        let told = |text: &str| text.lines().filter(|line| line.contains("half told")).count();
        assert_eq!(told(&there.stderr), told(&here.stderr), "{}", there.stderr);
        assert!(there.error().starts_with("rank 2 (localhost, pid "), "{}", there.stderr);
        assert!(there.error().ends_with(") exited with code 7"), "{}", there.stderr);
    }
    scratch.expect_nothing_left();
}

#[test]
fn nothing_outlives_a_leader_that_is_killed() {
    let scratch = Scratch::new();
    let script = format!("{WAIT} sleep 1000");
    let mut launched = Launched::start(scratch.run_with(&["--hosts", "localhost:2"], &script));
    launched.expect_line("[0] ready");
    launched.expect_line("[1] ready");
    launched.signal(Signal::KILL);
    launched.finish();
    scratch.expect_nothing_left();
}

#[test]
fn a_second_signal_kills_what_does_not_heed_the_first() {
    let scratch = Scratch::new();
    let script = format!("trap 'echo heard' TERM; {WAIT} while :; do sleep 0.01; done");
    let mut launched = Launched::start(scratch.run_with(&["--hosts", "localhost:1"], &script));
    launched.expect_line("[0] ready");
    scratch.release(0, "go");
    launched.signal(Signal::TERM);
    launched.expect_line("[0] heard");
    launched.signal(Signal::INT);
    let ended = launched.finish();
    assert_eq!(ended.code(), Some(143));
    assert_eq!(ended.error(), "stopped by SIGTERM; rank 0 did not end and was killed");
    scratch.expect_nothing_left();
}

#[test]
fn a_leader_that_is_stopped_stops_its_ranks() {
    let scratch = Scratch::new();
    let script = format!("echo pid $$; {WAIT} echo on");
    let mut launched = Launched::start(scratch.run_with(&["--hosts", "localhost:1"], &script));
    launched.expect_line("[0] ready");
    let line = launched.expect(|line| line.starts_with("[0] pid "));
    let rank = line.rsplit_once(' ').unwrap().1.to_owned();
    let leader = launched.pid().as_raw_pid().to_string();
    let is_stopped = |pid: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(')').unwrap().1.starts_with(" T")
    };
    let wait_for = |stopped: bool| {
        wait_until("both are as they should be", || {
            let are = [&rank, &leader].map(|pid| is_stopped(pid));
            if are == [stopped; 2] { Ok(()) } else { Err(are) }
        });
    };
    launched.signal(Signal::TSTP);
    wait_for(true);
    launched.signal(Signal::CONT);
    wait_for(false);
    scratch.release(0, "on");
    let ended = launched.finish();
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
    assert!(ended.lines.contains(&"[0] on".to_owned()), "{:?}", ended.lines);
}

#[test]
fn ranks_whose_reader_has_left_see_it() {
    let scratch = Scratch::new();
    let words = "\"$@\" | head -n 1";
    let run = scratch.run_with(&["--hosts", "localhost:1", "--prefix", "never"], "yes");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", words, "sh"]).arg(run.get_program()).args(run.get_args());
    scratch.prepare(&mut command);
    let ended = finish(command);
    assert_eq!(ended.lines, ["y"]);
    scratch.expect_nothing_left();
}

#[test]
fn an_end_is_told_although_nobody_reads_and_one_signal_ends_all() {
    let scratch = Scratch::new();
    let script = "if [ $RANK = 0 ]; then exec yes; fi
        mkfifo $SCRATCH/go.1; read word < $SCRATCH/go.1; exit 7";
    for is_stopped in [false, true] {
        let mut command = scratch.run_with(&["--hosts", "localhost:2"], script);
        let (shown, to) = std::io::pipe().unwrap();
        let (errors, stderr) = std::io::pipe().unwrap();
        let mut child = command.stdout(to).stderr(stderr).spawn().unwrap();
        drop(command);
        wait_until("the output is full", || {
            let unread = rustix::io::ioctl_fionread(&shown).unwrap();
            if unread > 60_000 { Ok(()) } else { Err(unread) }
        });
        let pid = rustix::process::Pid::from_child(&child);
        if is_stopped {
            rustix::process::kill_process(pid, Signal::INT).unwrap();
            let status = child.wait().unwrap();
            assert_eq!(status.code(), Some(130));
        } else {
            wait_until("rank 1 waits", || {
                let pipe = scratch.path().join("go.1");
                if pipe.exists() { Ok(()) } else { Err(pipe) }
            });
            scratch.release(1, "go");
            let mut lines = BufReader::new(errors).lines();
            let first = lines.next().unwrap().unwrap();
            assert!(first.contains("rank 1 (localhost, pid "), "{first}");
            assert!(first.contains(") ended with code 7; the others have "), "{first}");
            let mut shown = shown;
            std::io::copy(&mut shown, &mut std::io::sink()).unwrap();
            assert_eq!(child.wait().unwrap().code(), Some(7));
            std::fs::remove_file(scratch.path().join("go.1")).unwrap();
        }
        scratch.expect_nothing_left();
    }
}

#[test]
fn a_signal_before_the_greeting_is_no_secret() {
    let scratch = Scratch::new();
    // A host that is slow to greet, as a login that asks a directory service.
    let ssh = scratch.path().join("ssh");
    let allfold = scratch.allfold(&[]).get_program().to_str().unwrap().to_owned();
    let words = format!(
        "#!/bin/sh\nprintf hi; touch $SCRATCH/called; read word < $SCRATCH/login\nexec {allfold} host\n"
    );
    std::fs::write(&ssh, words).unwrap();
    std::fs::set_permissions(&ssh, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let login = scratch.path().join("login");
    assert!(std::process::Command::new("mkfifo").arg(&login).status().unwrap().success());
    let options = ["--hosts", "me@localhost:1", "--ssh", ssh.to_str().unwrap()];
    let launched = Launched::start(scratch.run_with(&options, "echo up"));
    wait_until("the host is called", || {
        if scratch.path().join("called").exists() { Ok(()) } else { Err(()) }
    });
    launched.signal(Signal::USR1);
    launched.signal(Signal::CONT);
    std::fs::write(&login, "go\n").unwrap();
    let ended = launched.finish();
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
    assert_eq!(ended.lines, ["[0] up"]);
    scratch.expect_nothing_left();
}

/// `allfold run` of one of two hosts with two ranks each.
fn by_hand(scratch: &Scratch, number: &str, rdzv: &str, script: &str) -> std::process::Command {
    let nodes = ["--nnodes", "2", "--node-rank", number, "--nproc-per-node", "2", "--rdzv", rdzv];
    let mut command = scratch.run_with(&nodes, script);
    command.env("ALLFOLD_SECRET", "ab".repeat(32));
    command
}

/// A port that is free in UDP and TCP, or was a moment ago.
fn free_port() -> u16 {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn launchers_by_hand_share_a_job_and_only_their_own_ranks() {
    let scratch = Scratch::new();
    let rdzv = format!("127.0.0.1:{}", free_port());
    let variables = "echo $RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $ALLFOLD_RENDEZVOUS \
                     $ALLFOLD_JOB ${#ALLFOLD_SECRET} ${ALLFOLD_SECRET_FILE-none}";
    let waits = format!("{variables}; {WAIT} echo $word");
    let mut first = Launched::start(by_hand(&scratch, "0", &rdzv, &waits));
    first.expect_line("[0] ready");
    first.expect_line("[1] ready");
    let second = finish(by_hand(&scratch, "1", &rdzv, variables));
    assert_eq!(second.code(), Some(0), "{}", second.stderr);
    let line = |rank: usize, local: usize| {
        format!("[{rank}] {rank} 4 {local} 2 {rdzv} run-at-{rdzv} 64 none")
    };
    assert_eq!(second.lines, [line(2, 0), line(3, 1)]);
    let words = "ranks 2 to 3 of 4 are here; the secret must be the same on all hosts: ";
    assert!(second.stderr.contains(words), "{}", second.stderr);
    assert!(second.stderr.contains("from ALLFOLD_SECRET"), "{}", second.stderr);
    // The other launcher, of the same job's name, has ended and cleared up.
    scratch.release(0, "on");
    scratch.release(1, "on");
    let first = first.finish();
    assert_eq!(first.code(), Some(0), "{}", first.stderr);
    for line in [line(0, 0), line(1, 1), "[0] on".into(), "[1] on".into()] {
        assert!(first.lines.contains(&line), "{line}: {:?}", first.lines);
    }
    scratch.expect_nothing_left();
}

#[test]
fn a_rendezvous_that_is_taken_is_refused() {
    let scratch = Scratch::new();
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let ended = finish(by_hand(&scratch, "0", &format!("127.0.0.1:{port}"), "echo no"));
    assert_eq!(ended.code(), Some(75));
    assert_eq!(ended.error(), format!("port {port} is taken on this host, in UDP or in TCP"));
    assert!(ended.lines.is_empty());
    let rdzv = format!("127.0.0.1:{port}");
    let ended = finish(scratch.run_with(&["--hosts", "localhost", "--rdzv", &rdzv], "echo no"));
    assert_eq!(ended.code(), Some(75));
    assert!(ended.error().starts_with(&format!("localhost: port {port} is taken")));
}

#[test]
fn what_contradicts_itself_is_refused() {
    let scratch = Scratch::new();
    let nodes = ["--nnodes", "2", "--node-rank", "0", "--nproc-per-node", "2"];
    let nodes = |more: &[&'static str]| [&nodes, more].concat();
    for (options, error) in [
        (
            vec!["--nnodes", "2", "--node-rank", "2", "--nproc-per-node", "2", "--rdzv", "h0"],
            "--node-rank 2: must be below --nnodes, 2; hosts count from 0",
        ),
        (nodes(&[]), "the following required arguments were not provided: --rdzv <HOST:PORT>"),
        (
            nodes(&["--rdzv", "h0:x"]),
            "invalid value 'h0:x' for '--rdzv <HOST:PORT>': the port must be 1 to 65535",
        ),
        (
            nodes(&["--rdzv", "h0", "-n", "4"]),
            "the argument '--nnodes <N>' cannot be used with '--ranks <N|auto|gpu>'",
        ),
        (
            nodes(&["--rdzv", "h0", "--hosts", "h0"]),
            "the argument '--nnodes <N>' cannot be used with '--hosts <HOST:SLOTS,..>'",
        ),
        (
            nodes(&["--rdzv", "h0", "--max-restarts", "1"]),
            "--max-restarts needs one launcher for all hosts, and --nnodes has one on each",
        ),
        (
            nodes(&["--rdzv", "h0", "--ssh", "ssh"]),
            "--ssh is for ranks on several hosts by --hosts, and none are given",
        ),
        (
            vec!["-n", "2", "--rdzv", "h0"],
            "--rdzv is for ranks on several hosts, and none are given",
        ),
        (
            vec!["--hosts", "h0:2", "--dry-run"],
            "--dry-run prints the script of one host, and ranks on several are asked for",
        ),
        (
            vec!["--hosts", "h0:2", "-n", "auto"],
            "-n auto counts the cores of this host, and the ranks are on others",
        ),
        (
            vec!["--hosts", "h0:2", "-n", "gpu"],
            "-n gpu counts the GPUs of this host, and the ranks are on others",
        ),
        (vec!["--hosts", "h0:2", "-n", "3"], "3 ranks, but the hosts of --hosts have only 2 slots"),
        (
            vec!["--hosts", "h0:2", "--hostfile", "f"],
            "the argument '--hosts <HOST:SLOTS,..>' cannot be used with '--hostfile <FILE>'",
        ),
        (
            vec!["--hostfile", "/no/such/file"],
            "--hostfile /no/such/file: No such file or directory",
        ),
        (vec!["--hosts", "h0:2", "--only-rank", "2"], "--only-rank 2: there is no such rank"),
    ] {
        let ended = finish(scratch.run_with(&options, "touch $SCRATCH/started"));
        assert_eq!(ended.code(), Some(2), "{options:?}: {}", ended.stderr);
        assert_eq!(ended.error(), error);
        assert_eq!(ended.stderr.lines().count(), 2, "{}", ended.stderr);
        assert!(!scratch.path().join("started").exists());
    }
    for command in [&["train", "--rdzv", "h0:1"][..], &["bench", "--ssh", "ssh"]] {
        let ended = finish(scratch.allfold(command));
        assert_eq!(ended.code(), Some(2), "{}", ended.stderr);
        assert!(ended.error().contains("is for ranks on several hosts"), "{}", ended.stderr);
    }
    let mut command = scratch.run_with(&["--hosts", "localhost:4"], "touch $SCRATCH/started");
    command.env("ALLFOLD_PORT", "65530");
    let ended = finish(command);
    assert_eq!(
        ended.error(),
        "ALLFOLD_PORT=65530 leaves 6 ports, and 4 ranks on one host need 8, 2 each"
    );
    assert!(ended.stderr.ends_with("help: set ALLFOLD_PORT to 65528 or less\n"));
}

#[test]
fn the_led_launcher_is_for_no_user() {
    let scratch = Scratch::new();
    let ended = finish(scratch.allfold(&["host"]));
    assert_eq!(ended.code(), Some(2));
    assert_eq!(ended.error(), "this is part of `allfold run --hosts`, which starts it by itself");
}
