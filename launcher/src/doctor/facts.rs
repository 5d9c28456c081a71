//! What the ranks have found, as they tell it each other and as `--json` prints it.

use std::net::{IpAddr, SocketAddr};

use allfold::{Communicator, Error, ErrorKind};
use serde::{Deserialize, Serialize};

use super::gpus::GpuFacts;

/// What is known of the world.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Facts {
    /// What carries the data, and what protects it, in the library's words.
    pub(super) transport: String,
    pub(super) security: String,
    /// How many ranks have met; 0: they have not.
    pub(super) met: usize,
    /// In order; one alone where another was lost before all had told.
    pub(super) ranks: Vec<RankFacts>,
    /// In the order of their senders, then of their receivers.
    pub(super) links: Vec<LinkFacts>,
}

/// What a rank knows of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct RankFacts {
    pub(super) rank: usize,
    pub(super) host: String,
    pub(super) pid: u32,
    /// Where the others find it.
    pub(super) address: Option<IpAddr>,
    pub(super) version: String,
    pub(super) protocol: String,
    pub(super) is_debug_build: bool,
    /// That this process may use.
    pub(super) cpus: usize,
    pub(super) ranks_on_host: usize,
    pub(super) open_files: OpenFiles,
    /// net.core.rmem_max and net.core.wmem_max, where this process sees them.
    pub(super) rmem_max: Option<u64>,
    pub(super) wmem_max: Option<u64>,
    pub(super) sockets: Vec<SocketFacts>,
    pub(super) gpus: GpuFacts,
    /// Beside rank 0's; None where no pairs lead there.
    pub(super) clock: Option<Clock>,
}

/// How many files a process has open, and may have; None: any number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct OpenFiles {
    pub(super) open: u64,
    pub(super) soft: Option<u64>,
    pub(super) hard: Option<u64>,
}

/// A lane's socket, in bytes and packets.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct SocketFacts {
    pub(super) address: SocketAddr,
    pub(super) asked: u64,
    pub(super) receive: u64,
    pub(super) send: u64,
    pub(super) dropped: Option<u32>,
    pub(super) sent_at_once: usize,
    pub(super) received_at_once: usize,
}

/// How far a clock is ahead of another one, to within so much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Clock {
    pub(super) ahead_ns: i64,
    pub(super) within_ns: i64,
}

/// One direction between two ranks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct LinkFacts {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) round_trip_ns: i64,
    pub(super) bytes_per_second: f64,
    /// None: it is shared memory.
    pub(super) network: Option<NetworkFacts>,
}

/// What a network is between two ranks, as the sender sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct NetworkFacts {
    pub(super) local: Option<IpAddr>,
    /// Where the sender found the receiver.
    pub(super) remote: SocketAddr,
    /// By which the sender's packets leave its host.
    pub(super) device: Option<String>,
    /// The largest packet that arrives, in bytes with all headers of IP.
    pub(super) packet: u64,
    /// Whether that is all; else the search for larger ones had not ended.
    pub(super) is_largest: bool,
    /// What the sender's system takes for the largest.
    pub(super) system_packet: Option<u64>,
    /// While so little was under way that no queue was full.
    pub(super) packets_sent: u64,
    pub(super) packets_lost: u64,
    /// The receiver's, beside the sender's.
    pub(super) clock: Clock,
}

/// A rank's own part.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Part {
    pub(super) rank: RankFacts,
    pub(super) links: Vec<LinkFacts>,
}

impl RankFacts {
    fn printable(mut self) -> Self {
        [&mut self.host, &mut self.version, &mut self.protocol].into_iter().for_each(clean);
        self.gpus.words().for_each(clean);
        self
    }
}

impl LinkFacts {
    fn printable(mut self) -> Self {
        self.network.iter_mut().filter_map(|n| n.device.as_mut()).for_each(clean);
        self
    }

    /// Whether it goes from one host to another.
    pub(super) fn is_between_hosts(&self) -> bool {
        // What a host sends to an address of its own comes from that address.
        let stays = |network: &NetworkFacts| {
            let remote = network.remote.ip();
            remote.is_loopback() || network.local == Some(remote)
        };
        self.network.as_ref().is_some_and(|network| !stays(network))
    }

    /// The share of packets that were lost.
    pub(super) fn lost(&self) -> Option<f64> {
        let NetworkFacts { packets_sent, packets_lost, .. } = self.network.as_ref()?;
        Some(*packets_lost as f64 / (*packets_sent).max(1) as f64)
    }
}

