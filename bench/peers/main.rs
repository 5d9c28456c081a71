//! All-reduces of allfold beside those of Open MPI, MPICH and Gloo, in turns, on one ladder of sizes:
//!
//! ```console
//! $ cargo run --release -p allfold-bench --example peers -- --ranks 2 --turns 5
//! ```
//!
//! What is missing is installed where this is a Debian and we are root, or reported. Everybody adds
//! up f32 in place, in warm buffers, equally often, and checks the result; a call's time is that of
//! its slowest rank. Times are medians over turns of the median call.

// A benchmark ends by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod contenders;
mod ladder;

use std::collections::BTreeMap;
use std::fmt::Write;

use contenders::{Contender, Row};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some(("rank", rest)) = words.split_first().map(|(word, rest)| (word.as_str(), rest)) {
        return ladder::run(rest.first().map(String::as_str));
    }
    let options = Options::parse(&words);
    let mut contenders = Vec::new();
    for name in contenders::NAMES {
        if !options.only.is_empty() && !options.only.iter().any(|only| only == name) {
            continue;
        }
        match Contender::find(name) {
            Ok(contender) => contenders.push(contender),
            Err(reason) => eprintln!("missing: {name}: {reason}"),
        }
    }
    // By name and size: the median call of each turn.
    let mut turns: BTreeMap<(usize, usize), Vec<f64>> = BTreeMap::new();
    let mut errors = 0;
    for turn in 1..=options.turns {
        for (place, contender) in contenders.iter().enumerate() {
            eprintln!("turn {turn} of {}: {}", options.turns, contender.name);
            match contender.run(options.ranks, options.last_bytes) {
                Ok(rows) => {
                    for Row { bytes, median_us, wrong } in rows {
                        errors += wrong;
                        turns.entry((place, bytes)).or_default().push(median_us);
                    }
                }
                Err(problem) => eprintln!("failed: {}: {problem}", contender.name),
            }
        }
    }
    let medians: BTreeMap<(usize, usize), f64> =
        turns.into_iter().map(|(key, times)| (key, median(times))).collect();
    let names: Vec<&str> = contenders.iter().map(|contender| contender.name).collect();
    print!("{}", table(&names, &medians));
    if let Some(path) = &options.json {
        std::fs::write(path, json(&options, &names, &medians)).expect("the report");
    }
    if errors > 0 {
        eprintln!("error: {errors} elements were wrong");
        std::process::exit(1);
    }
}

struct Options {
    ranks: usize,
    turns: usize,
    last_bytes: usize,
    json: Option<String>,
    only: Vec<String>,
}

impl Options {
    fn parse(words: &[String]) -> Self {
        let mut options =
            Self { ranks: 2, turns: 5, last_bytes: 64 << 20, json: None, only: Vec::new() };
        for pair in words.chunks(2) {
            let [name, value] = pair else { usage(&pair[0]) };
            let number = || value.parse().unwrap_or_else(|_| usage(value));
            match name.as_str() {
                "--ranks" => options.ranks = number(),
                "--turns" => options.turns = number(),
                "--last" => options.last_bytes = number(),
                "--json" => options.json = Some(value.clone()),
                "--only" => options.only = value.split(',').map(String::from).collect(),
                other => usage(other),
            }
        }
        options
    }
}

fn usage(word: &str) -> ! {
    eprintln!(
        "error: `{word}`\nhelp: peers [--ranks N] [--turns N] [--last BYTES] [--json FILE] [--only \
         NAME,NAME]; names: {}",
        contenders::NAMES.join(", ")
    );
    std::process::exit(2);
}

/// Microseconds of each, and how many times as long the best peer takes as each of ours.
fn table(names: &[&str], medians: &BTreeMap<(usize, usize), f64>) -> String {
    let is_ours = |name: &str| name.starts_with("allfold");
    let mut text = format!("| bytes | {} |", names.join(" | "));
    for name in names.iter().filter(|name| is_ours(name)) {
        let _ = write!(text, " best peer / {name} |");
    }
    let columns = names.len() + names.iter().filter(|name| is_ours(name)).count() + 1;
    let _ = writeln!(text, "\n|{}", " ---: |".repeat(columns));
    let mut sizes: Vec<usize> = medians.keys().map(|(_, bytes)| *bytes).collect();
    sizes.sort_unstable();
    sizes.dedup();
    for bytes in sizes {
        let of = |place: usize| medians.get(&(place, bytes)).copied();
        let peers = (0..names.len()).filter(|place| !is_ours(names[*place])).filter_map(of);
        let best = peers.min_by(f64::total_cmp);
        let _ = write!(text, "| {bytes} |");
        for place in 0..names.len() {
            let _ = match of(place) {
                Some(us) => write!(text, " {us:.2} |"),
                None => write!(text, " - |"),
            };
        }
        for place in (0..names.len()).filter(|place| is_ours(names[*place])) {
            let _ = match (best, of(place)) {
                (Some(best), Some(own)) => write!(text, " {:.2} |", best / own),
                _ => write!(text, " - |"),
            };
        }
        text.push('\n');
    }
    text
}

fn json(options: &Options, names: &[&str], medians: &BTreeMap<(usize, usize), f64>) -> String {
    let row = |((place, bytes), us): (&(usize, usize), &f64)| serde_json::json!({ "by": names[*place], "bytes": bytes, "median_us": us });
    let rows: Vec<serde_json::Value> = medians.iter().map(row).collect();
    let report = serde_json::json!({
        "ranks": options.ranks,
        "turns": options.turns,
        "collective": "all_reduce, f32 sum, in place",
        "rows": rows,
    });
    format!("{report:#}\n")
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
