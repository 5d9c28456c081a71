//! How one rank sleeps until another has taken a step: nobody sleeps through a step, and what was
//! written before it is seen after it. Over memory that may be a model's, so that the test can try
//! every order in which two ranks may run.

/// The steps of one rank, as itself and the others see them.
pub(super) trait Steps {
    /// The latest step; what was written before it is seen.
    fn latest(&self) -> u32;
    /// Shows a step, and with it what was written before.
    fn show(&self, step: u32);
    /// Orders what this thread has written before what it reads next, for all threads that do so.
    fn fence(&self);
    /// How many sleep.
    fn sleepers(&self) -> u32;
    fn add_sleeper(&self);
    fn remove_sleeper(&self);
    /// Sleeps unless the latest step is another than this by now; may wake for nothing.
    fn sleep(&self, seen: u32);
    fn wake_all(&self);
}

/// Shows a step of this rank, and wakes those who sleep until it comes.
pub(super) fn publish(own: &impl Steps, step: u32) {
    own.show(step);
    // A sleeper counts itself and then looks at the step; here it is the other way round. With a
    // fence between the two on each side, one of them sees the other.
    own.fence();
    if own.sleepers() > 0 {
        own.wake_all();
    }
}

/// Sleeps until a rank has shown a step; false where `goes_on` says no before.
pub(super) fn sleep_until(of: &impl Steps, step: u32, mut goes_on: impl FnMut() -> bool) -> bool {
    of.add_sleeper();
    of.fence();
    let has_come = loop {
        let seen = of.latest();
        if has_come(seen, step) {
            break true;
        }
        if !goes_on() {
            break false;
        }
        of.sleep(seen);
    };
    of.remove_sleeper();
    has_come
}

/// Whether a counter that wraps has reached `step`.
pub(super) fn has_come(latest: u32, step: u32) -> bool {
    latest.wrapping_sub(step) < 1 << 31
}

#[cfg(test)]
mod tests {
    use loom::cell::UnsafeCell;
    use loom::sync::atomic::{AtomicU32, Ordering, fence};
    use loom::sync::{Arc, Condvar, Mutex};
    use loom::thread;

    use super::*;

    /// In a model's memory, with a futex made of a lock.
    struct Model {
        steps: AtomicU32,
        sleepers: AtomicU32,
        bed: Mutex<()>,
        woken: Condvar,
        /// What each of two posts shows.
        shown: [UnsafeCell<u32>; 2],
    }

    impl Model {
        fn new() -> Self {
            Self {
                steps: AtomicU32::new(0),
                sleepers: AtomicU32::new(0),
                bed: Mutex::new(()),
                woken: Condvar::new(),
                shown: [UnsafeCell::new(0), UnsafeCell::new(0)],
            }
        }
    }

    impl Steps for Model {
        fn latest(&self) -> u32 {
            self.steps.load(Ordering::Acquire)
        }

        fn show(&self, step: u32) {
            self.steps.store(step, Ordering::Release);
        }

        fn fence(&self) {
            fence(Ordering::SeqCst);
        }

        fn sleepers(&self) -> u32 {
            self.sleepers.load(Ordering::Relaxed)
        }

        fn add_sleeper(&self) {
            self.sleepers.fetch_add(1, Ordering::Relaxed);
        }

        fn remove_sleeper(&self) {
            self.sleepers.fetch_sub(1, Ordering::Relaxed);
        }

        fn sleep(&self, seen: u32) {
            let bed = self.bed.lock().unwrap();
            if self.steps.load(Ordering::Relaxed) == seen {
                drop(self.woken.wait(bed).unwrap());
            }
        }

        fn wake_all(&self) {
            drop(self.bed.lock().unwrap());
            self.woken.notify_all();
        }
    }

    /// Two ranks make `calls` small calls. The model finds a sleep that nobody ends, and a post that
    /// is written while the other rank reads it. It tries every order, or those with at most so
    /// many switches that neither rank asked for.
    fn meet(calls: u32, switches: Option<usize>) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = switches;
        builder.check(move || {
            let ranks = [Arc::new(Model::new()), Arc::new(Model::new())];
            let other = ranks.clone();
            let thread = thread::spawn(move || call_in_turn(&other, 1, calls));
            call_in_turn(&ranks, 0, calls);
            thread.join().unwrap();
        });
    }

    fn call_in_turn(ranks: &[Arc<Model>; 2], own: usize, calls: u32) {
        let (mine, theirs) = (&ranks[own], &ranks[1 - own]);
        for call in 1..=calls {
            let post = call as usize % 2;
            // SAFETY: the model says if anybody else is there.
            mine.shown[post].with_mut(|shown| unsafe { *shown = call * 10 + own as u32 });
            publish(&**mine, call);
            assert!(sleep_until(&**theirs, call, || true));
            // SAFETY: as above.
            let seen = theirs.shown[post].with(|shown| unsafe { *shown });
            assert_eq!(seen, call * 10 + 1 - own as u32);
        }
    }

    #[test]
    fn no_order_of_two_ranks_loses_a_step() {
        meet(1, None);
    }

    #[test]
    fn two_posts_are_enough() {
        meet(3, Some(3));
    }

    #[test]
    fn a_counter_that_wraps_still_counts() {
        assert!(has_come(0, 0) && has_come(1, 0) && !has_come(0, 1));
        assert!(has_come(0, u32::MAX) && !has_come(u32::MAX, 0));
    }
}
