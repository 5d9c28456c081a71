//! The two ends of a bare link: one dials, measures round trips and sends; the other answers and
//! counts.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{Connection, ConnectionStats, RecvStream, SendStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{Link, Route};
use crate::communicator::{Communicator, Kind};
use crate::error::{Error, Result};
use crate::identity::host_name;
use crate::lane::wakefulness;
use crate::link::quic::binding;
use crate::link::quic::endpoint::{self, OpenEndpoint};
use crate::link::quic::tuning::Traffic;
use crate::plan::costs;
use crate::probe::Cipher;
use crate::probe::wire::Card;
use crate::statistics::Counters;
use crate::trust::Credentials;
use crate::trust::certificates::{LeafHash, Membership};
use crate::trust::hello::{self, Answer, Greeted, Hello, Purpose};
use crate::trust::secret::Secrets;

/// What a sender knows at the end.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
    pub(super) bytes: u64,
    pub(super) nanoseconds: u64,
    pub(super) payload: u64,
    pub(super) packets: u64,
    pub(super) lost: u64,
    pub(super) round_trips: Vec<u64>,
}

/// What is measured, and whether the receiving end sends as well.
#[derive(Clone, Copy)]
struct Run {
    link: Link,
    both: bool,
}

/// Where another rank's end may be found, the best first, and its certificate.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) ways: Vec<SocketAddr>,
    pub(super) leaf: LeafHash,
}

/// This rank's end.
pub(super) struct End {
    rank: u32,
    address: SocketAddr,
    socket: UdpSocket,
    membership: Arc<Membership>,
    /// It need not sleep, as a lane that somebody waits for does not.
    has_core: bool,
}

impl End {
    pub(super) fn prepare(world: &Communicator, secret: &[u8], cipher: Cipher) -> Result<Self> {
        let secrets = Secrets::from_lines(&String::from_utf8_lossy(secret), "the measurement")?;
        let rank = world.rank() as u32;
        let membership = Membership::new(&Credentials::Secrets(secrets), JOB, rank)?.only(cipher);
        let ip = world.address();
        let is_near = |ip: IpAddr| ip.is_loopback();
        let socket = match world.peers().iter().all(|peer| peer.address.is_none_or(is_near)) {
            true if is_near(ip) => binding::bind(SocketAddr::new(ip, 0))?,
            _ => binding::bind_everywhere(0)?,
        };
        let port = socket.local_addr().map_err(|e| Error::system("ask for a port", e))?.port();
        let address = SocketAddr::new(ip, port);
        let has_core = match &world.kind {
            Kind::Joined(engine) => wakefulness::has_cores(engine.world(), 1),
            Kind::Single => false,
        };
        Ok(Self { rank, address, socket, membership: Arc::new(membership), has_core })
    }

    pub(super) fn card(&self) -> Card {
        Card { address: self.address, leaf: self.membership.leaf_hash() }
    }

    /// On a thread and a runtime of its own, so that it works from inside another one.
    pub(super) fn run(
        self,
        link: Link,
        route: Route,
        places: &[Option<Place>],
    ) -> Result<Outcome, String> {
        let place = |rank: usize| {
            let place = places.get(rank).cloned().flatten();
            place.map(|place| (rank as u32, place)).ok_or(format!("rank {rank} cannot take part"))
        };
        let (rank, size) = (self.rank as usize, places.len());
        let (mut to, mut from) = (route.receiver(rank, size), route.sender(rank, size));
        let run = Run { link, both: matches!(route, Route::Exchange { .. }) };
        if let Route::Exchange { first, .. } = route {
            // One of the two dials.
            *(if rank == first { &mut from } else { &mut to }) = None;
        }
        let (to, from) = (to.map(place).transpose()?, from.map(place).transpose()?);
        let main = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| error.to_string())?;
            let limit = link.duration + PATIENCE;
            tokio::task::LocalSet::new().block_on(&runtime, async move {
                match timeout(limit, self.meet(run, to, from)).await {
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
        run: Run,
        to: Option<(u32, Place)>,
        from: Option<(u32, Place)>,
    ) -> Result<Outcome, String> {
        let Self { rank, socket, membership, has_core, .. } = self;
        let traffic = Traffic::Probe { payload: run.link.payload };
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
                Some((from, place)) => receive(run, from, place.leaf, &mut door).await,
                None => Ok(None),
            }
        };
        let sending = async {
            match to {
                Some((to, place)) => {
                    let caller =
                        endpoint::Caller { endpoint: &endpoint, membership: &membership, traffic };
                    send(run, caller, rank, to, place).await
                }
                None => Ok(Outcome::default()),
            }
        };
        let (sent, received) = match has_core {
            true => polling(async { tokio::join!(sending, receiving) }).await,
            false => tokio::join!(sending, receiving),
        };
        close(&endpoint).await;
        let (sent, received) = (sent?, received?);
        Ok(received.unwrap_or(sent))
    }
}

