//! What a rank does and says that waits for rank 0 in vain, until its deadline.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::attending::{Action, Attending, Event, Terms};
use super::diagnosis::{Diagnosis, Sign};
use super::search::Unfound;
use super::table::{Entry, MAX_WAYS};
use crate::config::HostPort;
use crate::control::endpoint::Message;
use crate::error::{Error, ErrorKind};
use crate::trust::hello::{Again, DialError};

/// A rank in a time of its own.
struct Waiting {
    attending: Attending,
    now: Instant,
    searches: usize,
    probes: usize,
    dials: Vec<(u32, Vec<SocketAddr>)>,
    /// The pauses before them.
    pauses: Vec<Duration>,
    said: Vec<String>,
    ended: Option<Error>,
}

impl Waiting {
    fn at(place: &str) -> Self {
        Self::for_long(place, TIMEOUT)
    }

    fn for_long(place: &str, connect_timeout: Duration) -> Self {
        let now = Instant::now();
        let place = HostPort::read(place, 29_500).unwrap();
        let terms = Terms { rank: 1, size: 3, lanes: 1, connect_timeout, place, local_rank: 0 };
        let (attending, first) = Attending::new(terms, now);
        let mut waiting = Self {
            attending,
            now,
            searches: 0,
            probes: 0,
            dials: Vec::new(),
            pauses: Vec::new(),
            said: Vec::new(),
            ended: None,
        };
        waiting.note(first);
        waiting
    }

    fn on(&mut self, event: Event) {
        let actions = self.attending.on(self.now, event);
        self.note(actions);
    }

    fn note(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::FindRankZero { .. } => self.searches += 1,
                Action::Probe => self.probes += 1,
                Action::Dial { rank, ways, after, .. } => {
                    self.dials.push((rank, ways));
                    self.pauses.push(after);
                }
                Action::Say(line) => self.said.push(line),
                Action::Finish(outcome, _) => self.ended = outcome.err(),
                _ => {}
            }
        }
    }

    /// Lets its time run to its next timer, again and again, up to its end.
    fn until_the_end(mut self) -> (Error, Vec<String>, usize) {
        while self.ended.is_none() {
            assert!(self.attending.wake() > self.now, "it does not sleep");
            self.now = self.attending.wake();
            self.on(Event::Time);
        }
        (self.ended.unwrap(), self.said, self.probes)
    }

    fn fails(&mut self, error: DialError) {
        self.on(Event::Named(Ok(())));
        self.on(Event::RankZero(Err(Unfound::Dial(error))));
    }

    fn seems(&mut self, sign: Sign) {
        let address = SocketAddr::from(([10, 0, 0, 7], 29_500));
        self.on(Event::Probed(Diagnosis { address, sign, among: vec![address] }));
    }

    fn finds_rank_0(&mut self) {
        let address = SocketAddr::from(([10, 0, 0, 7], 29_500));
        self.on(Event::RankZero(Ok((address, LINK))));
    }
}

fn silent() -> DialError {
    DialError::Retry("10.0.0.7:29500 does not answer".into())
}

#[test]
fn a_name_that_stays_unknown_is_the_error() {
    let mut waiting = Waiting::at("node-0");
    for _ in 0..3 {
        waiting.on(Event::RankZero(Err(Unfound::Unknown("Name does not resolve".into()))));
    }
    assert_eq!(waiting.searches, 4, "it is looked for again and again");
    let (error, said, _) = waiting.until_the_end();
    let expected = "host `node-0` is unknown: Name does not resolve (tried for 61 s)";
    assert_eq!((error.to_string().as_str(), error.exit_code()), (expected, 2));
    assert!(said[0].contains("its name is unknown so far (Name does not resolve)"), "{said:?}");
}

