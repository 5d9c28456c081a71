//! Writing tasks: one for each flow to a peer.

use std::rc::Rc;

use bytes::Bytes;

use super::Driver;
use super::reading::{byte_range, flow};
use crate::wire::{Header, MessageKind};

impl Driver {
    /// Opens the flow to `to` and writes what the machine has for it, until closing or a verdict.
    pub(super) async fn write_flow(self: Rc<Self>, to: u32) {
        let written = self.write_messages(to).await;
        self.unanswered.set(self.unanswered.get() - 1);
        self.changed.notify_waiters();
        if let Err(problem) = written {
            self.link_failed(to, problem).await;
        }
    }

    async fn write_messages(&self, to: u32) -> Result<(), String> {
        let mut flow = self.links.open_flow(to).await?;
        loop {
            let changed = self.changed.notified();
            if self.world.error().is_some() {
                return Ok(());
            }
            if let Some(message) = self.next_message(to) {
                flow.write(message).await?;
                // A write into an open window completes at once: let the connection send, and the
                // readers read, before the next segment is copied.
                tokio::task::yield_now().await;
                continue;
            }
            if self.closing.get() {
                flow.write(self.goodbye()).await?;
                flow.answered().await;
                return Ok(());
            }
            changed.await;
        }
    }

    /// The next segment for `to`, copied into one message with its header; None if there is none
    /// yet.
    fn next_message(&self, to: u32) -> Option<Bytes> {
        let message = {
            let mut slot = self.active.borrow_mut();
            let active = slot.as_mut()?;
            let call = &mut active.call;
            let transfer = call.machine.next_send(flow(to))?;
            let payload = call.buffer.bytes(byte_range(&transfer, &call.contract));
            let contract = call.contract.to_wire();
            // A stream's first message of a call carries the contract.
            let (contract, location): (&[u8], &[u8]) = if active.told.insert(to) {
                (&contract, call.location.as_bytes())
            } else {
                (&[], &[])
            };
            let header = Header {
                kind: MessageKind::Segment,
                contract_bytes: (contract.len() + location.len()) as u16,
                payload_bytes: payload.len() as u32,
                epoch: self.world.epoch,
                sequence: call.contract.sequence,
                hash: call.hash,
                segment: transfer.segment,
                step: transfer.ordinal,
            };
            self.pool.borrow_mut().message(&[&header.to_wire(), contract, location, payload])
        };
        self.progressed();
        Some(message)
    }

    fn goodbye(&self) -> Bytes {
        let (calls, hash) = self.world.calls();
        let header = Header {
            kind: MessageKind::Goodbye,
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
