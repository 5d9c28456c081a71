//! One link, or a ring of them, without any collective above it.
//!
//! The ranks make a secret of their own for the measurement, which travels over the world's links,
//! and with it connections of their own: as mutually authenticated as the world's, pinned to the
//! leaves that the ranks have told each other, and apart from its traffic.

mod ends;

use std::time::{Duration, Instant};

use super::Cipher;
use super::wire::{CARD_BYTES, Card, TEXT_BYTES, text_from_bytes, text_to_bytes};
use crate::communicator::{Communicator, Kind};
use crate::error::{ErrorKind, Result};
use crate::link::quic::tuning::MAX_PROBE_PAYLOAD;
use crate::report;
use crate::trust::secret::Secret;
use crate::world::Peer;
use ends::{End, Outcome, Place};

/// What is sent, and how.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// How packets are encrypted.
    pub cipher: Cipher,
    /// The UDP payload of every packet in bytes, 1,200 to 6,500; none: as the runtime does it, by
    /// discovery. What the path does not let through falls back to 1,200.
    pub payload: Option<u16>,
    /// Streams side by side, at least 1.
    pub streams: usize,
    /// How long is sent: a day at most, and less than ALLFOLD_TIMEOUT.
    pub duration: Duration,
    /// Messages of 8 bytes there and back, one after the other, before that.
    pub round_trips: usize,
}

/// Who sends to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// One rank to one other.
    Pair {
        /// The sender.
        from: usize,
        /// The receiver.
        to: usize,
    },
    /// Two ranks to each other, both ways at once over one link, as in an all-reduce of two ranks.
    /// Only the first one measures round trips.
    Exchange {
        /// The rank that dials.
        first: usize,
        /// The other one.
        second: usize,
    },
    /// Every rank to the next, all at once, each over a link of its own: both directions of every
    /// rank are loaded, as in a ring all-reduce.
    Ring,
}

/// What a link carried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkFigures {
    /// The sender.
    pub from: usize,
    /// The receiver.
    pub to: usize,
    /// Bytes that arrived, headers and what was read first not counted: how long that was under way
    /// is not known.
    pub bytes: u64,
    /// From that first read to the last, on the receiver's clock.
    pub elapsed: Duration,
    /// The UDP payload at the end.
    pub payload: u16,
    /// Packets sent, those that were lost included.
    pub packets: u64,
    /// Packets that were taken for lost and sent again.
    pub lost: u64,
    /// There and back, one for each message.
    pub round_trips: Vec<Duration>,
    /// Why there are no figures.
    pub problem: Option<String>,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            cipher: Cipher::default(),
            payload: None,
            streams: 1,
            duration: Duration::from_secs(1),
            round_trips: 100,
        }
    }
}

impl LinkFigures {
    /// Bytes a second; 0 where nothing arrived.
    pub fn rate(&self) -> f64 {
        match self.elapsed.as_secs_f64() {
            seconds if seconds > 0.0 => self.bytes as f64 / seconds,
            _ => 0.0,
        }
    }
}

impl Link {
    /// Measures. Every rank of `world` makes the call with equal arguments, and gets the figures of
    /// all senders in rank order. A link that does not come to be or breaks is no error: its
    /// figures say why.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`] where the route or a number has no meaning; else as
    /// [`Communicator::all_gather`].
    pub fn measure(&self, world: &Communicator, route: Route) -> Result<Vec<LinkFigures>> {
        self.check(world.size(), route)?;
        self.check_timeout(world)?;
        let (rank, size) = (world.rank(), world.size());
        let mut secret = [0; 64];
        if rank == 0 {
            secret.copy_from_slice(Secret::random()?.to_line().as_bytes());
        }
        world.broadcast(&mut secret, 0)?;
        let end = End::prepare(world, &secret, self.cipher);
        let mut cards = vec![0; size * CARD_BYTES];
        let own = end.as_ref().ok().map(|end| end.card());
        world.all_gather(&Card::to_bytes(own.as_ref()), &mut cards)?;
        let cards: Vec<Option<Card>> = cards.as_chunks().0.iter().map(Card::from_bytes).collect();
        let place = |(peer, card): (Peer, Option<Card>)| {
            card.map(|card| Place { ways: peer.found_at(card.address), leaf: card.leaf })
        };
        let places: Vec<Option<Place>> = world.peers().into_iter().zip(cards).map(place).collect();
        let takes_part = route.receiver(rank, size).or(route.sender(rank, size)).is_some();
        let outcome = match end {
            Ok(end) if takes_part => end.run(*self, route, &places),
            Ok(_) => {
                idle(world, self.duration);
                Ok(Outcome::default())
            }
            Err(error) => Err(error.to_string()),
        };
        share(world, route, &outcome, self.round_trips)
    }

