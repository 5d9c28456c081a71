//! One rank, doing what its argument says: the program of the tests about faults.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use allfold::{Communicator, Error, ReduceOp, Result};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match act(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            if let Some(help) = error.help() {
                eprintln!("help: {help}");
            }
            error.exit_code().into()
        }
    }
}

fn act(words: &[String]) -> Result<()> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let world = Communicator::from_env()?;
    match words[..] {
        // Ends right after its last call.
        ["calls", count] => (0..count.parse().unwrap_or(1)).try_for_each(|_| sum(&world)),
        // Says `started` after its first call and goes on until something ends it.
        ["forever"] => forever(&world),
        // Calls until there is such a file, which rank 0 looks for, and says how many it has made.
        ["until", path] => until(&world, path),
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

fn until(world: &Communicator, path: &str) -> Result<()> {
    for calls in 1.. {
        sum(world)?;
        let mut done = [u32::from(world.rank() == 0 && std::path::Path::new(path).exists())];
        world.all_reduce(&mut done, ReduceOp::Max)?;
        if done != [0] {
            break;
        }
        if world.rank() == 0 && (calls == 1 || calls % 50 == 0) {
            println!("calls {calls}");
        }
    }
    world.barrier()
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

/// Of a rank that waits for a file.
const LOOK: Duration = Duration::from_millis(5);
/// Calls before something happens.
const SOME: usize = 5;
