//! How ranks find each other between hosts: addresses that every host has, families that are dead
//! or missing, names that come late or lead elsewhere, and what is said where nothing helps.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv6Addr};

use allfold_tests::hosts::Hosts;
use allfold_tests::{Ended, Job, Process, machine_lock, skipped};
use rustix::process::Signal;

const RANK: &str = env!("CARGO_BIN_EXE_rank-under-test");

/// Hosts on a switch, or why not.
fn hosts(test: &str, count: usize) -> Option<Hosts> {
    Hosts::on_a_switch(count).map_err(|reason| skipped(test, &reason)).ok()
}

/// Starts a rank on the host of its number, with these variables besides.
fn start(hosts: &Hosts, job: &Job, rank: usize, settings: &[(&str, &str)]) -> Process {
    start_on(hosts, job, (rank, rank), settings)
}

fn start_on(
    hosts: &Hosts,
    job: &Job,
    (rank, host): (usize, usize),
    settings: &[(&str, &str)],
) -> Process {
    let mut command = job.rank(rank, RANK, &["calls", "3"]);
    command.envs(settings.iter().copied());
    Process::start(&mut hosts.on(host, &command))
}

fn all_end_well(ranks: impl IntoIterator<Item = Process>) {
    for ended in ranks.into_iter().map(Process::wait) {
        assert_eq!(ended.code(), 0, "{ended:#?}");
    }
}

fn v6(host: usize) -> IpAddr {
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1 + host as u16).into()
}

fn v4(host: usize) -> IpAddr {
    Hosts::address(host).into()
}

/// Gives every host an address of IPv6, and says whether this machine has any.
fn add_v6(test: &str, hosts: &Hosts) -> bool {
    for host in 0..hosts.count() {
        let address = format!("{}/64", v6(host));
        let add = ["ip", "addr", "add", &address, "dev", "eth0", "nodad"];
        if let Err(reason) = hosts.run(host, &add) {
            skipped(test, &reason);
            return false;
        }
    }
    true
}

/// Every host knows all others by these addresses.
fn name_all(hosts: &Hosts, addresses: impl Fn(usize) -> Vec<IpAddr>) {
    let names: Vec<String> = (0..hosts.count()).map(allfold_tests::hosts::host_name).collect();
    let all: Vec<(IpAddr, &str)> = (0..hosts.count())
        .flat_map(|host| addresses(host).into_iter().map(move |ip| (ip, host)))
        .map(|(ip, host)| (ip, names[host].as_str()))
        .collect();
    (0..hosts.count()).for_each(|host| hosts.name_on(host, &all).unwrap());
}

fn help(ended: &Ended) -> &str {
    ended.errors().into_iter().find_map(|line| line.strip_prefix("help: ")).unwrap_or_default()
}

#[test]
fn an_address_that_every_host_has_fools_nobody() {
    let _one_at_a_time = machine_lock();
    let test = "an_address_that_every_host_has_fools_nobody";
    let Some(hosts) = hosts(test, 3) else { return };
    for host in 0..3 {
        let bridge = ["ip", "link", "add", "docker0", "type", "bridge"];
        hosts.run(host, &bridge).unwrap();
        hosts.run(host, &["ip", "addr", "add", "172.17.0.1/16", "dev", "docker0"]).unwrap();
        hosts.run(host, &["ip", "link", "set", "docker0", "up"]).unwrap();
    }
    // All of rank 0's host are in its name; and all ranks have the same port, so that each finds
    // itself at 172.17.0.1.
    name_all(&hosts, |host| vec![[172, 17, 0, 1].into(), v4(host)]);
    let job = Job { rendezvous: "host-0".into(), ..hosts.job() };
    let settings = [("ALLFOLD_PORT", "7000")];
    let mut early = [1, 2].map(|rank| start(&hosts, &job, rank, &settings));
    for rank in &mut early {
        rank.wait_for_line("refused a process at 172.17.0.1:");
    }
    let zero = start(&hosts, &job, 0, &settings);
    all_end_well(early.into_iter().chain([zero]));
}

