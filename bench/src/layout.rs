//! What stands in a rank's buffers before a call and what must stand there afterwards, part by
//! part.

use std::ops::Range;

use crate::collective::Collective;

/// One rank's buffers for one call. In place the input and the output are one buffer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Elements of the input.
    pub(crate) input: usize,
    /// Elements of the output.
    pub(crate) output: usize,
    /// What the rank gives.
    pub(crate) before: Vec<Part>,
    /// What must stand in the output: all of it.
    pub(crate) after: Vec<Part>,
    /// Elements of every rank, where they differ.
    pub(crate) counts: Vec<usize>,
}

/// A part of a buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) range: Range<usize>,
    pub(crate) content: Content,
}

/// What a part holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// What `rank` gives, from its element `first` on.
    Of { rank: usize, first: usize },
    /// The combination of what all ranks give, from element `first` on.
    Combined { first: usize },
}

/// A rank of a world, for one call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) rank: usize,
    pub(crate) ranks: usize,
    pub(crate) root: usize,
}

impl Layout {
    /// For a call with separate buffers. `count` is the column's.
    pub(crate) fn out_of_place(collective: Collective, count: usize, place: Place) -> Self {
        let Place { rank, ranks, root } = place;
        let all = count * ranks;
        let is_root = rank == root;
        let at_root = |length| if is_root { length } else { 0 };
        let own = |length| part(0..length, Content::Of { rank, first: 0 });
        let combined = |length, first| part(0..length, Content::Combined { first });
        let from = |rank, first| part(0..count, Content::Of { rank, first });
        let (before, after) = match collective {
            Collective::AllReduce => (own(count), combined(count, 0)),
            Collective::Reduce => (own(count), combined(at_root(count), 0)),
            Collective::ReduceScatter => (own(all), combined(count, rank * count)),
            Collective::AllGather => (own(count), blocks(&vec![count; ranks], 0)),
            Collective::AllGatherV => {
                let counts = uneven(count, ranks);
                (own(counts[rank]), blocks(&counts, 0))
            }
            Collective::Gather => {
                (own(count), if is_root { blocks(&vec![count; ranks], 0) } else { Vec::new() })
            }
            Collective::Broadcast => (own(at_root(count)), from(root, 0)),
            Collective::Scatter => (own(at_root(all)), from(root, rank * count)),
            Collective::AllToAll => (own(all), blocks(&vec![count; ranks], rank * count)),
            Collective::SendRecv => (own(count), from((rank + ranks - 1) % ranks, 0)),
            Collective::Barrier => (Vec::new(), Vec::new()),
        };
        let counts = counts(collective, count, ranks);
        Self { input: end(&before), output: end(&after), before, after, counts }
    }

    /// For a call within one buffer. `count` is the column's.
    pub(crate) fn in_place(collective: Collective, count: usize, place: Place) -> Self {
        let Place { rank, ranks, root } = place;
        let all = count * ranks;
        let is_root = rank == root;
        let own = |range: Range<usize>| part(range, Content::Of { rank, first: 0 });
        let block = |rank| rank * count..(rank + 1) * count;
        let (before, after) = match collective {
            Collective::AllReduce => {
                (own(0..count), part(0..count, Content::Combined { first: 0 }))
            }
            Collective::Reduce if is_root => {
                (own(0..count), part(0..count, Content::Combined { first: 0 }))
            }
            // The other ranks' buffers stay as they are.
            Collective::Reduce => (own(0..count), own(0..count)),
            Collective::ReduceScatter => {
                // The other blocks stay as they are.
                let content = |block| match block == rank {
                    true => Content::Combined { first: block * count },
                    false => Content::Of { rank, first: block * count },
                };
                let after = (0..ranks).flat_map(|b| part(block(b), content(b))).collect();
                (own(0..all), after)
            }
            Collective::AllGather => (own(block(rank)), blocks(&vec![count; ranks], 0)),
            Collective::AllGatherV => {
                let after = blocks(&uneven(count, ranks), 0);
                let before = after.iter().filter(|part| part.content.is_of(rank)).cloned();
                (before.collect(), after)
            }
            Collective::Gather if is_root => (own(block(rank)), blocks(&vec![count; ranks], 0)),
            Collective::Gather => (own(0..count), own(0..count)),
            Collective::Broadcast => {
                let after = part(0..count, Content::Of { rank: root, first: 0 });
                (if is_root { after.clone() } else { Vec::new() }, after)
            }
            // The root's buffer stays as it is.
            Collective::Scatter if is_root => (own(0..all), own(0..all)),
            Collective::Scatter => {
                (Vec::new(), part(0..count, Content::Of { rank: root, first: rank * count }))
            }
            Collective::AllToAll => (own(0..all), blocks(&vec![count; ranks], rank * count)),
            Collective::SendRecv | Collective::Barrier => (Vec::new(), Vec::new()),
        };
        let counts = counts(collective, count, ranks);
        Self { input: 0, output: end(&after), before, after, counts }
    }
}

