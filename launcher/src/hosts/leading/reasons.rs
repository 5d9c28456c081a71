//! Why a start on several hosts has failed, in words that name the host.

use std::io;
use std::process::ExitStatus;

use super::super::{Hosts, Place, ssh};
use super::Stage;
use super::wait::READY;
use crate::duration;
use crate::ending::Ending;
use crate::error::Error;
use crate::exit_code;
use crate::verdict::Outcome;

/// For hosts that nobody answers for.
pub(super) fn late(missing: &[&str]) -> Error {
    let (names, first) = (missing.join(", "), missing.first().unwrap_or(&"HOST"));
    let within = duration::text(READY);
    Error::Job {
        message: format!("the launcher on {names} is not ready within {within}"),
        help: Some(format!(
            "see whether `ssh {first} true` returns, and whether the home and this directory \
             answer there"
        )),
        code: exit_code::TRY_AGAIN,
    }
}

/// What a line means that has ended too early.
pub(super) fn loss(
    hosts: &Hosts,
    place: &Place,
    stage: Stage,
    problem: Option<io::Error>,
    status: Option<ExitStatus>,
    said: &[String],
) -> Error {
    let Hosts { path, source, .. } = hosts;
    let name = &place.host.destination;
    if stage == Stage::Calling && problem.is_none() {
        return ssh::why(&place.host, path, source, said, status);
    }
    let reason = match (problem, ssh::reason(said)) {
        (Some(problem), _) if problem.kind() == io::ErrorKind::InvalidData => problem.to_string(),
        (_, Some(line)) => line.to_owned(),
        (Some(problem), None) => problem.to_string(),
        (None, None) => ssh::ended(status),
    };
    let ranks = match place.ranks.len() {
        1 => format!("rank {}", place.ranks.start),
        _ => format!("ranks {} to {}", place.ranks.start, place.ranks.end - 1),
    };
    Error::Job {
        message: format!("lost the connection to {name} ({ranks}): {reason}"),
        help: Some(format!(
            "see whether {name} and the network to it are up; the launcher there ends its \
             ranks by itself"
        )),
        code: exit_code::TRY_AGAIN,
    }
}

/// `rank 2 (pid 71)` becomes `rank 2 (h1, pid 71)`.
pub(super) fn with_hosts(message: String, outcome: &Outcome, hosts: &Hosts) -> String {
    outcome.endings.iter().fold(message, |message, Ending { rank, pid, .. }| {
        let place = hosts.places.iter().find(|place| place.ranks.contains(rank));
        let name = place.map_or("", |place| &place.host.destination);
        let (short, long) = (format!("{rank} (pid {pid})"), format!("{rank} ({name}, pid {pid})"));
        let mut parts = message.split(&short);
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |text, part| {
            // `2 (pid 71)` also ends `12 (pid 71)`, which may be there on another host.
            let is_whole = !text.ends_with(|before: char| before.is_ascii_digit());
            text + if is_whole { &long } else { &short } + part
        })
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::words::Ended;
    use super::*;
    use crate::ending::How;
    use crate::options::HostOptions;

    #[test]
    fn a_pid_is_of_a_host() {
        let options = HostOptions { hosts: Some("h0:2,me@h1:2".into()), ..HostOptions::default() };
        let hosts = Hosts::of(&options, None).unwrap().unwrap();
        let ended = Ended { rank: 2, pid: 71, how: How::Signal(9), by_itself: true };
        let outcome = Outcome { endings: vec![ended.into()], ..Outcome::default() };
        let message = outcome.endings[0].to_string();
        assert_eq!(
            with_hosts(message, &outcome, &hosts),
            "rank 2 (me@h1, pid 71) was killed by signal 9 (SIGKILL)"
        );
        // Hosts with a process numbering of their own have the same pids.
        let named = |text: &str| with_hosts(text.into(), &outcome, &hosts);
        let other = "ranks 12 (pid 71) and 2 (pid 71) did not end";
        assert_eq!(named(other), "ranks 12 (pid 71) and 2 (me@h1, pid 71) did not end");
        assert_eq!(named("2 (pid 71)"), "2 (me@h1, pid 71)");
    }
}
