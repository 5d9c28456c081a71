//! What rank 0 makes of who comes: where it is to be found, and what is said of who was refused.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::Knock;
use super::gathering::{Action, Event, Gathering, Terms};
use super::table::Entry;
use crate::control::endpoint::Message;
use crate::error::Error;
use crate::trust::hello::{Hello, Purpose};

/// Rank 0 of so many.
fn rank_0(size: u32, is_in_kubernetes: bool) -> Gathering<impl FnMut() -> crate::Result<u64>> {
    let terms = Terms {
        size,
        lanes: 1,
        version: VERSION.into(),
        settings: Vec::new(),
        heartbeat: Duration::from_secs(1),
        connect_timeout: TIMEOUT,
        place: "node-0:29500".into(),
        listens: "on UDP 29500 of 10.0.0.7".into(),
        is_in_kubernetes,
    };
    let own = Entry {
        rank: 0,
        host: "node-0".into(),
        pid: 41,
        habitat: 0,
        incarnation: 0,
        addresses: ips(&["10.0.0.7"]),
        chosen: false,
        control_port: 29_500,
        lane_ports: vec![29_501],
        leaf: [0; 32],
        door: None,
    };
    Gathering::new(terms, own, || Ok(7), Instant::now())
}

fn knock(rank: u32, version: &str, from: &str, told: &[&str], chosen: bool) -> Event {
    let purpose = Purpose::Join {
        settings: Vec::new(),
        addresses: ips(told),
        chosen,
        control_port: 4_711,
        lane_ports: vec![4_712],
        door: None,
    };
    let hello = Hello {
        version: version.into(),
        rank,
        incarnation: rank.into(),
        host: format!("node-{rank}"),
        pid: 41,
        habitat: 0,
        purpose,
    };
    let from = SocketAddr::new(from.parse().unwrap(), 4_711);
    Event::Knocked(Box::new(Knock { link: rank as usize, from, hello, leaf: [rank as u8; 32] }))
}

fn ips(ips: &[&str]) -> Vec<IpAddr> {
    ips.iter().map(|ip| ip.parse().unwrap()).collect()
}

/// Where rank 1 is in the world table that comes of this.
fn published(from: &str, told: &[&str], chosen: bool) -> Vec<IpAddr> {
    let mut gathering = rank_0(2, false);
    let actions = gathering.on(Instant::now(), knock(1, VERSION, from, told, chosen));
    let tables = actions.into_iter().filter_map(|action| match action {
        Action::PostAll(Message::Prepare { table, .. }) => Some(table),
        _ => None,
    });
    tables.last().unwrap().swap_remove(1).addresses
}

#[test]
fn a_rank_is_published_where_it_is_seen_unless_it_has_chosen_otherwise() {
    let two = ["10.1.0.7", "10.2.0.7"];
    assert_eq!(published("10.0.0.7", &two, false), ips(&["10.0.0.7", "10.1.0.7", "10.2.0.7"]));
    assert_eq!(published("10.0.0.7", &two, true), ips(&two));
    // By the one that leads here, if that is one of them.
    assert_eq!(published("10.2.0.7", &two, true), ips(&["10.2.0.7", "10.1.0.7"]));
    assert_eq!(published("127.0.0.1", &two, false), ips(&two));
    assert_eq!(published("10.0.0.7", &[], false), ips(&["10.0.0.7"]));
}

#[test]
fn a_link_local_address_is_published_only_where_there_is_no_other() {
    assert_eq!(published("fe80::7", &["10.1.0.7"], false), ips(&["10.1.0.7"]));
    let alone = published("fe80::7", &["127.0.0.1", "::1"], false);
    assert_eq!(alone[0], ips(&["fe80::7"])[0]);
}

/// The error at the deadline after these have come.
fn deadline(size: u32, is_in_kubernetes: bool, knocks: Vec<Event>) -> Error {
    let mut gathering = rank_0(size, is_in_kubernetes);
    for knock in knocks {
        gathering.on(Instant::now(), knock);
    }
    let actions = gathering.on(Instant::now() + TIMEOUT, Event::Time);
    let ends = actions.into_iter().filter_map(|action| match action {
        Action::Finish(outcome) => outcome.err(),
        _ => None,
    });
    ends.last().unwrap()
}

#[test]
fn who_was_refused_is_not_said_to_have_stayed_away() {
    let old = |rank| knock(rank, "0.0.9", "10.0.0.9", &[], false);
    let reason = format!("runs allfold 0.0.9, rank 0 runs {VERSION}");
    let alone = deadline(2, false, vec![old(1)]).to_string();
    let refused = "rank 1 came to node-0:29500 and was refused: rank 1";
    assert_eq!(alone, format!("{refused} {reason} (waited 60 s)"));
    let both = deadline(4, false, vec![old(1), old(3)]).to_string();
    let expected = format!(
        "rank 2 did not come to node-0:29500; {refused} {reason}; so was rank 3 (waited 60 s)"
    );
    assert_eq!(both, expected);
}

#[test]
fn in_kubernetes_the_number_of_replicas_is_asked_for() {
    for (is_in_kubernetes, words) in
        [(true, "; `spec.replicas` must be the world size"), (false, "")]
    {
        let error = deadline(3, is_in_kubernetes, vec![knock(1, VERSION, "10.0.0.9", &[], false)]);
        assert!(error.to_string().starts_with("rank 2 did not come to node-0:29500"), "{error}");
        let help = error.help().unwrap();
        assert!(
            help.contains(words) && help.contains("spec.replicas") == is_in_kubernetes,
            "{help}"
        );
    }
}

const VERSION: &str = "0.1.0";
const TIMEOUT: Duration = Duration::from_secs(60);