impl Content {
    fn is_of(self, other: usize) -> bool {
        matches!(self, Self::Of { rank, .. } if rank == other)
    }
}

/// One part, or none where it is empty.
fn part(range: Range<usize>, content: Content) -> Vec<Part> {
    if range.is_empty() { Vec::new() } else { vec![Part { range, content }] }
}

/// A block of every rank, each from the sender's element `first` on.
fn blocks(counts: &[usize], first: usize) -> Vec<Part> {
    let mut start = 0;
    let block = |(rank, count): (usize, &usize)| {
        let range = start..start + count;
        start = range.end;
        part(range, Content::Of { rank, first })
    };
    counts.iter().enumerate().flat_map(block).collect()
}

fn counts(collective: Collective, count: usize, ranks: usize) -> Vec<usize> {
    match collective {
        Collective::AllGatherV => uneven(count, ranks),
        _ => Vec::new(),
    }
}

/// Deals out `count` elements, r + 1 shares to rank r.
fn uneven(count: usize, ranks: usize) -> Vec<usize> {
    // Shares of all ranks below `rank`; 1 + 2 + ... by Gauss.
    let shares = |rank: usize| rank as u128 * (rank as u128 + 1);
    let end = |rank| (count as u128 * shares(rank) / shares(ranks)) as usize;
    (0..ranks).map(|rank| end(rank + 1) - end(rank)).collect()
}

fn end(parts: &[Part]) -> usize {
    parts.iter().map(|part| part.range.end).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn an_output_is_expected_without_gaps() {
        for collective in Collective::value_variants() {
            for (ranks, count) in [(1, 4), (2, 0), (3, 8), (5, 7)] {
                for (rank, root) in (0..ranks).flat_map(|rank| (0..ranks).map(move |r| (rank, r))) {
                    let place = Place { rank, ranks, root };
                    for layout in [
                        Layout::out_of_place(*collective, count, place),
                        Layout::in_place(*collective, count, place),
                    ] {
                        let mut next = 0;
                        for part in &layout.after {
                            assert_eq!(part.range.start, next, "{collective:?} {layout:?}");
                            next = part.range.end;
                        }
                        assert_eq!(next, layout.output);
                        let largest = collective.elements(count, ranks);
                        assert!(layout.input.max(layout.output) <= largest, "{collective:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_element_of_uneven_shares_is_dealt_out() {
        assert_eq!(uneven(12, 3), [2, 4, 6]);
        assert_eq!(uneven(1, 2), [0, 1]);
        for (count, ranks) in [(0, 3), (5, 8), (1000, 7), (1 << 40, 64)] {
            let counts = uneven(count, ranks);
            assert_eq!(counts.len(), ranks);
            assert_eq!(counts.iter().sum::<usize>(), count);
        }
    }

    #[test]
    fn blocks_cross_in_an_all_to_all() {
        let place = Place { rank: 1, ranks: 3, root: 0 };
        let layout = Layout::out_of_place(Collective::AllToAll, 4, place);
        assert_eq!((layout.input, layout.output), (12, 12));
        let from = |rank| Content::Of { rank, first: 4 };
        let contents: Vec<_> = layout.after.iter().map(|part| part.content).collect();
        assert_eq!(contents, [from(0), from(1), from(2)]);
    }
}
