//! Any number of ranks on a hypercube: the ranks beyond the largest power of two are folded in.
//!
//! Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH",
//! 2005. With n = 2^k + x, each even rank below 2x sends its input to the odd rank above it, which
//! combines it with its own, stands for both on the hypercube of 2^k members, and sends the result
//! back at the end.

use super::{Action, Space, Step};

#[derive(Clone, Debug)]
pub(super) struct Fold {
    /// Ranks beyond the power of two.
    extra: u32,
    /// Dimensions of the hypercube.
    pub(super) dimensions: u32,
    pub(super) role: Role,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Role {
    /// Hands its input to that rank.
    Folded { into: u32 },
    /// A member of the hypercube, which stands for that rank as well.
    Member { index: u32, folded: Option<u32> },
}

impl Fold {
    /// `size` is at least 2.
    pub(super) fn new(rank: u32, size: u32) -> Self {
        let dimensions = size.ilog2();
        let extra = size - (1 << dimensions);
        let role = if rank >= 2 * extra {
            Role::Member { index: rank - extra, folded: None }
        } else if rank.is_multiple_of(2) {
            Role::Folded { into: rank + 1 }
        } else {
            Role::Member { index: rank / 2, folded: Some(rank - 1) }
        };
        Self { extra, dimensions, role }
    }

    /// Whether what that member begins with is its input, untouched.
    pub(super) fn is_raw(&self, index: u32) -> bool {
        index >= self.extra
    }

    pub(super) fn rank_of(&self, index: u32) -> u32 {
        if self.is_raw(index) { index + self.extra } else { 2 * index + 1 }
    }

    /// Steps of a folded rank: it sends its input, and stores the result. In place, the result
    /// overwrites the input only after it was sent, because it is part of it.
    pub(super) fn folded_step(into: u32, index: u32, count: u64) -> Step {
        let action = match index {
            0 => Action::Send { from: Space::Input.at(0) },
            _ => Action::Store { into: Space::Output.at(0) },
        };
        Step::new(into, action, 0..count)
    }

    /// A member's first step, if it stands for a folded rank.
    pub(super) fn take_in(folded: u32, count: u64) -> Step {
        let action = Action::Reduce {
            local: Space::Input.at(0),
            into: Space::Output.at(0),
            incoming_raw: true,
            last: false,
        };
        Step::new(folded, action, 0..count)
    }

    /// Its last one.
    pub(super) fn give_back(folded: u32, count: u64) -> Step {
        Step::new(folded, Action::Send { from: Space::Output.at(0) }, 0..count)
    }
}
