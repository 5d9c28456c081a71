//! One rank on each of four hosts, each with a name and an address of its own: a rank, a link or a
//! host is lost, and every rank names it.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use allfold_tests::hosts::Hosts;
use allfold_tests::{Ended, Process, machine_lock, skipped};
use rustix::process::Signal;

const RANK: &str = env!("CARGO_BIN_EXE_rank-under-test");

/// Four hosts with a job under way, or why not.
struct Job {
    hosts: Hosts,
    ranks: Vec<Process>,
}

impl Job {
    fn start(test: &str) -> Option<Self> {
        Self::start_meeting(test, |hosts| hosts.job())
    }

    fn start_meeting(test: &str, job: impl FnOnce(&Hosts) -> allfold_tests::Job) -> Option<Self> {
        let hosts = match Hosts::on_a_switch(4) {
            Ok(hosts) => hosts,
            Err(reason) => {
                skipped(test, &reason);
                return None;
            }
        };
        let job = job(&hosts);
        let start = |rank| hosts.start(&job, rank, RANK, &["forever"]);
        let mut ranks: Vec<Process> = (0..hosts.count()).map(start).collect();
        ranks.iter_mut().for_each(|rank| drop(rank.wait_for_line("started")));
        Some(Self { hosts, ranks })
    }

    /// How the ranks ended, but for those of `left_out`.
    fn ends(self, left_out: &[usize]) -> Vec<(usize, Ended)> {
        let began = Instant::now();
        let (lost, others): (Vec<_>, Vec<_>) =
            self.ranks.into_iter().enumerate().partition(|(rank, _)| left_out.contains(rank));
        let ended = others.into_iter().map(|(rank, process)| (rank, process.wait())).collect();
        assert!(began.elapsed() < CAP, "{:?}: {ended:#?}", began.elapsed());
        drop(lost);
        ended
    }
}

#[test]
fn a_rank_that_dies_without_a_word_is_named_with_its_host() {
    let _one_at_a_time = machine_lock();
    for (signal, lost) in [(Signal::KILL, 0), (Signal::STOP, 2)] {
        let Some(job) = Job::start("a_rank_that_dies_without_a_word_is_named_with_its_host") else {
            return;
        };
        job.hosts.signal(&job.ranks[lost], signal);
        for (_, ended) in job.ends(&[lost]) {
            let rank = format!("rank {lost} (host-{lost}");
            ended.assert_error(75, &[&rank, "stopped answering", "all_reduce"]);
            assert!(error(&ended).starts_with(&rank), "{ended:#?}");
        }
    }
}

/// A job whose ranks run on these hosts, in order, which do what `arguments` say, with so many
/// lanes; or why not.
fn spread(
    test: &str,
    on: &[usize],
    arguments: &[&str],
    lanes: &str,
) -> Option<(Hosts, Vec<Process>)> {
    let count = on.iter().max().map_or(0, |last| last + 1);
    let hosts = match Hosts::on_a_switch(count) {
        Ok(hosts) => hosts,
        Err(reason) => {
            skipped(test, &reason);
            return None;
        }
    };
    let ranks = start_on(&hosts, on, arguments, lanes);
    Some((hosts, ranks))
}

fn start_on(hosts: &Hosts, on: &[usize], arguments: &[&str], lanes: &str) -> Vec<Process> {
    let job = allfold_tests::Job { size: on.len(), ..hosts.job() };
    let start = |(rank, host): (usize, &usize)| {
        let mut command = job.rank(rank, RANK, arguments);
        command.env("ALLFOLD_LANES", lanes);
        Process::start(&mut hosts.on(*host, &command))
    };
    on.iter().enumerate().map(start).collect()
}

#[test]
fn hosts_with_several_ranks_add_up_in_memory_first() {
    let _one_at_a_time = machine_lock();
    // Two hosts with two ranks each, in order and mixed; one with two and one with one; three.
    let layouts: [&[usize]; 5] =
        [&[0, 0, 1, 1], &[0, 1, 0, 1], &[0, 0, 1], &[0, 1, 1], &[0, 1, 1, 2, 2, 2]];
    // Between hosts also in stripes.
    let with_lanes = layouts[..3].iter().map(|on| (*on, "3"));
    for (on, lanes) in layouts.iter().map(|on| (*on, "1")).chain(with_lanes) {
        let test = "hosts_with_several_ranks_add_up_in_memory_first";
        let Some((_hosts, ranks)) = spread(test, on, &["kinds"], lanes) else { return };
        for rank in ranks {
            let ended = rank.wait();
            assert!(ended.status.success(), "{on:?}: {ended:#?}");
            let says = |line: &str| ended.lines.iter().any(|said| said == line);
            assert!(says("all_reduce by-host 30"), "{on:?}: {ended:#?}");
            assert!(says("barrier by-host 6"), "{on:?}: {ended:#?}");
        }
    }
}

