//! Which ranks are measured with which, and when: in a round each rank is of one pair at most.

/// Rounds of pairs, the lower rank first. Up to [`MOST_FOR_ALL`] ranks every pair has its turn, by
/// the circle method of round-robin tournaments; above only neighbours in the ring.
pub(super) fn rounds(size: usize) -> Vec<Vec<(usize, usize)>> {
    match size {
        0 | 1 => Vec::new(),
        2..=MOST_FOR_ALL => tournament(size),
        _ => ring(size),
    }
}

/// The last place stays, the others move round it; with an odd number it is nobody's.
fn tournament(size: usize) -> Vec<Vec<(usize, usize)>> {
    let places = size + size % 2;
    let turning = places - 1;
    let pair = |round: usize, place: usize| {
        let here = (round + place) % turning;
        let there = match place {
            0 => places - 1,
            _ => (round + turning - place) % turning,
        };
        (here.min(there), here.max(there))
    };
    let is_played = |pair: &(usize, usize)| pair.1 < size;
    (0..turning)
        .map(|round| (0..places / 2).map(|place| pair(round, place)).filter(is_played).collect())
        .collect()
}

/// Every second edge at once; the one that closes a ring of odd length alone.
fn ring(size: usize) -> Vec<Vec<(usize, usize)>> {
    let edge = |rank: usize| match rank + 1 == size {
        true => (0, rank),
        false => (rank, rank + 1),
    };
    let last = size - size % 2;
    let mut rounds: Vec<Vec<_>> =
        [0, 1].map(|first| (first..last).step_by(2).map(edge).collect()).into();
    if size % 2 == 1 {
        rounds.push(vec![edge(size - 1)]);
    }
    rounds
}

/// 15 rounds, and a matrix that fits a page. Beyond, the ring is what an all-reduce uses.
pub(super) const MOST_FOR_ALL: usize = 16;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_rank_is_in_one_pair_of_a_round_and_meets_whom_it_should() {
        for size in 0..40 {
            let rounds = rounds(size);
            let mut met = BTreeSet::new();
            for round in &rounds {
                let ranks: Vec<usize> = round.iter().flat_map(|(a, b)| [*a, *b]).collect();
                let distinct: BTreeSet<_> = ranks.iter().collect();
                assert_eq!(distinct.len(), ranks.len(), "{size}: {round:?}");
                for (low, high) in round {
                    assert!(low < high && *high < size, "{size}: {round:?}");
                    assert!(met.insert((*low, *high)), "{size}: {low} and {high} meet twice");
                }
            }
            let all = || (0..size).flat_map(|a| (a + 1..size).map(move |b| (a, b)));
            let is_near = |(a, b): &(usize, usize)| b - a == 1 || (*a == 0 && b + 1 == size);
            let expected: BTreeSet<_> = match size <= MOST_FOR_ALL {
                true => all().collect(),
                false => all().filter(is_near).collect(),
            };
            assert_eq!(met, expected, "{size}");
            let shortest = match size {
                0 | 1 => 0,
                2..=MOST_FOR_ALL => size - 1 + size % 2,
                _ => 2 + size % 2,
            };
            assert_eq!(rounds.len(), shortest, "{size}");
        }
    }
}
