//! All-reduce by two binary trees at once.
//!
//! Sanders, Speck and Träff, "Two-tree algorithms for full bandwidth broadcast, reduction and
//! scan", 2009. Each tree reduces one half of the buffer towards its root and sends the result
//! back down, segment by segment. A rank with children in one tree is a leaf of the other, so that
//! every rank has about the same to do.
//!
//! Both trees are in order: with positions 1 to n, the height of a position is the number of its
//! trailing zeros, and its subtree is the interval of lower positions around it. Odd positions are
//! leaves. In the first tree rank r is at position r + 1. In the second, with an even n, at n - r,
//! which turns even into odd; with an odd n, at r, and rank 0 at n: rank 0 is a leaf twice, which
//! cannot be helped, because n - 1 ranks are all that can have children in one of two trees.
//!
//! A rank combines its own input first with what comes from its lower child, then with its upper
//! one's. So the association depends on the number of ranks and on the half only.

use std::ops::Range;

use super::shape::Steps;
use super::{Action, Space, Step, chunk};

#[derive(Clone, Debug)]
pub(super) struct DoubleTree {
    count: u64,
    seats: [Seat; 2],
}

/// A rank's place in one tree.
#[derive(Clone, Debug)]
struct Seat {
    parent: Option<u32>,
    /// The lower child, then the upper one: only a rank with a lower child has an upper one.
    children: [Option<Child>; 2],
}

#[derive(Clone, Copy, Debug)]
struct Child {
    rank: u32,
    is_leaf: bool,
}

/// What a rank does in one tree, in order.
#[derive(Clone, Copy)]
enum Deed {
    Reduce(Child),
    SendUp(u32),
    Store(u32),
    SendDown(u32),
}

impl DoubleTree {
    /// All-reduce of `count` elements; `size` is at least 2.
    pub(super) fn new(rank: u32, size: u32, count: u64) -> Self {
        Self { count, seats: [0, 1].map(|tree| Seat::new(rank, size, tree)) }
    }
}

impl Steps for DoubleTree {
    fn len(&self) -> u32 {
        self.seats[0].len() + self.seats[1].len()
    }

    /// The steps of the first tree, then those of the second.
    fn step(&self, index: u32) -> Step {
        let before = self.seats[0].len();
        let (tree, base) = if index < before { (0, 0) } else { (1, before) };
        let range = chunk(self.count, 2, tree);
        let step = self.seats[tree as usize].step(index - base, base, range);
        Step { tree: tree as u16, ..step }
    }
}

impl Seat {
    fn new(rank: u32, size: u32, tree: u32) -> Self {
        let position = match (tree, size % 2) {
            (0, _) => rank + 1,
            (_, 0) => size - rank,
            _ => (rank + size - 1) % size + 1,
        };
        let rank_at = |position: u32| match (tree, size % 2) {
            (0, _) => position - 1,
            (_, 0) => size - position,
            _ => position % size,
        };
        let child = |at: u32| Child { rank: rank_at(at), is_leaf: at % 2 == 1 };
        Self {
            parent: parent(position, size).map(rank_at),
            children: [lower_child(position), upper_child(position, size)].map(|at| at.map(child)),
        }
    }

    fn descendants(&self) -> u32 {
        self.children.iter().flatten().count() as u32
    }

    /// Each child sends once and is sent to once, and so is the parent.
    fn len(&self) -> u32 {
        2 * (self.descendants() + u32::from(self.parent.is_some()))
    }

    fn deed(&self, index: u32) -> Option<Deed> {
        let children = || self.children.iter().flatten();
        let up = children().map(|child| Deed::Reduce(*child)).chain(self.parent.map(Deed::SendUp));
        let down = self.parent.map(Deed::Store).into_iter();
        let down = down.chain(children().map(|child| Deed::SendDown(child.rank)));
        up.chain(down).nth(index as usize)
    }

    /// Step `index` of this tree; its steps have the indices from `base` on.
    fn step(&self, index: u32, base: u32, range: Range<u64>) -> Step {
        let (input, output) = (Space::Input.at(range.start), Space::Output.at(range.start));
        let children = self.descendants();
        // The last reduction, then the send to the parent, then the store.
        let reduced = children.checked_sub(1).map(|last| base + last);
        let (peer, action, after) = match self.deed(index) {
            Some(Deed::Reduce(child)) => {
                let local = if index == 0 { input } else { output };
                let last = self.parent.is_none() && index + 1 == children;
                let action =
                    Action::Reduce { local, into: output, incoming_raw: child.is_leaf, last };
                (child.rank, action, index.checked_sub(1).map(|before| base + before))
            }
            Some(Deed::SendUp(parent)) => {
                let from = if children == 0 { input } else { output };
                (parent, Action::Send { from }, reduced)
            }
            // What this rank sent up is part of what comes down, so that was copied before.
            Some(Deed::Store(parent)) => (parent, Action::Store { into: output }, None),
            Some(Deed::SendDown(child)) => {
                let complete = self.parent.map_or(reduced, |_| Some(base + children + 1));
                (child, Action::Send { from: output }, complete)
            }
            None => (0, Action::Send { from: output }, None),
        };
        Step::new(peer, action, range).after_segment(after)
    }
}

/// The lowest ancestor among the positions up to `size`, in the in-order tree of all of them.
fn parent(position: u32, size: u32) -> Option<u32> {
    let mut at = position;
    // The root is the highest power of two.
    while at < size || !at.is_power_of_two() {
        let bit = at & at.wrapping_neg();
        at = (at ^ bit) | (bit << 1);
        if at <= size {
            return Some(at);
        }
    }
    None
}

fn lower_child(position: u32) -> Option<u32> {
    let bit = position & position.wrapping_neg();
    (bit > 1).then(|| position - bit / 2)
}

fn upper_child(position: u32, size: u32) -> Option<u32> {
    let bit = position & position.wrapping_neg();
    // The highest position of the upper subtree that exists: the others above it are beyond n.
    let below = (1..bit.trailing_zeros() + 1).map(|down| position + (bit >> down));
    below.into_iter().find(|child| *child <= size)
}
