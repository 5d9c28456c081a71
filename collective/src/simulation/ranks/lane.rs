//! A simulated lane: the driver's queue and its reading and writing tasks, over simulated flows.
//! What they decide is the library's: [`ActiveCall`], [`World::compare`] and the machine.

use std::collections::{BTreeMap, VecDeque};

use super::Event;
use super::wires::{DataFlow, Wires};
use crate::active::{ActiveCall, Taken};
use crate::buffer::{CallMemory, Lent};
use crate::contract::Contract;
use crate::group::{Begun, Planned};
use crate::machine::{FlowKey, Machine};
use crate::simulation::{FlowId, MILLISECOND};
use crate::verdict::Fault;
use crate::wire::{self, HEADER_BYTES, Header, MessageKind};
use crate::world::{Goodbye, WHOLE_WORLD, World};

pub(super) struct Lane {
    rank: u32,
    calls: BTreeMap<u64, Calls>,
    writers: BTreeMap<DataFlow, Writer>,
    readers: BTreeMap<DataFlow, Reader>,
    /// Closed communicators whose flows still have to say goodbye.
    goodbyes: BTreeMap<u64, (u64, u64)>,
    closing: bool,
    /// Flows that have not had their goodbye answered.
    pub(super) unanswered: usize,
    /// Segments sent and received.
    pub(super) moved: u64,
    /// Calls that have ended: communicator, sequence.
    pub(super) ended: Vec<(u64, u64)>,
    /// The rolling hash after each call made here.
    hashes: BTreeMap<(u64, u64), u64>,
    /// In so many of a thousand cases, a task is late or a segment arrives in two parts.
    pub(super) hesitates: u32,
}

#[derive(Default)]
struct Calls {
    active: Option<ActiveCall>,
    queue: VecDeque<Call>,
    /// A task of this communicator is to be looked after later.
    hesitating: bool,
}

struct Call {
    planned: Planned,
    lent: Lent,
    segment: u64,
}

struct Writer {
    flow: FlowId,
    key: FlowKey,
    /// It has said goodbye.
    done: bool,
    /// Its goodbye was read, or its reader is gone.
    answered: bool,
    gone: bool,
}

struct Reader {
    flow: FlowId,
    inbox: VecDeque<Vec<u8>>,
    /// What is still to come of the segment that is arriving.
    rest: Option<Vec<u8>>,
}

impl Lane {
    pub(super) fn new(rank: u32) -> Self {
        Self {
            rank,
            calls: BTreeMap::new(),
            writers: BTreeMap::new(),
            readers: BTreeMap::new(),
            goodbyes: BTreeMap::new(),
            closing: false,
            unanswered: 0,
            moved: 0,
            ended: Vec::new(),
            hashes: BTreeMap::new(),
            hesitates: 0,
        }
    }

    /// Takes a call in; it begins when all before it on its communicator have ended.
    pub(super) fn queue(
        &mut self,
        world: &World,
        wires: &mut Wires,
        planned: Planned,
        lent: Lent,
        segment: u64,
    ) {
        let Contract { group, sequence, .. } = planned.begun.contract;
        self.hashes.insert((group, sequence), planned.begun.hash);
        self.calls.entry(group).or_default().queue.push_back(Call { planned, lent, segment });
        self.pump(world, wires, group);
    }

    pub(super) fn is_busy(&self) -> bool {
        self.calls.values().any(|calls| calls.active.is_some())
    }

    /// Whether a call under way awaits anything from a rank.
    pub(super) fn awaits(&self, peer: u32) -> bool {
        self.calls.values().filter_map(|calls| calls.active.as_ref()).any(|active| {
            let place = active.members.iter().position(|member| *member == peer);
            let place = place.map(|place| place as u32);
            place.is_some_and(|peer| {
                [0, 1].iter().any(|&tree| active.expects(FlowKey { peer, tree }))
            })
        })
    }

