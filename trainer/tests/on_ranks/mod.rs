//! Ranks as threads of the test's own process.

use std::thread;

use allfold::Communicator;

/// What `rank` returns on each of `ranks` ranks, in their order.
pub(crate) fn on_ranks<R: Send>(ranks: usize, rank: impl Fn(Communicator) -> R + Sync) -> Vec<R> {
    let worlds = Communicator::in_memory(ranks).unwrap();
    thread::scope(|scope| {
        let rank = &rank;
        let threads: Vec<_> =
            worlds.into_iter().map(|world| scope.spawn(move || rank(world))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
