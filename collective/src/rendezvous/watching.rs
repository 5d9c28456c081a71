//! Which ranks watch each other.

/// The ranks that `rank` watches: up to eight all, else those at distance 2^k both ways.
pub(crate) fn watched(rank: u32, size: u32) -> Vec<u32> {
    if size <= ALL_WATCH_ALL {
        return (0..size).filter(|other| *other != rank).collect();
    }
    let distances = (0..).map(|k| 1u32 << k).take_while(|distance| *distance < size);
    let both = distances.flat_map(|d| [(rank + d) % size, (rank + size - d) % size]);
    let mut ranks: Vec<u32> = both.filter(|other| *other != rank).collect();
    ranks.sort_unstable();
    ranks.dedup();
    ranks
}

/// 28 connections; beyond it the distances 2^k take over.
pub(crate) const ALL_WATCH_ALL: u32 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watching_is_mutual_and_connects_everybody() {
        for size in [2u32, 3, 8, 9, 16, 17, 64, 1000] {
            for rank in 0..size {
                for other in watched(rank, size) {
                    assert!(watched(other, size).contains(&rank), "{rank} and {other} of {size}");
                }
            }
            assert!(watched(0, size).contains(&1));
        }
        assert_eq!(watched(0, 1000).len(), 20);
    }
}
