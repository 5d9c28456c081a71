//! `allfold train` after a loss and after the end: the ranks that are left stay, and a rank that is
//! started again finds its place.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use allfold_tests::hosts::Hosts;
use allfold_tests::{
    Ended, Folder, Job, Process, clean_command, free_address, machine_lock, skipped,
};
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;

const ALLFOLD: &str = env!("CARGO_BIN_EXE_allfold-under-test");

#[test]
fn ranks_that_are_lost_and_come_back_change_no_bit() {
    let _one_at_a_time = machine_lock();
    let folder = Folder::new("rejoin");
    let mut job = Ranks::start(4, "--on-loss rejoin", &saving(&folder), plain);
    job.ranks[0].wait_for_line(" step=100 ");
    job.kill(&[2]);
    job.ranks[1].wait_for_line("waiting for it to come back (rejoin 1)");
    job.start_again(2);
    job.ranks[0].wait_for_line("  resume step ");
    job.ranks[0].wait_for_line(" step=");
    // Rank 0, which gathers the others and writes the checkpoints.
    job.kill(&[0]);
    for rank in 1..4 {
        let said = job.ranks[rank].wait_for_line("waiting for it to come back (rejoin ");
        assert!(said.starts_with("! warning: rank "), "{said}");
    }
    job.start_again(0);
    job.ranks[0].wait_for_line("  resume step ");
    job.ranks[0].wait_for_line(" step=");
    // Two at once, and they are started again before the others know.
    job.kill(&[1, 3]);
    job.start_again(3);
    job.start_again(1);
    job.ranks[0].wait_for_line("  resume step ");
    job.ranks[0].wait_for_line(" step=");
    // And one that does not come so far as to meet the others.
    job.kill(&[2]);
    job.start_again(2);
    job.kill(&[2]);
    job.start_again(2);
    let ended = job.wait();
    for ended in &ended {
        assert_eq!(ended.code(), 0, "{ended:#?}");
    }
    assert_eq!(digest(&ended[0]), undisturbed(4));
}

#[test]
fn a_rank_comes_back_on_another_host() {
    let _one_at_a_time = machine_lock();
    let hosts = match Hosts::on_a_switch(4) {
        Ok(hosts) => hosts,
        Err(reason) => return skipped("a_rank_comes_back_on_another_host", &reason),
    };
    let folder = Folder::new("rejoin-hosts");
    // A network takes its time.
    let train = TRAIN.replace("4000", "800");
    let line = format!("train {train} --on-loss rejoin {}", saving(&folder));
    let words: Vec<&str> = line.split_whitespace().collect();
    let job = Job { size: 3, ..hosts.job() };
    let start = |rank, host| Process::start(&mut hosts.on(host, &job.rank(rank, ALLFOLD, &words)));
    let mut ranks: Vec<Process> = (0..3).map(|rank| start(rank, rank)).collect();
    ranks[0].wait_for_line(" step=100 ");
    hosts.signal(&ranks[2], Signal::KILL);
    ranks[0].wait_for_line("waiting for it to come back (rejoin 1)");
    // Under a new address, as a pod has that is made again.
    ranks[2] = start(2, 3);
    ranks[0].wait_for_line("  resume step ");
    ranks[0].wait_for_line(" step=");
    hosts.signal(&ranks[0], Signal::KILL);
    ranks[1].wait_for_line("waiting for it to come back (rejoin 2)");
    ranks[0] = start(0, 0);
    let ended: Vec<Ended> = ranks.into_iter().map(Process::wait).collect();
    for ended in &ended {
        assert_eq!(ended.code(), 0, "{ended:#?}");
    }
    assert_eq!(digest(&ended[0]), digest_of(3, &train));
}

#[test]
fn over_shared_memory_ranks_come_back_too() {
    let _one_at_a_time = machine_lock();
    let folder = Folder::new("rejoin-memory");
    let line = format!("train -n 3 {TRAIN}");
    let undisturbed = Process::start(clean_command(ALLFOLD).args(line.split_whitespace())).wait();
    let mut job = Ranks::start(3, "--on-loss rejoin", &saving(&folder), shared_memory);
    job.ranks[0].wait_for_line("shared memory");
    job.ranks[0].wait_for_line(" step=100 ");
    for lost in [1, 0] {
        job.kill(&[lost]);
        job.ranks[2].wait_for_line("waiting for it to come back (rejoin ");
        job.start_again(lost);
        job.ranks[0].wait_for_line("  resume step ");
        job.ranks[0].wait_for_line(" step=");
    }
    let ended = job.wait();
    for ended in &ended {
        assert_eq!(ended.code(), 0, "{ended:#?}");
    }
    assert_eq!(digest(&ended[0]), digest(&undisturbed));
}