    /// A message has arrived on a flow.
    pub(super) fn arrived(
        &mut self,
        world: &World,
        wires: &mut Wires,
        (id, flow): (FlowId, DataFlow),
        message: Vec<u8>,
    ) {
        let new = || Reader { flow: id, inbox: VecDeque::new(), rest: None };
        self.readers.entry(flow).or_insert_with(new).inbox.push_back(message);
        self.pump(world, wires, flow.group);
    }

    /// The second part of a segment arrives.
    pub(super) fn rest_arrived(&mut self, world: &World, wires: &mut Wires, flow: DataFlow) {
        let reader = self.readers.get_mut(&flow);
        let Some(rest) = reader.and_then(|reader| reader.rest.take()) else { return };
        if world.verdict().is_none() {
            let key = FlowKey { peer: place(world, flow).unwrap_or(0), tree: flow.tree };
            self.complete(wires, flow, key, &rest);
            self.pump(world, wires, flow.group);
        }
    }

    /// A task that hesitated goes on.
    pub(super) fn wake(&mut self, world: &World, wires: &mut Wires, group: u64) {
        self.calls.entry(group).or_default().hesitating = false;
        self.pump(world, wires, group);
    }

    pub(super) fn say_goodbye(&mut self, world: &World, wires: &mut Wires, words: &[Goodbye]) {
        for goodbye in words {
            self.goodbyes.insert(goodbye.group, (goodbye.calls, goodbye.hash));
            self.pump(world, wires, goodbye.group);
        }
    }

    /// Says goodbye on all flows.
    pub(super) fn close(&mut self, world: &World, wires: &mut Wires) {
        self.closing = true;
        let mut groups: Vec<u64> = self.writers.keys().map(|flow| flow.group).collect();
        groups.dedup();
        groups.into_iter().for_each(|group| self.pump(world, wires, group));
    }

    /// The goodbye on a flow was read.
    pub(super) fn answered(&mut self, flow: DataFlow) {
        if let Some(writer) = self.writers.get_mut(&flow)
            && !std::mem::replace(&mut writer.answered, true)
        {
            self.unanswered -= 1;
        }
    }

    /// A rank has closed its links.
    pub(super) fn peer_closed(&mut self, world: &World, wires: &mut Wires, peer: u32) {
        let flows: Vec<DataFlow> =
            self.writers.keys().filter(|flow| flow.to == peer).copied().collect();
        for flow in flows {
            let said_goodbye = self.writers.get_mut(&flow).is_some_and(|writer| {
                writer.gone = true;
                writer.done
            });
            if said_goodbye {
                self.answered(flow);
            }
            self.pump(world, wires, flow.group);
        }
    }

    /// There is a verdict: lets go of all calls and their memory.
    pub(super) fn abort(&mut self, world: &World) {
        for (group, calls) in std::mem::take(&mut self.calls) {
            let open = usize::from(calls.active.is_some()) + calls.queue.len();
            (0..open).for_each(|_| world.end_call(group));
        }
    }

    /// Lets the tasks of a communicator do what they can, in an order drawn from the seed.
    pub(super) fn pump(&mut self, world: &World, wires: &mut Wires, group: u64) {
        let mut moved = true;
        while std::mem::take(&mut moved) && world.verdict().is_none() {
            self.advance(world, wires, group);
            let writers: Vec<DataFlow> = of_group(&self.writers, group).collect();
            let readers: Vec<DataFlow> = of_group(&self.readers, group).collect();
            let tasks = writers.len() + readers.len();
            let first = wires.scheduler.random().below(tasks as u64) as usize;
            for task in (0..tasks).map(|task| (task + first) % tasks) {
                if wires.chance(self.hesitates) {
                    self.hesitate(wires, group);
                    continue;
                }
                moved |= match task.checked_sub(writers.len()) {
                    None => self.write(world, wires, writers[task]),
                    Some(reader) => self.read(world, wires, readers[reader]),
                };
                if world.verdict().is_some() {
                    return;
                }
            }
        }
    }

