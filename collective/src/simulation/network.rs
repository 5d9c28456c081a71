//! Links that delay, stall and cut; flows that keep their order and hold back by a window;
//! datagrams that get lost.
//!
//! The network schedules its [`Transit`] events among the simulation's own. When one comes up, the
//! simulation asks the network what has arrived: a flow hands out its payloads in order however
//! its events were shuffled, so that an event for a frozen rank may simply be scheduled again.

use std::collections::{BTreeMap, VecDeque};

use super::random::Random;
use super::scheduler::Scheduler;

/// Something on its way. The simulation's event type is made `From` it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transit<P> {
    /// For the receiver of the flow: call [`Network::deliver`].
    Arrived(FlowId),
    /// For the sender of the flow: call [`Network::credit`].
    Credited(FlowId),
    /// For `to`, and complete.
    Datagram {
        /// Who sent it.
        from: u32,
        /// Whom it reaches.
        to: u32,
        /// What it carries.
        payload: P,
    },
}

/// Names a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId(usize);

/// What comes out of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery<P> {
    /// The next payload.
    Payload(P),
    /// Nothing comes any more: the sender ended or closed the flow.
    End,
}

/// How a link carries, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quality {
    /// The shortest delay.
    pub least: u64,
    /// The longest usual delay; between the two all are equally likely.
    pub most: u64,
    /// In how many of a thousand cases a delay is up to `longest` instead.
    pub slow_per_mille: u32,
    /// The longest of the rare delays.
    pub longest: u64,
    /// How many of a thousand datagrams are lost.
    pub lost_per_mille: u32,
}

impl Quality {
    fn delay(&self, random: &mut Random) -> u64 {
        let most = if random.chance(self.slow_per_mille) { self.longest } else { self.most };
        random.within(self.least..=most.max(self.least))
    }
}

/// The links among a set of ranks and the flows over them.
pub struct Network<P> {
    quality: Quality,
    links: BTreeMap<(u32, u32), Link>,
    flows: Vec<Flow<P>>,
}

/// One direction between two ranks, where it differs from the usual.
#[derive(Default)]
struct Link {
    quality: Option<Quality>,
    is_cut: bool,
    stalled_until: u64,
}

struct Flow<P> {
    from: u32,
    to: u32,
    /// How many payloads may still be sent before the reader takes some.
    credit: u32,
    /// A window of this many payloads never closes, and its credit is not sent back.
    bounded: bool,
    /// On the way, first to arrive first.
    under_way: VecDeque<Delivery<P>>,
    /// Of these, how many have no event yet because the link is cut.
    held: usize,
    held_credit: usize,
    last_arrival: u64,
    /// The sender has ended it, or one of the two is gone.
    is_over: bool,
}

impl<P> Network<P> {
    /// A network where every link has this quality.
    pub fn new(quality: Quality) -> Self {
        Self { quality, links: BTreeMap::new(), flows: Vec::new() }
    }

    /// Changes the quality of one direction between two ranks.
    pub fn set_quality(&mut self, from: u32, to: u32, quality: Quality) {
        self.links.entry((from, to)).or_default().quality = Some(quality);
    }

    /// Opens a flow that takes `window` payloads beyond what its reader has consumed; `u32::MAX`
    /// means without bound.
    pub fn open(&mut self, from: u32, to: u32, window: u32) -> FlowId {
        self.flows.push(Flow {
            from,
            to,
            credit: window,
            bounded: window != u32::MAX,
            under_way: VecDeque::new(),
            held: 0,
            held_credit: 0,
            last_arrival: 0,
            is_over: false,
        });
        FlowId(self.flows.len() - 1)
    }

    /// The sender and the receiver of a flow.
    pub fn ends_of(&self, flow: FlowId) -> (u32, u32) {
        (self.flows[flow.0].from, self.flows[flow.0].to)
    }

    /// Whether the flow's window is open.
    pub fn can_send(&self, flow: FlowId) -> bool {
        let flow = &self.flows[flow.0];
        !flow.is_over && flow.credit > 0
    }

    /// Sends a payload.
    ///
    /// # Errors
    ///
    /// Gives the payload back where [`can_send`](Self::can_send) is false.
    pub fn send<E: From<Transit<P>>>(
        &mut self,
        scheduler: &mut Scheduler<E>,
        flow: FlowId,
        payload: P,
    ) -> Result<(), P> {
        if !self.can_send(flow) {
            return Err(payload);
        }
        if self.flows[flow.0].bounded {
            self.flows[flow.0].credit -= 1;
        }
        self.put(scheduler, flow, Delivery::Payload(payload));
        Ok(())
    }