#[test]
fn hosts_whose_own_names_are_loopback_addresses_meet() {
    let _one_at_a_time = machine_lock();
    for on in [&[0, 1][..], &[0, 0, 1, 1]] {
        let hosts = match Hosts::on_a_switch(2) {
            Ok(hosts) => hosts,
            Err(reason) => {
                return skipped("hosts_whose_own_names_are_loopback_addresses_meet", &reason);
            }
        };
        hosts.name_themselves_only().unwrap();
        let ranks = start_on(&hosts, on, &["kinds"], "1");
        let ended: Vec<Ended> = ranks.into_iter().map(Process::wait).collect();
        assert!(ended.iter().all(|rank| rank.status.success()), "{on:?}: {ended:#?}");
        let warning = "rank 0's name `host-0` is 127.0.1.1 on its own host";
        let says = |rank: &Ended| rank.lines.iter().any(|line| line.contains(warning));
        assert_eq!(ended.iter().filter(|rank| says(rank)).count(), 1, "{ended:#?}");
        assert!(says(&ended[0]), "{ended:#?}");
    }
}

#[test]
fn a_rank_that_dies_among_several_of_its_host_is_named() {
    let _one_at_a_time = machine_lock();
    for (signal, lost) in [(Signal::KILL, 1), (Signal::STOP, 2)] {
        let test = "a_rank_that_dies_among_several_of_its_host_is_named";
        let Some((hosts, mut ranks)) = spread(test, &[0, 0, 1, 1], &["forever"], "1") else {
            return;
        };
        ranks.iter_mut().for_each(|rank| drop(rank.wait_for_line("started")));
        hosts.signal(&ranks[lost], signal);
        let began = Instant::now();
        let (gone, others): (Vec<_>, Vec<_>) =
            ranks.into_iter().enumerate().partition(|(rank, _)| *rank == lost);
        for (_, process) in others {
            let ended = process.wait();
            let rank = format!("rank {lost} (host-{}", lost / 2);
            ended.assert_error(75, &[&rank, "stopped answering", "all_reduce"]);
        }
        assert!(began.elapsed() < CAP, "{:?}", began.elapsed());
        drop(gone);
    }
}

#[test]
fn a_cut_link_is_named_by_both_its_ends_and_all_others() {
    let _one_at_a_time = machine_lock();
    let Some(job) = Job::start("a_cut_link_is_named_by_both_its_ends_and_all_others") else {
        return;
    };
    job.hosts.cut(1, 2);
    for (_, ended) in job.ends(&[]) {
        ended.assert_error(75, &["the link between", "rank 1 (host-1", "rank 2 (host-2", "down"]);
    }
}

#[test]
fn a_link_cut_one_way_is_that_of_one_of_its_ends() {
    let _one_at_a_time = machine_lock();
    // This job meets at rank 0's address, the others at its name.
    let meeting = |hosts: &Hosts| {
        let rendezvous = format!("{}:29500", Hosts::address(0));
        allfold_tests::Job { rendezvous, ..hosts.job() }
    };
    let test = "a_link_cut_one_way_is_that_of_one_of_its_ends";
    let Some(job) = Job::start_meeting(test, meeting) else { return };
    job.hosts.cut_one_way(3, 0);
    for (_, ended) in job.ends(&[]) {
        ended.assert_error(75, &[]);
        let line = error(&ended);
        let names = |rank: &str| line.contains(rank);
        assert!(names("rank 0 (host-0") || names("rank 3 (host-3"), "{ended:#?}");
        assert!(!names("rank 1 (host-1") && !names("rank 2 (host-2"), "{ended:#?}");
    }
}

#[test]
fn a_host_that_is_cut_off_is_named_and_knows_it() {
    let _one_at_a_time = machine_lock();
    for lost in [0, 3] {
        let Some(job) = Job::start("a_host_that_is_cut_off_is_named_and_knows_it") else { return };
        job.hosts.cut_off(lost);
        for (rank, ended) in job.ends(&[]) {
            let words = format!("rank {lost} (host-{lost}");
            ended.assert_error(75, &[&words]);
            assert!(error(&ended).starts_with(&words), "{ended:#?}");
            assert!(rank != lost || error(&ended).contains("is cut off"), "{ended:#?}");
        }
    }
}

#[test]
fn a_data_port_that_is_closed_is_found_though_heartbeats_come() {
    let _one_at_a_time = machine_lock();
    let test = "a_data_port_that_is_closed_is_found_though_heartbeats_come";
    for is_closed_first in [true, false] {
        let hosts = match Hosts::on_a_switch(3) {
            Ok(hosts) => hosts,
            Err(reason) => return skipped(test, &reason),
        };
        if is_closed_first {
            hosts.close_port(1, CONTROL_PORT + 1);
        }
        let job = hosts.job();
        let start = |rank| {
            let mut command = job.rank(rank, RANK, &["forever"]);
            command.env("ALLFOLD_PORT", CONTROL_PORT.to_string());
            Process::start(&mut hosts.on(rank, &command))
        };
        let mut ranks: Vec<Process> = (0..hosts.count()).map(start).collect();
        if !is_closed_first {
            ranks.iter_mut().for_each(|rank| drop(rank.wait_for_line("started")));
            hosts.close_port(1, CONTROL_PORT + 1);
        }
        for (_, ended) in (Job { hosts, ranks }).ends(&[]) {
            ended.assert_error(75, &["the link between", "rank 1 (host-1", "is down", "data"]);
        }
    }
}

/// The one `error:` line, without that word.
fn error(ended: &Ended) -> &str {
    ended.errors().into_iter().find_map(|line| line.strip_prefix("error: ")).unwrap_or_default()
}

/// The data port is the one above.
const CONTROL_PORT: u16 = 7000;
/// The promised 3 s, on a busy machine.
const CAP: Duration = Duration::from_secs(15);
