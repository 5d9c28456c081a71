//! The socket under an endpoint: quinn's own, kept from batches that the system refuses and from
//! receiving more at once than the cache holds.
//!
//! Linux sends at most 65,507 bytes at once. It refuses a larger batch of segments with EMSGSIZE,
//! which quinn-udp takes for a probe that was too large: the whole batch would be lost in silence.
//! quinn makes batches of ten, whatever the size of a packet.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use super::tuning::{FULL_PACKET, MAX_BATCH_BYTES, RECEIVED_AT_ONCE};

/// A socket that never hands the system more than it takes at once.
pub(crate) struct BatchSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    widest: Widest,
    /// The endpoint's largest packet.
    limit: usize,
}

/// The largest of the packets of late. Packets grow by probes that are sent alone, so that a batch
/// of larger ones than this seldom comes. They shrink where a path has become a narrow one, and
/// where those of another peer are smaller.
struct Widest {
    now: AtomicUsize,
    /// Of the turn before.
    before: AtomicUsize,
    sent: AtomicUsize,
}

impl Widest {
    fn new(first: usize) -> Self {
        Self {
            now: AtomicUsize::new(first),
            before: AtomicUsize::new(0),
            sent: AtomicUsize::new(0),
        }
    }

    fn note(&self, packet: usize) {
        // It says nothing of those that are full.
        if packet < FULL_PACKET {
            return;
        }
        self.now.fetch_max(packet, Ordering::Relaxed);
        if self.sent.fetch_add(1, Ordering::Relaxed) % TURN == TURN - 1 {
            self.before.store(self.now.swap(packet, Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    fn get(&self) -> usize {
        self.now.load(Ordering::Relaxed).max(self.before.load(Ordering::Relaxed))
    }
}

impl BatchSocket {
    /// Over `inner`, for an endpoint whose packets begin at `first_packet` bytes at most and do not
    /// grow beyond `largest_packet`.
    pub(crate) fn new(
        inner: Arc<dyn AsyncUdpSocket>,
        first_packet: u16,
        largest_packet: u16,
    ) -> Self {
        Self { inner, widest: Widest::new(first_packet.into()), limit: largest_packet.into() }
    }

    /// How many packets the system takes at once, and hands over at once.
    pub(super) fn offload(&self) -> (usize, usize) {
        (self.inner.max_transmit_segments(), self.inner.max_receive_segments())
    }
}

impl AsyncUdpSocket for BatchSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let size = transmit.segment_size.unwrap_or(transmit.contents.len());
        self.widest.note(size);
        if transmit.contents.len() <= MAX_BATCH_BYTES || size >= transmit.contents.len() {
            return self.inner.try_send(transmit);
        }
        // Packets have become larger than they were of late: nothing is lost by it.
        let mut parts = transmit.contents.chunks((MAX_BATCH_BYTES / size).max(1) * size);
        let part = |contents| Transmit { contents, ..copy(transmit) };
        if let Some(first) = parts.next() {
            self.inner.try_send(&part(first))?;
        }
        for contents in parts {
            match self.inner.try_send(&part(contents)) {
                // The first part is on its way and cannot be taken back: this one is sent again as
                // a loss is.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                sent => sent?,
            }
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let count = buffers.len().min(RECEIVED_AT_ONCE);
        self.inner.poll_recv(context, &mut buffers[..count], metas)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        let fit = MAX_BATCH_BYTES / self.widest.get().max(1);
        fit.clamp(1, self.inner.max_transmit_segments().max(1))
    }

    /// quinn takes so many times the largest packet for each buffer. A batch that the system made
    /// of several packets is no larger than one of 64 KiB.
    fn max_receive_segments(&self) -> usize {
        MAX_RECEIVED_BYTES.div_ceil(self.limit).min(self.inner.max_receive_segments())
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

fn copy<'a>(transmit: &Transmit<'a>) -> Transmit<'a> {
    let Transmit { destination, ecn, contents, segment_size, src_ip } = *transmit;
    Transmit { destination, ecn, contents, segment_size, src_ip }
}

impl fmt::Debug for BatchSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchSocket").field("inner", &self.inner).finish_non_exhaustive()
    }
}

/// Batches after which what was sent before them counts no more.
const TURN: usize = 64;
/// What an IP packet can hold.
const MAX_RECEIVED_BYTES: usize = 65_535;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Mutex;