#[test]
fn a_loss_at_the_very_end_leaves_no_rank_behind() {
    let _one_at_a_time = machine_lock();
    let folder = Folder::new("rejoin-last");
    let options = "--on-loss rejoin --resume";
    let mut job = Ranks::start(3, options, &saving(&folder), briefly);
    let first = job.ranks[0].wait_for_line(", digest ");
    job.kill(&[2]);
    // It may have been done already; whoever starts ranks again may not have seen that.
    let _killed_or_done = job.ranks.remove(2).wait();
    job.ranks.push(job.begin(2));
    for ended in job.wait() {
        assert_eq!(ended.code(), 0, "{ended:#?}");
    }
    // All anew: rank 0 sees it, and tells the others.
    let all = Ranks::start(3, options, &saving(&folder), briefly).wait();
    assert!(first.ends_with(&digest(&all[0])), "{:#?}", all[0]);
    for ended in &all {
        assert_eq!(ended.code(), 0, "{ended:#?}");
    }
    // One alone, after all others have ended for good.
    let mut job = Ranks::of(3, options, &saving(&folder), briefly);
    for rank in [0, 1] {
        let ended = job.begin(rank).wait();
        assert_eq!(ended.code(), 0, "{ended:#?}");
    }
    // Of another training, it is not the end of this one.
    job.line = job.line.replace("--steps 4000", "--steps 3999");
    for rank in [0, 1] {
        let ended = job.begin(rank).wait();
        assert_eq!(ended.code(), 75, "{ended:#?}");
    }
}

#[test]
fn ranks_that_disagree_do_not_meet_again() {
    let _one_at_a_time = machine_lock();
    let mut job = Ranks::of(2, "--on-loss rejoin", "", plain);
    job.ranks.push(job.begin(0));
    job.line += " --seed 7";
    job.ranks.push(job.begin(1));
    for ended in job.wait() {
        assert_eq!(ended.code(), 3, "{ended:#?}");
    }
}

#[test]
fn a_lock_that_may_be_a_predecessors_is_waited_for() {
    let _one_at_a_time = machine_lock();
    let folder = Folder::new("rejoin-lock");
    let at = folder.path().join("checkpoints");
    std::fs::create_dir(&at).unwrap();
    let other = std::fs::File::create(at.join(".allfold-lock")).unwrap();
    flock(&other, FlockOperation::LockExclusive).unwrap();
    // Nobody was rank 0 before this one.
    for ended in Ranks::start(2, "--on-loss rejoin", &saving(&folder), plain).wait() {
        ended.assert_error(2, &["another process writes checkpoints here"]);
    }
    // A pod's host may be gone, and its lock there; numbered as by `allfold manifest`.
    let mut job = Ranks::start(2, "", &saving(&folder), pod_of_manifest);
    job.ranks[0].wait_for_line("another process writes checkpoints here; waiting up to 180 s");
    drop(other);
    job.each(|rank| _ = rank.wait_for_line(COMPLETE));
    job.each(|rank| rank.signal(Signal::TERM));
    for ended in job.wait() {
        assert_eq!(ended.code(), 0, "{ended:#?}");
    }
}

#[test]
fn without_a_checkpoint_it_begins_again_and_says_so() {
    let _one_at_a_time = machine_lock();
    let mut job = Ranks::start(3, "--on-loss rejoin", "", plain);
    job.ranks[0].wait_for_line(" step=100 ");
    job.kill(&[1]);
    job.start_again(1);
    let said = job.ranks[2].wait_for_line("(rejoin 1)");
    assert!(said.contains("nothing is saved, so it starts from the beginning"), "{said}");
    let ended = job.wait();
    assert_eq!(digest(&ended[0]), undisturbed(3));
}