    fn check(&self, size: usize, route: Route) -> Result<()> {
        let payloads = MIN_PAYLOAD..=MAX_PROBE_PAYLOAD;
        let problem = match route {
            _ if size < 2 => "a link needs two ranks".into(),
            Route::Pair { from, to } | Route::Exchange { first: from, second: to }
                if from >= size || to >= size || from == to =>
            {
                format!("there is no link from rank {from} to rank {to} of {size} ranks")
            }
            _ if !(1..=MAX_STREAMS).contains(&self.streams) => {
                format!("{} streams: there can be 1 to {MAX_STREAMS}", self.streams)
            }
            _ if self.duration > LONGEST => {
                let (duration, longest) = (self.duration.as_secs(), report::duration(LONGEST));
                format!("{duration} s: a link is measured for {longest} at most")
            }
            _ if self.round_trips > MAX_ROUND_TRIPS => {
                format!("{} round trips: at most {MAX_ROUND_TRIPS}", self.round_trips)
            }
            _ => match self.payload {
                Some(bytes) if !payloads.contains(&bytes) => format!(
                    "packets of {bytes} bytes: between {MIN_PAYLOAD} and {MAX_PROBE_PAYLOAD} can be \
                     sent"
                ),
                _ => return Ok(()),
            },
        };
        Err(ErrorKind::Argument { problem }.into())
    }
}

impl Link {
    /// The ranks that neither send nor receive may wait in a call as long as the others take.
    fn check_timeout(&self, world: &Communicator) -> Result<()> {
        let Kind::Joined(engine) = &world.kind else { return Ok(()) };
        match engine.world().limits.timeout {
            Some(timeout) if self.duration >= timeout => {
                let (duration, timeout) =
                    (report::duration(self.duration), report::duration(timeout));
                let problem = format!(
                    "a link cannot be measured for {duration} where ALLFOLD_TIMEOUT ends calls \
                     after {timeout}"
                );
                Err(ErrorKind::Argument { problem }.into())
            }
            _ => Ok(()),
        }
    }
}

impl Route {
    fn receiver(self, rank: usize, size: usize) -> Option<usize> {
        match self {
            Self::Pair { from, to } => (rank == from).then_some(to),
            Self::Exchange { .. } => self.other(rank),
            Self::Ring => Some((rank + 1) % size),
        }
    }

    fn sender(self, rank: usize, size: usize) -> Option<usize> {
        match self {
            Self::Pair { from, to } => (rank == to).then_some(from),
            Self::Exchange { .. } => self.other(rank),
            Self::Ring => Some((rank + size - 1) % size),
        }
    }

    /// Whom a rank exchanges bytes with.
    fn other(self, rank: usize) -> Option<usize> {
        match self {
            Self::Exchange { first, second } if rank == first => Some(second),
            Self::Exchange { first, second } if rank == second => Some(first),
            _ => None,
        }
    }
}

/// Waits while others send, outside of any call: a rank that has nothing to do yet is not one that
/// waits in vain. Ends with the world.
fn idle(world: &Communicator, duration: Duration) {
    let Kind::Joined(engine) = &world.kind else { return };
    let begun = Instant::now();
    while engine.world().error().is_none() {
        match duration.checked_sub(begun.elapsed()) {
            Some(left) if !left.is_zero() => std::thread::sleep(left.min(LOOK)),
            _ => return,
        }
    }
}

