//! Bad input and strangers: one clear line, the right exit code, and the job goes on undisturbed.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use allfold_tests::{Folder, Job, Process, clean_command, free_address, machine_lock};

const RANK: &str = env!("CARGO_BIN_EXE_rank-under-test");
const ALLFOLD: &str = env!("CARGO_BIN_EXE_allfold-under-test");

#[test]
fn no_environment() {
    let ended = Process::start(clean_command(RANK).arg("forever")).wait();
    ended.assert_error(2, &["no launcher says which rank"]);
    assert!(ended.errors().iter().any(|line| line.starts_with("help: ")), "{ended:#?}");
}

#[test]
fn a_rank_beyond_the_world() {
    let job = Job::new(4);
    let ended = Process::start(&mut job.rank(4, RANK, &["forever"])).wait();
    ended.assert_error(2, &["ALLFOLD_RANK=4", "below the world size, 4"]);
}

#[test]
fn an_unknown_host() {
    let mut job = Job::new(2);
    job.rendezvous = "no-such-host.invalid:29500".into();
    let mut command = job.rank(1, RANK, &["forever"]);
    let ended = Process::start(command.env("ALLFOLD_CONNECT_TIMEOUT", "1s")).wait();
    ended.assert_error(2, &["host `no-such-host.invalid` is unknown"]);
}

#[test]
fn a_port_in_use() {
    let job = Job::new(2);
    let _occupied = std::net::UdpSocket::bind(&job.rendezvous).unwrap();
    let ended = Process::start(&mut job.rank(0, RANK, &["forever"])).wait();
    ended.assert_error(2, &["cannot listen on", "another process listens there"]);
}

#[test]
fn ranks_that_never_come_are_named() {
    let job = Job::new(4);
    let mut command = job.rank(0, RANK, &["forever"]);
    let zero = Process::start(command.env("ALLFOLD_CONNECT_TIMEOUT", "2s"));
    let mut command = job.rank(2, RANK, &["forever"]);
    let two = Process::start(command.env("ALLFOLD_CONNECT_TIMEOUT", "2s"));
    for ended in [zero.wait(), two.wait()] {
        ended.assert_error(75, &["ranks 1, 3"]);
    }
}

#[test]
fn another_secret_shows_both_fingerprints_and_disturbs_nobody() {
    let _one_at_a_time = machine_lock();
    let job = Job::new(2);
    let zero = Process::start(&mut job.rank(0, RANK, &["calls", "1"]));
    let stranger = Job { secret: Job::new(2).secret, rendezvous: job.rendezvous.clone(), size: 2 };
    let ended = Process::start(&mut stranger.rank(1, RANK, &["calls", "1"])).wait();
    ended.assert_error(2, &["secret ", " here, ", " on rank 0"]);
    assert!(!ended.lines.iter().any(|line| line.contains(&stranger.secret)), "{ended:#?}");
    let one = Process::start(&mut job.rank(1, RANK, &["calls", "1"]));
    assert_eq!(one.wait().code(), 0);
    assert_warned(zero, "it has another secret (here: ");
}

/// That the job's rank 0 ended well, and warned of a process, with where it came from.
fn assert_warned(zero: Process, why: &str) {
    let ended = zero.wait();
    assert_eq!(ended.code(), 0, "{ended:#?}");
    let errors = ended.errors();
    let warning = errors.iter().find(|line| line.contains(why));
    let warning = warning.unwrap_or_else(|| panic!("no `{why}`: {ended:#?}"));
    assert!(warning.contains("warning: refused ") && warning.contains("127.0.0.1:"), "{warning}");
}