#[test]
fn a_rank_that_is_told_to_stop_is_waited_for_and_all_that_are_told_end() {
    let _one_at_a_time = machine_lock();
    let folder = Folder::new("rejoin-stop");
    let mut job = Ranks::start(3, "--on-loss rejoin", &saving(&folder), plain);
    job.ranks[0].wait_for_line(" step=100 ");
    job.ranks[1].signal(Signal::TERM);
    for rank in [0, 2] {
        let said = job.ranks[rank].wait_for_line("(rejoin 1)");
        assert!(said.contains("another rank was stopped by SIGTERM after step "), "{said}");
    }
    let stopped = job.ranks.remove(1).wait();
    assert_eq!(stopped.code(), 143, "{stopped:#?}");
    job.ranks.insert(1, job.begin(1));
    // The checkpoint is of the step at which it stopped.
    let step = stopped.errors().iter().find_map(|line| {
        line.strip_prefix("error: stopped by SIGTERM after step ").map(str::to_string)
    });
    let resumed = job.ranks[0].wait_for_line("  resume step ").replace(',', "");
    assert!(resumed.contains(&format!("step {} of ", step.unwrap())), "{resumed}");
    job.ranks[0].wait_for_line(" step=");
    // Again, and now it is all of them, while they wait for it.
    job.kill(&[1]);
    for rank in [0, 2] {
        job.ranks[rank].wait_for_line("(rejoin 2)");
        job.ranks[rank].signal(Signal::TERM);
    }
    let _lost = job.ranks.remove(1);
    for ended in job.wait() {
        assert_eq!(ended.code(), 143, "{ended:#?}");
    }
}

#[test]
fn where_a_loss_is_to_end_it_all_ends_as_ever() {
    let _one_at_a_time = machine_lock();
    for options in ["", "--on-loss exit"] {
        let mut job = Ranks::start(2, options, "", plain);
        job.ranks[0].wait_for_line(" step=100 ");
        job.ranks[1].signal(Signal::KILL);
        job.ranks.remove(0).wait().assert_error(75, &["rank 1 (", "is gone"]);
    }
    // Whoever starts all ranks itself starts none alone.
    let mut command = clean_command(ALLFOLD);
    let ended = Process::start(command.args(["train", "-n", "2", "--on-loss", "rejoin"])).wait();
    ended.assert_error(2, &["--on-loss rejoin: after a loss all ranks"]);
}

#[test]
fn in_a_stateful_set_all_wait_after_the_end_also_who_is_started_again() {
    let _one_at_a_time = machine_lock();
    let folder = Folder::new("rejoin-end");
    let mut job = Ranks::start(3, "", &saving(&folder), pod);
    job.ranks[0].wait_for_line(" step=100 ");
    // Nobody has said --on-loss rejoin.
    job.kill(&[1]);
    job.ranks[2].wait_for_line("waiting for it to come back (rejoin 1)");
    job.start_again(1);
    let first = job.ranks[0].wait_for_line(", digest ");
    assert!(first.ends_with(&undisturbed(3)), "{first}");
    job.each(|rank| _ = rank.wait_for_line(COMPLETE));
    // Rank 0 tells the others, and its checkpoint tells rank 0.
    for rank in [2, 0, 1] {
        job.kill(&[rank]);
        job.start_again(rank);
        if rank == 0 {
            job.ranks[0].wait_for_line("nothing left to train: the checkpoint is at step ");
            let again = job.ranks[0].wait_for_line(", digest ");
            assert!(again.ends_with(&undisturbed(3)), "{again}");
        }
        job.ranks[rank].wait_for_line(COMPLETE);
    }
    // Who is started with other options is not complete.
    job.kill(&[2]);
    let line = job.line.clone();
    job.line = line.replace("--steps 4000", "--steps 4001");
    job.start_again(2);
    let words = "rank 0 waits at the end of a training with other options or data; trying again";
    job.ranks[2].wait_for_line(words);
    job.line = line;
    // All at once, as after a power cut.
    job.kill(&[0, 1, 2]);
    for rank in [2, 1, 0] {
        job.start_again(rank);
    }
    job.each(|rank| _ = rank.wait_for_line(COMPLETE));
    job.each(|rank| rank.signal(Signal::TERM));
    for ended in job.wait() {
        assert_eq!(ended.code(), 0, "{ended:#?}");
        assert!(ended.errors().is_empty(), "{ended:#?}");
    }
}

