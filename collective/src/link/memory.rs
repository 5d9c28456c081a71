//! Links between the ranks of one process: for tests, and for the tests of programs that use
//! allfold.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};

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
        let (sender, receiver) = pipe();
        let flow_there = Flow { peer: self.rank, ..flow };
        let incoming = Incoming { flow: flow_there, receiver: FlowReceiver::memory(receiver) };
        let inbox = self.hub.inboxes.get(flow.peer as usize).ok_or("no such rank")?;
        inbox.send(incoming).map_err(|_| "its lane has ended".to_string())?;
        Ok(FlowSender::Memory(sender))
    }

    pub(crate) async fn next_incoming(&self) -> Option<Incoming> {
        self.inbox.lock().await.recv().await
    }
}

/// The sending end of a flow within the process.
pub(crate) struct Sender(Arc<Pipe>);

/// The receiving end of a flow within the process.
pub(crate) struct Receiver(Arc<Pipe>);

/// What lies between the two. A channel of tokio's would allocate as messages pass.
struct Pipe {
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    messages: VecDeque<Bytes>,
    sender_gone: bool,
    receiver_gone: bool,
}

fn pipe() -> (Sender, Receiver) {
    let messages = VecDeque::with_capacity(WINDOW_MESSAGES);
    let state = Mutex::new(State { messages, sender_gone: false, receiver_gone: false });
    let pipe = Arc::new(Pipe { state, changed: Notify::new() });
    (Sender(pipe.clone()), Receiver(pipe))
}

impl Pipe {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `ready` says something of the state, and wakes the other end.
    async fn when<T>(&self, mut ready: impl FnMut(&mut State) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            let done = ready(&mut self.lock());
            if let Some(done) = done {
                self.changed.notify_waiters();
                return done;
            }
            changed.await;
        }
    }
}

impl Sender {
    pub(crate) async fn write(&mut self, message: Bytes) -> Result<(), String> {
        let mut message = Some(message);
        let written = |state: &mut State| {
            if state.receiver_gone {
                return Some(Err("its reader has ended".to_string()));
            }
            if state.messages.len() == WINDOW_MESSAGES {
                return None;
            }
            state.messages.extend(message.take());
            Some(Ok(()))
        };
        self.0.when(written).await
    }

    pub(crate) async fn answered(&mut self) {
        self.0.when(|state| state.receiver_gone.then_some(())).await;
    }
}

impl Receiver {
    /// The next message; None if no more can come.
    pub(crate) async fn receive(&mut self) -> Option<Bytes> {
        let next = |state: &mut State| match state.messages.pop_front() {
            Some(message) => Some(Some(message)),
            None => state.sender_gone.then_some(None),
        };
        self.0.when(next).await
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.lock().sender_gone = true;
        self.0.changed.notify_waiters();
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.receiver_gone = true;
        state.messages.clear();
        drop(state);
        self.0.changed.notify_waiters();
    }
}

/// Messages on their way in one flow: a window as small as the ones that find deadlocks.
const WINDOW_MESSAGES: usize = 4;