#[test]
fn hosts_with_ipv6_alone_meet() {
    let _one_at_a_time = machine_lock();
    let test = "hosts_with_ipv6_alone_meet";
    let Some(hosts) = hosts(test, 3) else { return };
    if !add_v6(test, &hosts) {
        return;
    }
    for host in 0..3 {
        hosts.run(host, &["ip", "-4", "addr", "flush", "dev", "eth0"]).unwrap();
    }
    name_all(&hosts, |host| vec![v6(host)]);
    for place in ["host-0:29500".to_string(), format!("[{}]:29500", v6(0))] {
        let job = Job { rendezvous: place, ..hosts.job() };
        all_end_well([2, 1, 0].map(|rank| start(&hosts, &job, rank, &[])));
    }
}

#[test]
fn hosts_without_ipv6_meet_and_say_so_where_it_is_asked_for() {
    let _one_at_a_time = machine_lock();
    let test = "hosts_without_ipv6_meet_and_say_so_where_it_is_asked_for";
    let Some(hosts) = hosts(test, 2) else { return };
    for host in 0..2 {
        let off = ["sysctl", "-w", "net.ipv6.conf.all.disable_ipv6=1"];
        if let Err(reason) = hosts.run(host, &off) {
            return skipped(test, &reason);
        }
    }
    let job = hosts.job();
    all_end_well([0, 1].map(|rank| start(&hosts, &job, rank, &[])));
    let job = Job { rendezvous: format!("[{}]:29500", v6(0)), ..hosts.job() };
    for rank in [0, 1] {
        let ended = start(&hosts, &job, rank, &[]).wait();
        ended.assert_error(2, &["is an IPv6 address, and this host has no IPv6"]);
        assert!(help(&ended).contains("IPv4"), "{ended:#?}");
    }
}

#[test]
fn a_dead_family_is_passed_by() {
    let _one_at_a_time = machine_lock();
    let test = "a_dead_family_is_passed_by";
    // Between all, and only between two that rank 0 sees well.
    let everywhere = |hosts: &Hosts, family: &str| {
        (0..3).for_each(|host| hosts.drop_there(host, &format!("meta nfproto {family}")));
    };
    let between_two = |hosts: &Hosts, family: &str| {
        let (word, of): (_, fn(usize) -> IpAddr) = match family {
            "ipv4" => ("ip saddr", v4),
            _ => ("ip6 saddr", v6),
        };
        hosts.drop_there(1, &format!("{word} {}", of(2)));
        hosts.drop_there(2, &format!("{word} {}", of(1)));
    };
    for family in ["ipv4", "ipv6"] {
        for kill in [&everywhere as &dyn Fn(&Hosts, &str), &between_two] {
            let Some(hosts) = hosts(test, 3) else { return };
            if !add_v6(test, &hosts) {
                return;
            }
            name_all(&hosts, |host| vec![v4(host), v6(host)]);
            kill(&hosts, family);
            let job = hosts.job();
            all_end_well([0, 1, 2].map(|rank| start(&hosts, &job, rank, &[])));
        }
    }
}

#[test]
fn a_name_may_come_late_and_lead_elsewhere_at_first() {
    let _one_at_a_time = machine_lock();
    let test = "a_name_may_come_late_and_lead_elsewhere_at_first";
    let Some(hosts) = hosts(test, 3) else { return };
    let job = Job { size: 2, ..hosts.job() };
    let patient = [("ALLFOLD_CONNECT_TIMEOUT", "60s")];
    hosts.name_on(1, &[]).unwrap();
    let mut one = start(&hosts, &job, 1, &patient);
    one.wait_for_line("rank 0 is not found at host-0:29500: its name is unknown so far (");
    hosts.name_on(1, &[(v4(2), "host-0")]).unwrap();
    one.wait_for_line("refused: the host 10.77.0.3 is up, and nobody listens on UDP 29500");
    hosts.name_on(1, &[(v4(0), "host-0")]).unwrap();
    let zero = start(&hosts, &job, 0, &patient);
    all_end_well([zero, one]);
}