#[test]
fn the_deadline_tells_what_the_last_probe_found() {
    for (sign, words) in [
        (Sign::Refused, "refused: the host 10.0.0.7 is up, and nobody listens on UDP 29500"),
        (Sign::Filtered, "UDP 29500 is filtered: NetworkPolicy or security group"),
        (Sign::Silent(None), "nothing answers at 10.0.0.7, neither UDP 29500 nor TCP"),
        // Something else is wrong, and whoever dialled knows it.
        (Sign::Answers, "10.0.0.7:29500 does not answer"),
    ] {
        let mut waiting = Waiting::at("node-0");
        waiting.fails(silent());
        waiting.seems(sign.clone());
        let (error, said, probes) = waiting.until_the_end();
        let start = "rank 0 is not found at node-0:29500: ";
        assert!(error.to_string().starts_with(start), "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert!(said.iter().all(|line| line.contains(words)) && said.len() >= 5, "{said:?}");
        assert!(error.help().is_some_and(|help| !help.contains('\n')));
        assert_eq!(error.exit_code(), 75);
        // One soon, one before each word, one before the end.
        assert!((6..=8).contains(&probes), "{probes}");
    }
}

#[test]
fn a_rank_0_that_was_there_is_not_taken_for_filtered() {
    let mut waiting = Waiting::at("node-0");
    waiting.finds_rank_0();
    let how = "stopped answering 2 s ago".to_string();
    waiting.on(Event::Ended { rank: 0, link: LINK, how });
    assert_eq!(waiting.searches, 2);
    waiting.fails(silent());
    waiting.seems(Sign::Filtered);
    let (error, ..) = waiting.until_the_end();
    let words = error.to_string();
    assert!(words.contains("the connection to it ended (stopped answering 2 s ago)"), "{words}");
    assert!(!words.contains("filtered"), "{words}");
}

#[test]
fn silence_does_not_disprove_soon_that_nobody_listens() {
    let mut waiting = Waiting::at("node-0");
    waiting.fails(silent());
    waiting.seems(Sign::Refused);
    waiting.now += Duration::from_secs(20);
    // The system says it once a second, and other ranks ask too.
    waiting.seems(Sign::Filtered);
    waiting.on(Event::Time);
    assert!(waiting.said.last().unwrap().contains("nobody listens"), "{:?}", waiting.said);
    waiting.now += Duration::from_secs(20);
    waiting.seems(Sign::Filtered);
    waiting.on(Event::Time);
    assert!(waiting.said.last().unwrap().contains("is filtered"), "{:?}", waiting.said);
}

#[test]
fn a_name_server_that_says_nothing_is_the_error() {
    let (error, said, _) = Waiting::at("node-0").until_the_end();
    let expected =
        "host `node-0` is unknown: the name server has not answered yet (tried for 61 s)";
    assert_eq!((error.to_string().as_str(), error.exit_code()), (expected, 2));
    assert!(said[0].contains("unknown so far (the name server has not answered yet)"), "{said:?}");
    // Nobody is asked for an address.
    let (error, ..) = Waiting::at("10.0.0.7:29500").until_the_end();
    assert!(error.to_string().ends_with("nobody answers (waited 61 s)"), "{error}");
}

#[test]
fn a_name_that_is_gone_is_told_beside_what_is_found_where_it_led() {
    let mut waiting = Waiting::at("node-0");
    waiting.fails(silent());
    waiting.on(Event::Named(Err("Name does not resolve".into())));
    waiting.seems(Sign::Silent(None));
    let (error, said, _) = waiting.until_the_end();
    let words = "its name is unknown by now (Name does not resolve), and where it led: nothing \
                 answers at 10.0.0.7";
    assert!(said[0].contains(words) && error.to_string().contains(words), "{error}");
    assert_eq!(error.exit_code(), 75);
}

#[test]
fn another_secret_or_job_at_a_name_is_told_at_once_and_is_the_error_in_the_end() {
    for (error, secrets) in [
        (DialError::Final as fn(String) -> DialError, "secret 77b01e9d here, 3f9a12c4 on rank 0"),
        (DialError::Elsewhere, "another job, under another ALLFOLD_JOB, answers there"),
    ] {
        let mut waiting = Waiting::at("node-0");
        for _ in 0..5 {
            waiting.fails(error(secrets.into()));
        }
        assert_eq!((waiting.said.len(), waiting.searches), (1, 6), "{:?}", waiting.said);
        assert!(waiting.said[0].contains(secrets), "{:?}", waiting.said);
        // One that is asked is not always heard, and the probe knows nothing of secrets.
        waiting.fails(silent());
        waiting.seems(Sign::Filtered);
        let (error, said, _) = waiting.until_the_end();
        assert!(said.iter().all(|line| line.contains(secrets)), "{said:?}");
        let expected = format!("rank 0 is not found at node-0:29500: {secrets} (tried for 61 s)");
        assert_eq!((error.to_string(), error.exit_code()), (expected, 2));
        assert!(error.help().unwrap().contains("one ALLFOLD_JOB"));
    }
}

#[test]
fn a_stranger_that_is_gone_is_forgotten() {
    let mut waiting = Waiting::at("node-0");
    waiting.fails(DialError::Final("secret 77b01e9d here, 3f9a12c4 on rank 0".into()));
    (0..3).for_each(|_| waiting.fails(silent()));
    waiting.seems(Sign::Refused);
    let (error, ..) = waiting.until_the_end();
    assert!(error.to_string().contains("nobody listens on UDP 29500"), "{error}");
    assert_eq!(error.exit_code(), 75);
}

#[test]
fn a_rank_that_finds_another_in_rank_0s_place_is_told_what_to_set() {
    let mut waiting = Waiting::at("10.0.0.7:29500");
    waiting.fails(DialError::Elsewhere("another rank than rank 0 answers there".into()));
    let error = waiting.ended.unwrap();
    assert_eq!(error.exit_code(), 2);
    assert!(error.help().unwrap().contains("ALLFOLD_RENDEZVOUS"), "{:?}", error.help());
    assert!(!error.help().unwrap().contains("secret"), "{:?}", error.help());
}

#[test]
fn where_rank_0_never_was_it_does_not_hang() {
    let mut waiting = Waiting::at("node-0");
    let elsewhere = SocketAddr::from(([10, 0, 0, 9], 29_500));
    waiting.on(Event::RankZero(Ok((elsewhere, LINK))));
    waiting.on(Event::Ended { rank: 0, link: LINK, how: "gone".into() });
    waiting.fails(silent());
    waiting.seems(Sign::Filtered);
    let (error, ..) = waiting.until_the_end();
    assert!(error.to_string().contains("UDP 29500 is filtered"), "{error}");
}

#[test]
fn a_rank_that_is_not_reached_is_dialled_ever_less_often() {
    let mut waiting = Waiting::at("node-0");
    waiting.finds_rank_0();
    let propose = |waiting: &mut Waiting, epoch| {
        let table = (0..3).map(|rank| entry(rank, &["10.0.0.9"])).collect();
        waiting.on(Event::Message(0, Message::Prepare { epoch, table }));
    };
    propose(&mut waiting, 7);
    for _ in 0..8 {
        let problem = "no".to_string();
        waiting.on(Event::Unreached { epoch: 7, rank: 2, again: true, problem });
    }
    let pauses: Vec<u128> = waiting.pauses.iter().map(Duration::as_millis).collect();
    assert_eq!(pauses, [0, 25, 50, 100, 200, 400, 800, 1_000, 1_000]);
    propose(&mut waiting, 8);
    let problem = "no".to_string();
    waiting.on(Event::Unreached { epoch: 8, rank: 2, again: true, problem });
    let pauses: Vec<u128> = waiting.pauses[9..].iter().map(Duration::as_millis).collect();
    assert_eq!(pauses, [0, 25]);
}

#[test]
fn somebody_else_at_a_name_is_waited_out_and_at_an_address_is_the_error() {
    let other = || DialError::Elsewhere("another rank than rank 0 answers there".into());
    let mut waiting = Waiting::at("node-0");
    waiting.fails(other());
    assert!(waiting.ended.is_none() && waiting.searches == 2);
    // The name leads elsewhere by now.
    waiting.finds_rank_0();
    assert!(waiting.ended.is_none());
    // It never does, and the deadline of pods is far.
    let mut waiting = Waiting::for_long("node-0", Duration::from_secs(900));
    waiting.fails(other());
    waiting.now += Duration::from_secs(59);
    waiting.fails(other());
    assert!(waiting.ended.is_none());
    waiting.now += Duration::from_secs(1);
    waiting.fails(other());
    let error = waiting.ended.unwrap();
    let words = "another rank than rank 0 answers there (tried for 60 s)";
    assert!(error.to_string().ends_with(words) && error.exit_code() == 2, "{error}");
    let mut waiting = Waiting::at("10.0.0.7:29500");
    waiting.fails(other());
    assert_eq!(waiting.ended.unwrap().exit_code(), 2);
}

#[test]
fn two_versions_are_named_with_what_to_do() {
    let mut waiting = Waiting::at("node-0");
    let reason = "rank 1 runs allfold 0.3.0, rank 0 runs 0.2.0".to_string();
    waiting.fails(DialError::Refused(reason.clone(), Again::Never));
    let error = waiting.ended.unwrap();
    assert_eq!((error.to_string(), error.exit_code()), (reason, 2));
    assert!(error.help().unwrap().contains("the same version on every host"));
}

#[test]
fn a_rank_that_is_not_reached_is_named_with_its_addresses() {
    let mut waiting = Waiting::at("node-0");
    waiting.finds_rank_0();
    let table = (0..3).map(|rank| entry(rank, &["10.0.0.9", "fd00::9"])).collect();
    waiting.on(Event::Message(0, Message::Prepare { epoch: 7, table }));
    let ways = ["10.0.0.9:4711", "[fd00::9]:4711"].map(|way| way.parse().unwrap());
    assert_eq!(waiting.dials, [(2, ways.to_vec())]);
    let problem = "10.0.0.9:4711 does not answer; [fd00::9]:4711 does not answer".to_string();
    waiting.on(Event::Unreached { epoch: 7, rank: 2, again: true, problem });
    assert_eq!(waiting.dials.len(), 2, "it is dialled again");
    // Rank 0's deadline comes first, and rank 0 cannot know why.
    let reason = "the ranks could not connect to each other".to_string();
    waiting.on(Event::Message(0, Message::Refused { reason, again: Again::GivenUp }));
    let error = waiting.ended.unwrap();
    assert!(matches!(error.kind(), ErrorKind::ConnectTimeout { .. }), "as on rank 0");
    let expected = "the ranks could not connect to each other; rank 1 does not reach rank 2: \
                    10.0.0.9:4711 does not answer; [fd00::9]:4711 does not answer (waited 60 s)";
    assert_eq!((error.to_string().as_str(), error.exit_code()), (expected, 75));
    assert!(error.help().unwrap().contains("ALLFOLD_PORT"));
}

#[test]
fn a_rank_may_not_have_more_addresses_than_the_limit() {
    for (count, is_fine) in [(MAX_WAYS, true), (MAX_WAYS + 1, false)] {
        let mut waiting = Waiting::at("node-0");
        waiting.finds_rank_0();
        let table = (0..3).map(|rank| entry(rank, &vec!["10.0.0.9"; count])).collect();
        waiting.on(Event::Message(0, Message::Prepare { epoch: 7, table }));
        match waiting.ended {
            None => assert!(is_fine, "{count} were taken"),
            Some(error) => {
                assert!(!is_fine && matches!(error.kind(), ErrorKind::Protocol { .. }), "{error}");
            }
        }
    }
}

fn entry(rank: u32, addresses: &[&str]) -> Entry {
    Entry {
        rank,
        host: format!("host-{rank}"),
        pid: 41,
        habitat: 0,
        incarnation: rank.into(),
        addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
        chosen: false,
        control_port: 4_711,
        lane_ports: vec![4_712],
        leaf: [rank as u8; 32],
        door: None,
    }
}

const TIMEOUT: Duration = Duration::from_secs(60);
/// The connection to rank 0.
const LINK: usize = 1;
