//! One rank of allfold on the ladder. The same rules stand in `ladder.h`.

use std::time::Instant;

use allfold::{Communicator, ReduceOp};

/// Runs it; `how` is `alloc` or `slices`. Rank 0 prints a row for each size.
pub(crate) fn run(how: Option<&str>) {
    let world = Communicator::from_env().expect("a launched rank");
    let last: usize = std::env::var(LAST).map_or(LAST_BYTES, |text| text.parse().unwrap());
    let mut aside = Vec::new();
    let mut shared;
    let buffer: &mut [f32] = match how {
        Some("alloc") => {
            shared = world.alloc::<f32>(LAST_BYTES / 4);
            &mut shared
        }
        _ => {
            aside.resize(LAST_BYTES / 4, 0.0);
            &mut aside
        }
    };
    let mut bytes = FIRST_BYTES;
    while bytes <= last {
        let buffer = &mut buffer[..bytes / 4];
        let (rank, ranks) = (world.rank() as f32, world.size() as f32);
        for (index, element) in buffer.iter_mut().enumerate() {
            *element = (rank + 1.0) * (index % 7) as f32;
        }
        world.all_reduce(buffer, ReduceOp::Sum).expect("an all-reduce");
        let all = ranks * (ranks + 1.0) / 2.0;
        let is_wrong = |(index, sum): (usize, &f32)| *sum != all * (index % 7) as f32;
        let mut wrong = [buffer.iter().enumerate().filter(|e| is_wrong(*e)).count() as u64];
        buffer.fill(0.0);
        let calls = iterations(bytes);
        for _ in 0..calls / 10 {
            world.all_reduce(buffer, ReduceOp::Sum).expect("an all-reduce");
        }
        let mut times = Vec::with_capacity(calls);
        world.barrier().expect("a barrier");
        for _ in 0..calls {
            let began = Instant::now();
            world.all_reduce(buffer, ReduceOp::Sum).expect("an all-reduce");
            times.push(began.elapsed().as_secs_f64() * 1e6);
        }
        world.all_reduce(&mut times, ReduceOp::Max).expect("an all-reduce");
        world.all_reduce(&mut wrong, ReduceOp::Sum).expect("an all-reduce");
        if world.rank() == 0 {
            times.sort_by(f64::total_cmp);
            let at = |part: usize| times[calls * part / 100];
            let (median, least, most) = (times[calls / 2], times[0], at(95));
            println!("row {bytes} {calls} {median:.3} {least:.3} {most:.3} {}", wrong[0]);
        }
        bytes *= FACTOR;
    }
    world.close().expect("the end");
}

fn iterations(bytes: usize) -> usize {
    ((128 << 20) / bytes).clamp(20, 4000)
}

/// Says the last size.
pub(crate) const LAST: &str = "PEERS_LAST_BYTES";
const FIRST_BYTES: usize = 4;
const LAST_BYTES: usize = 64 << 20;
const FACTOR: usize = 4;
