//! Measures one pair of ranks: round trip, clocks and what it carries, over the very links that
//! the collectives use.
//!
//! Between hosts the lower rank leads: it says what is done next, in words of fixed size, and the
//! other follows. Times of bytes are the receiver's, from the word before them to the last byte.

mod search;
mod turns;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant, SystemTime};

use allfold::{Communicator, Error, ErrorKind, LinkStatistics, ReduceOp};
use rustix::net::sockopt;

use super::facts::{Clock, LinkFacts, NetworkFacts};
use super::host;
use search::{Search, Sent};
use turns::Turns;

/// Measures this rank and `peer` over the network; the other one makes the same call.
pub(super) fn over_network(
    world: &Communicator,
    peer: usize,
    limit: Duration,
) -> Result<LinkFacts, Error> {
    let mut end = End::new(world, peer, limit);
    let before = end.state();
    let found = match world.rank() < peer {
        true => end.lead()?,
        false => end.follow()?,
    };
    let network = end.state().map(|state| end.network(before.as_ref(), &state, found.clock));
    let (from, to) = (world.rank(), peer);
    let (round_trip_ns, bytes_per_second) = (found.round_trip_ns, found.to_peer);
    Ok(LinkFacts { from, to, round_trip_ns, bytes_per_second, network })
}

/// Measures the two ranks of `pair`, which share memory; both make the call.
pub(super) fn over_memory(
    pair: &Communicator,
    (from, to): (usize, usize),
) -> Result<LinkFacts, Error> {
    let mut shared = vec![0f32; MEMORY_BYTES / size_of::<f32>()];
    pair.barrier()?;
    let begun = Instant::now();
    for _ in 0..MEETINGS {
        pair.barrier()?;
    }
    let round_trip_ns = nanoseconds(begun.elapsed()) / i64::from(MEETINGS);
    pair.all_reduce(&mut shared, ReduceOp::Max)?;
    let begun = Instant::now();
    for _ in 0..SUMS {
        pair.all_reduce(&mut shared, ReduceOp::Max)?;
    }
    let bytes_per_second = rate(MEMORY_BYTES * SUMS, begun.elapsed());
    Ok(LinkFacts { from, to, round_trip_ns, bytes_per_second, network: None })
}

/// This rank's end of the pair.
struct End<'a> {
    world: &'a Communicator,
    peer: usize,
    begun: Instant,
    limit: Duration,
    piece: Vec<u8>,
    /// The shortest so far, on the leader.
    round_trip_ns: i64,
    search: Search,
    /// The link before anything may have filled a queue.
    quiet: Option<LinkStatistics>,
}

/// What both ends know at last.
struct Found {
    round_trip_ns: i64,
    /// The peer's, beside this one's.
    clock: Clock,
    /// Bytes a second.
    to_peer: f64,
}

/// What one end says to the other: what, and its figures.
type Words = [i64; 6];

impl<'a> End<'a> {
    fn new(world: &'a Communicator, peer: usize, limit: Duration) -> Self {
        let begun = Instant::now();
        let search = Search::new(begun);
        let (piece, quiet) = (Vec::new(), None);
        Self { world, peer, begun, limit, piece, round_trip_ns: 0, search, quiet }
    }

    fn lead(&mut self) -> Result<Found, Error> {
        // Opens the link, which takes several round trips.
        self.round_trip_ns = self.ask()?.round_trip_ns;
        self.begun = Instant::now();
        let mut best = self.ask()?;
        for count in 1..MOST_PINGS {
            if count >= LEAST_PINGS && self.has_spent(PINGS_PERCENT) {
                break;
            }
            let answer = self.ask()?;
            if answer.round_trip_ns < best.round_trip_ns {
                best = answer;
            }
            self.round_trip_ns = best.round_trip_ns;
        }
        let round_trip_ns = best.round_trip_ns;
        let clock = Clock { ahead_ns: best.ahead_ns, within_ns: round_trip_ns / 2 };
        self.settle(SETTLE_PERCENT)?;
        let to_peer = self.measure(Self::fill)?;
        let from_peer = self.measure(Self::drain)?;
        self.settle(100)?;
        let Clock { ahead_ns, within_ns } = clock;
        self.say([END, round_trip_ns, ahead_ns, within_ns, to_peer as i64, from_peer as i64])?;
        Ok(Found { round_trip_ns, clock, to_peer })
    }

    /// Goes on until both ends know how large packets may be, or so much time is spent: they find
    /// out as long as something is sent. So little is sent that what is lost was lost on the way,
    /// and not where a queue was full.
    fn settle(&mut self, percent: u32) -> Result<(), Error> {
        while !self.has_spent(percent) {
            self.fill(LITTLE_BYTES)?;
            self.drain(LITTLE_BYTES)?;
            let peer_is_settled = self.ask()?.peer_is_settled;
            if self.is_settled(self.round_trip_ns) && peer_is_settled {
                break;
            }
        }
        Ok(())
    }

