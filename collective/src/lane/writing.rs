//! Writing tasks: one for each flow to a peer.

use std::rc::Rc;

use bytes::Bytes;

use super::Driver;
use crate::link::Flow;
use crate::machine::FlowKey;
use crate::wire::{Header, MessageKind};

impl Driver {
    /// Opens a flow and writes what the machines have for it, until closing or a verdict.
    pub(super) async fn write_flow(self: Rc<Self>, flow: Flow, key: FlowKey) {
        let written = self.write_messages(flow, key).await;
        self.unanswered.set(self.unanswered.get() - 1);
        self.forget_writer(flow);
        self.changed.notify_waiters();
        if let Err(problem) = written {
            self.link_failed(flow.peer, problem).await;
        }
    }

    fn forget_writer(&self, flow: Flow) {
        let mut writers = self.writers.borrow_mut();
        writers.remove(&flow);
        if !writers.iter().any(|other| other.group == flow.group) {
            self.goodbyes.borrow_mut().remove(&flow.group);
        }
    }

    async fn write_messages(self: &Rc<Self>, flow: Flow, key: FlowKey) -> Result<(), String> {
        let mut sender = self.links.open_flow(flow).await?;
        loop {
            let changed = self.changed.notified();
            if self.world.error().is_some() {
                return Ok(());
            }
            if let Some(message) = self.next_message(flow, key) {
                sender.write(message).await?;
                // A write into an open window completes at once: let the connection send, and the
                // readers read, before the next segment is copied.
                tokio::task::yield_now().await;
                continue;
            }
            let goodbye = self.goodbyes.borrow().get(&flow.group).copied();
            let goodbye =
                goodbye.or(self.closing.get().then(|| self.world.calls(flow.group)).flatten());
            if let Some((calls, hash)) = goodbye {
                // One that has left meanwhile needs no goodbye.
                if sender.write(self.goodbye(calls, hash)).await.is_ok() {
                    sender.finish();
                    sender.answered().await;
                }
                return Ok(());
            }
            changed.await;
        }
    }

    /// The next segment of a flow, copied into one message with its header; None if there is none
    /// yet.
    fn next_message(self: &Rc<Self>, flow: Flow, key: FlowKey) -> Option<Bytes> {
        let message = {
            let mut all = self.calls.borrow_mut();
            let active = all.get_mut(&flow.group)?.active.as_mut()?;
            let mut pool = self.pool.borrow_mut();
            active.call.next_message(key, self.world.epoch, |parts| pool.message(parts))?
        };
        self.world.counters.sent(flow.peer, message.len());
        self.progressed(flow.group);
        Some(message)
    }

    fn goodbye(&self, calls: u64, hash: u64) -> Bytes {
        let header = Header {
            kind: MessageKind::Goodbye,
            is_unprompted: false,
            contract_bytes: 0,
            payload_bytes: 0,
            epoch: self.world.epoch,
            sequence: calls,
            hash,
            segment: 0,
            step: 0,
        };
        self.pool.borrow_mut().message(&[&header.to_wire()])
    }
}
