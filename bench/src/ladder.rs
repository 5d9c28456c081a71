//! One ladder of sizes for all who add up f32 in place: allfold, the probe of shared memory, and
//! the programs of `bench/peers`, which do the same by `bench/peers/ladder.h`.
//!
//! At each size: a call on known numbers, whose result is checked; warm-up calls in batches of 1,
//! 2, 4 and so on; then the timed calls, one directly after the other. How many there are follows
//! from the time of the last batch, on rank 0's clock, by one rule for all. The time of a call is
//! that of the rank for which it took longest.

use std::time::Instant;

use allfold::probe::SharedSum;

use crate::measure::processor_time;

/// Which sizes, and how long each.
#[derive(Clone, Debug, PartialEq)]
pub struct Ladder {
    /// In bytes, whole elements of 4.
    pub sizes: Vec<usize>,
    /// What the timed calls of a size are to take, in microseconds.
    pub budget_us: f64,
}

/// One rank of those that add up.
pub trait Summing {
    /// Its number.
    fn rank(&self) -> usize;
    /// How many there are.
    fn ranks(&self) -> usize;
    /// This rank's buffer: at least [`Ladder::buffer_bytes`].
    fn buffer(&mut self) -> &mut [f32];
    /// The first so many elements become the sum of all ranks'.
    fn all_reduce(&mut self, count: usize);
}

impl Summing for SharedSum {
    fn rank(&self) -> usize {
        self.rank()
    }

    fn ranks(&self) -> usize {
        self.ranks()
    }

    fn buffer(&mut self) -> &mut [f32] {
        self.buffer()
    }

    fn all_reduce(&mut self, count: usize) {
        self.all_reduce(count);
    }
}

/// One size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// Bytes of the buffer.
    pub bytes: usize,
    /// How many calls were timed.
    pub calls: usize,
    /// The median call, in microseconds.
    pub median_us: f64,
    /// The fastest one.
    pub least_us: f64,
    /// The slowest but for one in twenty.
    pub p95_us: f64,
    /// Wrong elements of all ranks, in the call that was checked.
    pub wrong: u64,
    /// Processor time of all threads of all ranks, in microseconds a call.
    pub processor_us: f64,
}

impl Row {
    /// As `ladder.h` prints it.
    pub fn to_line(&self) -> String {
        let Self { bytes, calls, median_us, least_us, p95_us, wrong, processor_us } = self;
        format!(
            "row {bytes} {calls} {median_us:.3} {least_us:.3} {p95_us:.3} {wrong} {processor_us:.3}"
        )
    }

    /// Reads a line that a rank printed; none where it is about something else.
    pub fn from_line(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.strip_prefix("row ")?.split(' ').collect();
        let [bytes, calls, median, least, p95, wrong, processor] = words[..] else { return None };
        Some(Self {
            bytes: bytes.parse().ok()?,
            calls: calls.parse().ok()?,
            median_us: median.parse().ok()?,
            least_us: least.parse().ok()?,
            p95_us: p95.parse().ok()?,
            wrong: wrong.parse().ok()?,
            processor_us: processor.parse().ok()?,
        })
    }
}

impl Ladder {
    /// Sizes from the first on, none above the last, in bytes.
    pub fn sizes(first: usize, last: usize) -> impl Iterator<Item = usize> {
        let sizes = std::iter::successors(Some(first), |bytes| bytes.checked_mul(FACTOR));
        sizes.take_while(move |bytes| *bytes <= last)
    }

    /// What a rank's buffer has at least: room for the largest size, and for the times of all
    /// calls of all ranks.
    pub fn buffer_bytes(&self, ranks: usize) -> usize {
        let largest = self.sizes.iter().copied().max().unwrap_or_default();
        largest.max(MOST_CALLS * ranks * ELEMENT)
    }

    /// Measures every size; every rank calls it, and `found` is given the rows of all.
    pub fn climb(&self, rank: &mut impl Summing, mut found: impl FnMut(Row)) {
        for bytes in self.sizes.iter().copied() {
            found(self.size(rank, bytes));
        }
    }

    fn size(&self, on: &mut impl Summing, bytes: usize) -> Row {
        let count = bytes / ELEMENT;
        let (rank, ranks) = (on.rank(), on.ranks());
        for (index, element) in on.buffer()[..count].iter_mut().enumerate() {
            *element = (rank + 1) as f32 * (index % 7) as f32;
        }
        on.all_reduce(count);
        let all = (ranks * (ranks + 1) / 2) as f32;
        let sums = on.buffer()[..count].iter().enumerate();
        let wrong = sums.filter(|(index, sum)| **sum != all * (index % 7) as f32).count();
        let wrong = tell(on, wrong as f32).iter().sum::<f32>() as u64;

        on.buffer()[..count].fill(0.0);
        let most = (BYTES_A_SIZE / bytes).clamp(LEAST_CALLS, MOST_CALLS);
        let mut batch = 1;
        let calls = loop {
            on.buffer()[..count].fill(0.0);
            let began = Instant::now();
            (0..batch).for_each(|_| on.all_reduce(count));
            // On rank 0's clock.
            let took = f64::from(tell(on, us(began) as f32)[0]);
            if took * WARM_UP >= self.budget_us || batch as f64 * WARM_UP >= most as f64 {
                let fit = self.budget_us * batch as f64 / took;
                break (fit as usize).clamp(LEAST_CALLS, most);
            }
            batch *= 2;
        };

        on.buffer()[..count].fill(0.0);
        let mut times = Vec::with_capacity(calls);
        on.all_reduce(count);
        let processor = processor_time();
        for _ in 0..calls {
            let began = Instant::now();
            on.all_reduce(count);
            times.push(us(began));
        }
        let processor = (processor_time() - processor).as_secs_f64() * 1e6 / calls as f64;
        let mut slowest = slowest(on, &times);
        let processor_us = tell(on, processor as f32).into_iter().map(f64::from).sum();
        slowest.sort_by(f32::total_cmp);
        let at = |part: usize| f64::from(slowest[calls * part / 100]);
        Row {
            bytes,
            calls,
            median_us: at(50),
            least_us: at(0),
            p95_us: at(95),
            wrong,
            processor_us,
        }
    }
}

