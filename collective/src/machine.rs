//! Executes a plan: says what to send next and what must arrive next, and is told what did.
//!
//! No clock, no socket, no thread, and never a byte of the user's data: only places and lengths.
//! Memory is one cursor per flow, whatever the number of steps, and nothing is allocated after
//! [`Machine::new`].

#[cfg(test)]
mod proof;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod symbols;

use std::ops::Range;

use crate::plan::{Action, After, Place, Plan, RELAY_SEGMENTS, Space, Step, segments};

/// One call in progress on one rank.
#[derive(Debug)]
pub(crate) struct Machine {
    plan: Plan,
    segment_elements: u64,
    /// One for each flow to a peer, sorted.
    sending: Vec<Cursor>,
    /// One for each flow from a peer, sorted.
    receiving: Vec<Cursor>,
    /// Flows with steps to be done.
    unfinished: usize,
}

/// One of the parallel flows to, or from, a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FlowKey {
    /// The rank within the communicator.
    pub(crate) peer: u32,
    pub(crate) tree: u16,
}

/// A segment to send, or one that must come next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Transfer {
    /// The how-manieth step of the flow: sender and receiver number their own steps differently,
    /// but count these alike.
    pub(crate) ordinal: u32,
    pub(crate) segment: u64,
    pub(crate) elements: u64,
    /// The step of the plan.
    #[cfg(feature = "faults")]
    pub(crate) index: u32,
    /// A send, the first of its flow, that waits for nothing that another rank has to do first.
    pub(crate) is_unprompted: bool,
    /// Its places are those of this segment.
    pub(crate) action: Action,
}

/// How far the steps of one flow have come.
#[derive(Debug)]
struct Cursor {
    flow: FlowKey,
    /// None when all steps of this flow are done.
    at: Option<Position>,
}

#[derive(Clone, Debug)]
struct Position {
    index: u32,
    ordinal: u32,
    step: Step,
    segment: u64,
    segments: u64,
    after: Option<Awaited>,
    room: Option<Awaited>,
}

/// A step that another one waits for.
#[derive(Clone, Debug)]
struct Awaited {
    index: u32,
    is_send: bool,
    /// Of its flow, among those in its direction.
    cursor: usize,
    whole: bool,
    range: Range<u64>,
}

impl Machine {
    /// `segment_elements` is at least 1, and the one the plan was made for.
    pub(crate) fn new(plan: Plan, segment_elements: u64) -> Self {
        debug_assert!(plan.opening() <= plan.len());
        let mut first: Vec<(bool, FlowKey, u32)> = (0..plan.opening())
            .map(|index| {
                let step = plan.step(index);
                (step.is_send(), step.flow(), index)
            })
            .collect();
        first.sort_unstable();
        first.dedup_by_key(|(is_send, flow, _)| (*is_send, *flow));
        let flows = |sends: bool| -> Vec<Cursor> {
            let of_direction = first.iter().filter(|(is_send, ..)| *is_send == sends);
            of_direction.map(|&(_, flow, _)| Cursor { flow, at: None }).collect()
        };
        let mut machine = Self {
            segment_elements,
            sending: flows(true),
            receiving: flows(false),
            unfinished: first.len(),
            plan,
        };
        // A step may wait for any flow, so all must be known before the first position is.
        for (is_send, flow, index) in first {
            let position = machine.position(index, 0);
            if let Some(cursor) = find(machine.cursors(is_send), flow) {
                machine.cursors_mut(is_send)[cursor].at = Some(position);
            }
        }
        machine
    }

    /// The flows this call sends on, in order.
    pub(crate) fn destinations(&self) -> impl Iterator<Item = FlowKey> {
        self.sending.iter().map(|cursor| cursor.flow)
    }

    /// The flows this call receives on, in order.
    pub(crate) fn sources(&self) -> impl Iterator<Item = FlowKey> {
        self.receiving.iter().map(|cursor| cursor.flow)
    }

    /// The next segment for `flow`, if what it depends on is there. The caller has copied it when
    /// it asks this machine anything again.
    pub(crate) fn next_send(&mut self, flow: FlowKey) -> Option<Transfer> {
        let cursor = find(&self.sending, flow)?;
        let transfer = self.ready(self.sending[cursor].at.as_ref()?)?;
        self.advance(true, cursor);
        Some(transfer)
    }

    /// What the next segment on `flow` must be, if it may be taken now. None also where nothing is
    /// expected on that flow any more.
    pub(crate) fn next_receive(&self, flow: FlowKey) -> Option<Transfer> {
        let cursor = find(&self.receiving, flow)?;
        self.ready(self.receiving[cursor].at.as_ref()?)
    }

    /// Whether anything is still to come on `flow` in this call.
    pub(crate) fn expects(&self, flow: FlowKey) -> bool {
        find(&self.receiving, flow).is_some_and(|cursor| self.receiving[cursor].at.is_some())
    }

    /// Whether anything is still to be sent on a flow.
    pub(crate) fn has_to_send(&self, flow: FlowKey) -> bool {
        find(&self.sending, flow).is_some_and(|cursor| self.sending[cursor].at.is_some())
    }

