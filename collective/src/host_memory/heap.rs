//! Where in the arena buffers lie: first fit among what is free. Pure.

use std::collections::BTreeMap;
use std::ops::Range;

use rustix::param::page_size;

/// The free parts of a range of offsets.
pub(super) struct Heap {
    /// Start and end of each, none beside another.
    free: BTreeMap<usize, usize>,
}

impl Heap {
    pub(super) fn new(range: Range<usize>) -> Self {
        Self { free: BTreeMap::from([(range.start, range.end)]) }
    }

    /// A part of this length, at least, which begins at a multiple of its alignment; None where
    /// there is none left.
    pub(super) fn take(&mut self, length: usize) -> Option<Range<usize>> {
        let align = alignment(length);
        let length = length.max(1).checked_next_multiple_of(align)?;
        let fits = |(start, end): (&usize, &usize)| {
            let aligned = start.checked_next_multiple_of(align)?;
            (aligned.checked_add(length)? <= *end).then_some((*start, *end, aligned))
        };
        let (start, end, aligned) = self.free.iter().find_map(fits)?;
        self.free.remove(&start);
        if start < aligned {
            self.free.insert(start, aligned);
        }
        if aligned + length < end {
            self.free.insert(aligned + length, end);
        }
        Some(aligned..aligned + length)
    }

    /// Gives a part back.
    pub(super) fn give(&mut self, part: Range<usize>) {
        let Range { mut start, mut end } = part;
        if let Some((before, before_end)) = self.free.range(..start).next_back()
            && *before_end == start
        {
            start = *before;
        }
        if let Some(after_end) = self.free.remove(&end) {
            end = after_end;
        }
        self.free.insert(start, end);
    }
}

/// No two share a page, as one may be made private; large ones begin where a huge page can.
fn alignment(length: usize) -> usize {
    let page = page_size();
    match length < HUGE_PAGE {
        true => page,
        false => HUGE_PAGE.max(page),
    }
}

const HUGE_PAGE: usize = 2 << 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_never_overlap_and_all_comes_back(
            steps in prop::collection::vec((any::<bool>(), 0usize..5_000_000, any::<prop::sample::Index>()), 1..200),
        ) {
            let whole = 4096..64 << 20;
            let mut heap = Heap::new(whole.clone());
            let mut taken: Vec<Range<usize>> = Vec::new();
            for (takes, length, index) in steps {
                if takes || taken.is_empty() {
                    let Some(part) = heap.take(length) else { continue };
                    prop_assert!(part.len() >= length && part.start % alignment(length) == 0);
                    prop_assert!(whole.start <= part.start && part.end <= whole.end);
                    prop_assert!(taken.iter().all(|t| t.end <= part.start || part.end <= t.start));
                    taken.push(part);
                } else {
                    let at = index.index(taken.len());
                    heap.give(taken.swap_remove(at));
                }
            }
            taken.drain(..).for_each(|part| heap.give(part));
            prop_assert_eq!(heap.free, BTreeMap::from([(whole.start, whole.end)]));
        }
    }
}