    use super::*;
    use crate::link::quic::tuning::{Path, Traffic};

    /// Takes what Linux takes, and keeps what it took.
    #[derive(Debug, Default)]
    struct System {
        taken: Mutex<Vec<usize>>,
        room: Mutex<Option<usize>>,
    }

    impl AsyncUdpSocket for System {
        fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
            unreachable!("nothing waits")
        }

        fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
            assert!(transmit.contents.len() <= 65_507, "Linux says EMSGSIZE");
            let mut room = self.room.lock().unwrap();
            if *room == Some(0) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            *room = room.map(|room| room - 1);
            self.taken.lock().unwrap().push(transmit.contents.len());
            Ok(())
        }

        fn poll_recv(
            &self,
            _: &mut Context<'_>,
            buffers: &mut [IoSliceMut<'_>],
            _: &mut [RecvMeta],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(buffers.len()))
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok((Ipv4Addr::LOCALHOST, 0).into())
        }

        fn max_transmit_segments(&self) -> usize {
            64
        }

        fn max_receive_segments(&self) -> usize {
            64
        }
    }

    fn send(socket: &BatchSocket, packet: usize, packets: usize) -> io::Result<()> {
        let contents = vec![0; packet * packets];
        socket.try_send(&Transmit {
            destination: (Ipv4Addr::LOCALHOST, 1).into(),
            ecn: None,
            contents: &contents,
            segment_size: (packets > 1).then_some(packet),
            src_ip: None,
        })
    }

    fn over(system: &Arc<System>) -> BatchSocket {
        BatchSocket::new(system.clone(), 1_200, 8_952)
    }

    #[test]
    fn batches_shrink_as_packets_grow() {
        let socket = over(&Arc::default());
        assert_eq!(socket.max_transmit_segments(), 54);
        for (packet, segments) in [(1_472, 44), (6_550, 10), (6_551, 9), (8_952, 7), (1_200, 7)] {
            send(&socket, packet, 1).unwrap();
            assert_eq!(socket.max_transmit_segments(), segments, "{packet} bytes");
        }
    }

    #[test]
    fn batches_grow_again_once_packets_have_shrunk() {
        let socket = over(&Arc::default());
        send(&socket, 8_952, 1).unwrap();
        // Acknowledgements say nothing.
        for _ in 0..4 * TURN {
            send(&socket, 60, 1).unwrap();
        }
        assert_eq!(socket.max_transmit_segments(), 7);
        for _ in 0..2 * TURN {
            send(&socket, 1_200, 7).unwrap();
        }
        assert_eq!(socket.max_transmit_segments(), 54);
    }

    #[test]
    fn a_batch_that_is_too_large_is_sent_in_parts() {
        let system = Arc::new(System::default());
        let socket = over(&system);
        send(&socket, 8_952, 10).unwrap();
        send(&socket, 6_500, 10).unwrap();
        assert_eq!(*system.taken.lock().unwrap(), [7 * 8_952, 3 * 8_952, 65_000]);
    }

    #[test]
    fn a_socket_that_is_full_is_asked_again_only_for_what_it_has_not_begun() {
        let system = Arc::new(System::default());
        let socket = over(&system);
        *system.room.lock().unwrap() = Some(1);
        send(&socket, 8_952, 10).unwrap();
        let full = send(&socket, 8_952, 10).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(*system.taken.lock().unwrap(), [7 * 8_952]);
    }

    #[test]
    fn what_the_system_hands_over_at_once_fits_the_buffers() {
        for is_near in [true, false] {
            let largest = Path::new(Traffic::Data { lanes: 1 }, is_near, 1 << 20).largest_packet;
            let socket = BatchSocket::new(Arc::<System>::default(), 1_200, largest);
            let buffer = socket.max_receive_segments() * usize::from(largest);
            assert!(buffer >= MAX_RECEIVED_BYTES, "{buffer} bytes for {largest}");
        }
    }
}