#[test]
fn without_a_secret_the_error_says_how_to_give_one() {
    let job = Job::new(2);
    let start = |environment: &[(&str, &str)]| {
        let mut command = job.rank(1, RANK, &["forever"]);
        command.env_remove("ALLFOLD_SECRET").env_remove("HOME");
        Process::start(command.envs(environment.iter().copied())).wait()
    };
    let ended = start(&[("KUBERNETES_SERVICE_HOST", "10.0.0.1"), ("HOME", "/root")]);
    ended.assert_error(2, &["rank 1 of 2 has no job secret", "ALLFOLD_SECRET_FILE"]);
    let help = "help: allfold secret | kubectl create secret generic allfold-secret ";
    assert!(ended.errors().iter().any(|line| line.starts_with(help)), "{ended:#?}");
    start(&[]).assert_error(2, &["there is no job secret", "HOME"]);
    start(&[("ALLFOLD_SECRET", &job.secret[2..])])
        .assert_error(2, &["62 characters instead of 64"]);
    let missing = start(&[("ALLFOLD_SECRET_FILE", "/no/such/file")]);
    missing.assert_error(2, &["ALLFOLD_SECRET_FILE=/no/such/file: "]);
}

#[test]
fn a_file_with_two_secrets_lets_the_old_and_the_new_meet() {
    let _one_at_a_time = machine_lock();
    let (old, new) = (Job::new(2).secret, Job::new(2).secret);
    let folder = Folder::new("rotation");
    let file = |name: &str, lines: &[&str]| folder.write(name, &lines.join("\n"), 0o600);
    let files = [
        file("old", &[&old]),
        file("old-new", &[&old, &new]),
        file("new-old", &["# rotating", &new, &old]),
        file("new", &[&new]),
    ];
    let rank = |job: &Job, rank, secrets: &str| {
        let mut command = job.rank(rank, RANK, &["calls", "2"]);
        command.env_remove("ALLFOLD_SECRET").env("ALLFOLD_SECRET_FILE", secrets);
        Process::start(&mut command)
    };
    for [zero, one] in [[0, 1], [1, 2], [2, 0], [3, 2], [1, 3]] {
        let job = Job::new(2);
        let ranks = [rank(&job, 0, &files[zero]), rank(&job, 1, &files[one])];
        for ended in ranks.map(Process::wait) {
            assert_eq!(ended.code(), 0, "{} and {}: {ended:#?}", files[zero], files[one]);
        }
    }
    // Once all have rotated, the old one lets nobody in.
    let job = Job::new(2);
    let zero = rank(&job, 0, &files[3]);
    rank(&job, 1, &files[0]).wait().assert_error(2, &["secret ", " here, ", " on rank 0"]);
    assert_eq!(rank(&job, 1, &files[3]).wait().code(), 0);
    assert_warned(zero, "it has another secret");
}

#[test]
fn a_secret_that_others_can_read_is_worth_a_warning() {
    let _one_at_a_time = machine_lock();
    let folder = Folder::new("readers");
    for (mode, kubernetes, warns) in
        [(0o644, false, true), (0o600, false, false), (0o644, true, false)]
    {
        let job = Job::new(2);
        let file = folder.write("secret", &job.secret, mode);
        let start = |rank| {
            let mut command = job.rank(rank, RANK, &["calls", "1"]);
            command.env_remove("ALLFOLD_SECRET").env("ALLFOLD_SECRET_FILE", &file);
            if kubernetes {
                command.env("KUBERNETES_SERVICE_HOST", "10.0.0.1");
            }
            Process::start(&mut command)
        };
        let ranks = [0, 1].map(start);
        for ended in ranks.map(Process::wait) {
            assert_eq!(ended.code(), 0, "{ended:#?}");
            let warned = ended.errors().iter().any(|line| {
                line.contains("can be read by every user of this host (mode 644); chmod 600 it")
            });
            assert_eq!(warned, warns, "{mode:o}, {kubernetes}: {ended:#?}");
        }
    }
}

#[test]
fn another_job_is_told_so() {
    let _one_at_a_time = machine_lock();
    let job = Job::new(2);
    let zero = Process::start(&mut job.rank(0, RANK, &["calls", "1"]));
    let mut stranger = job.rank(1, RANK, &["calls", "1"]);
    let ended = Process::start(stranger.env("ALLFOLD_JOB", "other")).wait();
    ended.assert_error(2, &["another job"]);
    assert_eq!(Process::start(&mut job.rank(1, RANK, &["calls", "1"])).wait().code(), 0);
    assert_warned(zero, "it belongs to another job (ALLFOLD_JOB is default here)");
}

