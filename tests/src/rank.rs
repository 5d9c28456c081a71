//! One rank, doing what its arguments say: the program of the tests about faults.

mod gpu;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use allfold::{Communicator, Error, ReduceOp, Result, f16};

use crate::faults::busy;
use crate::faults::victim::{self, Part};

/// Does it, and ends as a program does.
pub fn main(words: &[String]) -> ExitCode {
    match act(words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            victim::report(&error);
            error.exit_code().into()
        }
    }
}

fn act(words: &[String]) -> Result<()> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if words == ["faults"] {
        let part = Part::take().ok_or_else(|| unknown(&words))?;
        return part.play();
    }
    if let ["keep-a-buffer", how] = words[..] {
        let part = Part::take().ok_or_else(|| unknown(&words))?;
        return part.keep_a_buffer(how == "started");
    }
    if let ["spin", seconds] = words[..] {
        busy::spin_for(Duration::from_secs(seconds.parse().unwrap_or(1)));
        return Ok(());
    }
    if let ["gpu", words @ ..] = &words[..] {
        return gpu::act(words);
    }
    let world = Communicator::from_env()?;
    match words[..] {
        // `faults`, above: what the variable of `faults::victim` says.
        // Ends right after its last call.
        ["calls", count] => (0..count.parse().unwrap_or(1)).try_for_each(|_| sum(&world)),
        // Says `started` after its first call and goes on until something ends it.
        ["forever"] => forever(&world),
        // As `forever`, but this rank stops calling after a while, without closing.
        ["exit", rank, code] => after_some(&world, rank, || {
            std::process::exit(code.parse().unwrap_or(0));
        }),
        // As `exit`, of a program that has a subscriber of its own.
        ["exit-subscribed", rank, code] => after_some(&world, rank, || {
            tracing_subscriber::fmt().with_writer(std::io::stderr).init();
            tracing::info!("this makes the subscriber's own variables of the thread");
            std::process::exit(code.parse().unwrap_or(0));
        }),
        ["panic", rank] => after_some(&world, rank, || panic!("told to")),
        ["close", rank] => {
            if world.rank().to_string() == *rank {
                (0..SOME).try_for_each(|_| sum(&world))?;
                return world.close();
            }
            forever(&world)
        }
        ["calls-for", seconds] => {
            busy::call_for(&world, Duration::from_secs(seconds.parse().unwrap_or(1)))?;
            world.close()
        }
        // This rank comes to its second call only once there is a file.
        ["late", rank, path] => {
            sum(&world)?;
            while world.rank().to_string() == *rank && !std::path::Path::new(path).exists() {
                std::thread::sleep(LOOK);
            }
            sum(&world)?;
            world.close()
        }
        // Sums until rank 0 finds the file, and says how many; rank 0 also meanwhile.
        ["until", path] => {
            let mut calls = 0;
            let mut is_over = false;
            while !is_over {
                let wishes = world.rank() == 0 && std::path::Path::new(path).exists();
                is_over = sum_and_ask(&world, wishes)?;
                calls += 1;
                if calls == 1 {
                    say("started");
                }
                if world.rank() == 0 && (calls == 1 || calls % SOME_MORE == 0) {
                    say(&format!("calls {calls}"));
                }
            }
            world.close()?;
            say(&format!("{calls} calls"));
            Ok(())
        }
        // All-reduces of every kind, checked, and how they were done.
        ["kinds"] => kinds(world),
        _ => Err(unknown(&words)),
    }
}

fn kinds(world: Communicator) -> Result<()> {
    for length in [0, 1, 5, 1_000, 40_000, 600_001] {
        // Small whole numbers, so that every order of adding them up gives the same.
        let value = |index: usize| (world.rank() + 1) as f32 * (index % 5) as f32;
        let ranks = world.size() as f32;
        let all = ranks * (ranks + 1.0) / 2.0;
        let mut plain: Vec<f32> = (0..length).map(value).collect();
        let mut placed = world.alloc::<f32>(length);
        placed.copy_from_slice(&plain);
        let kept = plain.clone();
        world.all_reduce(&mut plain, ReduceOp::Sum)?;
        world.all_reduce(&mut placed, ReduceOp::Sum)?;
        let started = world.start_all_reduce(kept, ReduceOp::Avg)?;
        let mut halves: Vec<f16> = (0..length).map(|i| f16::from_f32(value(i))).collect();
        world.all_reduce(&mut halves, ReduceOp::Avg)?;
        let mut greatest: Vec<i64> = (0..length).map(|i| value(i) as i64).collect();
        world.all_reduce(&mut greatest, ReduceOp::Max)?;
        let averages = started.wait()?;
        world.barrier()?;
        let is_right = |index: usize| {
            let of = (index % 5) as f32;
            plain[index] == all * of
                && placed[index] == all * of
                && averages[index] == all * of / ranks
                && (halves[index].to_f32() - all * of / ranks).abs() < 0.05
                && greatest[index] as f32 == ranks * of
        };
        if let Some(index) = (0..length).find(|index| !is_right(*index)) {
            let (half, most) = (halves[index], greatest[index]);
            eprintln!(
                "wrong data at {index} of {length}: {} {} {} {half} {most}",
                plain[index], placed[index], averages[index],
            );
            std::process::exit(1);
        }
    }
    for calls in world.stats().calls {
        say(&format!("{} {} {}", calls.collective, calls.algorithm, calls.calls));
    }
    world.close()
}

fn forever(world: &Communicator) -> Result<()> {
    sum(world)?;
    say("started");
    loop {
        sum(world)?;
    }
}

fn after_some(world: &Communicator, rank: &str, end: impl FnOnce()) -> Result<()> {
    if world.rank().to_string() == rank {
        (0..SOME).try_for_each(|_| sum(world))?;
        end();
    }
    forever(world)
}

fn sum(world: &Communicator) -> Result<()> {
    sum_and_ask(world, false).map(drop)
}

/// One all-reduce of two chunks' worth of segments, checked; whether any rank wishes something.
#[track_caller]
fn sum_and_ask(world: &Communicator, wishes: bool) -> Result<bool> {
    let mut buffer = vec![1.0f32; 40_000];
    buffer[0] = if wishes { 1.0 } else { 0.0 };
    world.all_reduce(&mut buffer, ReduceOp::Sum)?;
    let want = world.size() as f32;
    if buffer[1..].iter().any(|value| *value != want) {
        eprintln!("wrong data");
        std::process::exit(1);
    }
    Ok(buffer[0] > 0.0)
}

fn say(line: &str) {
    println!("{line}");
    let _ = std::io::stdout().flush();
}

fn unknown(words: &[&str]) -> Error {
    let problem = format!("unknown script {words:?}");
    allfold::ErrorKind::Argument { problem }.into()
}

/// Calls before something happens.
const SOME: usize = 5;
/// Calls between two lines.
const SOME_MORE: usize = 50;
/// Of a rank that waits for a file.
const LOOK: Duration = Duration::from_millis(5);