    /// Looks after this communicator again later.
    fn hesitate(&mut self, wires: &mut Wires, group: u64) {
        let calls = self.calls.entry(group).or_default();
        if !std::mem::replace(&mut calls.hesitating, true) {
            let delay = wires.scheduler.random().within(1..=LONGEST_HESITATION);
            wires.scheduler.after(delay, Event::Wake(self.rank, group));
        }
    }

    /// Ends the communicator's call if it is done, and begins the next.
    fn advance(&mut self, world: &World, wires: &mut Wires, group: u64) {
        loop {
            let Some(calls) = self.calls.get_mut(&group) else { return };
            match &calls.active {
                Some(active) if !active.is_done() => return,
                Some(active) => {
                    self.ended.push((group, active.contract.sequence));
                    calls.active = None;
                    world.end_call(group);
                }
                None => match calls.queue.pop_front() {
                    Some(call) => {
                        let active = self.activate(wires, call);
                        self.calls.entry(group).or_default().active = Some(active);
                    }
                    None => return,
                },
            }
        }
    }

    fn activate(&mut self, wires: &mut Wires, call: Call) -> ActiveCall {
        let Call { planned: Planned { begun, plan, members }, lent, segment } = call;
        let Begun { contract, hash, .. } = begun;
        let machine = Machine::new(plan, segment);
        for key in machine.destinations() {
            let to = members[key.peer as usize];
            let flow = DataFlow { group: contract.group, from: self.rank, to, tree: key.tree };
            if !self.writers.contains_key(&flow) {
                self.unanswered += 1;
                self.writers.insert(
                    flow,
                    Writer {
                        flow: wires.open(flow),
                        key,
                        done: false,
                        answered: false,
                        gone: false,
                    },
                );
            }
        }
        let element_bytes = contract.element.size();
        let relay = vec![0; machine.relay_elements() as usize * element_bytes];
        let memory = CallMemory::new(lent, relay, element_bytes);
        ActiveCall::new(contract, "program".into(), hash, members, machine, memory)
    }

    /// One message of a writing task; false if it can do nothing.
    fn write(&mut self, world: &World, wires: &mut Wires, flow: DataFlow) -> bool {
        let Some(&Writer { flow: id, key, done, gone, .. }) = self.writers.get(&flow) else {
            return false;
        };
        if done || !gone && !wires.network.can_send(id) {
            return false;
        }
        let active = self.calls.get_mut(&flow.group).and_then(|calls| calls.active.as_mut());
        let message = active.and_then(|a| a.next_message(key, world.epoch, |parts| parts.concat()));
        if let Some(message) = message {
            if gone {
                // What the driver's `link_failed` waits before it raises a verdict.
                wires.scheduler.after(LINK_GRACE, Event::Broken(self.rank, flow.to));
                return false;
            }
            wires.send_data(id, message);
            self.moved += 1;
            return true;
        }
        let goodbye = self.goodbyes.get(&flow.group).copied();
        let goodbye = goodbye.or_else(|| self.closing.then(|| world.calls(flow.group)).flatten());
        let Some((calls, hash)) = goodbye else { return false };
        let header = Header {
            kind: MessageKind::Goodbye,
            is_unprompted: false,
            contract_bytes: 0,
            payload_bytes: 0,
            epoch: world.epoch,
            sequence: calls,
            hash,
            segment: 0,
            step: 0,
        };
        if let Some(writer) = self.writers.get_mut(&flow) {
            writer.done = true;
        }
        if gone {
            self.answered(flow);
        } else {
            wires.send_data(id, header.to_wire().to_vec());
        }
        true
    }