impl Facts {
    /// Everybody's, on every rank; every rank of `world` makes the call with its own.
    pub(super) fn gather(world: &Communicator, own: &Part) -> Result<Self, Error> {
        let text = serde_json::to_vec(own).map_err(|problem| broken(world.rank(), &problem))?;
        let mut lengths = vec![0u64; world.size()];
        world.all_gather(&[text.len() as u64], &mut lengths)?;
        if let Some(rank) = lengths.iter().position(|length| *length > MOST_BYTES) {
            return Err(broken(rank, &"it is too long"));
        }
        let lengths: Vec<usize> = lengths.iter().map(|length| *length as usize).collect();
        let mut all = vec![0u8; lengths.iter().sum()];
        world.all_gather_v(&text, &mut all, &lengths)?;
        let mut facts = Self { ranks: Vec::new(), ..Self::of_one(world, RankFacts::default()) };
        let mut rest = &all[..];
        for (rank, length) in lengths.into_iter().enumerate() {
            let (text, behind) = rest.split_at_checked(length).unwrap_or_default();
            rest = behind;
            let part: Part = serde_json::from_slice(text).map_err(|p| broken(rank, &p))?;
            let is_own = |link: &LinkFacts| link.from == rank && link.to < world.size();
            if part.rank.rank != rank || !part.links.iter().all(is_own) {
                return Err(broken(rank, &"it speaks for others"));
            }
            facts.ranks.push(part.rank.printable());
            facts.links.extend(part.links.into_iter().map(LinkFacts::printable));
        }
        facts.links.sort_by_key(|link| (link.from, link.to));
        facts.compare_clocks();
        Ok(facts)
    }

    /// What one rank of `world` knows alone.
    pub(super) fn of_one(world: &Communicator, rank: RankFacts) -> Self {
        Self {
            transport: world.transport(),
            security: world.security(),
            met: world.size(),
            ranks: vec![rank],
            links: Vec::new(),
        }
    }

    /// Whether all ranks have told what they know.
    pub(super) fn are_whole(&self) -> bool {
        self.met > 0 && self.ranks.len() == self.met
    }

    /// Adds what another look at the same links has found. The better of two is what a link can
    /// do, and a lost packet is no less lost.
    pub(super) fn look_again(&mut self, again: &[LinkFacts]) {
        for link in &mut self.links {
            let ends = (link.from, link.to);
            let Some(again) = again.iter().find(|a| (a.from, a.to) == ends) else { continue };
            link.bytes_per_second = link.bytes_per_second.max(again.bytes_per_second);
            link.round_trip_ns = link.round_trip_ns.min(again.round_trip_ns);
            let Some((known, again)) = link.network.as_mut().zip(again.network.as_ref()) else {
                continue;
            };
            known.packet = known.packet.max(again.packet);
            // Both have to be sure.
            known.is_largest &= again.is_largest;
            known.packets_sent += again.packets_sent;
            known.packets_lost += again.packets_lost;
        }
    }

    /// The link from one rank to another, if it was measured.
    pub(super) fn link(&self, from: usize, to: usize) -> Option<&LinkFacts> {
        let place = self.links.binary_search_by_key(&(from, to), |link| (link.from, link.to));
        self.links.get(place.ok()?)
    }

    /// All clocks beside rank 0's, by way of others where the two have not met.
    fn compare_clocks(&mut self) {
        let mut clocks = vec![None; self.ranks.len()];
        let mut reached = vec![0];
        if let Some(first) = clocks.first_mut() {
            *first = Some(Clock::default());
        }
        // Breadth first: each step adds to the doubt.
        let mut next = 0;
        while let Some(from) = reached.get(next).copied() {
            next += 1;
            let begin = self.links.partition_point(|link| link.from < from);
            let Some(known) = clocks.get(from).copied().flatten() else { continue };
            for link in self.links.iter().skip(begin).take_while(|link| link.from == from) {
                // Within a host there is one clock.
                let step = link.network.as_ref().map_or(Clock::default(), |network| network.clock);
                if let Some(clock @ None) = clocks.get_mut(link.to) {
                    *clock = Some(Clock {
                        ahead_ns: known.ahead_ns.saturating_add(step.ahead_ns),
                        within_ns: known.within_ns.saturating_add(step.within_ns),
                    });
                    reached.push(link.to);
                }
            }
        }
        self.ranks.iter_mut().zip(clocks).for_each(|(rank, clock)| rank.clock = clock);
    }
}

/// Words of another rank steer no terminal.
fn clean(words: &mut String) {
    *words = words.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
}