    /// Ends the flow behind everything that was sent.
    pub fn end<E: From<Transit<P>>>(&mut self, scheduler: &mut Scheduler<E>, flow: FlowId) {
        if !std::mem::replace(&mut self.flows[flow.0].is_over, true) {
            self.put(scheduler, flow, Delivery::End);
        }
    }

    /// Ends the flow at once: of what is on the way, only a first part still arrives.
    pub fn close<E: From<Transit<P>>>(&mut self, scheduler: &mut Scheduler<E>, flow: FlowId) {
        let under_way = self.flows[flow.0].under_way.len() as u64;
        let kept = scheduler.random().within(0..=under_way) as usize;
        let ended = self.flows[flow.0].is_over;
        self.flows[flow.0].under_way.truncate(kept);
        self.flows[flow.0].held = self.flows[flow.0].held.min(kept);
        self.flows[flow.0].is_over = true;
        // One that was over already has its end on the way, has arrived, or was abandoned.
        if !ended || kept < under_way as usize {
            self.put(scheduler, flow, Delivery::End);
        }
    }

    /// Forgets the flow without a word, as when the sender's or the receiver's host is gone.
    pub fn abandon(&mut self, flow: FlowId) {
        let flow = &mut self.flows[flow.0];
        flow.is_over = true;
        flow.under_way.clear();
        flow.held = 0;
        flow.held_credit = 0;
    }

    /// Forgets all flows from and to a rank without a word.
    pub fn abandon_all_of(&mut self, rank: u32) {
        for flow in 0..self.flows.len() {
            if self.flows[flow].from == rank || self.flows[flow].to == rank {
                self.abandon(FlowId(flow));
            }
        }
    }

    /// What an [`Arrived`](Transit::Arrived) event brought; None if it was lost meanwhile.
    pub fn deliver(&mut self, flow: FlowId) -> Option<Delivery<P>> {
        let flow = &mut self.flows[flow.0];
        // What is held has not left yet.
        (flow.under_way.len() > flow.held).then(|| flow.under_way.pop_front()).flatten()
    }

    /// The reader has taken one payload: room for one more goes back to the sender.
    pub fn consume<E: From<Transit<P>>>(&mut self, scheduler: &mut Scheduler<E>, flow: FlowId) {
        let Flow { from, to, bounded, is_over, .. } = self.flows[flow.0];
        if !bounded || is_over {
            return;
        }
        match self.departure(to, from, scheduler.now()) {
            Some(departure) => {
                let arrival = departure + self.quality_of(to, from).delay(scheduler.random());
                scheduler.at(arrival, Transit::Credited(flow).into());
            }
            None => self.flows[flow.0].held_credit += 1,
        }
    }

    /// Takes the room that a [`Credited`](Transit::Credited) event brought; true if the window was
    /// closed until now.
    pub fn credit(&mut self, flow: FlowId) -> bool {
        let flow = &mut self.flows[flow.0];
        flow.credit += 1;
        flow.credit == 1 && !flow.is_over
    }

    /// Sends a datagram, which may get lost, and may overtake or be overtaken by anything.
    pub fn datagram<E: From<Transit<P>>>(
        &mut self,
        scheduler: &mut Scheduler<E>,
        from: u32,
        to: u32,
        payload: P,
    ) {
        let quality = self.quality_of(from, to);
        let Some(departure) = self.departure(from, to, scheduler.now()) else { return };
        if !scheduler.random().chance(quality.lost_per_mille) {
            let arrival = departure + quality.delay(scheduler.random());
            scheduler.at(arrival, Transit::Datagram { from, to, payload }.into());
        }
    }

    /// Cuts one direction: datagrams are lost; what flows send waits until it heals.
    pub fn cut(&mut self, from: u32, to: u32) {
        self.links.entry((from, to)).or_default().is_cut = true;
    }

