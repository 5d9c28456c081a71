//! One link, or a ring of them, without any collective above it.
//!
//! The ranks make a secret of their own for the measurement, which travels over the world's links,
//! and with it connections of their own: as mutually authenticated as the world's, pinned to the
//! leaves that the ranks have told each other, and apart from its traffic.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::Cipher;
use super::wire::{CARD_BYTES, Card, TEXT_BYTES, text_from_bytes, text_to_bytes};
use crate::communicator::Communicator;
use crate::error::{Error, ErrorKind, Result};
use crate::identity::host_name;
use crate::link::quic::endpoint;
use crate::link::quic::tuning::{MAX_UDP_PAYLOAD, Traffic};
use crate::statistics::Counters;
use crate::trust::certificates::Membership;
use crate::trust::hello::{self, Answer, DialError, Greeted, Hello, Purpose};
use crate::trust::secret::{Secret, Secrets};

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
    /// How long is sent.
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
    /// Every rank to the next, all at once: both directions of every rank are loaded, as in a ring
    /// all-reduce.
    Ring,
}

/// What a link carried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkFigures {
    /// The sender.
    pub from: usize,
    /// The receiver.
    pub to: usize,
    /// Bytes that arrived, headers not counted.
    pub bytes: u64,
    /// From the first of them to the last, on the receiver's clock.
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
        let (rank, size) = (world.rank(), world.size());
        let mut secret = [0; 64];
        if rank == 0 {
            secret.copy_from_slice(Secret::random()?.to_line().as_bytes());
        }
        world.broadcast(&mut secret, 0)?;
        let end = End::prepare(world, &secret, self.cipher);
        let mut cards = vec![0; size * CARD_BYTES];
        let own = end.as_ref().ok().map(|end| Card { address: end.address, leaf: end.leaf() });
        world.all_gather(&Card::to_bytes(own.as_ref()), &mut cards)?;
        let cards: Vec<Option<Card>> = cards.as_chunks().0.iter().map(Card::from_bytes).collect();
        let to = route.receiver(rank, size);
        let from = route.sender(rank, size);
        let outcome = match end {
            Ok(end) if to.is_some() || from.is_some() => end.run(*self, &cards, to, from),
            Ok(_) => Ok(Outcome::default()),
            Err(error) => Err(error.to_string()),
        };
        share(world, route, &outcome, self.round_trips)
    }

    fn check(&self, size: usize, route: Route) -> Result<()> {
        let payloads = MIN_PAYLOAD..=MAX_UDP_PAYLOAD;
        let problem = match route {
            _ if size < 2 => "a link needs two ranks".into(),
            Route::Pair { from, to } if from >= size || to >= size || from == to => {
                format!("there is no link from rank {from} to rank {to} of {size} ranks")
            }
            _ if !(1..=MAX_STREAMS).contains(&self.streams) => {
                format!("{} streams: there can be 1 to {MAX_STREAMS}", self.streams)
            }
            _ if self.round_trips > MAX_ROUND_TRIPS => {
                format!("{} round trips: at most {MAX_ROUND_TRIPS}", self.round_trips)
            }
            _ => match self.payload {
                Some(bytes) if !payloads.contains(&bytes) => format!(
                    "packets of {bytes} bytes: between {MIN_PAYLOAD} and {MAX_UDP_PAYLOAD} can be \
                     sent"
                ),
                _ => return Ok(()),
            },
        };
        Err(ErrorKind::Argument { problem }.into())
    }
}

impl Route {
    fn receiver(self, rank: usize, size: usize) -> Option<usize> {
        match self {
            Self::Pair { from, to } => (rank == from).then_some(to),
            Self::Ring => Some((rank + 1) % size),
        }
    }

    fn sender(self, rank: usize, size: usize) -> Option<usize> {
        match self {
            Self::Pair { from, to } => (rank == to).then_some(from),
            Self::Ring => Some((rank + size - 1) % size),
        }
    }
}