/// Tells every rank what every sender found.
fn share(
    world: &Communicator,
    route: Route,
    outcome: &Result<Outcome, String>,
    round_trips: usize,
) -> Result<Vec<LinkFigures>> {
    let size = world.size();
    let mut own = vec![0; FIGURES + 1 + round_trips];
    let mut problem = [0; TEXT_BYTES];
    match outcome {
        Ok(found) => {
            let count = found.round_trips.len().min(round_trips);
            own[..FIGURES].copy_from_slice(&[
                found.bytes,
                found.nanoseconds,
                found.payload,
                found.packets,
                found.lost,
            ]);
            own[FIGURES] = count as u64;
            own[FIGURES + 1..][..count].copy_from_slice(&found.round_trips[..count]);
        }
        Err(text) => problem = text_to_bytes(text),
    }
    let mut all = vec![0; size * own.len()];
    world.all_gather(&own, &mut all)?;
    let mut problems = vec![0; size * TEXT_BYTES];
    world.all_gather(&problem, &mut problems)?;
    let problems: Vec<String> = problems.chunks_exact(TEXT_BYTES).map(text_from_bytes).collect();
    let figures = |(from, record): (usize, &[u64])| {
        let to = route.receiver(from, size)?;
        let count = (record[FIGURES] as usize).min(round_trips);
        // The receiver may know better why nothing came.
        let said = [from, to].into_iter().find(|rank| !problems[*rank].is_empty());
        Some(LinkFigures {
            from,
            to,
            bytes: record[0],
            elapsed: Duration::from_nanos(record[1]),
            payload: record[2] as u16,
            packets: record[3],
            lost: record[4],
            round_trips: record[FIGURES + 1..][..count]
                .iter()
                .map(|nanoseconds| Duration::from_nanos(*nanoseconds))
                .collect(),
            problem: said.map(|rank| format!("rank {rank}: {}", problems[rank])),
        })
    };
    Ok(all.chunks_exact(own.len()).enumerate().filter_map(figures).collect())
}