#[test]
fn a_checkpoint_of_another_training_is_not_the_end_of_this_one() {
    let _one_at_a_time = machine_lock();
    let folder = Folder::new("rejoin-other");
    let at = folder.path().join("checkpoints").display().to_string();
    let train = |more: &str| {
        let line = format!("train --model mlp --checkpoint {at} --resume --when-done wait {more}");
        let mut command = Job::new(1).rank(0, ALLFOLD, &line.split(' ').collect::<Vec<_>>());
        command.env("KUBERNETES_SERVICE_HOST", "10.96.0.1").env("POD_NAME", "trainer-0");
        Process::start(&mut command)
    };
    let end = |mut rank: Process| {
        rank.wait_for_line(COMPLETE);
        rank.signal(Signal::TERM);
        rank.wait()
    };
    // Where all are started together they meet, and see it together.
    let mut both = clean_command(ALLFOLD);
    let line = format!(
        "train -n 2 --model mlp --hidden 16 --steps 20 --checkpoint {at} --resume --when-done wait"
    );
    let trained = |ended: &Ended| ended.output().iter().any(|line| line.starts_with("epoch="));
    assert!(trained(&end(train("--hidden 16 --steps 20"))));
    assert!(!trained(&end(train("--hidden 16 --steps 20"))));
    let mut both = Process::start(both.args(line.split(' ')));
    both.wait_for_line("parameters identical on all 2 ranks");
    both.wait_for_line("training complete, waiting for SIGTERM");
    both.signal(Signal::TERM);
    assert_eq!(both.wait().code(), 0);
    // What looks alike, but is not this training's.
    let alone = "rank 0 tells it from the checkpoint, alone";
    for (other, words) in [
        ("--hidden 16 --steps 20 --seed 2", "! warning: resume: seed was 1, is 2"),
        ("--hidden 16 --steps 20 --lr 0.001", "! warning: resume: lr was "),
        ("--hidden 16 --steps 19", "nothing left to train: the checkpoint is at step 20"),
    ] {
        let ended = end(train(other));
        assert!(ended.lines.iter().any(|line| line.starts_with(words)), "{other}: {ended:#?}");
        assert!(!ended.lines.iter().any(|line| line.ends_with(alone)), "{other}: {ended:#?}");
    }
    assert!(trained(&end(train("--hidden 16 --steps 21"))), "there is a step left");
    train("--hidden 17 --steps 20").wait().assert_error(2, &["hidden is 16 there, 17 here"]);
}

#[test]
fn killed_every_moment_a_training_ends_as_if_undisturbed() {
    let _one_at_a_time = machine_lock();
    let folder = Folder::new("kill-every");
    let all = |more: &str| {
        let line = format!("train -n 3 {TRAIN} {} --max-restarts 3 {more}", saving(&folder));
        let mut command = clean_command(ALLFOLD);
        command.args(line.split_whitespace()).env("ALLFOLD_TRANSPORT", "quic");
        Process::start(&mut command).wait()
    };
    let ended = all("--kill-every 400ms");
    assert_eq!(ended.code(), 0, "{ended:#?}");
    assert_eq!(digest(&ended), undisturbed(3));
    for (rank, kill) in [(1, 1), (2, 2), (0, 3)] {
        let killed = format!("! allfold: --kill-every: rank {rank} (pid ");
        let (of, restart) = (format!(" is killed, {kill} of 3"), format!("restart {kill} of 3 "));
        let is_told = |line: &&String| line.starts_with(&killed) && line.ends_with(&of);
        assert_eq!(ended.lines.iter().filter(is_told).count(), 1, "{ended:#?}");
        assert!(ended.lines.iter().any(|line| line.contains(&restart)), "{ended:#?}");
    }
    // What a job finds at its start is not its own.
    let words = ["the folder holds checkpoints of an earlier run"];
    all("--kill-every 400ms").assert_error(2, &words);

    let refused = |line: &str, words: &str| {
        let mut command = clean_command(ALLFOLD);
        Process::start(command.args(line.split(' '))).wait().assert_error(2, &[words]);
    };
    refused("train -n 2 --kill-every 10s --max-restarts 9", "--kill-every needs something to go");
    refused("train -n 2 --kill-every 10s --checkpoint x", "--kill-every needs somebody who");
    refused("train -n 2 --kill-every 0s --checkpoint x --max-restarts 9", "more than no time");
}

