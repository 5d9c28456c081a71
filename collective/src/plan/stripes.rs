//! Large calls in stripes, one for each lane.
//!
//! A stripe is a call of its own on its lane, by the algorithm that was chosen for the whole: of a
//! buffer it has so many elements in a row, of a buffer that is dealt to the ranks in blocks the
//! same elements of every block. Its plan numbers them without those of the other stripes.

use std::ops::Range;
use std::sync::Arc;

use super::shape::Shape;
use super::{Algorithm, Hosts, Plan, Request, chunk, fold_hash};

/// What one lane does of a call.
#[derive(Clone, Debug)]
pub(crate) struct Stripe {
    pub(crate) plan: Plan,
    /// Elements of one block of the buffers; all of a buffer without blocks.
    pub(crate) block: u64,
    /// The elements of every block that are this stripe's.
    pub(crate) own: Range<u64>,
}

impl Plan {
    /// The same in so many stripes, where each rank has so many lanes. `hosts`: where it is a plan
    /// between hosts.
    pub(super) fn in_stripes(
        mut self,
        (request, rank): (&Request, u32),
        hosts: Option<&Hosts>,
        (stripes, lanes): (u32, u16),
        algorithm: Algorithm,
        segment_elements: u64,
    ) -> Self {
        self.agreed = [u64::from(lanes), stripes.into()].into_iter().fold(self.agreed, fold_hash);
        if stripes < 2 {
            return self;
        }
        let part = match hosts {
            Some(hosts) => hosts.part_of(rank, request.count, request.element_bytes),
            None => 0..request.count,
        };
        let stripe = |index| {
            let own = chunk(part.end - part.start, stripes, index);
            let count = own.end - own.start;
            let own = part.start + own.start..part.start + own.end;
            let part = Request { count, ..request.clone() };
            let shape = match hosts {
                None => Shape::new(&part, rank, algorithm, segment_elements),
                Some(hosts) => {
                    Shape::by_host(&part, rank, (hosts, 0..count), algorithm, segment_elements)
                }
            };
            let plan = Self { shape, agreed: self.agreed, stripes: Arc::default() };
            Stripe { plan, block: request.count, own }
        };
        self.stripes = (0..stripes).map(stripe).collect();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::Collective;
    use crate::plan::costs::{Choice, CostTable, Layout};
    use crate::plan::{Action, Place, Space};
    use proptest::prelude::*;

    /// Few elements make a segment, and few segments a stripe.
    fn choice(lanes: u16) -> Choice {
        let costs = CostTable { segment_bytes: 8, stripe_bytes: 32, ..CostTable::default() };
        Choice { costs, forced: None, lanes }
    }

    fn request(collective: Collective, size: u32, count: u64) -> Request {
        let ends = (1..=u64::from(size)).map(|rank| rank * count).collect();
        let is_v = collective == Collective::AllGatherV;
        let (count, counts) =
            if is_v { (count * u64::from(size), Some(ends)) } else { (count, None) };
        Request { collective, size, count, element_bytes: 4, counts }
    }

    /// Elements of each stripe.
    fn widths(plan: &Plan) -> Vec<u64> {
        plan.stripes().iter().map(|stripe| stripe.own.end - stripe.own.start).collect()
    }

    fn places(action: Action) -> Vec<Place> {
        match action {
            Action::Send { from } => vec![from],
            Action::Store { into } => vec![into],
            Action::Reduce { local, into, .. } => vec![local, into],
        }
    }

    proptest! {
        #[test]
        fn every_element_has_one_stripe_and_no_step_leaves_its_block(
            size in 1u32..9, count in 0u64..2_000, lanes in 1u16..9, kind in 0usize..11, root in 0u32..8,
        ) {
            let collective = Collective::kinds().nth(kind).unwrap().with_root(|_| root % size);
            let size = if collective == Collective::Send { 2 } else { size };
            let request = request(collective, size, count);
            let plans: Vec<Plan> =
                (0..size).map(|rank| choice(lanes).plan(&request, rank, &Layout::Apart)).collect();
            for plan in &plans {
                prop_assert_eq!(plan.fingerprint(1), plans[0].fingerprint(1));
                prop_assert_eq!(widths(plan), widths(&plans[0]));
                let stripes = plan.stripes();
                prop_assert!(stripes.len() != 1 && stripes.len() <= usize::from(lanes));
                let mut end = 0;
                for Stripe { plan, block, own } in stripes {
                    prop_assert_eq!((own.start, *block), (end, count));
                    end = own.end;
                    let width = own.end - own.start;
                    prop_assert!(width > 0);
                    for step in (0..plan.len()).map(|index| plan.step(index)) {
                        let elements = step.range.end - step.range.start;
                        for place in places(step.action).into_iter().filter(|p| p.space != Space::Relay) {
                            prop_assert!(place.start % width + elements <= width, "{step:?} of {width}");
                        }
                    }
                }
                prop_assert!(stripes.is_empty() || end == count);
            }
        }

        #[test]
        fn between_hosts_the_stripes_are_of_a_ranks_part(
            homes in prop::collection::vec(0u64..3, 2..9), count in 0u64..4_000, lanes in 1u16..5,
        ) {
            let hosts = Hosts::new(homes.iter().copied().map(Some));
            prop_assume!(hosts.are_mixed());
            let size = homes.len() as u32;
            let layout = Layout::ByHost(Arc::new(hosts.clone()));
            let request = request(Collective::AllReduce, size, count);
            let plans: Vec<Plan> =
                (0..size).map(|rank| choice(lanes).plan(&request, rank, &layout)).collect();
            for (rank, plan) in (0..).zip(&plans) {
                prop_assert_eq!(plan.fingerprint(1), plans[0].fingerprint(1));
                prop_assert_eq!(plan.stripes().len(), plans[0].stripes().len());
                let part = hosts.part_of(rank, count, 4);
                let mut end = part.start;
                for Stripe { plan, own, .. } in plan.stripes() {
                    prop_assert_eq!(own.start, end);
                    end = own.end;
                    prop_assert_eq!(plan.len() == 0, hosts.part_of(rank, u64::from(u32::MAX), 4).is_empty());
                }
                prop_assert!(plan.stripes().is_empty() || end == part.end);
            }
        }
    }

    #[test]
    fn a_stripe_is_worth_its_lane() {
        let stripes = |collective, size, count, lanes| {
            let choice = Choice { costs: CostTable::default(), forced: None, lanes };
            let plan = choice.plan(&request(collective, size, count), 0, &Layout::Apart);
            plan.stripes().len()
        };
        let all_reduce =
            |size, bytes: u64, lanes| stripes(Collective::AllReduce, size, bytes / 4, lanes);
        const MIB: u64 = 1 << 20;
        assert_eq!([1, 2, 4].map(|lanes| all_reduce(2, 64 * MIB, lanes)), [0, 2, 4]);
        assert_eq!([MIB - 4, MIB, 2 * MIB].map(|bytes| all_reduce(2, bytes, 4)), [0, 2, 4]);
        // Each rank's chunk fills a segment.
        assert_eq!([2 * MIB, 4 * MIB, 8 * MIB].map(|bytes| all_reduce(32, bytes, 4)), [0, 2, 4]);
        assert_eq!(stripes(Collective::AllGather, 4, MIB / 32, 4), 0);
        assert_eq!(stripes(Collective::AllGather, 4, MIB, 4), 4);
        assert_eq!(stripes(Collective::AllGatherV, 4, MIB, 4), 0);
        assert_eq!(stripes(Collective::Barrier, 4, 0, 4), 0);
    }

    #[test]
    fn lanes_are_agreed_on_even_where_one_does_it_all() {
        let request = request(Collective::AllReduce, 2, 1);
        let print = |lanes| choice(lanes).plan(&request, 0, &Layout::Apart).fingerprint(1);
        assert_ne!(print(1), print(2));
    }
}