#[test]
fn another_world_size_shows_both_values() {
    let _one_at_a_time = machine_lock();
    let job = Job::new(2);
    let zero = Process::start(&mut job.rank(0, RANK, &["calls", "1"]));
    let larger = Job { size: 3, secret: job.secret.clone(), rendezvous: job.rendezvous.clone() };
    let ended = Process::start(&mut larger.rank(1, RANK, &["calls", "1"])).wait();
    ended.assert_error(2, &["ALLFOLD_WORLD_SIZE is 2 on rank 0, but 3 on rank 1"]);
    assert_eq!(Process::start(&mut job.rank(1, RANK, &["calls", "1"])).wait().code(), 0);
    assert_warned(zero, "ALLFOLD_WORLD_SIZE is 2 on rank 0, but 3 on rank 1");
}

#[test]
fn a_second_process_with_one_rank_is_refused() {
    let _one_at_a_time = machine_lock();
    let job = Job::new(3);
    let mut zero = Process::start(&mut job.rank(0, RANK, &["calls", "1"]));
    let one = Process::start(&mut job.rank(1, RANK, &["calls", "1"]));
    let again = Process::start(&mut job.rank(1, RANK, &["calls", "1"]));
    // Whichever of the two came second is refused; the other takes part.
    zero.wait_for_line("two processes have the same ALLFOLD_RANK");
    let two = Process::start(&mut job.rank(2, RANK, &["calls", "1"]));
    let ended = [one.wait(), again.wait()];
    let refused: Vec<_> = ended.iter().filter(|e| e.code() != 0).collect();
    assert_eq!(refused.len(), 1, "{ended:#?}");
    let text = refused[0].errors().join(" ");
    assert!(text.contains("rank 1 ") && text.contains("pid "), "{ended:#?}");
    assert_eq!([zero.wait().code(), two.wait().code()], [0, 0]);
}

#[test]
fn a_newcomer_to_a_running_job_is_told_and_disturbs_nobody() {
    let _one_at_a_time = machine_lock();
    let job = Job::new(2);
    let mut ranks = job.start(RANK, &["forever"]);
    ranks.iter_mut().for_each(|rank| _ = rank.wait_for_line("started"));
    let ended = Process::start(&mut job.rank(1, RANK, &["forever"])).wait();
    ended.assert_error(75, &["already running with rank 1 at "]);
    ranks[0].wait_for_line("refused");
    // Both are still there to be ended.
    for rank in &ranks {
        rank.signal(rustix::process::Signal::KILL);
    }
    for rank in ranks {
        assert_eq!(rank.wait().code(), 137);
    }
}

#[test]
fn the_programs_refuse_bad_input_in_one_line() {
    let cases: [(&[&str], &[&str]); 9] = [
        (&["train", "-n", "4", "--batch-size", "3"], &["batch"]),
        (&["train", "--model", "nonsense"], &["nonsense"]),
        (&["train", "-n", "0"], &["0"]),
        (&["train", "--lr", "-1"], &["--lr -1: must be positive"]),
        (&["bench", "-b", "x"], &["x"]),
        (&["bench", "-b", "-1"], &["must be positive"]),
        (&["run", "-n", "2", "./no-such-program"], &["no-such-program"]),
        (&["run", "-n", "2"], &[""]),
        (&["nonsense"], &["nonsense"]),
    ];
    for (arguments, words) in cases {
        let ended = Process::start(clean_command(ALLFOLD).args(arguments)).wait();
        ended.assert_error(2, words);
    }
}

#[test]
fn a_rank_takes_no_number_of_ranks() {
    let mut command = clean_command(ALLFOLD);
    command.args(["run", "-n", "2", ALLFOLD, "train", "-n", "2"]);
    let ended = Process::start(&mut command).wait();
    let text = ended.errors().join("\n");
    assert!(text.contains("of 2 under allfold run"), "{ended:#?}");
    assert_eq!(ended.code(), 2);
}

#[test]
fn rank_zero_of_a_training_needs_its_port() {
    let rendezvous = free_address();
    let _occupied = std::net::UdpSocket::bind(&rendezvous).unwrap();
    let job = Job { rendezvous, ..Job::new(2) };
    let ended = Process::start(&mut job.rank(0, ALLFOLD, &["train"])).wait();
    ended.assert_error(2, &["cannot listen on"]);
}