/// What a sender knows at the end.
#[derive(Clone, Debug, Default)]
struct Outcome {
    bytes: u64,
    nanoseconds: u64,
    payload: u64,
    packets: u64,
    lost: u64,
    round_trips: Vec<u64>,
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

/// This rank's end.
struct End {
    rank: u32,
    address: SocketAddr,
    socket: std::net::UdpSocket,
    membership: Arc<Membership>,
}

impl End {
    fn prepare(world: &Communicator, secret: &[u8], cipher: Cipher) -> Result<Self> {
        let secrets = Secrets::from_lines(&String::from_utf8_lossy(secret), "the measurement")?;
        let rank = world.rank() as u32;
        let membership = Membership::new(&secrets, JOB, rank)?.only(cipher);
        let ip = world.address();
        let listen = match ip {
            ip if ip.is_loopback() => ip,
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = endpoint::bind(SocketAddr::new(listen, 0))?;
        let port = socket.local_addr().map_err(|e| Error::system("ask for a port", e))?.port();
        let address = SocketAddr::new(ip, port);
        Ok(Self { rank, address, socket, membership: Arc::new(membership) })
    }

    fn leaf(&self) -> [u8; 32] {
        self.membership.leaf_hash()
    }

    /// On a thread and a runtime of its own, so that it works from inside another one.
    fn run(
        self,
        link: Link,
        cards: &[Option<Card>],
        to: Option<usize>,
        from: Option<usize>,
    ) -> Result<Outcome, String> {
        let card = |rank: usize| {
            let card = cards.get(rank).copied().flatten();
            card.map(|card| (rank as u32, card)).ok_or(format!("rank {rank} cannot take part"))
        };
        let (to, from) = (to.map(card).transpose()?, from.map(card).transpose()?);
        let main = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| error.to_string())?;
            let limit = link.duration + PATIENCE;
            tokio::task::LocalSet::new().block_on(&runtime, async move {
                match timeout(limit, self.meet(link, to, from)).await {
                    Ok(outcome) => outcome,
                    Err(_) => Err(format!("not done after {limit:?}")),
                }
            })
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("allfold-probe".into());
            let thread = thread.spawn_scoped(scope, main).map_err(|error| error.to_string())?;
            thread.join().unwrap_or_else(|_| Err("its thread ended".into()))
        })
    }

    async fn meet(
        self,
        link: Link,
        to: Option<(u32, Card)>,
        from: Option<(u32, Card)>,
    ) -> Result<Outcome, String> {
        let Self { rank, socket, membership, .. } = self;
        let traffic = Traffic::Probe { payload: link.payload };
        let endpoint =
            endpoint::open(socket, &membership, traffic).map_err(|error| error.to_string())?;
        let (greeted, mut door) = mpsc::unbounded_channel();
        // A probe's strangers are not the world's.
        let uncounted = Arc::new(Counters::new(rank, 0, "quic"));
        let (door_of, members) = (endpoint.clone(), membership.clone());
        let accepting = endpoint::accept(door_of, members, uncounted, move |peer| {
            let _ = greeted.send(peer);
        });
        tokio::task::spawn_local(accepting);
        let receiving = async {
            match from {
                Some((from, card)) => receive(link, from, card, &mut door).await,
                None => Ok(()),
            }
        };
        let sending = async {
            match to {
                Some((to, card)) => {
                    let caller =
                        endpoint::Caller { endpoint: &endpoint, membership: &membership, traffic };
                    send(link, caller, rank, to, card).await
                }
                None => Ok(Outcome::default()),
            }
        };
        let (sent, received) = tokio::join!(sending, receiving);
        close(&endpoint).await;
        received.and(sent)
    }
}

