//! quinn's socket, out in the weather.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, UdpPoller};
use tokio::sync::Notify;
use tokio::time::{Sleep, sleep_until};

use super::waiting::Waiting;
use super::weather::{self, Fate, Passage};

/// A socket for an endpoint, to be made inside a runtime. Where there is no weather it is quinn's
/// own, with all its batching; where there is, every datagram is judged by itself.
pub(crate) fn open(socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    let inner = quinn::TokioRuntime.wrap_udp_socket(socket)?;
    let address = inner.local_addr()?;
    let road = Arc::new(Road {
        inner,
        departing: Mutex::new(Waiting::new()),
        changed: Notify::new(),
        is_over: AtomicBool::new(false),
    });
    tokio::spawn(depart(road.clone()));
    let arriving = Mutex::new(Arriving { waiting: Waiting::new(), timer: None });
    Ok(Arc::new(WeatheredSocket { road, address, arriving }))
}

struct WeatheredSocket {
    road: Arc<Road>,
    address: SocketAddr,
    arriving: Mutex<Arriving>,
}

/// What the socket shares with the task that sends what was delayed.
struct Road {
    inner: Arc<dyn AsyncUdpSocket>,
    departing: Mutex<Waiting<Departure>>,
    changed: Notify,
    is_over: AtomicBool,
}

struct Departure {
    to: SocketAddr,
    from: Option<IpAddr>,
    ecn: Option<EcnCodepoint>,
    bytes: Vec<u8>,
}

struct Arriving {
    waiting: Waiting<(RecvMeta, Vec<u8>)>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl AsyncUdpSocket for WeatheredSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.road.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if !weather::is_active() {
            return self.road.inner.try_send(transmit);
        }
        // Segments were batched before the weather came, or are one.
        let length = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for bytes in transmit.contents.chunks(length) {
            let fate = self.judge(transmit.destination, true, bytes.len());
            self.send(transmit, bytes, fate)?;
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut arriving = locked(&self.arriving);
        loop {
            if !weather::is_active() && arriving.waiting.is_empty() {
                return self.road.inner.poll_recv(context, buffers, metas);
            }
            let delivered = arriving.deliver(buffers, metas);
            if delivered > 0 {
                return Poll::Ready(Ok(delivered));
            }
            match self.road.inner.poll_recv(context, buffers, metas) {
                Poll::Ready(Ok(count)) => {
                    for (meta, buffer) in metas.iter().zip(buffers.iter()).take(count) {
                        for bytes in buffer[..meta.len].chunks(meta.stride.max(1)) {
                            let fate = self.judge(meta.addr, false, bytes.len());
                            arriving.take_in(meta, bytes, fate);
                        }
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    if arriving.poll_due(context).is_pending() {
                        return Poll::Pending;
                    }
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn max_transmit_segments(&self) -> usize {
        // quinn asks before each transmit.
        if weather::is_active() { 1 } else { self.road.inner.max_transmit_segments() }
    }

    fn max_receive_segments(&self) -> usize {
        self.road.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.road.inner.may_fragment()
    }
}

impl WeatheredSocket {
    fn judge(&self, peer: SocketAddr, is_outwards: bool, bytes: usize) -> Fate {
        weather::judge(Passage { here: self.address, peer, is_outwards, bytes })
    }

    fn send(&self, transmit: &Transmit<'_>, bytes: &[u8], fate: Fate) -> io::Result<()> {
        let peer = transmit.destination;
        for _ in 0..fate.copies {
            let departure = || Departure {
                to: peer,
                from: transmit.src_ip,
                ecn: transmit.ecn,
                bytes: struck(bytes, fate),
            };
            if fate.is_held || !fate.delay.is_zero() {
                self.road.delay(fate, departure());
                continue;
            }
            let departure = departure();
            match self.road.inner.try_send(&departure.transmit()) {
                // It was judged, and is not to be judged again: the task sends it.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.road.delay(fate, departure);
                }
                sent => {
                    sent?;
                    self.road.passed(peer);
                }
            }
        }
        Ok(())
    }
}

impl Drop for WeatheredSocket {
    fn drop(&mut self) {
        self.road.is_over.store(true, Ordering::Release);
        self.road.changed.notify_one();
    }
}

impl fmt::Debug for WeatheredSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeatheredSocket").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Road {
    fn delay(&self, fate: Fate, departure: Departure) {
        locked(&self.departing).push(departure.to, fate, Instant::now(), departure);
        self.changed.notify_one();
    }

    /// A datagram was sent: those held back follow.
    fn passed(&self, peer: SocketAddr) {
        if locked(&self.departing).release(peer, Instant::now()) {
            self.changed.notify_one();
        }
    }
}

/// Sends what was delayed, when it is due, for as long as the socket lives.
async fn depart(road: Arc<Road>) {
    let mut poller = road.inner.clone().create_io_poller();
    while !road.is_over.load(Ordering::Acquire) {
        let (due, next) = {
            let mut departing = locked(&road.departing);
            (departing.take(Instant::now()), departing.next())
        };
        let Some(departure) = due else {
            let changed = road.changed.notified();
            match next {
                Some(next) => tokio::select! {
                    () = sleep_until(next.into()) => {}
                    () = changed => {}
                },
                None => changed.await,
            }
            continue;
        };
        while let Err(error) = road.inner.try_send(&departure.transmit()) {
            let is_full = error.kind() == io::ErrorKind::WouldBlock;
            if !is_full || poll_fn(|context| poller.as_mut().poll_writable(context)).await.is_err()
            {
                break;
            }
        }
    }
}

impl Departure {
    fn transmit(&self) -> Transmit<'_> {
        Transmit {
            destination: self.to,
            ecn: self.ecn,
            contents: &self.bytes,
            segment_size: None,
            src_ip: self.from,
        }
    }
}

impl Arriving {
    fn take_in(&mut self, meta: &RecvMeta, bytes: &[u8], fate: Fate) {
        for _ in 0..fate.copies {
            let meta = RecvMeta { len: bytes.len(), stride: bytes.len(), ..*meta };
            self.waiting.push(meta.addr, fate, Instant::now(), (meta, struck(bytes, fate)));
        }
    }

    /// Hands over what is due, one datagram a buffer.
    fn deliver(&mut self, buffers: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) -> usize {
        let now = Instant::now();
        let mut count = 0;
        for (buffer, place) in buffers.iter_mut().zip(metas) {
            let Some((meta, bytes)) = self.waiting.take(now) else { break };
            // One buffer holds what one datagram could bring.
            let length = bytes.len().min(buffer.len());
            buffer[..length].copy_from_slice(&bytes[..length]);
            *place = RecvMeta { len: length, ..meta };
            count += 1;
        }
        count
    }

    /// Ready when the next one is due.
    fn poll_due(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(next) = self.waiting.next() else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(next.into())));
        timer.as_mut().reset(next.into());
        timer.as_mut().poll(context)
    }
}

/// A copy of a datagram, with the byte that its fate made wrong.
fn struck(bytes: &[u8], fate: Fate) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if let Some((place, change)) = fate.wrong
        && let Some(byte) = bytes.get_mut(place)
    {
        *byte ^= change;
    }
    bytes
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
