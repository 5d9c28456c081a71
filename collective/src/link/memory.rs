//! Links between the ranks of one process: for tests, and for the tests of programs that use
//! allfold.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{Flow, FlowReceiver, FlowSender, Incoming};

/// The inboxes of all ranks of one process.
pub(crate) struct Hub {
    inboxes: Vec<mpsc::UnboundedSender<Incoming>>,
}

/// One rank's end of the hub.
pub(crate) struct MemoryLinks {
    rank: u32,
    hub: Arc<Hub>,
    inbox: tokio::sync::Mutex<mpsc::UnboundedReceiver<Incoming>>,
}

impl Hub {
    /// The links of `size` ranks, in order.
    pub(crate) fn links(size: u32) -> Vec<MemoryLinks> {
        let (inboxes, receivers): (Vec<_>, Vec<_>) =
            (0..size).map(|_| mpsc::unbounded_channel()).unzip();
        let hub = Arc::new(Hub { inboxes });
        receivers
            .into_iter()
            .zip(0..)
            .map(|(inbox, rank)| MemoryLinks {
                rank,
                hub: hub.clone(),
                inbox: tokio::sync::Mutex::new(inbox),
            })
            .collect()
    }
}

impl MemoryLinks {
    pub(crate) fn open_flow(&self, flow: Flow) -> Result<FlowSender, String> {
        let (sender, receiver) = mpsc::channel(WINDOW_MESSAGES);
        let flow_there = Flow { peer: self.rank, ..flow };
        let incoming = Incoming { flow: flow_there, receiver: FlowReceiver::memory(receiver) };
        let inbox = self.hub.inboxes.get(flow.peer as usize).ok_or("no such rank")?;
        inbox.send(incoming).map_err(|_| "its lane has ended".to_string())?;
        Ok(FlowSender::Memory(Sender(sender)))
    }

    pub(crate) async fn next_incoming(&self) -> Option<Incoming> {
        self.inbox.lock().await.recv().await
    }
}

/// The sending end of a flow within the process.
pub(crate) struct Sender(mpsc::Sender<Bytes>);

impl Sender {
    pub(crate) async fn write(&mut self, message: Bytes) -> Result<(), String> {
        self.0.send(message).await.map_err(|_| "its reader has ended".to_string())
    }

    pub(crate) async fn answered(&mut self) {
        self.0.closed().await;
    }
}

/// Messages on their way in one flow: a window as small as the ones that find deadlocks.
const WINDOW_MESSAGES: usize = 4;
