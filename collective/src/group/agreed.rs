//! What a call is agreed as, but for its number: its contract, and the plan that it takes.

use crate::contract::{CallShape, Contract};
use crate::plan::Plan;
use crate::plan::costs::{Choice, Layout};

/// What a call is but for its number.
#[derive(Debug)]
pub(super) struct Agreed {
    pub(super) contract: Contract,
    pub(super) plan: Plan,
    pub(super) digest: u64,
}

impl Agreed {
    pub(super) fn new(
        group: u64,
        shape: &CallShape,
        choice: &Choice,
        (ranks, place, layout): (u32, u32, &Layout),
    ) -> Self {
        let request = shape.request(ranks);
        let plan = choice.plan(&request, place, layout);
        let contract = Contract {
            group,
            sequence: 0,
            collective: shape.collective,
            role: shape.role,
            op: shape.op,
            element: shape.element,
            count: shape.count,
            spread: shape.spread(),
            label: shape.label,
            plan: plan.fingerprint(choice.costs.segment_elements(request.element_bytes)),
        };
        Self { contract, plan, digest: contract.digest() }
    }

    /// Whether a call of this shape is the same but for its number.
    pub(super) fn is_as(&self, shape: &CallShape) -> bool {
        let Contract { collective, role, op, element, count, label, .. } = self.contract;
        // Counts that differ from rank to rank are not kept.
        shape.counts.is_none()
            && self.contract.spread == 0
            && (shape.collective, shape.role, shape.op) == (collective, role, op)
            && (shape.element, shape.count, shape.label) == (element, count, label)
    }
}
