//! All-reduces of two ranks over QUIC beside a bare link that carries bytes both ways at once, in
//! turns, between the same two processes:
//!
//! ```console
//! $ cargo run --release -p allfold-bench --example quic -- --turns 5
//! ```
//!
//! The link is the runtime's own, with its cipher, packets and windows, on one thread in each
//! process; nothing is above it. An all-reduce of two ranks sends and receives as many bytes as its
//! buffer has, so that bytes by time of both can be compared. Medians over turns; the ratio is that
//! of each turn.

// A benchmark ends by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use allfold::probe::{Link, LinkFigures, Route};
use allfold::{Communicator, ReduceOp, Secret};

/// As the shipped binary's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let turns = match &words[..] {
        [] => 5,
        [name, turns] if name == "--turns" || name == "rank" => turns.parse().expect("a number"),
        _ => panic!("quic [--turns N]"),
    };
    match words.first().map(String::as_str) {
        Some("rank") => rank(turns),
        _ => start(turns),
    }
}

/// Starts both ranks and waits for them.
fn start(turns: usize) {
    let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let secret = Secret::random().unwrap().to_line();
    let program = std::env::current_exe().unwrap();
    let start = |rank: usize| {
        Command::new(&program)
            .args(["rank", &turns.to_string()])
            .env("ALLFOLD_RANK", rank.to_string())
            .env("ALLFOLD_WORLD_SIZE", "2")
            .env("ALLFOLD_RENDEZVOUS", port.to_string())
            .env("ALLFOLD_TRANSPORT", "quic")
            .env("ALLFOLD_SECRET", secret.as_str())
            .stdin(Stdio::null())
            .spawn()
            .unwrap()
    };
    let ranks = [start(0), start(1)];
    assert!(ranks.into_iter().all(|mut rank| rank.wait().unwrap().success()), "a rank failed");
}

fn rank(turns: usize) {
    let world = Communicator::from_env().expect("a launched rank");
    let mut buffer = vec![0.0f32; SIZES.iter().max().unwrap() / 4];
    let mut rows = Vec::new();
    for _ in 0..turns {
        let link = Link { duration: PROBE, ..Link::default() };
        let figures = link.measure(&world, Route::Exchange { first: 0, second: 1 }).unwrap();
        let problem = figures.iter().find_map(|f| f.problem.as_ref());
        assert!(problem.is_none(), "{problem:?}");
        let probe = figures.iter().map(LinkFigures::rate).fold(f64::INFINITY, f64::min) / 1e9;
        for bytes in SIZES {
            let seconds = all_reduce(&world, &mut buffer[..bytes / 4]);
            rows.push((bytes, probe, bytes as f64 / seconds / 1e9, figures[0].payload));
        }
    }
    if world.rank() == 0 {
        println!("| bytes | all-reduce, GB/s | bare link, GB/s | ratio | packets |");
        println!("| ---: | ---: | ---: | ---: | ---: |");
        for bytes in SIZES {
            let of = |value: &dyn Fn(f64, f64) -> f64| {
                let rows = rows.iter().filter(|row| row.0 == bytes);
                median(rows.map(|(_, probe, rate, _)| value(*probe, *rate)).collect())
            };
            println!(
                "| {bytes} | {:.2} | {:.2} | {:.2} | {} |",
                of(&|_, rate| rate),
                of(&|probe, _| probe),
                of(&|probe, rate| rate / probe),
                rows[0].3
            );
        }
    }
    world.close().expect("the end");
}

/// What the median call takes, in seconds; a call's time is that of its slower rank.
fn all_reduce(world: &Communicator, buffer: &mut [f32]) -> f64 {
    let calls = (BYTES_A_ROW / size_of_val(buffer)).max(FEWEST_CALLS);
    for _ in 0..FEWEST_CALLS {
        world.all_reduce(buffer, ReduceOp::Sum).expect("an all-reduce");
    }
    let mut times = Vec::with_capacity(calls);
    for _ in 0..calls {
        let begun = Instant::now();
        world.all_reduce(buffer, ReduceOp::Sum).expect("an all-reduce");
        times.push(begun.elapsed().as_secs_f64());
    }
    world.all_reduce(&mut times, ReduceOp::Max).expect("an all-reduce");
    median(times)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

const SIZES: [usize; 5] = [256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20];
const PROBE: Duration = Duration::from_millis(500);
/// Half a second or so.
const BYTES_A_ROW: usize = 512 << 20;
const FEWEST_CALLS: usize = 8;