/// The sending end: dials, measures round trips, sends, and hears what arrived.
async fn send(
    link: Link,
    caller: endpoint::Caller<'_>,
    rank: u32,
    to: u32,
    card: Card,
) -> Result<Outcome, String> {
    let hello = Hello {
        version: env!("CARGO_PKG_VERSION").into(),
        rank,
        incarnation: 0,
        host: host_name(),
        pid: std::process::id(),
        purpose: Purpose::Lane { epoch: 0, lane: 0 },
    };
    let welcomed = match caller.dial(to, card.address, &hello, DIAL_LIMIT).await {
        Ok(welcomed) if welcomed.leaf == card.leaf => welcomed,
        Ok(_) => return Err(format!("another process answers at {}", card.address)),
        Err(
            DialError::Final(reason) | DialError::Refused(reason, _) | DialError::Retry(reason),
        ) => return Err(reason),
    };
    let hello::Welcomed { connection, mut sender, mut receiver, .. } = welcomed;
    let mut outcome = Outcome::default();
    for number in 0..link.round_trips as u64 {
        let begun = Instant::now();
        write_word(&mut sender, number).await?;
        if read_word(&mut receiver).await? != number {
            return Err("a message came back changed".into());
        }
        outcome.round_trips.push(begun.elapsed().as_nanos() as u64);
    }
    write_word(&mut sender, NO_MORE).await?;
    let before = connection.stats().path;
    let segment = Bytes::from(vec![0x5a; SEGMENT_BYTES]);
    let deadline = Instant::now() + link.duration;
    let mut streams = Vec::new();
    for _ in 0..link.streams {
        let stream = connection.open_uni().await.map_err(|error| error.to_string())?;
        let segment = segment.clone();
        streams.push(tokio::task::spawn_local(pour(stream, segment, deadline)));
    }
    for stream in streams {
        stream.await.map_err(|error| error.to_string())??;
    }
    outcome.bytes = read_word(&mut receiver).await?;
    outcome.nanoseconds = read_word(&mut receiver).await?;
    let path = connection.stats().path;
    outcome.payload = path.current_mtu.into();
    outcome.packets = path.sent_packets.saturating_sub(before.sent_packets);
    outcome.lost = path.lost_packets.saturating_sub(before.lost_packets);
    // The receiver waits for this, so that its last word is not cut off.
    write_word(&mut sender, NO_MORE).await?;
    let _ = sender.finish();
    let _ = timeout(CLOSE_LIMIT, sender.stopped()).await;
    Ok(outcome)
}

async fn pour(mut stream: SendStream, segment: Bytes, deadline: Instant) -> Result<(), String> {
    loop {
        stream.write_chunk(segment.clone()).await.map_err(|error| error.to_string())?;
        if Instant::now() >= deadline {
            return stream.finish().map_err(|error| error.to_string());
        }
    }
}

/// The receiving end: answers, counts, and says what it counted.
async fn receive(
    link: Link,
    from: u32,
    card: Card,
    door: &mut mpsc::UnboundedReceiver<Greeted>,
) -> Result<(), String> {
    let greeted = loop {
        let next = timeout(DIAL_LIMIT, door.recv()).await;
        let greeted = next.ok().flatten().ok_or(format!("rank {from} does not come"))?;
        if greeted.hello.rank == from && greeted.leaf == card.leaf {
            break greeted;
        }
    };
    let Greeted { connection, mut sender, mut receiver, .. } = greeted;
    hello::send(&mut sender, &Answer::Welcome).await?;
    loop {
        match read_word(&mut receiver).await? {
            NO_MORE => break,
            number => write_word(&mut sender, number).await?,
        }
    }
    let count = Rc::new(std::cell::Cell::new(Count::default()));
    let mut streams = Vec::new();
    for _ in 0..link.streams {
        let stream = connection.accept_uni().await.map_err(|error| error.to_string())?;
        streams.push(tokio::task::spawn_local(drain(stream, count.clone())));
    }
    for stream in streams {
        stream.await.map_err(|error| error.to_string())??;
    }
    let Count { bytes, first, last } = count.get();
    let elapsed = match (first, last) {
        (Some(first), Some(last)) => last - first,
        _ => Duration::ZERO,
    };
    write_word(&mut sender, bytes).await?;
    write_word(&mut sender, elapsed.as_nanos() as u64).await?;
    let _ = timeout(CLOSE_LIMIT, read_word(&mut receiver)).await;
    hang_up(&connection);
    Ok(())
}