    fn follow(&mut self) -> Result<Found, Error> {
        loop {
            match self.hear()? {
                [PING, round_trip_ns, ..] => {
                    let came = now();
                    let settled = i64::from(self.is_settled(round_trip_ns));
                    self.say([PING, came, now(), settled, 0, 0])?;
                }
                [FILL, bytes, ..] => {
                    let took = self.take(bytes)?;
                    self.say([FILL, took, 0, 0, 0, 0])?;
                }
                [DRAIN, bytes, ..] => self.give(bytes)?,
                [END, round_trip_ns, ahead_ns, within_ns, _, to_peer] => {
                    let clock = Clock { ahead_ns: ahead_ns.saturating_neg(), within_ns };
                    return Ok(Found { round_trip_ns, clock, to_peer: to_peer as f64 });
                }
                _ => return Err(self.unexpected()),
            }
        }
    }

    /// One word there and back.
    fn ask(&mut self) -> Result<Answer, Error> {
        let (left, since) = (now(), Instant::now());
        self.say([PING, self.round_trip_ns, 0, 0, 0, 0])?;
        let [PING, came, went, settled, ..] = self.hear()? else { return Err(self.unexpected()) };
        let (back, all) = (now(), nanoseconds(since.elapsed()));
        Ok(Answer {
            round_trip_ns: all.saturating_sub(went.saturating_sub(came)).max(0),
            ahead_ns: (came.saturating_sub(left) / 2).saturating_add(went.saturating_sub(back) / 2),
            peer_is_settled: settled == 1,
        })
    }

    /// Bytes a second of one direction, in turns until its time is spent.
    fn measure(
        &mut self,
        send: impl Fn(&mut Self, i64) -> Result<i64, Error>,
    ) -> Result<f64, Error> {
        let begun = Instant::now();
        let share = self.limit * BYTES_PERCENT / 100;
        let mut turns = Turns::new(self.round_trip_ns);
        while let Some(bytes) = turns.next(begun.elapsed(), share) {
            let took = send(self, bytes)?;
            turns.note(bytes, took);
        }
        Ok(turns.rate())
    }

    /// So many bytes to the peer; how long it took to get them.
    fn fill(&mut self, bytes: i64) -> Result<i64, Error> {
        self.say([FILL, bytes, 0, 0, 0, 0])?;
        self.give(bytes)?;
        match self.hear()? {
            [FILL, took, ..] => Ok(took),
            _ => Err(self.unexpected()),
        }
    }

    /// So many bytes from the peer; how long it took to get them.
    fn drain(&mut self, bytes: i64) -> Result<i64, Error> {
        self.say([DRAIN, bytes, 0, 0, 0, 0])?;
        self.take(bytes)
    }

    fn give(&mut self, bytes: i64) -> Result<(), Error> {
        self.note(bytes);
        let pieces = self.pieces(bytes)?;
        self.say([BYTES, bytes, 0, 0, 0, 0])?;
        pieces.into_iter().try_for_each(|length| {
            self.world.send(self.piece.get(..length).unwrap_or_default(), self.peer)
        })
    }

    fn take(&mut self, bytes: i64) -> Result<i64, Error> {
        self.note(bytes);
        let pieces = self.pieces(bytes)?;
        let [BYTES, ..] = self.hear()? else { return Err(self.unexpected()) };
        let since = Instant::now();
        for length in pieces {
            self.world.recv(self.piece.get_mut(..length).unwrap_or_default(), self.peer)?;
        }
        Ok(nanoseconds(since.elapsed()))
    }

    /// The first that may fill a queue ends the time in which losses are counted, and with it the
    /// one in which a lost probe says how large packets may be.
    fn note(&mut self, bytes: i64) {
        if bytes > LITTLE_BYTES && self.quiet.is_none() {
            self.quiet = self.state();
            self.search.disturb();
        }
    }

    /// The lengths of the messages that so many bytes make.
    fn pieces(&mut self, bytes: i64) -> Result<Vec<usize>, Error> {
        let bytes = usize::try_from(bytes).ok().filter(|bytes| *bytes <= MOST_BYTES);
        let bytes = bytes.ok_or_else(|| self.unexpected())?;
        self.piece.resize(PIECE_BYTES, 0);
        let rest = bytes % PIECE_BYTES;
        let whole = std::iter::repeat_n(PIECE_BYTES, bytes / PIECE_BYTES);
        Ok(whole.chain((rest > 0).then_some(rest)).collect())
    }

    fn say(&self, words: Words) -> Result<(), Error> {
        self.world.send(&words, self.peer)
    }

    fn hear(&self) -> Result<Words, Error> {
        let mut words = [0; 6];
        self.world.recv(&mut words, self.peer)?;
        Ok(words)
    }

    fn unexpected(&self) -> Error {
        let problem = format!("rank {} does not measure as this one does", self.peer);
        ErrorKind::Argument { problem }.into()
    }