/// An error reaches a rank that idles so late at most.
const LOOK: Duration = Duration::from_millis(100);
/// Of an outcome: bytes, nanoseconds, payload, packets, lost.
const FIGURES: usize = 5;
/// QUIC's least: RFC 9000, 14.
const MIN_PAYLOAD: u16 = 1_200;
/// More have never been faster, and the runtime lets 1,024 in.
const MAX_STREAMS: usize = 256;
/// Longer than anybody waits, and far from what a clock cannot tell.
const LONGEST: Duration = Duration::from_secs(86_400);
/// Every rank gets the times of every sender.
const MAX_ROUND_TRIPS: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::in_memory::InMemory;

    fn measure(size: usize, link: Link, route: Route) -> Vec<Result<Vec<LinkFigures>>> {
        let worlds = Communicator::in_memory(size).unwrap();
        std::thread::scope(|scope| {
            let rank = |world: Communicator| scope.spawn(move || link.measure(&world, route));
            let ranks: Vec<_> = worlds.into_iter().map(rank).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    /// As short as it gets: one segment on each stream.
    fn short() -> Link {
        Link { duration: Duration::ZERO, round_trips: 3, ..Link::default() }
    }

    #[test]
    fn all_ranks_get_the_figures_of_every_cipher_and_payload() {
        for (cipher, payload, streams) in [
            (Cipher::Aes128Gcm, None, 1),
            (Cipher::Aes256Gcm, Some(1_200), 2),
            (Cipher::ChaCha20Poly1305, Some(6_500), 3),
        ] {
            let link = Link { cipher, payload, streams, ..short() };
            let all = measure(3, link, Route::Pair { from: 2, to: 0 });
            let first = all[0].as_ref().unwrap().clone();
            assert!(all.iter().all(|figures| figures.as_ref().unwrap() == &first));
            let [figures] = &first[..] else { panic!("{first:?}") };
            assert_eq!((figures.from, figures.to, &figures.problem), (2, 0, &None));
            // What was read first is not counted.
            assert!(figures.bytes < (streams * ends::SEGMENT_BYTES) as u64);
            assert_eq!(figures.rate() > 0.0, figures.bytes > 0);
            assert_eq!(figures.round_trips.len(), 3);
            assert!(figures.packets > 0);
            if let Some(payload) = payload {
                assert_eq!(figures.payload, payload);
            }
        }
    }

    /// Measures for longer and longer until bytes were counted everywhere: a busy machine may let a
    /// rank read nothing for a while, or everything at once. Checks the figures each time.
    fn measure_until_loaded(link: Link, route: Route, check: impl Fn(&[LinkFigures])) {
        let is_loaded = |millis| {
            let link = Link { duration: Duration::from_millis(millis), ..link };
            let all: Vec<_> = measure(3, link, route).into_iter().map(Result::unwrap).collect();
            all.iter().for_each(|figures| check(figures));
            all.iter().flatten().all(|figures| figures.bytes > 0)
        };
        assert!([20, 200, 2000].into_iter().any(is_loaded));
    }

    #[test]
    fn a_ring_loads_every_rank() {
        measure_until_loaded(short(), Route::Ring, |figures| {
            let pairs: Vec<_> = figures.iter().map(|f| (f.from, f.to)).collect();
            assert_eq!(pairs, [(0, 1), (1, 2), (2, 0)]);
            assert!(figures.iter().all(|f| f.problem.is_none()), "{figures:?}");
        });
    }

    #[test]
    fn an_exchange_goes_both_ways_over_one_link() {
        let link = Link { streams: 2, ..short() };
        measure_until_loaded(link, Route::Exchange { first: 2, second: 0 }, |figures| {
            let ends: Vec<_> = figures.iter().map(|f| (f.from, f.to)).collect();
            assert_eq!(ends, [(0, 2), (2, 0)]);
            assert!(figures.iter().all(|f| f.problem.is_none() && f.packets > 0), "{figures:?}");
            assert_eq!(figures.iter().map(|f| f.round_trips.len()).collect::<Vec<_>>(), [0, 3]);
        });
    }

    #[test]
    fn what_has_no_meaning_is_refused_on_every_rank() {
        let pair = |from, to| Route::Pair { from, to };
        for (size, link, route) in [
            (1, short(), Route::Ring),
            (2, short(), pair(0, 2)),
            (2, short(), pair(1, 1)),
            (2, Link { streams: 0, ..short() }, pair(0, 1)),
            (2, Link { payload: Some(1_199), ..short() }, pair(0, 1)),
            (2, Link { payload: Some(6_501), ..short() }, pair(0, 1)),
            (2, Link { round_trips: 10_001, ..short() }, pair(0, 1)),
            (2, Link { duration: Duration::MAX, ..short() }, pair(0, 1)),
            (2, Link { duration: LONGEST + Duration::from_nanos(1), ..short() }, pair(0, 1)),
        ] {
            for error in measure(size, link, route) {
                let error = error.unwrap_err();
                assert!(matches!(error.kind(), ErrorKind::Argument { .. }), "{error}");
            }
        }
    }

    #[test]
    fn as_long_as_the_timeout_is_refused_on_every_rank() {
        let timeout = Duration::from_secs(3);
        let worlds = InMemory::new(3).unwrap().timeout(timeout).start().unwrap();
        for world in &worlds {
            let link = Link { duration: timeout, ..Link::default() };
            let error = link.measure(world, Route::Pair { from: 0, to: 1 }).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Argument { .. }), "{error}");
            assert!(error.to_string().contains("for 3 s where ALLFOLD_TIMEOUT"), "{error}");
            assert!(Link::default().check_timeout(world).is_ok());
        }
        std::thread::scope(|scope| {
            worlds.into_iter().for_each(|world| drop(scope.spawn(move || world.close())));
        });
    }

    #[test]
    fn a_rank_idles_as_long_as_the_others_send_but_not_in_a_world_that_is_over() {
        let worlds = Communicator::in_memory(2).unwrap();
        let (duration, begun) = (LOOK + LOOK / 2, Instant::now());
        idle(&worlds[0], duration);
        assert!(begun.elapsed() >= duration);
        let [idler, other] = <[Communicator; 2]>::try_from(worlds).ok().unwrap();
        std::thread::scope(|scope| {
            // A year, were it not for the other's end.
            let idling = scope.spawn(|| idle(&idler, Duration::from_secs(365 * 86_400)));
            let fails = scope.spawn(move || {
                let _other = other;
                panic!("the program has a fault");
            });
            assert!(fails.join().is_err());
            idling.join().unwrap();
        });
        assert!(idler.close().is_err());
    }
}
