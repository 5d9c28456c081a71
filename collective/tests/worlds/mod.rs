//! Worlds for tests: one body over every kind of link, one thread a rank.

// Each test file uses a part of this.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use allfold::{Communicator, Config, InMemory, Result, Secret};

/// Runs `body` as every rank of worlds of these sizes, over every link.
pub fn on_every_link(sizes: &[usize], body: impl Fn(&Communicator) -> Result<()> + Sync) {
    for &size in sizes {
        every_link(size).into_iter().for_each(|world| each_rank(world, &body));
    }
}

/// A world over each link: within a process, with one lane and with three, over QUIC, in memory that
/// the ranks share.
pub fn every_link(size: usize) -> [Vec<Communicator>; 4] {
    let in_memory = Communicator::in_memory(size).unwrap();
    [in_memory, with_lanes(size, 3), over_quic(size), in_shared_memory(size)]
}

/// `size` ranks within this process, with so many lanes that share all but the shortest calls.
pub fn with_lanes(size: usize, lanes: usize) -> Vec<Communicator> {
    let world = InMemory::new(size).unwrap().lanes(lanes).unwrap();
    world.pieces(1024, 2048).start().unwrap()
}

/// Runs `body` over memory and over QUIC with each algorithm in turn, and with the chosen one.
pub fn by_every_algorithm(sizes: &[usize], body: impl Fn(&Communicator) -> Result<()> + Sync) {
    for name in ["auto", "ring", "tree", "recursive-doubling", "halving-doubling"] {
        for &size in sizes {
            each_rank(
                InMemory::new(size).unwrap().algorithm(name).unwrap().start().unwrap(),
                &body,
            );
        }
        let size = sizes.last().copied().unwrap();
        let world = connect_all(size, |config| config.algorithm(name).unwrap());
        each_rank(world.into_iter().map(|rank| rank.unwrap()).collect(), &body);
    }
}

/// `size` ranks in threads of this process, joined by real sockets, certificates and a rendezvous.
pub fn over_quic(size: usize) -> Vec<Communicator> {
    over("quic", size)
}

/// `size` ranks in threads of this process, each with mappings of its own of the memory that they
/// share.
pub fn in_shared_memory(size: usize) -> Vec<Communicator> {
    over(if size > 1 { "shared-memory" } else { "auto" }, size)
}

fn over(transport: &str, size: usize) -> Vec<Communicator> {
    let results = connect_all(size, |config| config.transport(transport).unwrap());
    results.into_iter().map(|rank| rank.unwrap()).collect()
}

/// Connects all ranks at once, each with its settings changed by `change`.
pub fn connect_all(
    size: usize,
    change: impl Fn(Config) -> Config + Sync,
) -> Vec<Result<Communicator>> {
    let secret = Secret::random().unwrap().to_line();
    let place = free_address();
    let connect = |rank| {
        let config = Config::new(rank, size, &place)?.secret(&secret)?;
        Communicator::connect(change(config))
    };
    std::thread::scope(|scope| {
        let connect = &connect;
        let threads: Vec<_> = (0..size).map(|rank| scope.spawn(move || connect(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// A loopback address whose port was free a moment ago.
pub fn free_address() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Below the range from which the system takes ports for sockets that ask for any: those of
    // the other tests cannot get in between. Processes start at different places.
    loop {
        let step =
            NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(std::process::id().wrapping_mul(101));
        let port = 10_000 + step % 20_000;
        let address = format!("127.0.0.1:{port}");
        if std::net::UdpSocket::bind(&address).is_ok() {
            return address;
        }
    }
}

/// Runs `body` on one thread a rank; a failure on any rank fails the test.
pub fn each_rank(world: Vec<Communicator>, body: impl Fn(&Communicator) -> Result<()> + Sync) {
    let size = world.len();
    for (rank, result) in results(world, |w| body(w)).into_iter().enumerate() {
        if let Err(error) = result {
            panic!("rank {rank} of {size}: {error}");
        }
    }
}

/// What `body` returns on each rank, after all have ended and closed.
pub fn results<T: Send>(
    world: Vec<Communicator>,
    body: impl Fn(&Communicator) -> T + Sync,
) -> Vec<T> {
    stay_quiet();
    let body = &body;
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let run = |rank: Communicator| {
            scope.spawn(move || {
                catch_unwind(AssertUnwindSafe(|| {
                    let rank = rank;
                    body(&rank)
                }))
            })
        };
        let threads: Vec<_> = world.into_iter().map(run).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    outcomes
        .into_iter()
        .map(|outcome| outcome.unwrap_or_else(|panic| resume_unwind(panic)))
        .collect()
}

/// Warnings belong to the tests that provoke them: they go to a subscriber that drops them.
pub fn stay_quiet() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let nobody = tracing::subscriber::NoSubscriber::default();
        tracing::subscriber::set_global_default(nobody).unwrap();
    });
}
