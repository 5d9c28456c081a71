//! `allfold doctor` under launchers, between hosts, and where something is wrong.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use allfold_tests::hosts::{Hosts, Weather};
use allfold_tests::{Ended, Job, Process, clean_command, machine_lock, skipped};
use serde_json::Value;

const ALLFOLD: &str = env!("CARGO_BIN_EXE_allfold-under-test");

/// The one JSON object that it prints.
fn document(ended: &Ended) -> Value {
    let output = ended.output().join("\n");
    serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {ended:#?}"))
}

/// The links by their ends.
fn links(document: &Value) -> Vec<(u64, u64, &Value)> {
    let end = |link: &Value, name: &str| link[name].as_u64().unwrap();
    let links = document["links"].as_array().unwrap();
    links.iter().map(|link| (end(link, "from"), end(link, "to"), link)).collect()
}

fn reds(document: &Value) -> Vec<&Value> {
    let findings = document["findings"].as_array().unwrap();
    findings.iter().filter(|finding| finding["color"] == "red").collect()
}

#[test]
fn three_ranks_of_one_host_share_memory_and_are_well() {
    let _one_at_a_time = machine_lock();
    let under_run = ["run", "-n", "3", "--prefix", "never", ALLFOLD, "doctor", "--json"];
    for line in [&["doctor", "-n", "3", "--json"][..], &under_run] {
        let ended = Process::start(clean_command(ALLFOLD).args(line)).wait();
        assert_eq!(ended.code(), 0, "{ended:#?}");
        assert!(ended.errors().is_empty(), "{ended:#?}");
        let document = document(&ended);
        assert_eq!(document["healthy"], true, "{document:#}");
        assert_eq!(document["ranks"].as_array().unwrap().len(), 3);
        for (rank, facts) in document["ranks"].as_array().unwrap().iter().enumerate() {
            assert_eq!(facts["rank"], rank, "{facts:#}");
            assert_eq!(facts["version"], env!("CARGO_PKG_VERSION"));
            assert_eq!(facts["protocol"], allfold::PROTOCOL);
            assert!(facts["open_files"]["open"].as_u64() > Some(3), "{facts:#}");
            assert_eq!(facts["sockets"].as_array().unwrap().len(), 1, "{facts:#}");
        }
        let links = links(&document);
        let ends: Vec<_> = links.iter().map(|(from, to, _)| (*from, *to)).collect();
        assert_eq!(ends, [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]);
        for (.., link) in links {
            assert_eq!(link["network"], Value::Null, "{link:#}");
            assert!(link["round_trip_ns"].as_i64() > Some(0), "{link:#}");
            assert!(link["bytes_per_second"].as_f64() > Some(0.0), "{link:#}");
        }
    }
}

#[test]
fn a_person_gets_a_page_without_colors_in_a_pipe() {
    let _one_at_a_time = machine_lock();
    let ended = Process::start(clean_command(ALLFOLD).args(["doctor", "-n", "3"])).wait();
    assert_eq!(ended.code(), 0, "{ended:#?}");
    let output = ended.output();
    assert!(output[0].contains("3 ranks on 1 host"), "{ended:#?}");
    for words in ["round trip, ", "bandwidth from row to column, ", "no network: "] {
        assert!(output.iter().any(|line| line.starts_with(words)), "{words}: {ended:#?}");
    }
    assert!(output.iter().all(|line| line.chars().count() <= 100 && !line.contains('\x1b')));
}

#[test]
fn the_network_is_measured_where_it_carries_the_data() {
    let _one_at_a_time = machine_lock();
    let mut command = clean_command(ALLFOLD);
    command.args(["doctor", "-n", "3", "--json"]).env("ALLFOLD_TRANSPORT", "quic");
    let ended = Process::start(&mut command).wait();
    let document = document(&ended);
    // A busy machine may drop packets, which is red.
    let code = i32::from(document["healthy"] == false);
    assert_eq!(ended.code(), code, "{ended:#?}");
    let links = links(&document);
    assert_eq!(links.len(), 6);
    for (from, to, link) in links {
        let network = &link["network"];
        let socket = &document["ranks"][to as usize]["sockets"][0];
        if from < to {
            // Who dials finds the other where it listens.
            let port =
                |address: &Value| address.as_str().unwrap().rsplit(':').next().unwrap().to_string();
            assert_eq!(port(&network["remote"]), port(&socket["address"]), "{link:#}");
        }
        assert!(network["packet"].as_u64() >= Some(1_228), "{link:#}");
        assert!(network["system_packet"].as_u64() >= Some(1_500), "{link:#}");
        assert_eq!(network["device"], "lo", "{link:#}");
        assert!(network["packets_sent"].as_u64() > Some(0), "{link:#}");
    }
}

#[test]
fn a_rank_that_may_open_few_files_is_red_with_the_line_that_mends_it() {
    let _one_at_a_time = machine_lock();
    let job = Job::new(2);
    let first = Process::start(&mut job.rank(0, ALLFOLD, &["doctor"]));
    let script = "ulimit -Sn 100; exec \"$0\" doctor";
    let second = Process::start(&mut job.rank(1, "sh", &["-c", script, ALLFOLD]));
    let (first, second) = (first.wait(), second.wait());
    for ended in [&first, &second] {
        ended.assert_error(1, &["open files of rank 1"]);
    }
    assert!(second.output().is_empty(), "{second:#?}");
    let page = first.output();
    let red =
        page.iter().position(|line| line.starts_with("red: open files, rank 1: may open 100"));
    let red = red.unwrap_or_else(|| panic!("{first:#?}"));
    assert!(page[red + 1].starts_with("    help: ulimit -n 1024"), "{first:#?}");
}

#[test]
fn a_path_that_swallows_large_packets_is_found() {
    let _one_at_a_time = machine_lock();
    let hosts = match Hosts::far_apart(3, SEED) {
        Ok(hosts) => hosts,
        Err(reason) => return skipped("a_path_that_swallows_large_packets_is_found", &reason),
    };
    let narrow = Weather { largest: Some(1_300), ..Weather::default() };
    hosts.network().unwrap().set_between(0, 1, narrow);
    let job = hosts.job();
    // Time enough for the search on a busy machine.
    let line = ["doctor", "--json", "--timeout", "30s"];
    let ranks: Vec<Process> = (0..3).map(|rank| hosts.start(&job, rank, ALLFOLD, &line)).collect();
    let ended: Vec<Ended> = ranks.into_iter().map(Process::wait).collect();
    for rank in &ended {
        rank.assert_error(1, &["path MTU of 0 -> 1 and 1 -> 0"]);
    }
    let document = document(&ended[0]);
    for (from, to, link) in links(&document) {
        let network = &link["network"];
        let packet = network["packet"].as_u64().unwrap();
        let expected = if from + to == 1 { 1_228..=1_300 } else { 1_440..=1_500 };
        assert!(expected.contains(&packet), "{link:#}");
        assert_eq!(
            (&network["is_largest"], &network["system_packet"]),
            (&true.into(), &1_500.into())
        );
        let local = Hosts::address(from as usize).to_string();
        assert_eq!(network["local"], local, "{link:#}");
        let remote = network["remote"].as_str().unwrap();
        assert!(remote.starts_with(&format!("{}:", Hosts::address(to as usize))), "{link:#}");
    }
    let is_meant = |red: &&&Value| red["about"] == "packet";
    let reds = reds(&document);
    let helps: Vec<&str> =
        reds.iter().filter(is_meant).map(|red| red["help"].as_str().unwrap()).collect();
    assert_eq!(helps.len(), 2, "{reds:#?}");
    // Each has a wide way to the third.
    for (help, (host, peer)) in helps.iter().zip([("host-0", 1), ("host-1", 0)]) {
        let line = format!("ip route add {} dev far0 mtu lock 1", Hosts::address(peer));
        assert!(help.starts_with(&line), "{help}");
        assert!(help.contains(&format!(", on {host} (")), "{help}");
    }
    // One machine has one clock.
    for rank in document["ranks"].as_array().unwrap() {
        let [ahead, within] = ["ahead_ns", "within_ns"].map(|n| rank["clock"][n].as_i64().unwrap());
        assert!(ahead.abs() <= within, "{rank:#}");
    }
}

#[test]
fn a_rank_that_meets_nobody_tells_what_it_knows() {
    let _one_at_a_time = machine_lock();
    let job = Job::new(2);
    for is_json in [true, false] {
        let line = if is_json { &["doctor", "--json"][..] } else { &["doctor"] };
        let mut command = job.rank(0, ALLFOLD, line);
        command.env("ALLFOLD_CONNECT_TIMEOUT", "500ms");
        let ended = Process::start(&mut command).wait();
        ended.assert_error(75, &["rank 1"]);
        if is_json {
            let document = document(&ended);
            assert_eq!(document["healthy"], Value::Null, "{document:#}");
            assert!(document["error"].as_str().unwrap().contains("rank 1"), "{document:#}");
            assert_eq!(document["ranks"][0]["rank"], 0, "{document:#}");
            assert_eq!(document["links"].as_array().unwrap().len(), 0);
        } else {
            assert!(ended.output().iter().any(|line| line.starts_with("rank  host")), "{ended:#?}");
        }
    }
}

#[test]
fn a_rank_whose_settings_are_wrong_tells_what_it_knows() {
    let job = Job::new(2);
    let mut command = job.rank(1, ALLFOLD, &["doctor", "--json"]);
    command.env("ALLFOLD_LANES", "many");
    let ended = Process::start(&mut command).wait();
    ended.assert_error(2, &["ALLFOLD_LANES"]);
    let document = document(&ended);
    assert_eq!(document["healthy"], Value::Null, "{document:#}");
    assert!(document["error"].as_str().unwrap().contains("ALLFOLD_LANES"), "{document:#}");
    assert_eq!((&document["ranks"][0]["rank"], &document["met"]), (&1.into(), &0.into()));
}

#[test]
fn a_rank_that_loses_another_tells_what_it_knows() {
    let _one_at_a_time = machine_lock();
    let job = Job::new(2);
    let first = Process::start(&mut job.rank(0, ALLFOLD, &["doctor", "--json"]));
    // It takes part in nothing but the meeting.
    let other = ["bench", "-b", "8", "-e", "8"];
    let second = Process::start(&mut job.rank(1, ALLFOLD, &other));
    let (first, second) = (first.wait(), second.wait());
    assert_ne!(first.code(), 0, "{first:#?}");
    assert_ne!(second.code(), 0, "{second:#?}");
    let document = document(&first);
    assert_eq!(document["healthy"], Value::Null, "{document:#}");
    assert!(document["error"].is_string(), "{document:#}");
    assert_eq!(document["met"], 2, "{document:#}");
    assert_ne!(document["transport"], "", "{document:#}");
    assert_eq!(document["ranks"].as_array().unwrap().len(), 1, "{document:#}");
}

#[test]
fn a_time_that_measures_nothing_is_refused() {
    for time in ["1ms", "1h", "-3", "2m"] {
        let line = ["doctor", "-n", "2", "--timeout", time];
        let ended = Process::start(clean_command(ALLFOLD).args(line)).wait();
        ended.assert_error(2, &["--timeout"]);
        assert!(ended.output().is_empty(), "{ended:#?}");
    }
}

const SEED: u64 = 1;
