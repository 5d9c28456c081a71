//! A host's share of a job: which of all ranks run here, and where they meet the others.

use std::io;
use std::net::UdpSocket;
use std::ops::Range;

use allfold::Ranks;
use allfold::identity::Findings;
use zeroize::Zeroizing;

use crate::error::{Error, MAX_RANKS};
use crate::exit_code;
use crate::log;
use crate::meeting::Meeting;
use crate::options::NodeOptions;
use crate::port::Port;
use crate::ranks;

/// The ranks that this launcher starts, where others start the rest.
pub(crate) struct Share {
    pub(crate) here: Range<usize>,
    pub(crate) meeting: Meeting,
    /// Where rank 0 listens, if it is one of these.
    pub(crate) rendezvous: Option<UdpSocket>,
    pub(crate) ruler: Ruler,
}

/// Who decides what the hosts have in common.
pub(crate) enum Ruler {
    /// The user, who has started a launcher on each host, by this job's name.
    User { job: String },
    /// The launcher that has started this one, and gave it the job's secret.
    Launcher { secret: Zeroizing<String> },
}

impl Share {
    /// What `--nnodes` and the options beside it say; the world size, too. Says where the secret is
    /// that must be the same everywhere.
    pub(crate) fn by_hand(nodes: &NodeOptions, meeting: &Meeting) -> Result<(usize, Self), Error> {
        let (count, number) = (nodes.nnodes.unwrap_or(1), nodes.node_rank.unwrap_or(0));
        let each = nodes.nproc_per_node.unwrap_or(Ranks::Number(1));
        let each = ranks::number(each, "--nproc-per-node")?;
        let refuse =
            |problem: String, help: &str| Err(Error::Usage { problem, help: Some(help.into()) });
        if count == 0 {
            return refuse("--nnodes 0: a job has at least one host".into(), "say how many hosts");
        }
        if number >= count {
            return refuse(
                format!(
                    "--node-rank {number}: must be below --nnodes, {count}; hosts count from 0"
                ),
                "give every host its own number, 0 on the first",
            );
        }
        if !(1..=MAX_RANKS).contains(&each) {
            return Err(Error::Ranks { ranks: each, option: "--nproc-per-node" });
        }
        let Some(ranks) = count.checked_mul(each).filter(|ranks| *ranks <= MAX_WORLD) else {
            return refuse(
                format!(
                    "{count} hosts with {each} ranks each: a job has at most {MAX_WORLD} ranks"
                ),
                "lower --nnodes or --nproc-per-node",
            );
        };
        if count > 1 && meeting.loopback().is_some() {
            log::say(
                "warning",
                &format!(
                    "--rdzv {meeting} leads every host to itself: ranks of other hosts are not met there"
                ),
            );
        }
        let here = number * each..(number + 1) * each;
        let rendezvous = match number {
            0 => Some(listen(meeting)?.udp),
            _ => None,
        };
        let job = std::env::var("ALLFOLD_JOB").ok().filter(|job| !job.is_empty());
        let job = job.unwrap_or_else(|| format!("run-at-{meeting}"));
        let secret = Findings::from_env().credentials()?;
        log::say(
            "info",
            &format!(
                "ranks {} to {} of {ranks} are here; the secret must be the same on all hosts: {} \
                 here, from {}",
                here.start,
                here.end - 1,
                secret.value,
                secret.from
            ),
        );
        Ok((ranks, Self { here, meeting: meeting.clone(), rendezvous, ruler: Ruler::User { job } }))
    }
}

/// Takes rank 0's port, of which port 0 is any.
pub(crate) fn listen(meeting: &Meeting) -> Result<Port, Error> {
    Port::at(meeting.loopback(), meeting.port).map_err(|problem| {
        let port = meeting.port;
        let is_taken = problem.kind() == io::ErrorKind::AddrInUse;
        Error::Job {
            message: match is_taken {
                true => format!("port {port} is taken on this host, in UDP or in TCP"),
                false => format!("cannot listen at {meeting}: {problem}"),
            },
            help: Some("give every launcher another port: --rdzv HOST:PORT".into()),
            code: if is_taken { exit_code::TRY_AGAIN } else { exit_code::USAGE },
        }
    })
}

/// Refuses `ALLFOLD_PORT` where the ranks of this host need more ports than there are behind it:
/// each has one for itself and one for each lane.
pub(crate) fn check_ports(
    ranks: usize,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<(), Error> {
    let number = |name| variable(name).and_then(|value| value.parse::<usize>().ok());
    // What is no number the ranks refuse, or pass over.
    let Some(first) = number("ALLFOLD_PORT").filter(|port| (1..=MAX_PORT).contains(port)) else {
        return Ok(());
    };
    let each = 1 + number("ALLFOLD_LANES").unwrap_or(1);
    let (needed, left) = (ranks * each, MAX_PORT + 1 - first);
    match needed <= left {
        true => Ok(()),
        false => Err(Error::Usage {
            problem: format!(
                "ALLFOLD_PORT={first} leaves {left} ports, and {ranks} ranks on one host need \
                 {needed}, {each} each"
            ),
            help: Some(format!(
                "set ALLFOLD_PORT to {} or less",
                (MAX_PORT + 1).saturating_sub(needed)
            )),
        }),
    }
}

/// What the library takes.
pub(crate) const MAX_WORLD: usize = 65_536;
const MAX_PORT: usize = 65_535;

#[cfg(test)]
mod tests {
    use super::*;

    fn share(nnodes: usize, node_rank: usize, each: usize) -> Result<(usize, Share), Error> {
        let nodes = NodeOptions {
            nnodes: Some(nnodes),
            node_rank: Some(node_rank),
            nproc_per_node: Some(Ranks::Number(each)),
        };
        Share::by_hand(&nodes, &"h0:29500".parse().unwrap())
    }

    #[test]
    fn contradictions_are_refused() {
        for (nodes, problem) in [
            ((2, 2, 4), "--node-rank 2: must be below --nnodes, 2; hosts count from 0"),
            ((0, 0, 4), "--nnodes 0: a job has at least one host"),
            ((2, 0, 0), "0 ranks: a job has 1 to 4096 on one host"),
            ((100, 0, 4096), "100 hosts with 4096 ranks each: a job has at most 65536 ranks"),
        ] {
            let error = share(nodes.0, nodes.1, nodes.2).err().unwrap();
            assert_eq!((error.to_string().as_str(), error.exit_code()), (problem, 2));
        }
    }

    #[test]
    fn ports_that_do_not_suffice_are_counted() {
        let with = |port: &'static str, lanes: &'static str, ranks| {
            let variable =
                move |name: &str| Some(if name == "ALLFOLD_PORT" { port } else { lanes });
            check_ports(ranks, move |name| variable(name).map(Into::into))
                .map_err(|e| e.to_string())
        };
        assert_eq!(with("65528", "1", 4), Ok(()));
        assert_eq!(
            with("65529", "1", 4).unwrap_err(),
            "ALLFOLD_PORT=65529 leaves 7 ports, and 4 ranks on one host need 8, 2 each"
        );
        assert!(with("65528", "2", 4).is_err());
        // Not ours to judge.
        for port in ["", "0", "x", "70000", "tcp://10.0.0.1:80"] {
            assert_eq!(with(port, "1", 4096), Ok(()), "{port}");
        }
    }
}