#[test]
fn a_rank_0_that_comes_back_at_another_address_is_found() {
    let _one_at_a_time = machine_lock();
    let test = "a_rank_0_that_comes_back_at_another_address_is_found";
    let Some(hosts) = hosts(test, 3) else { return };
    let job = hosts.job();
    let patient = [("ALLFOLD_CONNECT_TIMEOUT", "60s")];
    let mut first = start(&hosts, &job, 0, &patient);
    let one = start(&hosts, &job, 1, &patient);
    first.wait_for_line("waiting for rank 2 at host-0:29500");
    hosts.signal(&first, Signal::KILL);
    drop(first.wait());
    // Its name now leads to another host.
    for host in 0..3 {
        hosts.name_on(host, &[(v4(2), "host-0")]).unwrap();
    }
    let zero = start_on(&hosts, &job, (0, 2), &patient);
    let two = start_on(&hosts, &job, (2, 0), &patient);
    all_end_well([zero, one, two]);
}

#[test]
fn the_deadline_tells_refused_filtered_silent_and_unknown_apart() {
    let _one_at_a_time = machine_lock();
    let test = "the_deadline_tells_refused_filtered_silent_and_unknown_apart";
    let Some(hosts) = hosts(test, 2) else { return };
    let job = hosts.job();
    let hurry = [("ALLFOLD_CONNECT_TIMEOUT", "3s")];
    let one = |code: i32, words: &[&str]| {
        let ended = start(&hosts, &job, 1, &hurry).wait();
        ended.assert_error(code, words);
        help(&ended).to_string()
    };
    let place = "rank 0 is not found at host-0:29500: ";
    let told = one(75, &[place, "refused: the host 10.77.0.1 is up, and nobody listens"]);
    assert!(told.contains("ALLFOLD_RENDEZVOUS"), "{told}");
    // Rank 0 is there, and only UDP is dropped.
    let mut zero = start(&hosts, &job, 0, &[("ALLFOLD_CONNECT_TIMEOUT", "60s")]);
    hosts.close_port(0, 29_500);
    let told = one(75, &[place, "UDP 29500 is filtered: NetworkPolicy or security group"]);
    assert!(told.contains("protocol: UDP, port: 29500"), "{told}");
    hosts.cut(0, 1);
    let told = one(75, &[place, "nothing answers at 10.77.0.1, neither UDP 29500 nor TCP"]);
    assert!(told.contains("host-0"), "{told}");
    hosts.heal();
    hosts.name_on(1, &[]).unwrap();
    let told = one(2, &["host `host-0` is unknown: "]);
    assert!(told.contains("getent hosts host-0"), "{told}");
    zero.wait_for_line("waiting for rank 1");
}

#[test]
fn ranks_that_cannot_reach_each_other_say_whom_and_where() {
    let _one_at_a_time = machine_lock();
    let test = "ranks_that_cannot_reach_each_other_say_whom_and_where";
    let Some(hosts) = hosts(test, 3) else { return };
    hosts.cut(1, 2);
    let job = hosts.job();
    let hurry = [("ALLFOLD_CONNECT_TIMEOUT", "8s"), ("ALLFOLD_PORT", "7000")];
    let mut ranks = [0, 1, 2].map(|rank| start(&hosts, &job, rank, &hurry)).into_iter();
    let (_zero, one) = (ranks.next(), ranks.next());
    let ended = one.unwrap().wait();
    ended.assert_error(75, &["rank 1 does not reach rank 2: ", "10.77.0.3:7000"]);
    assert!(help(&ended).contains("ALLFOLD_PORT"), "{ended:#?}");
}

#[test]
fn a_rank_uses_the_port_of_its_own_entry_and_the_interface_that_is_chosen() {
    let _one_at_a_time = machine_lock();
    let test = "a_rank_uses_the_port_of_its_own_entry_and_the_interface_that_is_chosen";
    let Some(hosts) = hosts(test, 2) else { return };
    let job = hosts.job();
    let start = |rank: usize| {
        let mut command = job.rank(rank, RANK, &["forever"]);
        command.env_remove("ALLFOLD_RENDEZVOUS").env_remove("ALLFOLD_WORLD_SIZE");
        command.env("ALLFOLD_PEERS", "host-0:2222,host-1:2223").env("ALLFOLD_INTERFACE", "eth0");
        Process::start(&mut hosts.on(rank, &command))
    };
    let mut ranks = [0, 1].map(start);
    ranks.iter_mut().for_each(|rank| _ = rank.wait_for_line("started"));
    // As the kernel writes them: its data is at 10.77.0.2, and it meets others at port 2223.
    let sockets = hosts.run(1, &["cat", "/proc/net/udp"]).unwrap();
    assert!(sockets.contains(" 02004D0A:"), "{sockets}");
    let all = hosts.run(1, &["cat", "/proc/net/udp", "/proc/net/udp6"]).unwrap();
    assert!(all.contains(":08AF "), "{all}");
    let mut command = job.rank(1, RANK, &["forever"]);
    command.env("ALLFOLD_INTERFACE", "eth7");
    let ended = Process::start(&mut hosts.on(1, &command)).wait();
    ended.assert_error(2, &["ALLFOLD_INTERFACE=eth7: names no interface of this host"]);
    assert!(help(&ended).contains("eth0 (10.77.0.2"), "{ended:#?}");
}

