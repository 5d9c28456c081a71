//! From the start of the first process to the end of the first barrier on the last rank.

use std::time::Duration;

use allfold::{Communicator, ReduceOp};
use allfold_bench::turns::median;
use rustix::time::{ClockId, clock_gettime};

use crate::{Row, Target, number, ranks};

/// Worlds of 4 and of 64 ranks on this host.
pub(crate) fn measure(turns: usize) -> Result<Vec<Row>, String> {
    let mut rows = Vec::new();
    for (ranks, most) in [(4, 150.0), (64, 5000.0)] {
        let once = |_| {
            let began = now_ms();
            let text = ranks::run(ranks, &["connect"], "auto", LIMIT)?;
            Ok(number(&text, "met")? - began)
        };
        let times: Result<Vec<f64>, String> = (0..turns).map(once).collect();
        rows.push(Row {
            what: format!("connect: {ranks} ranks on one host, to the end of the first barrier"),
            unit: "ms",
            measured: median(times?),
            target: Target::AtMost(most),
        });
    }
    Ok(rows)
}

/// One of them; rank 0 prints when the last had met.
pub(crate) fn rank() {
    let world = Communicator::from_env().expect("a launched rank");
    world.barrier().expect("a barrier");
    let mut last = [now_ms()];
    world.all_reduce(&mut last, ReduceOp::Max).expect("an all-reduce");
    if world.rank() == 0 {
        println!("met {}", last[0]);
    }
    world.close().expect("the end");
}

/// On a clock that all processes of a host share.
fn now_ms() -> f64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

/// Worlds that cannot meet end by then.
const LIMIT: Duration = Duration::from_secs(60);