    fn has_spent(&self, percent: u32) -> bool {
        self.begun.elapsed() >= self.limit * percent / 100
    }

    /// The link as it is now, once there is one.
    fn state(&self) -> Option<LinkStatistics> {
        let peers = self.world.stats().peers;
        peers.into_iter().find(|peer| peer.rank == self.peer)?.link
    }

    fn is_settled(&mut self, round_trip_ns: i64) -> bool {
        let round_trip = Duration::from_nanos(u64::try_from(round_trip_ns).unwrap_or(0));
        let sent = self.state().map_or(Sent::default(), |link| Sent {
            probes: link.probes_sent,
            packets: link.packets_sent,
            payload: link.payload,
        });
        self.search.look(sent, Instant::now(), round_trip)
    }

    fn network(
        &self,
        before: Option<&LinkStatistics>,
        now: &LinkStatistics,
        clock: Clock,
    ) -> NetworkFacts {
        let way = way(now.remote);
        let headers = if now.remote.is_ipv4() { IPV4_HEADERS } else { IPV6_HEADERS };
        let quiet = self.quiet.as_ref().unwrap_or(now);
        let since = |count: fn(&LinkStatistics) -> u64| {
            count(quiet).saturating_sub(before.map_or(0, count))
        };
        NetworkFacts {
            local: now.local.or(way.map(|way| way.0)),
            remote: now.remote,
            device: host::device(way.map(|way| way.0), now.remote.ip()),
            packet: u64::from(now.payload.max(self.search.payload)) + headers,
            is_largest: self.search.is_sure(),
            system_packet: way.and_then(|way| way.1),
            packets_sent: since(|link| link.packets_sent),
            packets_lost: since(|link| link.packets_lost),
            clock,
        }
    }
}

/// What came back of a word.
struct Answer {
    round_trip_ns: i64,
    ahead_ns: i64,
    peer_is_settled: bool,
}

/// The address from which the system sends there, and what it takes for the largest packet.
fn way(remote: SocketAddr) -> Option<(IpAddr, Option<u64>)> {
    let socket = match remote {
        SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = socket.ok()?;
    // Nothing is sent: it only asks for the way.
    socket.connect(remote).ok()?;
    let found =
        if remote.is_ipv4() { sockopt::ip_mtu(&socket) } else { sockopt::ipv6_mtu(&socket) };
    Some((socket.local_addr().ok()?.ip(), found.ok().map(u64::from)))
}

/// Bytes a second.
fn rate(bytes: usize, took: Duration) -> f64 {
    bytes as f64 / took.as_secs_f64().max(1e-9)
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// By the clock on the wall, since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, nanoseconds)
}

const PING: i64 = 1;
/// The follower gets so many bytes, and says how long that took.
const FILL: i64 = 2;
/// The follower sends so many bytes.
const DRAIN: i64 = 3;
/// Before bytes.
const BYTES: i64 = 4;
/// All figures; the follower's part is done.
const END: i64 = 5;

/// The shortest of so many is good enough, and takes 10 ms within a data centre.
const MOST_PINGS: u32 = 50;
const LEAST_PINGS: u32 = 3;
/// Of a pair's time.
const PINGS_PERCENT: u32 = 15;
const SETTLE_PERCENT: u32 = 50;
/// Of each direction.
const BYTES_PERCENT: u32 = 20;
/// One direction, also where memory is faster than any network.
const MOST_BYTES: usize = 64 * 1024 * 1024;
/// Any queue takes so much at once.
const LITTLE_BYTES: i64 = 16 * 1024;
const PIECE_BYTES: usize = 1024 * 1024;
/// A gradient of a small model, and few enough calls to end within some 10 ms.
const MEMORY_BYTES: usize = 1024 * 1024;
const SUMS: usize = 8;
const MEETINGS: u32 = 20;
/// Of IP without options, and of UDP.
const IPV4_HEADERS: u64 = 20 + 8;
const IPV6_HEADERS: u64 = 40 + 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_measured_in_memory() {
        let ranks = Communicator::in_memory(2).unwrap();
        let limit = Duration::from_millis(20);
        let found: Vec<LinkFacts> = std::thread::scope(|scope| {
            let measure = |world: Communicator| {
                scope.spawn(move || {
                    let peer = 1 - world.rank();
                    let found = over_network(&world, peer, limit).unwrap();
                    world.close().unwrap();
                    found
                })
            };
            let ranks: Vec<_> = ranks.into_iter().map(measure).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        assert_eq!(found.iter().map(|l| (l.from, l.to)).collect::<Vec<_>>(), [(0, 1), (1, 0)]);
        assert_eq!(found[0].round_trip_ns, found[1].round_trip_ns);
        for link in found {
            assert!(link.round_trip_ns > 0 && link.bytes_per_second > 0.0, "{link:?}");
            // Threads of one process have no network.
            assert_eq!(link.network, None);
        }
    }
}