    /// Heals one direction: what flows have sent meanwhile leaves now.
    pub fn heal<E: From<Transit<P>>>(&mut self, scheduler: &mut Scheduler<E>, from: u32, to: u32) {
        match self.links.get_mut(&(from, to)) {
            Some(link) if link.is_cut => link.is_cut = false,
            _ => return,
        }
        let now = scheduler.now();
        for number in 0..self.flows.len() {
            let flow = &mut self.flows[number];
            if (flow.from, flow.to) == (from, to) {
                for _ in 0..std::mem::take(&mut flow.held) {
                    self.depart(scheduler, FlowId(number));
                }
            } else if (flow.to, flow.from) == (from, to) {
                for _ in 0..std::mem::take(&mut flow.held_credit) {
                    let delay = self.quality_of(from, to).delay(scheduler.random());
                    scheduler.at(now + delay, Transit::Credited(FlowId(number)).into());
                }
            }
        }
    }

    /// Whether this direction is cut.
    pub fn is_cut(&self, from: u32, to: u32) -> bool {
        self.links.get(&(from, to)).is_some_and(|link| link.is_cut)
    }

    /// Nothing leaves in one direction before `until`; nothing is lost.
    pub fn stall(&mut self, from: u32, to: u32, until: u64) {
        let link = self.links.entry((from, to)).or_default();
        link.stalled_until = link.stalled_until.max(until);
    }

    fn put<E: From<Transit<P>>>(
        &mut self,
        scheduler: &mut Scheduler<E>,
        flow: FlowId,
        delivery: Delivery<P>,
    ) {
        self.flows[flow.0].under_way.push_back(delivery);
        self.depart(scheduler, flow);
    }

    /// Schedules one arrival of a flow, or holds it while the link is cut.
    fn depart<E: From<Transit<P>>>(&mut self, scheduler: &mut Scheduler<E>, id: FlowId) {
        let (from, to) = self.ends_of(id);
        let departure = self.departure(from, to, scheduler.now());
        let quality = self.quality_of(from, to);
        let flow = &mut self.flows[id.0];
        match departure {
            Some(departure) => {
                let arrival = departure + quality.delay(scheduler.random());
                flow.last_arrival = flow.last_arrival.max(arrival);
                scheduler.at(flow.last_arrival, Transit::Arrived(id).into());
            }
            None => flow.held += 1,
        }
    }

    /// When something sent now leaves; None while the link is cut.
    fn departure(&self, from: u32, to: u32, now: u64) -> Option<u64> {
        match self.links.get(&(from, to)) {
            Some(link) if link.is_cut => None,
            Some(link) => Some(now.max(link.stalled_until)),
            None => Some(now),
        }
    }

