//! Links to peers and the flows on them: the same interface over QUIC and within a process.
//!
//! A flow is one direction between two ranks: bytes in order. The lane reads and writes flows and
//! knows nothing of what carries them.

pub(crate) mod memory;
pub(crate) mod quic;
pub(crate) mod shared_memory;

use std::collections::VecDeque;
use std::time::Instant;

use bytes::{Buf, Bytes};

/// The links of one lane.
pub(crate) enum Links {
    Quic(quic::QuicLinks),
    Memory(memory::MemoryLinks),
}

/// Which flow it is between two ranks, in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Flow {
    /// The rank of the world at the other end; on an incoming flow it was checked when the link
    /// was made.
    pub(crate) peer: u32,
    /// The communicator, or the pair.
    pub(crate) group: u64,
    /// Which of the parallel flows that one plan uses.
    pub(crate) tree: u16,
}

/// A flow from a peer.
pub(crate) struct Incoming {
    pub(crate) flow: Flow,
    pub(crate) receiver: FlowReceiver,
}

impl Links {
    /// Opens a flow to a peer, and the link under it if there is none yet. Waits as long as the
    /// peer takes: whether it is late or dead is not judged here.
    pub(crate) async fn open_flow(&self, flow: Flow) -> Result<FlowSender, String> {
        match self {
            Links::Quic(links) => links.open_flow(flow).await,
            Links::Memory(links) => links.open_flow(flow),
        }
    }

    /// Makes sure that a link to `peer` comes to be, without waiting for it.
    pub(crate) fn want(&self, peer: u32) {
        match self {
            Links::Quic(links) => links.want(peer),
            Links::Memory(_) => {}
        }
    }

    /// The next flow that a peer opened; None when no more can come.
    pub(crate) async fn next_incoming(&self) -> Option<Incoming> {
        match self {
            Links::Quic(links) => links.next_incoming().await,
            Links::Memory(links) => links.next_incoming().await,
        }
    }

    /// Tells how every link is.
    pub(crate) fn each_state(&self, each: &mut dyn FnMut(LinkState<'_>)) {
        match self {
            Links::Quic(links) => links.each_state(each),
            // They cannot break.
            Links::Memory(_) => {}
        }
    }

    /// Warns if packets are lost for want of a buffer.
    pub(crate) fn look_for_drops(&self) {
        if let Links::Quic(links) = self {
            links.look_for_drops();
        }
    }

    /// Closes all links, telling the peers that nothing more comes.
    pub(crate) async fn close(&self) {
        match self {
            Links::Quic(links) => links.close().await,
            Links::Memory(_) => {}
        }
    }
}

/// How the link to one peer is.
pub(crate) enum LinkState<'a> {
    /// So many packets have come over it.
    Open { peer: u32, received: u64 },
    /// This rank has tried to dial the peer since then.
    Dialling { peer: u32, since: Instant, problem: &'a str },
}

impl LinkState<'_> {
    pub(crate) fn peer(&self) -> u32 {
        match self {
            LinkState::Open { peer, .. } | LinkState::Dialling { peer, .. } => *peer,
        }
    }
}

/// The sending end of a flow.
pub(crate) enum FlowSender {
    Quic(quinn::SendStream),
    Memory(memory::Sender),
}

impl FlowSender {
    /// Hands over one message; waits while the window is full.
    pub(crate) async fn write(&mut self, message: Bytes) -> Result<(), String> {
        match self {
            FlowSender::Quic(stream) => {
                stream.write_chunk(message).await.map_err(|error| error.to_string())
            }
            FlowSender::Memory(sender) => sender.write(message).await,
        }
    }

    /// Nothing more comes on this flow after what was written.
    pub(crate) fn finish(&mut self) {
        if let FlowSender::Quic(stream) = self {
            let _ = stream.finish();
        }
    }

    /// Waits until the peer's reader has read the goodbye, or its end is gone.
    pub(crate) async fn answered(&mut self) {
        match self {
            FlowSender::Quic(stream) => {
                let _ = stream.stopped().await;
            }
            FlowSender::Memory(sender) => sender.answered().await,
        }
    }
}

/// The receiving end of a flow.
pub(crate) struct FlowReceiver {
    source: Source,
    /// Read and not yet taken.
    pieces: VecDeque<Bytes>,
}

enum Source {
    Quic(quinn::RecvStream),
    Memory(memory::Receiver),
}

impl FlowReceiver {
    pub(crate) fn quic(stream: quinn::RecvStream) -> Self {
        Self { source: Source::Quic(stream), pieces: VecDeque::new() }
    }

    pub(crate) fn memory(receiver: memory::Receiver) -> Self {
        Self { source: Source::Memory(receiver), pieces: VecDeque::new() }
    }

    /// The next bytes, at least one and at most `limit`, as they arrived; no copy.
    pub(crate) async fn piece(&mut self, limit: usize) -> Result<Bytes, FlowEnd> {
        if self.pieces.is_empty() {
            self.fill().await?;
        }
        let Some(first) = self.pieces.front_mut() else {
            return Err(FlowEnd::Finished);
        };
        if first.len() > limit {
            return Ok(first.split_to(limit));
        }
        Ok(self.pieces.pop_front().unwrap_or_default())
    }

    /// Exactly the bytes of `into`.
    pub(crate) async fn exact(&mut self, into: &mut [u8]) -> Result<(), FlowEnd> {
        let mut filled = 0;
        while filled < into.len() {
            let mut piece = self.piece(into.len() - filled).await?;
            let length = piece.len();
            piece.copy_to_slice(&mut into[filled..filled + length]);
            filled += length;
        }
        Ok(())
    }

    /// Tells the peer that its goodbye has been read.
    pub(crate) fn answer(mut self) {
        if let Source::Quic(stream) = &mut self.source {
            let _ = stream.stop(GOODBYE_READ.into());
        }
        // Dropping the memory flow's receiver is its answer.
    }

    async fn fill(&mut self) -> Result<(), FlowEnd> {
        match &mut self.source {
            Source::Quic(stream) => {
                let mut pieces = [const { Bytes::new() }; PIECES_AT_ONCE];
                match stream.read_chunks(&mut pieces).await {
                    Ok(Some(count)) => self.pieces.extend(pieces.into_iter().take(count)),
                    Ok(None) => return Err(FlowEnd::Finished),
                    Err(error) => return Err(FlowEnd::Failed(error.to_string())),
                }
            }
            Source::Memory(receiver) => match receiver.receive().await {
                Some(piece) => self.pieces.push_back(piece),
                None => return Err(FlowEnd::Finished),
            },
        }
        self.pieces.retain(|piece| !piece.is_empty());
        Ok(())
    }
}

/// Why no more bytes come.
#[derive(Debug)]
pub(crate) enum FlowEnd {
    Finished,
    Failed(String),
}

/// Packets taken from quinn under one lock: at 1,452 bytes each three quarters of a segment.
const PIECES_AT_ONCE: usize = 32;
/// The code with which a reader answers a goodbye.
const GOODBYE_READ: u32 = 1;
