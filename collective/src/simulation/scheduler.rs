//! The queue of events to come, in virtual time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::random::Random;

/// Events ordered by time; which of two at the same time comes first is drawn from the seed.
pub struct Scheduler<E> {
    now: u64,
    random: Random,
    queue: BinaryHeap<Reverse<Due<E>>>,
    scheduled: u64,
}

impl<E> Scheduler<E> {
    /// An empty queue at time 0.
    pub fn new(seed: u64) -> Self {
        Self { now: 0, random: Random::new(seed), queue: BinaryHeap::new(), scheduled: 0 }
    }

    /// Nanoseconds since the simulation began.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// The seed's generator, for every choice of the simulation.
    pub fn random(&mut self) -> &mut Random {
        &mut self.random
    }

    /// Schedules `event`; a time that has passed counts as now.
    pub fn at(&mut self, time: u64, event: E) {
        self.scheduled += 1;
        let order = (time.max(self.now), self.random.bits(), self.scheduled);
        self.queue.push(Reverse(Due { order, event }));
    }

    /// Schedules `event` for `delay` nanoseconds from now.
    pub fn after(&mut self, delay: u64, event: E) {
        self.at(self.now.saturating_add(delay), event);
    }

    /// The next event and its time, which becomes the present; None if nothing is left.
    // Not an Iterator: the loop that takes events also schedules them.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<(u64, E)> {
        let Reverse(due) = self.queue.pop()?;
        self.now = due.order.0;
        Some((self.now, due.event))
    }
}

struct Due<E> {
    /// Time, tie-break, and the number of the event, so that the order is total.
    order: (u64, u64, u64),
    event: E,
}

impl<E> PartialEq for Due<E> {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl<E> Eq for Due<E> {}

impl<E> PartialOrd for Due<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Due<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order.cmp(&other.order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(seed: u64) -> Vec<u32> {
        let mut scheduler = Scheduler::new(seed);
        scheduler.at(20, 100);
        (0..6).for_each(|event| scheduler.at(10, event));
        scheduler.after(5, 99);
        std::iter::from_fn(|| scheduler.next().map(|(_, event)| event)).collect()
    }

    #[test]
    fn time_goes_first_and_the_seed_breaks_ties() {
        let orders: Vec<Vec<u32>> = (0..20).map(order).collect();
        for order in &orders {
            assert_eq!((order[0], order[7]), (99, 100));
        }
        assert!(orders.iter().any(|order| *order != orders[0]), "ties never vary");
        assert_eq!(orders, (0..20).map(order).collect::<Vec<_>>(), "a seed does not replay");
    }

    #[test]
    fn the_past_is_now() {
        let mut scheduler = Scheduler::new(1);
        scheduler.at(10, 'a');
        assert_eq!(scheduler.next(), Some((10, 'a')));
        scheduler.at(3, 'b');
        assert_eq!(scheduler.next(), Some((10, 'b')));
        assert_eq!(scheduler.next(), None);
    }
}