/// Asks the sockets again and again until `task` is done, instead of sleeping.
async fn polling<T>(task: impl Future<Output = T>) -> T {
    let never = async {
        loop {
            std::thread::yield_now();
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        done = task => done,
        () = never => unreachable!("it has no end"),
    }
}

/// The sending end: dials, measures round trips, sends, and hears what arrived.
async fn send(
    Run { link, both }: Run,
    caller: endpoint::Caller<'_>,
    rank: u32,
    to: u32,
    place: Place,
) -> Result<Outcome, String> {
    let hello = Hello {
        version: env!("CARGO_PKG_VERSION").into(),
        rank,
        incarnation: 0,
        host: host_name(),
        pid: std::process::id(),
        habitat: 0,
        purpose: Purpose::Lane { epoch: 0, lane: 0 },
    };
    let who = (to, Some(place.leaf));
    let dialling = caller.dial_any(who, place.ways, &hello, DIAL_LIMIT);
    let welcomed = dialling.await.map_err(|error| error.to_string())?;
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
    let before = connection.stats();
    let sending = pour_all(link, &connection);
    match both {
        true => {
            let (sent, received) = tokio::join!(sending, drain_all(link, &connection));
            sent?;
            tell(&mut sender, received?).await?;
        }
        false => sending.await?,
    }
    outcome.hear(&mut receiver).await?;
    outcome.count(&connection, &before);
    // The receiver waits for this, so that its last word is not cut off.
    write_word(&mut sender, NO_MORE).await?;
    let _ = sender.finish();
    let _ = timeout(CLOSE_LIMIT, sender.stopped()).await;
    Ok(outcome)
}

impl Outcome {
    /// The other end says what arrived.
    async fn hear(&mut self, receiver: &mut RecvStream) -> Result<(), String> {
        self.bytes = read_word(receiver).await?;
        self.nanoseconds = read_word(receiver).await?;
        Ok(())
    }

    /// Adds what this end knows of its packets since `before`.
    fn count(&mut self, connection: &Connection, before: &ConnectionStats) {
        let (path, before) = (connection.stats().path, before.path);
        self.payload = path.current_mtu.into();
        self.packets = path.sent_packets.saturating_sub(before.sent_packets);
        self.lost = path.lost_packets.saturating_sub(before.lost_packets);
    }
}

/// Says what arrived here.
async fn tell(sender: &mut SendStream, count: Count) -> Result<(), String> {
    write_word(sender, count.bytes).await?;
    write_word(sender, count.elapsed.as_nanos() as u64).await
}

/// Sends on all streams until the time is up.
async fn pour_all(link: Link, connection: &Connection) -> Result<(), String> {
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
    Ok(())
}

async fn pour(mut stream: SendStream, segment: Bytes, deadline: Instant) -> Result<(), String> {
    loop {
        stream.write_chunk(segment.clone()).await.map_err(|error| error.to_string())?;
        if Instant::now() >= deadline {
            return stream.finish().map_err(|error| error.to_string());
        }
    }
}

/// The receiving end: answers, counts, and says what it counted; what it has sent itself, if it has.
async fn receive(
    Run { link, both }: Run,
    from: u32,
    leaf: LeafHash,
    door: &mut mpsc::UnboundedReceiver<Greeted>,
) -> Result<Option<Outcome>, String> {
    let greeted = loop {
        let next = timeout(DIAL_LIMIT, door.recv()).await;
        let greeted = next.ok().flatten().ok_or(format!("rank {from} does not come"))?;
        if greeted.hello.rank == from && greeted.leaf == leaf {
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
    let before = connection.stats();
    let receiving = drain_all(link, &connection);
    let mut outcome = None;
    match both {
        true => {
            let (sent, received) = tokio::join!(pour_all(link, &connection), receiving);
            sent?;
            tell(&mut sender, received?).await?;
            let mut own = Outcome::default();
            own.hear(&mut receiver).await?;
            own.count(&connection, &before);
            outcome = Some(own);
        }
        false => tell(&mut sender, receiving.await?).await?,
    }
    let _ = timeout(CLOSE_LIMIT, read_word(&mut receiver)).await;
    hang_up(&connection);
    Ok(outcome)
}

/// Counts what arrives on all streams.
async fn drain_all(link: Link, connection: &Connection) -> Result<Count, String> {
    let count = Rc::new(Cell::new(Count::default()));
    let mut streams = Vec::new();
    for _ in 0..link.streams {
        let stream = connection.accept_uni().await.map_err(|error| error.to_string())?;
        streams.push(tokio::task::spawn_local(drain(stream, count.clone())));
    }
    for stream in streams {
        stream.await.map_err(|error| error.to_string())??;
    }
    Ok(count.get())
}

/// What has arrived on all streams after the first read, which only starts the clock: when its
/// bytes were sent is not known here.
#[derive(Clone, Copy, Default)]
struct Count {
    bytes: u64,
    /// From the first read to the last.
    elapsed: Duration,
    first: Option<Instant>,
}

impl Count {
    fn note(&mut self, bytes: u64, now: Instant) {
        match self.first {
            Some(first) => {
                self.bytes += bytes;
                self.elapsed = now - first;
            }
            None => self.first = Some(now),
        }
    }
}

async fn drain(mut stream: RecvStream, count: Rc<Cell<Count>>) -> Result<(), String> {
    let mut pieces = [const { Bytes::new() }; PIECES_AT_ONCE];
    while let Some(pieces_read) =
        stream.read_chunks(&mut pieces).await.map_err(|error| error.to_string())?
    {
        let mut all = count.get();
        let bytes = pieces[..pieces_read].iter().map(|piece| piece.len() as u64).sum();
        all.note(bytes, Instant::now());
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

async fn close(endpoint: &OpenEndpoint) {
    endpoint.close(0_u32.into(), b"measured");
    let _ = timeout(CLOSE_LIMIT, endpoint.wait_idle()).await;
}

/// Certificates of the measurement are those of no job.
const JOB: &str = "allfold-probe";
/// In place of a message's number: no more messages.
const NO_MORE: u64 = u64::MAX;
/// A stream is fed as a collective feeds it.
pub(super) const SEGMENT_BYTES: usize = costs::SEGMENT_BYTES as usize;
/// As a lane takes them.
const PIECES_AT_ONCE: usize = 32;
/// All ends start within milliseconds of each other.
const DIAL_LIMIT: Duration = Duration::from_secs(5);
/// For dialling, round trips, and what is still in the windows when sending ends.
const PATIENCE: Duration = Duration::from_secs(20);
/// For a last word that nothing depends on.
const CLOSE_LIMIT: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_read_starts_the_clock_and_is_not_counted() {
        let (mut count, start) = (Count::default(), Instant::now());
        for (milliseconds, bytes, counted) in [(0, 65_536, 0), (1, 100, 100), (3, 200, 300)] {
            let passed = Duration::from_millis(milliseconds);
            count.note(bytes, start + passed);
            assert_eq!((count.bytes, count.elapsed), (counted, passed));
        }
    }
}