/// A job whose ranks are started one by one, by their environment.
struct Ranks {
    job: Job,
    line: String,
    environment: Environment,
    ranks: Vec<Process>,
}

/// What else is in the environment of a rank.
type Environment = fn(&Job, usize, &mut Command);

impl Ranks {
    /// Starts them all, the last first.
    fn start(size: usize, options: &str, saving: &str, environment: Environment) -> Self {
        let mut ranks = Self::of(size, options, saving, environment);
        for rank in (0..size).rev() {
            ranks.ranks.insert(0, ranks.begin(rank));
        }
        ranks
    }

    /// None of them is started yet.
    fn of(size: usize, options: &str, saving: &str, environment: Environment) -> Self {
        let line = format!("train {TRAIN} {options} {saving}");
        Self { job: Job::new(size), line, environment, ranks: Vec::new() }
    }

    fn begin(&self, rank: usize) -> Process {
        let words: Vec<&str> = self.line.split_whitespace().collect();
        let mut command = self.job.rank(rank, ALLFOLD, &words);
        command.env("ALLFOLD_TRANSPORT", "quic");
        (self.environment)(&self.job, rank, &mut command);
        Process::start(&mut command)
    }

    /// Kills these at once.
    fn kill(&self, ranks: &[usize]) {
        ranks.iter().for_each(|rank| self.ranks[*rank].signal(Signal::KILL));
    }

    /// As soon as what was killed is gone.
    fn start_again(&mut self, rank: usize) {
        let killed = self.ranks.remove(rank).wait();
        assert_eq!(killed.code(), 137, "{killed:#?}");
        self.ranks.insert(rank, self.begin(rank));
    }

    fn each(&mut self, then: impl FnMut(&mut Process)) {
        self.ranks.iter_mut().for_each(then);
    }

    fn wait(self) -> Vec<Ended> {
        self.ranks.into_iter().map(Process::wait).collect()
    }
}

fn plain(_: &Job, _: usize, _: &mut Command) {}

fn shared_memory(_: &Job, _: usize, command: &mut Command) {
    command.env_remove("ALLFOLD_TRANSPORT");
}

/// Who waits for nobody waits in vain.
fn briefly(_: &Job, _: usize, command: &mut Command) {
    command.env("ALLFOLD_CONNECT_TIMEOUT", "5s");
}

/// As in a pod of a StatefulSet, with ports of its own.
fn pod(job: &Job, rank: usize, command: &mut Command) {
    pod_of_manifest(job, rank, command);
    command.env_remove("ALLFOLD_RANK");
}

/// The same, where the pod's label says the rank.
fn pod_of_manifest(_: &Job, rank: usize, command: &mut Command) {
    let port = free_address().rsplit_once(':').unwrap().1.to_string();
    // The next one is its lane's.
    free_address();
    command.env("KUBERNETES_SERVICE_HOST", "10.96.0.1").env("POD_NAME", format!("trainer-{rank}"));
    command.env("ALLFOLD_PORT", port);
}

fn saving(folder: &Folder) -> String {
    let place = folder.path().join("checkpoints");
    format!("--checkpoint {} --checkpoint-every 50steps", place.display())
}

/// The digest of a training that nothing happens to.
fn undisturbed(ranks: usize) -> String {
    digest_of(ranks, TRAIN)
}

fn digest_of(ranks: usize, train: &str) -> String {
    let line = format!("train -n {ranks} {train}");
    let mut command = clean_command(ALLFOLD);
    command.args(line.split_whitespace()).env("ALLFOLD_TRANSPORT", "quic");
    digest(&Process::start(&mut command).wait())
}

fn digest(ended: &Ended) -> String {
    let digest = ended.output().iter().find_map(|line| Some(line.split_once(", digest ")?.1));
    digest.unwrap_or_else(|| panic!("no digest: {ended:#?}")).to_string()
}

/// Long enough for everything that happens meanwhile.
const TRAIN: &str = "--model mlp --hidden 16 --steps 4000 --eval-every 50 --algorithm ring";
const COMPLETE: &str = "training complete, waiting to be deleted";