    /// Takes the next message of a reading task; false if it can do nothing.
    fn read(&mut self, world: &World, wires: &mut Wires, flow: DataFlow) -> bool {
        let Some(reader) = self.readers.get(&flow).filter(|reader| reader.rest.is_none()) else {
            return false;
        };
        let Some(message) = reader.inbox.front() else { return false };
        let (header, body) = message.split_first_chunk::<HEADER_BYTES>().unwrap();
        let header = Header::from_wire(header).unwrap();
        assert_eq!(header.epoch, world.epoch);
        if header.kind == MessageKind::Goodbye {
            world.note_flow_goodbye(flow.from, flow.group, header.sequence, header.hash);
            if flow.group == WHOLE_WORLD {
                world.note_left(flow.from);
            }
            wires.scheduler.after(1, Event::Answered(flow));
            self.consume(wires, flow);
            return true;
        }
        // A communicator that this rank has not made yet.
        let Some(place) = place(world, flow) else { return false };
        let (contract, payload) = body.split_at(usize::from(header.contract_bytes));
        let contract = (!contract.is_empty()).then(|| wire::read_contract(contract).unwrap());
        let key = FlowKey { peer: place, tree: flow.tree };
        let active = self.calls.get_mut(&flow.group).and_then(|calls| calls.active.as_mut());
        let taken = active.map_or(Taken::NotYet, |active| active.take(key, &header));
        if taken != Taken::Yes {
            world.compare(flow.from, flow.group, &header, contract.as_ref());
            if let Taken::Unexpected(problem) = taken {
                // Only the first verdict counts.
                world.raise(flow.from, Fault::Protocol { problem });
            }
            return false;
        }
        let ours = self.hashes.get(&(flow.group, header.sequence));
        assert_eq!(ours, Some(&header.hash), "a segment of another call is being reduced");
        let random = wires.scheduler.random();
        let in_parts = random.chance(self.hesitates);
        let part =
            if in_parts { random.below(payload.len() as u64) as usize } else { payload.len() };
        let (now, later) = payload.split_at(part);
        let (now, later) = (now.to_vec(), later.to_vec());
        if in_parts {
            let active = self.calls.get_mut(&flow.group).and_then(|calls| calls.active.as_mut());
            active.unwrap().absorb(key, &now);
            let delay = random.within(1..=LONGEST_HESITATION);
            wires.scheduler.after(delay, Event::Rest(flow));
            self.readers.get_mut(&flow).unwrap().rest = Some(later);
            return false;
        }
        self.complete(wires, flow, key, &now);
        true
    }

    /// The last piece of a segment.
    fn complete(&mut self, wires: &mut Wires, flow: DataFlow, key: FlowKey, piece: &[u8]) {
        let active = self.calls.get_mut(&flow.group).and_then(|calls| calls.active.as_mut());
        let active = active.expect("a call ended while a segment of it was arriving");
        assert!(active.absorb(key, piece), "a segment arrived that was never announced");
        active.arrived(key);
        self.moved += 1;
        self.consume(wires, flow);
    }

    fn consume(&mut self, wires: &mut Wires, flow: DataFlow) {
        if let Some(reader) = self.readers.get_mut(&flow) {
            reader.inbox.pop_front();
            wires.consumed(reader.flow);
        }
    }
}

/// The sender's place in a flow's communicator, once this rank has it.
fn place(world: &World, flow: DataFlow) -> Option<u32> {
    let members = world.members(flow.group)?;
    let place = members.iter().position(|member| *member == flow.from);
    Some(place.expect("a message on a communicator of others") as u32)
}

fn of_group<T>(flows: &BTreeMap<DataFlow, T>, group: u64) -> impl Iterator<Item = DataFlow> {
    let at = |from, to, tree| DataFlow { group, from, to, tree };
    flows.range(at(0, 0, 0)..=at(u32::MAX, u32::MAX, u16::MAX)).map(|(flow, _)| *flow)
}

/// That of `lane.rs`.
const LINK_GRACE: u64 = 2_600 * MILLISECOND;
/// As long as a slow task of a busy machine.
const LONGEST_HESITATION: u64 = 5 * MILLISECOND;
