//! Decides what becomes of a message that has arrived, by its header. Pure.

use crate::contract::Contract;
use crate::machine::{FlowKey, Machine, Transfer};
use crate::wire::Header;

/// What is to be done with the message that a header announces.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Its call is not under way yet, or has no place for it yet.
    Wait,
    /// Take it: it is this segment.
    Take(Transfer),
    /// Nobody awaits it. Either its call was made otherwise here, which the histories show, or the
    /// peer does not keep to the protocol.
    Unexpected(String),
}

/// The call under way, as far as a message can fit it or not.
pub(crate) struct Underway<'a> {
    pub(crate) contract: &'a Contract,
    /// The rolling hash after it.
    pub(crate) hash: u64,
    pub(crate) machine: &'a Machine,
}

impl Underway<'_> {
    /// What to do with the next message of `flow`. Only one whose sender made this call, and all
    /// calls before it, alike is ever taken.
    pub(crate) fn admit(&self, flow: FlowKey, header: &Header) -> Admission {
        if header.sequence > self.contract.sequence {
            return Admission::Wait;
        }
        if header.sequence < self.contract.sequence || header.hash != self.hash {
            return unexpected(header);
        }
        if !self.machine.expects(flow) {
            return unexpected(header);
        }
        let Some(transfer) = self.machine.next_receive(flow) else {
            return Admission::Wait;
        };
        let bytes = transfer.elements * self.contract.element.size() as u64;
        let awaited = (transfer.ordinal, transfer.segment, bytes);
        if (header.step, header.segment, u64::from(header.payload_bytes)) != awaited {
            return unexpected(header);
        }
        Admission::Take(transfer)
    }
}

fn unexpected(header: &Header) -> Admission {
    let Header { sequence, step, segment, .. } = header;
    Admission::Unexpected(format!(
        "segment {segment} of step {step} of call #{sequence}, which nobody awaits"
    ))
}
