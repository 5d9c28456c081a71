//! What rank 0 says at the end: how it ended, who was late, and what to do next.

use std::ffi::OsString;
use std::time::Duration;

use allfold::Peer;

use super::{counted, grouped, hosts, percent};
use crate::arrivals::Arrivals;
use crate::training::Outcome;

pub(super) fn result(outcome: &Outcome, steps: usize, peers: &[Peer]) -> Vec<String> {
    let Outcome { ranks, .. } = outcome;
    let epochs =
        outcome.epochs.map(|epochs| format!("{}, ", counted(epochs, "epoch"))).unwrap_or_default();
    let time = seconds(outcome.time);
    let mut lines = vec![match &outcome.test {
        Some(test) => format!(
            "test accuracy {} % ({} of {}), loss {:.4}, {epochs}{}, {time}",
            percent(test.accuracy()),
            grouped(test.correct),
            grouped(test.samples),
            test.mean_loss(),
            counted(outcome.steps, "step"),
        ),
        None => format!(
            "stopped by SIGTERM after step {} of {}, {time}",
            grouped(outcome.steps),
            grouped(steps)
        ),
    }];
    if let Some(path) = &outcome.saved {
        lines.push(format!("checkpoint {}", path.display()));
    }
    let parameters = match ranks {
        1 => "parameters of 1 rank".to_string(),
        _ => format!("parameters identical on all {} ranks", grouped(*ranks)),
    };
    lines.push(format!("{parameters}, digest {}", outcome.digest));
    lines.extend(slowest(&outcome.arrivals, peers));
    if outcome.test.is_some() {
        lines.push(next(std::env::args_os().next()));
    }
    lines
}

/// Who came last, or that nobody stands out.
fn slowest(arrivals: &Arrivals, peers: &[Peer]) -> Option<String> {
    let last = arrivals.last()?;
    let in_ms = |wait: Duration| match wait.as_secs_f64() * 1000.0 {
        ms if ms < 1.0 => format!("{ms:.2} ms"),
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms => format!("{} ms", grouped(ms.round() as usize)),
    };
    let Some(rank) = arrivals.slowest() else {
        let wait = in_ms(arrivals.ranks[last].p50);
        return Some(format!("nobody stands out: every rank came within {wait} in the median"));
    };
    let host = match (peers.get(rank), hosts(peers).len()) {
        (Some(peer), 2..) => format!(" ({})", peer.host),
        _ => String::new(),
    };
    let others = arrivals.ranks.iter().enumerate().filter(|(other, _)| *other != rank);
    let others = others.map(|(_, arrival)| arrival.p50).max().unwrap_or_default();
    let slow = arrivals.ranks[rank];
    Some(format!(
        "slowest to arrive: rank {rank}{host}, {} a step in the median (p99 {}), others {} at most",
        in_ms(slow.p50),
        in_ms(slow.p99),
        in_ms(others),
    ))
}

/// Where to go from here, in words that work in the user's shell: after `cargo run` the program is
/// not on PATH.
fn next(started_as: Option<OsString>) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-".contains(letter);
    let program = started_as
        .and_then(|path| path.into_string().ok())
        .filter(|path| path.len() <= PROGRAM_LENGTH && path.chars().all(is_plain))
        .filter(|path| path.ends_with("/allfold"))
        .unwrap_or_else(|| "allfold".into());
    format!(
        "next: {program} bench all-reduce --ranks 4 · {program} train -n 4 --model mlp · \
         {program} run -n 4 PROGRAM with a loop of your own"
    )
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// A longer path, three times in one line, is harder to read than to find.
const PROGRAM_LENGTH: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arrivals::Arrival;

    #[test]
    fn the_next_commands_can_be_typed() {
        for (started_as, program) in [
            ("allfold", "allfold"),
            ("target/release/allfold", "target/release/allfold"),
            ("./allfold", "./allfold"),
            ("my dir/allfold", "allfold"),
            ("/home/somebody/projects/allfold/target/release/allfold", "allfold"),
        ] {
            let line = next(Some(started_as.into()));
            assert!(line.starts_with(&format!("next: {program} bench ")), "{line}");
            assert!(line.contains(&format!(" · {program} train ")), "{line}");
        }
        assert!(next(None).starts_with("next: allfold bench "));
    }

    #[test]
    fn the_slowest_rank_is_named() {
        let peer = |rank: usize, host: &str| Peer::new(rank, host, 7);
        let line = |us: &[u64], hosts: &[&str]| {
            let arrival = |&us: &u64| {
                let (p50, p99) = (Duration::from_micros(us), Duration::from_micros(us * 2));
                Arrival { p50, p99 }
            };
            let (ranks, step) = (us.iter().map(arrival).collect(), Duration::from_millis(1));
            let peers: Vec<Peer> =
                hosts.iter().enumerate().map(|(rank, host)| peer(rank, host)).collect();
            slowest(&Arrivals { ranks, step }, &peers)
        };
        assert_eq!(
            line(&[100, 90, 310], &["a", "a", "a"]).unwrap(),
            "slowest to arrive: rank 2, 0.31 ms a step in the median (p99 0.62 ms), others 0.10 ms \
             at most"
        );
        assert_eq!(
            line(&[2100, 41_200], &["a", "node-1"]).unwrap(),
            "slowest to arrive: rank 1 (node-1), 41 ms a step in the median (p99 82 ms), others \
             2.1 ms at most"
        );
        assert_eq!(
            line(&[100, 130], &["a", "a"]).unwrap(),
            "nobody stands out: every rank came within 0.13 ms in the median"
        );
        assert_eq!(line(&[0], &["a"]), None);
        assert_eq!(line(&[], &["a", "a"]), None, "on GPUs");
    }
}