    fn quality_of(&self, from: u32, to: u32) -> Quality {
        self.links.get(&(from, to)).and_then(|link| link.quality).unwrap_or(self.quality)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Events = Scheduler<Transit<u32>>;

    const WILD: Quality =
        Quality { least: 1, most: 50, slow_per_mille: 100, longest: 500, lost_per_mille: 0 };

    /// Runs until nothing is left; everything that was delivered, with its flow.
    fn drain(events: &mut Events, network: &mut Network<u32>) -> Vec<(FlowId, Delivery<u32>)> {
        let mut delivered = Vec::new();
        while let Some((_, event)) = events.next() {
            match event {
                Transit::Arrived(flow) => {
                    delivered.extend(network.deliver(flow).map(|delivery| (flow, delivery)));
                }
                Transit::Credited(flow) => _ = network.credit(flow),
                Transit::Datagram { .. } => {}
            }
        }
        delivered
    }

    #[test]
    fn order_holds_within_a_flow_and_not_across() {
        let crossed = (0..50).filter(|seed| {
            let (mut events, mut network) = (Events::new(*seed), Network::new(WILD));
            let flows = [network.open(0, 1, u32::MAX), network.open(0, 1, u32::MAX)];
            for payload in 0..20 {
                network.send(&mut events, flows[payload as usize % 2], payload).unwrap();
            }
            flows.iter().for_each(|flow| network.end(&mut events, *flow));
            let delivered = drain(&mut events, &mut network);
            assert_eq!(delivered.len(), 22);
            for (at, flow) in flows.iter().enumerate() {
                let of_flow: Vec<_> =
                    delivered.iter().filter(|(f, _)| f == flow).map(|(_, d)| d.clone()).collect();
                let sent = (at as u32..20).step_by(2).map(Delivery::Payload);
                assert_eq!(of_flow, sent.chain([Delivery::End]).collect::<Vec<_>>());
            }
            !delivered.is_sorted_by_key(|(_, delivery)| match delivery {
                Delivery::Payload(payload) => *payload,
                Delivery::End => u32::MAX,
            })
        });
        assert!(crossed.count() > 25, "flows hardly ever overtake each other");
    }

    #[test]
    fn a_window_closes_until_the_reader_consumes() {
        let (mut events, mut network) = (Events::new(3), Network::new(WILD));
        let flow = network.open(0, 1, 1);
        assert_eq!(network.send(&mut events, flow, 1), Ok(()));
        assert!(!network.can_send(flow));
        assert_eq!(network.send(&mut events, flow, 2), Err(2));
        assert_eq!(drain(&mut events, &mut network), [(flow, Delivery::Payload(1))]);
        assert!(!network.can_send(flow), "arrived is not consumed");
        network.consume(&mut events, flow);
        assert!(!network.can_send(flow), "the credit was there before it arrived");
        let Some((_, Transit::Credited(credited))) = events.next() else { panic!("no credit") };
        assert!(credited == flow && network.credit(flow) && network.can_send(flow));
    }

    #[test]
    fn a_cut_link_loses_datagrams_and_keeps_what_flows_sent() {
        let (mut events, mut network) = (Events::new(5), Network::new(WILD));
        let (there, back) = (network.open(0, 1, u32::MAX), network.open(1, 0, u32::MAX));
        network.cut(0, 1);
        network.send(&mut events, there, 1).unwrap();
        network.send(&mut events, back, 2).unwrap();
        network.datagram(&mut events, 0, 1, 3);
        assert_eq!(drain(&mut events, &mut network), [(back, Delivery::Payload(2))]);
        network.heal(&mut events, 0, 1);
        assert_eq!(drain(&mut events, &mut network), [(there, Delivery::Payload(1))]);
    }

    #[test]
    fn a_cut_holds_credit_back() {
        let (mut events, mut network) = (Events::new(5), Network::new(WILD));
        let flow = network.open(0, 1, 1);
        network.send(&mut events, flow, 1).unwrap();
        drain(&mut events, &mut network);
        network.cut(1, 0);
        network.consume(&mut events, flow);
        drain(&mut events, &mut network);
        assert!(!network.can_send(flow));
        network.heal(&mut events, 1, 0);
        drain(&mut events, &mut network);
        assert!(network.can_send(flow));
    }

    #[test]
    fn a_stalled_link_is_late_and_loses_nothing() {
        let (mut events, mut network) = (Events::new(5), Network::new(WILD));
        let flow = network.open(0, 1, u32::MAX);
        network.stall(0, 1, 10_000);
        network.send(&mut events, flow, 1).unwrap();
        assert!(events.next().is_some_and(|(now, _)| now > 10_000));
        assert_eq!(network.deliver(flow), Some(Delivery::Payload(1)));
    }

    #[test]
    fn closing_keeps_a_first_part_and_tells_the_reader() {
        let kept: Vec<usize> = (0..100)
            .map(|seed| {
                let (mut events, mut network) = (Events::new(seed), Network::new(WILD));
                let flow = network.open(0, 1, u32::MAX);
                (0..4).for_each(|payload| network.send(&mut events, flow, payload).unwrap());
                network.close(&mut events, flow);
                assert!(!network.can_send(flow));
                let mut delivered = drain(&mut events, &mut network);
                assert_eq!(delivered.pop(), Some((flow, Delivery::End)));
                let payloads = (0..delivered.len() as u32).map(|p| (flow, Delivery::Payload(p)));
                assert_eq!(delivered, payloads.collect::<Vec<_>>());
                delivered.len()
            })
            .collect();
        assert!((0..=4).all(|part| kept.contains(&part)), "{kept:?}");
    }

    #[test]
    fn a_flow_that_was_abandoned_says_nothing() {
        let (mut events, mut network) = (Events::new(5), Network::new(WILD));
        let flow = network.open(0, 1, u32::MAX);
        network.send(&mut events, flow, 1).unwrap();
        network.abandon_all_of(1);
        network.close(&mut events, flow);
        assert_eq!(drain(&mut events, &mut network), []);
    }

    #[test]
    fn datagrams_are_lost_as_often_as_said() {
        let (mut events, mut network) =
            (Events::new(5), Network::new(Quality { lost_per_mille: 300, ..WILD }));
        (0..1_000).for_each(|number| network.datagram(&mut events, 0, 1, number));
        let arrived = std::iter::from_fn(|| events.next()).count();
        assert!((600..800).contains(&arrived), "{arrived}");
    }
}
