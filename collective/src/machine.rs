//! Executes a plan: says what to send next and what must arrive next, and is told what did.
//!
//! No clock, no socket, no thread, and never a byte of the user's data: only ranges. Memory is one
//! cursor per peer, whatever the number of steps.

use std::ops::Range;

use crate::plan::{self, Action, Plan, Step};

/// One call in progress on one rank.
#[derive(Debug)]
pub(crate) struct Machine {
    plan: Plan,
    segment_elements: u64,
    sending: Vec<Cursor>,
    receiving: Vec<Cursor>,
}

/// A segment to send, or one that must come next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Transfer {
    /// The how-manieth step between the two ranks in this direction: sender and receiver number
    /// their own steps differently, but count these alike.
    pub(crate) ordinal: u32,
    pub(crate) segment: u64,
    pub(crate) action: Action,
    /// Elements of the user's buffer.
    pub(crate) range: Range<u64>,
}

/// How far the steps with one peer, in one direction, have come.
#[derive(Debug)]
struct Cursor {
    peer: u32,
    /// None when all steps with this peer are done.
    at: Option<Position>,
}

#[derive(Debug)]
struct Position {
    index: u32,
    ordinal: u32,
    step: Step,
    segment: u64,
}

impl Machine {
    pub(crate) fn new(plan: Plan, segment_elements: u64) -> Self {
        let sending = plan.destinations().map(|peer| Cursor::first(&plan, peer, true)).collect();
        let receiving = plan.sources().map(|peer| Cursor::first(&plan, peer, false)).collect();
        Self { plan, segment_elements, sending, receiving }
    }

    /// The ranks this call sends to.
    pub(crate) fn destinations(&self) -> impl Iterator<Item = u32> {
        self.sending.iter().map(|cursor| cursor.peer)
    }

    /// The ranks this call receives from.
    pub(crate) fn sources(&self) -> impl Iterator<Item = u32> {
        self.receiving.iter().map(|cursor| cursor.peer)
    }

    /// The next segment for `peer`, if what it depends on is there. The caller has copied it when
    /// it asks again.
    pub(crate) fn next_send(&mut self, peer: u32) -> Option<Transfer> {
        let cursor = self.sending.iter().position(|c| c.peer == peer)?;
        let at = self.sending[cursor].at.as_ref()?;
        if !self.is_ready(at) {
            return None;
        }
        let transfer = self.transfer(at);
        self.sending[cursor].advance(&self.plan, self.segment_elements, true);
        Some(transfer)
    }

    /// What the next segment from `peer` must be, if it may be taken now. None also where nothing
    /// is expected from that rank any more.
    pub(crate) fn next_receive(&self, peer: u32) -> Option<Transfer> {
        let at = self.receiving.iter().find(|c| c.peer == peer)?.at.as_ref()?;
        self.is_ready(at).then(|| self.transfer(at))
    }

    /// Whether anything is still to come from `peer` in this call.
    pub(crate) fn expects(&self, peer: u32) -> bool {
        self.receiving.iter().any(|c| c.peer == peer && c.at.is_some())
    }

    /// The segment that `next_receive` named has arrived and is reduced or stored.
    pub(crate) fn received(&mut self, peer: u32) {
        if let Some(cursor) = self.receiving.iter_mut().find(|c| c.peer == peer) {
            cursor.advance(&self.plan, self.segment_elements, false);
        }
    }

    /// Whether everything has arrived and everything to be sent has been copied.
    pub(crate) fn is_done(&self) -> bool {
        self.sending.iter().chain(&self.receiving).all(|c| c.at.is_none())
    }

    fn is_ready(&self, at: &Position) -> bool {
        let Some(after) = at.step.after else {
            return true;
        };
        let source = self.plan.step(after).peer;
        self.receiving.iter().filter(|c| c.peer == source).all(|c| match &c.at {
            None => true,
            Some(p) => p.index > after || (p.index == after && p.segment > at.segment),
        })
    }

    fn transfer(&self, at: &Position) -> Transfer {
        Transfer {
            ordinal: at.ordinal,
            segment: at.segment,
            action: at.step.action,
            range: plan::segment(&at.step.range, self.segment_elements, at.segment),
        }
    }
}

impl Cursor {
    fn first(plan: &Plan, peer: u32, sending: bool) -> Self {
        Self { peer, at: find_step(plan, 0, 0, peer, sending) }
    }

    fn advance(&mut self, plan: &Plan, segment_elements: u64, sending: bool) {
        let Some(at) = &mut self.at else { return };
        let length = at.step.range.end - at.step.range.start;
        at.segment += 1;
        if at.segment >= plan::segments(length, segment_elements) {
            self.at = find_step(plan, at.index + 1, at.ordinal + 1, self.peer, sending);
        }
    }
}

/// The first step from `index` on that sends to, or receives from, `peer`.
fn find_step(plan: &Plan, index: u32, ordinal: u32, peer: u32, sending: bool) -> Option<Position> {
    (index..plan.len()).find_map(|index| {
        let step = plan.step(index);
        let matches = step.peer == peer && (step.action == Action::Send) == sending;
        matches.then_some(Position { index, ordinal, step, segment: 0 })
    })
}