    /// The segment that `next_receive` named has arrived and is reduced or stored.
    pub(crate) fn received(&mut self, flow: FlowKey) {
        if let Some(cursor) = find(&self.receiving, flow) {
            self.advance(false, cursor);
        }
    }

    /// Whether everything has arrived and everything to be sent has been copied.
    pub(crate) fn is_done(&self) -> bool {
        self.unfinished == 0
    }

    #[cfg(feature = "faults")]
    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// How much relay memory this call needs: at most `RELAY_SEGMENTS * segment_elements`.
    pub(crate) fn relay_elements(&self) -> u64 {
        self.plan.relay_elements(self.segment_elements)
    }

    /// The segment at a position, if what it waits for is there.
    fn ready(&self, at: &Position) -> Option<Transfer> {
        let offset = at.segment * self.segment_elements;
        let length = at.step.range.end - at.step.range.start;
        let elements = (length - offset.min(length)).min(self.segment_elements);
        let end = at.step.range.start + offset + elements;
        let is_there = at.after.as_ref().is_none_or(|after| self.has_done(after, end));
        let has_room = at.room.as_ref().is_none_or(|send| self.has_room(send, at.segment));
        (is_there && has_room).then(|| Transfer {
            ordinal: at.ordinal,
            segment: at.segment,
            elements,
            #[cfg(feature = "faults")]
            index: at.index,
            is_unprompted: at.ordinal == 0
                && at.segment == 0
                && at.step.is_send()
                && at.after.is_none()
                && at.room.is_none()
                && self.plan.begins_alone(),
            action: self.at_offset(at.step.action, offset),
        })
    }

    /// Whether the elements below `end` of a step are done, or all where its whole is awaited.
    fn has_done(&self, awaited: &Awaited, end: u64) -> bool {
        let Some(at) = &self.cursors(awaited.is_send)[awaited.cursor].at else { return true };
        if at.index != awaited.index {
            return at.index > awaited.index;
        }
        // The last segment of a step is not done while its flow is still at that step. An empty
        // step has one as well.
        let done = awaited.range.start + at.segment * self.segment_elements;
        !awaited.whole && end.min(awaited.range.end) <= done && !awaited.range.is_empty()
    }

    /// Whether segment `segment` of the relay has been copied out by the send that reads it.
    fn has_room(&self, send: &Awaited, segment: u64) -> bool {
        let Some(at) = &self.sending[send.cursor].at else { return true };
        match at.index == send.index {
            true => segment < at.segment + RELAY_SEGMENTS,
            false => at.index > send.index || segment < RELAY_SEGMENTS,
        }
    }

    fn at_offset(&self, action: Action, offset: u64) -> Action {
        let moved = |place: Place| match place.space {
            Space::Input | Space::Output => Place { start: place.start + offset, ..place },
            Space::Relay => {
                let capacity = RELAY_SEGMENTS * self.segment_elements;
                Place { start: (place.start + offset) % capacity, ..place }
            }
        };
        match action {
            Action::Send { from } => Action::Send { from: moved(from) },
            Action::Store { into } => Action::Store { into: moved(into) },
            Action::Reduce { local, into, incoming_raw, last } => {
                Action::Reduce { local: moved(local), into: moved(into), incoming_raw, last }
            }
        }
    }

    fn advance(&mut self, is_send: bool, cursor: usize) {
        let Some(at) = &mut self.cursors_mut(is_send)[cursor].at else { return };
        at.segment += 1;
        if at.segment < at.segments {
            return;
        }
        let (index, ordinal) = (at.index, at.ordinal);
        let next = self.plan.next_on_flow(index);
        let position = next.map(|index| self.position(index, ordinal + 1));
        self.unfinished -= usize::from(position.is_none());
        self.cursors_mut(is_send)[cursor].at = position;
    }

    /// The beginning of step `index`.
    fn position(&self, index: u32, ordinal: u32) -> Position {
        let step = self.plan.step(index);
        let after = match step.after {
            After::Nothing => None,
            After::Segment(index) => self.awaited(index, false),
            After::Whole(index) => self.awaited(index, true),
        };
        let room = step.room.and_then(|index| self.awaited(index, false));
        let segments = segments(step.range.end - step.range.start, self.segment_elements);
        Position { index, ordinal, step, segment: 0, segments, after, room }
    }

    fn awaited(&self, index: u32, whole: bool) -> Option<Awaited> {
        let step = self.plan.step(index);
        let is_send = step.is_send();
        let cursor = find(self.cursors(is_send), step.flow())?;
        Some(Awaited { index, is_send, cursor, whole, range: step.range })
    }

    fn cursors(&self, sending: bool) -> &[Cursor] {
        if sending { &self.sending } else { &self.receiving }
    }

    fn cursors_mut(&mut self, sending: bool) -> &mut [Cursor] {
        if sending { &mut self.sending } else { &mut self.receiving }
    }
}

impl Step {
    fn flow(&self) -> FlowKey {
        FlowKey { peer: self.peer, tree: self.tree }
    }
}

fn find(cursors: &[Cursor], flow: FlowKey) -> Option<usize> {
    cursors.binary_search_by_key(&flow, |cursor| cursor.flow).ok()
}
