//! All-reduces of two ranks over QUIC beside a bare link that carries bytes both ways at once, in
//! turns, between the same two processes:
//!
//! ```console
//! $ cargo run --release -p allfold-bench --example quic -- --turns 5
//! ```
//!
//! The link is the runtime's own, with its cipher, packets and windows, on one thread in each
//! process; nothing is above it. An all-reduce of two ranks sends and receives as many bytes as its
//! buffer has, so that its bytes by time are compared with what the link carries one way while it
//! carries as much the other way. Both are equally warm: before it is timed, each is done for as
//! long, and then sends as many messages of 8 bytes there and back. Each turn begins with another
//! part. Medians over turns; the ratio is that of each turn.

// A benchmark ends by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../peers/processes.rs"]
mod processes;
#[path = "../targets/ranks.rs"]
mod ranks;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use allfold::probe::{Link, LinkFigures, Route};
use allfold::{Communicator, ReduceOp};
use allfold_bench::turns::{self, median};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (is_rank, turns) = match &words[..] {
        [] => (false, Some(TURNS)),
        [word, turns] if word == "--turns" => (false, turns.parse().ok()),
        [word, turns] if word == "rank" => (true, turns.parse().ok()),
        _ => (false, None),
    };
    match turns.filter(|turns| *turns > 0) {
        Some(turns) if is_rank => rank(turns),
        Some(turns) => start(turns),
        None => {
            let words = words.join(" ");
            eprintln!("error: `{words}`\nhelp: quic [--turns N], at least 1");
            ExitCode::from(2)
        }
    }
}

/// Starts both ranks and waits for them.
fn start(turns: u32) -> ExitCode {
    processes::take_charge();
    match ranks::run(2, &[&turns.to_string()], "quic", LIMIT + LIMIT_A_TURN * turns) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("error: {problem}");
            processes::interrupted().map_or(ExitCode::FAILURE, ExitCode::from)
        }
    }
}

/// What a turn consists of.
enum Part {
    Link,
    AllReduce(usize),
}

fn rank(turns: u32) -> ExitCode {
    let world = Communicator::from_env().expect("a launched rank");
    let mut buffer = vec![0.0f32; SIZES.iter().max().unwrap() / 4];
    let parts: Vec<Part> = [Part::Link].into_iter().chain(SIZES.map(Part::AllReduce)).collect();
    // A rate for each turn.
    let mut links = Vec::new();
    let mut rates = SIZES.map(|_| Vec::new());
    let mut payload = 0;
    for turn in 0..turns as usize {
        for part in turns::order(&parts, turn) {
            match part {
                Part::Link => {
                    link(&world, WARM_UP);
                    let figures = link(&world, TIMED);
                    payload = figures[0].payload;
                    links.push(each_way(&figures));
                }
                Part::AllReduce(bytes) => {
                    let seconds = all_reduce(&world, &mut buffer[..bytes / 4]);
                    let place = SIZES.iter().position(|size| size == bytes).unwrap();
                    rates[place].push(*bytes as f64 / seconds);
                }
            }
        }
    }
    if world.rank() == 0 {
        println!("| bytes | all-reduce, GB/s | bare link, GB/s | ratio | target | | packets |");
        println!("| ---: | ---: | ---: | ---: | ---: | --- | ---: |");
        for (bytes, rates) in SIZES.into_iter().zip(rates) {
            let ratio = median(rates.iter().zip(&links).map(|(rate, link)| rate / link).collect());
            let verdict = if ratio >= LEAST { "met" } else { "**missed**" };
            println!(
                "| {bytes} | {:.2} | {:.2} | {ratio:.2} | {LEAST} | {verdict} | {payload} |",
                median(rates) / 1e9,
                median(links.clone()) / 1e9,
            );
        }
    }
    world.close().expect("the end");
    ExitCode::SUCCESS
}

/// Both ways at once over a new link.
fn link(world: &Communicator, duration: Duration) -> Vec<LinkFigures> {
    let link = Link { duration, round_trips: ROUND_TRIPS, ..Link::default() };
    let figures = link.measure(world, Route::Exchange { first: 0, second: 1 });
    let figures = figures.expect("the link's figures");
    let problem = figures.iter().find_map(|figures| figures.problem.as_ref());
    assert!(problem.is_none(), "the link: {problem:?}");
    figures
}

/// Bytes a second that a link carries one way while it carries bytes the other way too. One way may
/// have the better half of a core: what both carry together, halved, is what an all-reduce can use,
/// which needs both alike. Both ends send for the same time, so that both ways run all the time.
fn each_way(figures: &[LinkFigures]) -> f64 {
    figures.iter().map(LinkFigures::rate).sum::<f64>() / figures.len() as f64
}

/// What the median call takes, in seconds; a call's time is that of its slower rank.
fn all_reduce(world: &Communicator, buffer: &mut [f32]) -> f64 {
    let call = |buffer: &mut [f32]| {
        let begun = Instant::now();
        world.all_reduce(buffer, ReduceOp::Sum).expect("an all-reduce");
        begun.elapsed().as_secs_f64()
    };
    call(buffer);
    // As many on both ranks.
    let mut once = [call(buffer)];
    world.all_reduce(&mut once, ReduceOp::Max).expect("an all-reduce");
    let calls = |duration: Duration| (duration.as_secs_f64() / once[0]) as usize;
    for _ in 0..calls(WARM_UP) {
        call(buffer);
    }
    for _ in 0..ROUND_TRIPS {
        call(&mut buffer[..2]);
    }
    let timed = calls(TIMED).clamp(FEWEST_CALLS, MOST_CALLS);
    let mut times: Vec<f64> = (0..timed).map(|_| call(buffer)).collect();
    world.all_reduce(&mut times, ReduceOp::Max).expect("an all-reduce");
    median(times)
}

/// That of the shipped binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
const SIZES: [usize; 5] = [256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20];
const TURNS: u32 = 5;
/// Of the bare link.
const LEAST: f64 = 0.9;
/// Of the link, and of each size.
const TIMED: Duration = Duration::from_millis(500);
/// Of both before that.
const WARM_UP: Duration = Duration::from_millis(200);
/// A link that is new each time has found the largest packet and knows its round trip by then.
/// Measured: without them it carries a fifth to a third less, also two seconds later.
const ROUND_TRIPS: usize = 1000;
/// A median of fewer is chance.
const FEWEST_CALLS: usize = 8;
const MOST_CALLS: usize = 4000;
/// Ranks that cannot meet or are stuck end by then.
const LIMIT: Duration = Duration::from_secs(30);
/// Some five times of what a turn takes.
const LIMIT_A_TURN: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_counts_what_both_ways_carry() {
        let figures = |from, bytes| LinkFigures {
            from,
            to: 1 - from,
            bytes,
            elapsed: Duration::from_millis(500),
            payload: 65_000,
            packets: 1,
            lost: 0,
            round_trips: Vec::new(),
            problem: None,
        };
        assert_eq!(each_way(&[figures(0, 1_000_000), figures(1, 3_000_000)]), 4e6);
    }
}