#[test]
fn another_secret_at_one_of_two_addresses_of_a_name_ends_nothing() {
    let _one_at_a_time = machine_lock();
    let test = "another_secret_at_one_of_two_addresses_of_a_name_ends_nothing";
    let Some(hosts) = hosts(test, 3) else { return };
    let job = Job { size: 2, ..hosts.job() };
    let stranger = Job { secret: Job::new(2).secret, rendezvous: job.rendezvous.clone(), size: 2 };
    let patient = [("ALLFOLD_CONNECT_TIMEOUT", "60s")];
    hosts.name_on(1, &[(v4(2), "host-0"), (v4(0), "host-0")]).unwrap();
    let _stranger = start_on(&hosts, &stranger, (0, 2), &patient);
    let mut one = start(&hosts, &job, 1, &patient);
    one.wait_for_line("it is looked for on, as the name may lead elsewhere soon");
    let zero = start(&hosts, &job, 0, &patient);
    all_end_well([zero, one]);
}

#[test]
fn another_job_at_a_name_is_told_at_once_and_is_the_error_in_the_end() {
    let _one_at_a_time = machine_lock();
    let test = "another_job_at_a_name_is_told_at_once_and_is_the_error_in_the_end";
    let Some(hosts) = hosts(test, 2) else { return };
    let job = hosts.job();
    let _zero = start(&hosts, &job, 0, &[("ALLFOLD_CONNECT_TIMEOUT", "60s")]);
    let other = [("ALLFOLD_JOB", "another"), ("ALLFOLD_CONNECT_TIMEOUT", "4s")];
    let mut one = start(&hosts, &job, 1, &other);
    one.wait_for_line("it is looked for on, as the name may lead elsewhere soon");
    let ended = one.wait();
    ended.assert_error(2, &["rank 0 is not found at host-0:29500: another job, under another"]);
    assert!(help(&ended).contains("ALLFOLD_JOB"), "{ended:#?}");
}

#[test]
fn ranks_are_where_they_have_chosen_and_nowhere_else() {
    let _one_at_a_time = machine_lock();
    let test = "ranks_are_where_they_have_chosen_and_nowhere_else";
    let Some(hosts) = hosts(test, 3) else { return };
    for host in 0..3 {
        for network in [78, 79] {
            let address = format!("10.{network}.0.{}/24", host + 1);
            hosts.run(host, &["ip", "addr", "add", &address, "dev", "eth0"]).unwrap();
        }
    }
    // The name leads to 10.77.0.1, which is none of the two.
    let settings = |limit| {
        let chosen = ("ALLFOLD_INTERFACE", "10.78.0.0/15");
        [chosen, ("ALLFOLD_PORT", "7000"), ("ALLFOLD_CONNECT_TIMEOUT", limit)]
    };
    let job = hosts.job();
    let all = |limit| [0, 1, 2].map(|rank| start(&hosts, &job, rank, &settings(limit)));
    all_end_well(all("60s"));
    (0..3).for_each(|host| hosts.drop_there(host, "ip daddr 10.78.0.0/15"));
    let [_zero, one, _two] = all("8s");
    let ended = one.wait();
    ended.assert_error(75, &["rank 1 does not reach rank 2: ", "10.78.0.3:7000", "10.79.0.3:7000"]);
    assert!(!ended.errors().iter().any(|line| line.contains("10.77.0.3:7000")), "{ended:#?}");
}
