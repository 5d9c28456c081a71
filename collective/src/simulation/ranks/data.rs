//! What a rank puts into a call and must get out of it.
//!
//! Every element of every input is a number made of the rolling hash after its call, of its rank
//! and of its place. So a result that holds anything from another call, another rank or a rank
//! that made another call under the same number is wrong.

use std::panic::Location;
use std::sync::Arc;

use crate::buffer::Parts;
use crate::contract::{CallShape, Collective, Role, mix};
use crate::reduce::{ElementType, ReduceOp};

/// A call, as one rank makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spec {
    pub(super) collective: Collective,
    /// It makes a communicator.
    pub(super) splits: bool,
    pub(super) op: Option<ReduceOp>,
    pub(super) count: u64,
    pub(super) counts: Option<Arc<[u64]>>,
    pub(super) label: Option<u64>,
    /// Input and output lie over each other where they can. Not part of the contract.
    pub(super) in_place: bool,
}

impl Spec {
    #[track_caller]
    pub(super) fn shape(&self) -> CallShape {
        CallShape {
            collective: self.collective,
            role: if self.splits { Role::Split } else { Role::Data },
            op: self.op,
            element: ElementType::U64,
            count: self.count,
            counts: self.counts.clone(),
            label: self.label,
            location: Location::caller(),
        }
    }

    /// A divergent program may name a root that a small communicator does not have.
    pub(super) fn keep_root_below(&mut self, size: u32) {
        use Collective::*;
        if let Broadcast { root } | Reduce { root } | Gather { root } | Scatter { root } =
            &mut self.collective
        {
            *root %= size;
        }
    }

    /// Whether two ranks that make these calls agree.
    pub(super) fn agrees(&self, other: &Self) -> bool {
        Self { in_place: true, ..self.clone() } == Self { in_place: true, ..other.clone() }
    }
}

/// One rank's part in a call.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) spec: Spec,
    pub(super) size: u32,
    pub(super) place: u32,
    /// The rolling hash after the call.
    pub(super) hash: u64,
}

impl Part {
    /// The buffer as it is before the call, and what of it is input and output.
    pub(super) fn buffer(&self) -> (Vec<u64>, Parts) {
        let (inputs, outputs) = self.lengths();
        let offset = self.overlap().filter(|_| self.spec.in_place);
        let (input, output) = match offset {
            Some(offset) if offset >= 0 => (0..inputs, offset as usize..offset as usize + outputs),
            Some(offset) => {
                let start = offset.unsigned_abs() as usize;
                (start..start + inputs, 0..outputs)
            }
            None => (0..inputs, inputs..inputs + outputs),
        };
        let mut buffer = vec![NOTHING; input.end.max(output.end)];
        for (element, at) in input.clone().enumerate() {
            buffer[at] = self.input(self.place, element as u64);
        }
        for (index, at) in output.clone().enumerate() {
            if let Some((of, element)) =
                self.copied(index as u64).filter(|copy| copy.0 == self.place)
            {
                buffer[at] = self.input(of, element);
            } else if self.size == 1 {
                // Nothing moves in a world of one: the caller has its own input for a result.
                buffer[at] = self.result(index as u64);
            }
        }
        (buffer, Parts { input, output })
    }

    /// What the output must be.
    pub(super) fn output(&self) -> Vec<u64> {
        let (_, outputs) = self.lengths();
        (0..outputs as u64).map(|at| self.result(at)).collect()
    }

    fn result(&self, at: u64) -> u64 {
        if let Some((of, element)) = self.copied(at) {
            return self.input(of, element);
        }
        let element = match self.spec.collective {
            Collective::ReduceScatter => u64::from(self.place) * self.spec.count + at,
            _ => at,
        };
        let inputs = (0..self.size).map(|rank| self.input(rank, element));
        let reduced = match self.spec.op {
            Some(ReduceOp::Min) => inputs.min(),
            Some(ReduceOp::Max) => inputs.max(),
            Some(ReduceOp::Prod) => inputs.reduce(u64::wrapping_mul),
            _ => inputs.reduce(u64::wrapping_add),
        };
        let divisor = if self.spec.op == Some(ReduceOp::Avg) { u64::from(self.size) } else { 1 };
        reduced.unwrap_or(NOTHING) / divisor
    }

    fn input(&self, rank: u32, element: u64) -> u64 {
        mix(self.hash ^ mix(u64::from(rank) << 40 ^ element))
    }

    /// Elements of input and output.
    fn lengths(&self) -> (usize, usize) {
        let (one, all) = (self.spec.count as usize, self.spec.count as usize * self.size as usize);
        let at_root = |root: u32, elements: usize| if root == self.place { elements } else { 0 };
        match self.spec.collective {
            Collective::AllReduce => (one, one),
            Collective::ReduceScatter => (all, one),
            Collective::AllGather => (0, all),
            Collective::AllGatherV | Collective::Broadcast { .. } => (0, one),
            Collective::Reduce { root } => (one, at_root(root, one)),
            Collective::Gather { root } => (one, at_root(root, all)),
            Collective::Scatter { root } => (at_root(root, all), one),
            Collective::AllToAll => (all, all),
            Collective::Barrier => (0, 0),
            Collective::Send => (at_root(0, one), at_root(1, one)),
        }
    }

    /// Where the output begins, counted from the input's first element, if the one may lie within
    /// the other.
    fn overlap(&self) -> Option<i64> {
        let own = (u64::from(self.place) * self.spec.count) as i64;
        match self.spec.collective {
            Collective::AllReduce | Collective::AllToAll => Some(0),
            Collective::ReduceScatter => Some(own),
            Collective::Reduce { root } if root == self.place => Some(0),
            Collective::Gather { root } if root == self.place => Some(-own),
            Collective::Scatter { root } if root == self.place => Some(own),
            _ => None,
        }
    }

    /// Whose input, and which element of it, comes to place `at` of the output; None if that is
    /// reduced.
    fn copied(&self, at: u64) -> Option<(u32, u64)> {
        let (count, own) = (self.spec.count, u64::from(self.place) * self.spec.count);
        Some(match self.spec.collective {
            Collective::AllGather | Collective::Gather { .. } => ((at / count) as u32, at % count),
            Collective::AllGatherV => {
                let ends = self.spec.counts.as_deref().unwrap_or(&[]);
                let of = ends.partition_point(|end| *end <= at);
                let start = of.checked_sub(1).map_or(0, |before| ends[before]);
                (of as u32, at - start)
            }
            Collective::Broadcast { root } => (root, at),
            Collective::Scatter { root } => (root, own + at),
            Collective::AllToAll => ((at / count) as u32, own + at % count),
            Collective::Send => (0, at),
            _ => return None,
        })
    }
}

/// Where nothing has been written.
const NOTHING: u64 = 0x6e6f_7468_696e_6721;