/// What each rank has to say.
fn tell(on: &mut impl Summing, word: f32) -> Vec<f32> {
    let (rank, ranks) = (on.rank(), on.ranks());
    let words = &mut on.buffer()[..ranks];
    words.fill(0.0);
    words[rank] = word;
    on.all_reduce(ranks);
    on.buffer()[..ranks].to_vec()
}

/// Of each call, the time of the rank for which it took longest.
fn slowest(on: &mut impl Summing, times: &[f64]) -> Vec<f32> {
    let (rank, all) = (on.rank(), on.ranks() * times.len());
    let words = &mut on.buffer()[..all];
    words.fill(0.0);
    for (word, time) in words[rank * times.len()..].iter_mut().zip(times) {
        *word = *time as f32;
    }
    on.all_reduce(all);
    let words = &on.buffer()[..all];
    let of_call =
        |call: usize| words.iter().skip(call).step_by(times.len()).copied().fold(0.0, f32::max);
    (0..times.len()).map(of_call).collect()
}

fn us(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1e6
}

const ELEMENT: usize = size_of::<f32>();
/// From one size to the next.
pub const FACTOR: usize = 4;
/// A median of fewer is chance.
pub const LEAST_CALLS: usize = 10;
/// More make a median no better.
pub const MOST_CALLS: usize = 4000;
/// Beyond so many bytes in all, [`LEAST_CALLS`].
pub const BYTES_A_SIZE: usize = 128 << 20;
/// The last batch of warm-up calls takes at least this part of the budget, or is this part of the
/// most calls.
pub const WARM_UP: f64 = 10.0;

#[cfg(test)]
mod tests {
    use super::*;
    use allfold::probe::SharedBuffers;

    struct Alone(Vec<f32>, usize);

    impl Summing for Alone {
        fn rank(&self) -> usize {
            0
        }
        fn ranks(&self) -> usize {
            1
        }
        fn buffer(&mut self) -> &mut [f32] {
            &mut self.0
        }
        fn all_reduce(&mut self, count: usize) {
            self.1 += 1;
            // Wrong at one size.
            if count == 16 {
                self.0[15] += 1.0;
            }
        }
    }

    #[test]
    fn every_size_has_a_row_and_wrong_sums_are_counted() {
        let ladder = Ladder { sizes: Ladder::sizes(4, 300).collect(), budget_us: 1e9 };
        let mut alone = Alone(vec![0.0; ladder.buffer_bytes(1) / 4], 0);
        let mut rows = Vec::new();
        ladder.climb(&mut alone, |row| rows.push(row));
        let found: Vec<_> = rows.iter().map(|row| (row.bytes, row.calls, row.wrong)).collect();
        assert_eq!(found, [(4, 4000, 0), (16, 4000, 0), (64, 4000, 1), (256, 4000, 0)]);
        assert!(
            rows.iter().all(|row| row.least_us <= row.median_us && row.median_us <= row.p95_us)
        );
    }

    #[test]
    fn a_row_is_read_as_it_was_printed() {
        let line = "row 64 20 1.500 1.000 2.250 3 4.125";
        assert_eq!(Row::from_line(line).unwrap().to_line(), line);
        assert_eq!(Row::from_line("row 64 20"), None);
        assert_eq!(Row::from_line("warning: slow"), None);
    }

    #[test]
    fn a_small_budget_makes_few_calls() {
        let ladder = Ladder { sizes: vec![64], budget_us: 1e-3 };
        let mut alone = Alone(vec![0.0; ladder.buffer_bytes(1) / 4], 0);
        ladder.climb(&mut alone, |row| assert_eq!(row.calls, LEAST_CALLS));
    }

    #[test]
    fn ranks_agree_on_the_number_of_calls() {
        let ladder = Ladder { sizes: Ladder::sizes(4, 1024).collect(), budget_us: 500.0 };
        let buffers = SharedBuffers::new(3, ladder.buffer_bytes(3)).unwrap();
        let rows: Vec<Vec<Row>> = std::thread::scope(|scope| {
            let ladder = &ladder;
            let rank = |rank: usize| {
                let mut rank: SharedSum = buffers.rank(rank).unwrap();
                scope.spawn(move || {
                    let mut rows = Vec::new();
                    ladder.climb(&mut rank, |row| rows.push(row));
                    rows
                })
            };
            let ranks: Vec<_> = (0..3).map(rank).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        assert_eq!(rows[0].len(), 5);
        assert!(rows.iter().all(|found| *found == rows[0]));
        assert!(rows[0].iter().all(|row| row.wrong == 0));
    }
}
