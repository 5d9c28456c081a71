//! One rank, doing what its arguments say: the program of the tests about faults.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use allfold::{Communicator, Error, ReduceOp, Result};

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
    if words == ["keep-a-buffer"] {
        let part = Part::take().ok_or_else(|| unknown(&words))?;
        return part.keep_a_buffer();
    }
    if let ["spin", seconds] = words[..] {
        busy::spin_for(Duration::from_secs(seconds.parse().unwrap_or(1)));
        return Ok(());
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
        _ => Err(unknown(&words)),
    }
}

fn forever(world: &Communicator) -> Result<()> {
    sum(world)?;
    println!("started");
    let _ = std::io::stdout().flush();
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

/// One all-reduce of two chunks' worth of segments, checked.
fn sum(world: &Communicator) -> Result<()> {
    let mut buffer = vec![1.0f32; 40_000];
    world.all_reduce(&mut buffer, ReduceOp::Sum)?;
    let want = world.size() as f32;
    if buffer.iter().any(|value| *value != want) {
        eprintln!("wrong data");
        std::process::exit(1);
    }
    Ok(())
}

fn unknown(words: &[&str]) -> Error {
    let problem = format!("unknown script {words:?}");
    allfold::ErrorKind::Argument { problem }.into()
}

/// Calls before something happens.
const SOME: usize = 5;
/// Of a rank that waits for a file.
const LOOK: Duration = Duration::from_millis(5);
