//! Runs a simulation on many seeds, and says how to replay the one that fails.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `run` on the seeds in `kept`, which once failed, then on those in `range`.
///
/// `ALLFOLD_SEED=n` in the environment runs that one alone, and [`trace`] prints;
/// `ALLFOLD_SEEDS=from..to` replaces the range.
///
/// # Panics
///
/// At the first seed for which `run` returns an error or panics; the message has the seed and the
/// command that replays it.
pub fn seeds(kept: &[u64], range: Range<u64>, run: impl Fn(u64) -> Result<(), String>) {
    let one = std::env::var(ONE).ok();
    let many = std::env::var(MANY).ok();
    let chosen = match choose(one.as_deref(), many.as_deref(), kept, range) {
        Ok(chosen) => chosen,
        Err(problem) => panic!("{problem}"),
    };
    if let Some((seed, problem)) = first_failure(chosen, run) {
        // The test harness names a test's thread after the test.
        let thread = std::thread::current();
        let test = thread.name().filter(|name| name.contains("::")).unwrap_or("simulation");
        panic!("seed {seed}: {problem}\nreplay: {ONE}={seed} cargo test -p allfold --lib {test}");
    }
}

/// Prints a line while one seed is replayed, and does nothing otherwise.
pub fn trace(line: impl FnOnce() -> String) {
    if REPLAYING.with(|replaying| *replaying) {
        println!("{}", line());
    }
}

/// The seeds to run: one, or those kept and a range.
fn choose<'a>(
    one: Option<&str>,
    many: Option<&str>,
    kept: &'a [u64],
    range: Range<u64>,
) -> Result<Box<dyn Iterator<Item = u64> + 'a>, String> {
    if let Some(one) = one {
        let seed = one.parse::<u64>().map_err(|_| format!("{ONE}={one}: not a number"))?;
        return Ok(Box::new(std::iter::once(seed)));
    }
    let range = match many {
        None => range,
        Some(many) => {
            let ends = many.split_once("..").map(|(from, to)| (from.parse(), to.parse()));
            match ends {
                Some((Ok(from), Ok(to))) if from < to => from..to,
                _ => return Err(format!("{MANY}={many}: not a range such as 0..10000")),
            }
        }
    };
    Ok(Box::new(kept.iter().copied().chain(range)))
}

/// The first seed that fails, and why.
fn first_failure(
    chosen: impl Iterator<Item = u64>,
    run: impl Fn(u64) -> Result<(), String>,
) -> Option<(u64, String)> {
    for seed in chosen {
        let problem = match catch_unwind(AssertUnwindSafe(|| run(seed))) {
            Ok(Ok(())) => continue,
            Ok(Err(problem)) => problem,
            Err(panic) => match panic.downcast_ref::<String>() {
                Some(message) => format!("panicked: {message}"),
                None => format!("panicked: {}", panic.downcast_ref::<&str>().unwrap_or(&"")),
            },
        };
        return Some((seed, problem));
    }
    None
}

thread_local! {
    static REPLAYING: bool = std::env::var_os(ONE).is_some();
}

const ONE: &str = "ALLFOLD_SEED";
const MANY: &str = "ALLFOLD_SEEDS";

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(one: Option<&str>, many: Option<&str>) -> Result<Vec<u64>, String> {
        choose(one, many, &[77, 5], 0..3).map(Iterator::collect)
    }

    #[test]
    fn kept_seeds_come_first_and_the_environment_chooses() {
        assert_eq!(chosen(None, None), Ok(vec![77, 5, 0, 1, 2]));
        assert_eq!(chosen(None, Some("10..12")), Ok(vec![77, 5, 10, 11]));
        assert_eq!(chosen(Some("9"), Some("10..12")), Ok(vec![9]));
        assert_eq!(
            chosen(None, Some("7")),
            Err("ALLFOLD_SEEDS=7: not a range such as 0..10000".into())
        );
        assert_eq!(chosen(Some("x"), None), Err("ALLFOLD_SEED=x: not a number".into()));
    }

    #[test]
    fn the_first_failure_is_reported_whether_error_or_panic() {
        let failing = |seed| if seed == 3 { Err("wrong".to_string()) } else { Ok(()) };
        assert_eq!(first_failure(0..10, failing), Some((3, "wrong".into())));
        let panicking = |seed: u64| {
            assert!(seed < 4, "seed {seed} is too large");
            Ok(())
        };
        let reported = first_failure(0..10, panicking);
        assert_eq!(reported, Some((4, "panicked: seed 4 is too large".into())));
        assert_eq!(first_failure(0..3, failing), None);
    }
}