/// A member has sent what no rank sends.
fn broken(rank: usize, problem: &dyn std::fmt::Display) -> Error {
    let problem = format!("what rank {rank} tells of itself cannot be read: {problem}");
    ErrorKind::Argument { problem }.into()
}

/// A rank tells some 600 bytes of itself and 500 of each of 15 others, or of two.
const MOST_BYTES: u64 = 256 * 1024;

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A world of hosts `h0`, `h1`, ... that are all well.
    pub(crate) fn of_hosts(size: usize) -> Facts {
        let rank = |rank| RankFacts {
            rank,
            host: format!("h{rank}"),
            pid: 100 + rank as u32,
            address: Some(IpAddr::from([10, 0, 0, 1 + rank as u8])),
            version: "0.1.0".into(),
            protocol: "allfold/1".into(),
            cpus: 8,
            ranks_on_host: 1,
            open_files: OpenFiles { open: 20, soft: Some(1024), hard: Some(1 << 20) },
            rmem_max: Some(4 << 20),
            wmem_max: Some(4 << 20),
            sockets: vec![SocketFacts {
                address: ([0, 0, 0, 0], 41_000).into(),
                asked: 4 << 20,
                receive: 4 << 20,
                send: 4 << 20,
                dropped: Some(0),
                sent_at_once: 64,
                received_at_once: 64,
            }],
            clock: Some(Clock::default()),
            ..RankFacts::default()
        };
        let pairs = (0..size).flat_map(|a| (0..size).map(move |b| (a, b))).filter(|(a, b)| a != b);
        Facts {
            transport: "quic between hosts".into(),
            security: "mutual TLS, secret 3f9a12c4".into(),
            met: size,
            ranks: (0..size).map(rank).collect(),
            links: pairs.map(|(from, to)| link(from, to)).collect(),
        }
    }

    fn link(from: usize, to: usize) -> LinkFacts {
        let address = |rank: usize| IpAddr::from([10, 0, 0, 1 + rank as u8]);
        let network = NetworkFacts {
            local: Some(address(from)),
            remote: (address(to), 41_000).into(),
            device: Some("eth0".into()),
            packet: 1_490,
            is_largest: true,
            system_packet: Some(1_500),
            packets_sent: 10_000,
            packets_lost: 0,
            clock: Clock { ahead_ns: 1_000, within_ns: 50_000 },
        };
        let (round_trip_ns, bytes_per_second) = (100_000, 1.1e9);
        LinkFacts { from, to, round_trip_ns, bytes_per_second, network: Some(network) }
    }

    #[test]
    fn of_two_looks_the_better_counts_and_both_have_to_be_sure() {
        let mut facts = of_hosts(3);
        let before = facts.clone();
        let mut again = vec![link(0, 1), link(1, 0)];
        again[0].bytes_per_second = 5e9;
        again[0].round_trip_ns = 200_000;
        again[1].bytes_per_second = 1.0;
        again[1].round_trip_ns = 7;
        let network = again[1].network.as_mut().unwrap();
        (network.packet, network.is_largest, network.packets_lost) = (9_000, false, 10);
        facts.look_again(&again);
        let first = facts.link(0, 1).unwrap();
        assert_eq!((first.bytes_per_second, first.round_trip_ns), (5e9, 100_000));
        let second = facts.link(1, 0).unwrap();
        assert_eq!((second.bytes_per_second, second.round_trip_ns), (1.1e9, 7));
        let network = second.network.as_ref().unwrap();
        assert_eq!((network.packet, network.is_largest), (9_000, false));
        assert_eq!((network.packets_sent, network.packets_lost), (20_000, 10));
        assert_eq!(facts.links[3..], before.links[3..]);
    }

    #[test]
    fn clocks_are_compared_by_way_of_others() {
        let mut facts = of_hosts(4);
        // A ring; 2 and 3 share memory.
        facts.links.retain(|link| link.from.abs_diff(link.to) == 1);
        facts.links.iter_mut().filter(|link| link.from + link.to == 5).for_each(|link| {
            link.network = None;
        });
        facts.compare_clocks();
        let clocks: Vec<_> =
            facts.ranks.iter().map(|r| r.clock.map(|c| (c.ahead_ns, c.within_ns))).collect();
        let reached = Some((2_000, 100_000));
        assert_eq!(clocks, [Some((0, 0)), Some((1_000, 50_000)), reached, reached]);
        facts.links.retain(|link| link.from != 1);
        facts.compare_clocks();
        assert_eq!(facts.ranks[2].clock, None);
    }
}
