//! Guards against slow code without a clock: how many instructions some things take, counted by
//! callgrind, beside committed figures.
//!
//! ```console
//! $ cargo run --release -p allfold-bench --example instructions            # exit code 1 where one is above
//! $ cargo run --release -p allfold-bench --example instructions -- --write # takes the figures of today
//! ```
//!
//! Each case runs twice in a process of its own under callgrind, so often and twice so often; the
//! difference is what is counted, so that the start of a process is not. Code that has no threads
//! is counted to the instruction. Ranks in one process are counted with all their threads, which
//! callgrind runs one at a time: they wait for each other in another way each time, so that they
//! make many calls, and the median of several runs is taken.
//!
//! What the compiler makes of the code and which kernels are chosen at start differ from machine to
//! machine. The figures name the compiler and cargo's profile, the processor's instruction sets as
//! callgrind shows them (it has no AVX-512), callgrind and the C library, and are compared only where all of these are
//! the same.

// A benchmark ends by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cases;

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::Path;
use std::process::{Command, ExitCode};

use allfold_bench::turns::median;
use cases::{CASES, Case};
use serde::{Deserialize, Serialize};

/// The committed ones.
#[derive(Serialize, Deserialize)]
struct Figures {
    /// What they hold for.
    made_with: BTreeMap<String, String>,
    /// Instructions, by case.
    instructions: BTreeMap<String, f64>,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match &words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [CHILD, FEATURES] => println!("{}", cases::features()),
        [CHILD, name, times] => match times.parse::<NonZeroU64>() {
            Ok(times) => cases::run(name, times.get()),
            Err(problem) => {
                eprintln!("error: `{times}` times: {problem}\nhelp: at least once");
                return ExitCode::from(2);
            }
        },
        [] => return compare(),
        ["--write"] => return write(),
        other => {
            eprintln!("error: {other:?}\nhelp: instructions [--write]");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

fn compare() -> ExitCode {
    let Some(made_with) = made_with() else { return skipped() };
    let committed: Figures = std::fs::read_to_string(path())
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok())
        .expect("bench/instructions/figures.json");
    let other: Vec<String> = made_with
        .iter()
        .filter(|(name, value)| committed.made_with.get(*name) != Some(value))
        .map(|(name, value)| {
            let there = committed.made_with.get(name).map_or("nothing", String::as_str);
            format!("{name}: {value} here, {there} there")
        })
        .collect();
    if !other.is_empty() {
        println!("not compared: the committed figures were made with something else");
        other.iter().for_each(|line| println!("  {line}"));
    }
    let mut above = 0;
    println!("| case | instructions | committed | difference |\n| --- | ---: | ---: | ---: |");
    for case in CASES {
        let counted = count(case);
        let figure = committed.instructions.get(case.name).filter(|_| other.is_empty());
        let (figure, difference) = match figure {
            Some(figure) => {
                let percent = (counted / figure - 1.0) * 100.0;
                let is_above = percent > MOST_PERCENT;
                above += usize::from(is_above);
                let mark = if is_above { " **above**" } else { "" };
                (format!("{figure:.0}"), format!("{percent:+.1} %{mark}"))
            }
            None => ("-".into(), "-".into()),
        };
        println!("| {} | {counted:.0} | {figure} | {difference} |", case.name);
    }
    if above > 0 {
        eprintln!(
            "error: {above} cases take over {MOST_PERCENT} % more instructions than committed\n\
             help: make them cheaper, or take the new figures with --write and say why"
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn write() -> ExitCode {
    let Some(made_with) = made_with() else { return skipped() };
    let figure = |case: &Case| (case.name.to_string(), count(case).round());
    let instructions = CASES.iter().map(figure).collect();
    let text = serde_json::to_string_pretty(&Figures { made_with, instructions });
    std::fs::write(path(), text.expect("numbers and words") + "\n").expect("the figures");
    println!("written: {}", path().display());
    ExitCode::SUCCESS
}

fn skipped() -> ExitCode {
    eprintln!("skipped: instructions: there is no valgrind: `apt-get install valgrind`");
    ExitCode::SUCCESS
}

/// What the figures depend on; nothing where callgrind is missing.
fn made_with() -> Option<BTreeMap<String, String>> {
    let line = |program: &str, arguments: &[&str]| {
        let ended = Command::new(program).args(arguments).output().ok()?;
        let text = String::from_utf8_lossy(&ended.stdout).into_owned();
        text.lines().next().map(str::to_string)
    };
    let own = std::env::current_exe().ok()?;
    let features = callgrind(&["--callgrind-out-file=/dev/null"])
        .arg(&own)
        .args([CHILD, FEATURES])
        .output()
        .ok()?;
    let features = String::from_utf8_lossy(&features.stdout).trim().to_string();
    // As cargo does.
    let compiler = std::env::var("RUSTC").unwrap_or("rustc".into());
    Some(BTreeMap::from([
        ("valgrind".into(), line("valgrind", &["--version"])?),
        ("compiler".into(), line(&compiler, &["--version"]).unwrap_or_default()),
        ("C library".into(), line("ldd", &["--version"]).unwrap_or_default()),
        ("instruction sets".into(), features),
        ("profile".into(), profile(&own)),
    ]))
}

/// Cargo's profile, by the folder into which it has put this program.
fn profile(program: &Path) -> String {
    let folder = program.parent().filter(|folder| folder.ends_with("examples"));
    let name = folder.and_then(|folder| folder.parent()?.file_name()?.to_str());
    let checked = if cfg!(debug_assertions) { ", with debug assertions" } else { "" };
    format!("{}{checked}", name.unwrap_or("unknown"))
}

/// Instructions of one time.
fn count(case: &Case) -> f64 {
    let once = |_| {
        let (few, many) = (total(case, case.times), total(case, 2 * case.times));
        of_one(few, many, case.times).unwrap_or_else(|problem| panic!("{}: {problem}", case.name))
    };
    median((0..case.runs).map(once).collect())
}

/// Instructions of one time, where `times` took so few and twice as many times so many.
fn of_one(few: u64, many: u64, times: u64) -> Result<f64, String> {
    match many.checked_sub(few).filter(|more| *more >= times) {
        Some(more) => Ok(more as f64 / times as f64),
        None => Err(format!("{times} times more took {many} instructions instead of {few}")),
    }
}

/// Instructions of a process that does it so often.
fn total(case: &Case, times: u64) -> u64 {
    let out = std::env::temp_dir().join(format!("allfold-instructions-{}", std::process::id()));
    let own = std::env::current_exe().expect("this program");
    let mut command = callgrind(&[&format!("--callgrind-out-file={}", out.display())]);
    command.arg(own).args([CHILD, case.name, &times.to_string()]);
    let ended = command.output().expect("callgrind");
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let text = std::fs::read_to_string(&out).expect("what callgrind counted");
    let _ = std::fs::remove_file(&out);
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    total.and_then(|total| total.trim().parse().ok()).expect("a total")
}

fn callgrind(more: &[&str]) -> Command {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--quiet"]).args(more);
    // One instruction that copies many bytes counts as one for each of them: no copy is done so.
    command.env("GLIBC_TUNABLES", "glibc.cpu.x86_rep_movsb_threshold=1073741824");
    command
}

fn path() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions/figures.json")
}

const CHILD: &str = "case";
const FEATURES: &str = "features";
/// Threads that meet in another way each time make less of a difference.
const MOST_PERCENT: f64 = 3.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_counted_is_no_figure() {
        assert_eq!(of_one(1000, 1500, 20), Ok(25.0));
        assert!(of_one(1000, 1000, 20).is_err());
        assert!(of_one(1000, 900, 20).is_err());
        assert!(CASES.iter().all(|case| case.times > 0 && case.runs > 0));
    }

    #[test]
    fn a_profile_is_known_by_where_cargo_puts_it() {
        let of = |path: &str| profile(Path::new(path)).replace(", with debug assertions", "");
        assert_eq!(of("/target/release/examples/instructions"), "release");
        assert_eq!(of("/target/aarch64-linux/dist/examples/instructions"), "dist");
        assert_eq!(of("/home/me/instructions"), "unknown");
    }
}