/// What has arrived on all streams.
#[derive(Clone, Copy, Default)]
struct Count {
    bytes: u64,
    first: Option<Instant>,
    last: Option<Instant>,
}

async fn drain(mut stream: RecvStream, count: Rc<std::cell::Cell<Count>>) -> Result<(), String> {
    let mut pieces = [const { Bytes::new() }; PIECES_AT_ONCE];
    while let Some(pieces_read) =
        stream.read_chunks(&mut pieces).await.map_err(|error| error.to_string())?
    {
        let now = Instant::now();
        let mut all = count.get();
        all.bytes += pieces[..pieces_read].iter().map(|piece| piece.len() as u64).sum::<u64>();
        all.first.get_or_insert(now);
        all.last = Some(now);
        count.set(all);
    }
    Ok(())
}

async fn write_word(stream: &mut SendStream, word: u64) -> Result<(), String> {
    stream.write_all(&word.to_le_bytes()).await.map_err(|error| error.to_string())
}

async fn read_word(stream: &mut RecvStream) -> Result<u64, String> {
    let mut word = [0; 8];
    stream.read_exact(&mut word).await.map_err(|error| error.to_string())?;
    Ok(u64::from_le_bytes(word))
}

fn hang_up(connection: &Connection) {
    connection.close(0_u32.into(), b"measured");
}

async fn close(endpoint: &Endpoint) {
    endpoint.close(0_u32.into(), b"measured");
    let _ = timeout(CLOSE_LIMIT, endpoint.wait_idle()).await;
}

/// Certificates of the measurement are those of no job.
const JOB: &str = "allfold-probe";
/// Of an outcome: bytes, nanoseconds, payload, packets, lost.
const FIGURES: usize = 5;
/// In place of a message's number: no more messages.
const NO_MORE: u64 = u64::MAX;
/// As the runtime's own, so that a stream is fed as a collective feeds it.
const SEGMENT_BYTES: usize = 64 * 1024;
/// As a lane takes them.
const PIECES_AT_ONCE: usize = 32;
/// QUIC's least: RFC 9000, 14.
const MIN_PAYLOAD: u16 = 1_200;
/// More have never been faster, and the runtime lets 1,024 in.
const MAX_STREAMS: usize = 256;
/// Every rank gets the times of every sender.
const MAX_ROUND_TRIPS: usize = 10_000;
/// All ends start within milliseconds of each other.
const DIAL_LIMIT: Duration = Duration::from_secs(5);
/// For dialling, round trips, and what is still in the windows when sending ends.
const PATIENCE: Duration = Duration::from_secs(20);
/// For a last word that nothing depends on.
const CLOSE_LIMIT: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(figures.bytes, (streams * SEGMENT_BYTES) as u64);
            assert_eq!(figures.round_trips.len(), 3);
            assert!(figures.packets > 0);
            if let Some(payload) = payload {
                assert_eq!(figures.payload, payload);
            }
        }
    }

    #[test]
    fn a_ring_loads_every_rank() {
        let all = measure(3, short(), Route::Ring);
        for figures in all {
            let figures = figures.unwrap();
            let pairs: Vec<_> = figures.iter().map(|f| (f.from, f.to)).collect();
            assert_eq!(pairs, [(0, 1), (1, 2), (2, 0)]);
            assert!(figures.iter().all(|f| f.problem.is_none() && f.bytes > 0), "{figures:?}");
        }
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
        ] {
            for error in measure(size, link, route) {
                let error = error.unwrap_err();
                assert!(matches!(error.kind(), ErrorKind::Argument { .. }), "{error}");
            }
        }
    }
}
