//! How long all-reduces take on worlds too large to start: the real plans under the network of
//! the cost table. Prints the table of docs/algorithms.md.
//!
//! cargo run --release -p allfold --features simulation --example simulate -- 1000 10000

use allfold::simulation::timing::AllReduce;

fn main() -> Result<(), String> {
    let parse = |ranks: String| ranks.parse::<u32>().map_err(|_| format!("{ranks}: no number"));
    let mut worlds = std::env::args().skip(1).map(parse).collect::<Result<Vec<u32>, String>>()?;
    if worlds.is_empty() {
        worlds = vec![1_000, 10_000];
    }
    for ranks in worlds {
        println!("{ranks} ranks, simulated / predicted:\n");
        println!("| bytes | {} |", ALGORITHMS.join(" | "));
        println!("| ---: |{}", " ---: |".repeat(ALGORITHMS.len()));
        let mut fastest = Vec::new();
        for length in LENGTHS {
            fastest.push(row(ranks, length)?);
        }
        println!();
        for pair in fastest.windows(2).filter(|pair| pair[0].1 != pair[1].1) {
            let [(below, before), (from, then)] = [pair[0], pair[1]];
            println!("- {before} up to {}, {then} from {}", bytes(below), bytes(from));
        }
        println!();
    }
    Ok(())
}

/// Prints the times of one length. The length, and the fastest algorithm.
fn row(ranks: u32, length: u64) -> Result<(u64, &'static str), String> {
    let mut cells = Vec::new();
    let mut best = (u64::MAX, "");
    for algorithm in ALGORITHMS {
        let call = AllReduce::new(ranks, length, algorithm)?;
        let simulated = match algorithm {
            "ring" => Some(call.simulated_ring_ns()),
            _ => (call.messages() <= MOST_MESSAGES).then(|| call.simulated_ns()),
        };
        let predicted = call.predicted_ns();
        best = best.min((simulated.unwrap_or(predicted), algorithm));
        cells.push((simulated, predicted));
    }
    print!("| {} |", bytes(length));
    for (simulated, predicted) in cells {
        let mark = if simulated == Some(best.0) { "**" } else { "" };
        let simulated = simulated.map_or("-".into(), time);
        print!(" {mark}{simulated}{mark} / {} |", time(predicted));
    }
    println!();
    Ok((length, best.1))
}

fn bytes(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

fn time(ns: u64) -> String {
    match ns {
        0..10_000_000 => format!("{:.3} ms", ns as f64 / 1e6),
        10_000_000..1_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        _ => format!("{:.2} s", ns as f64 / 1e9),
    }
}

const ALGORITHMS: [&str; 4] = ["ring", "tree", "recursive-doubling", "halving-doubling"];
/// 8 B to 64 MiB, and to where the ring becomes the fastest.
const LENGTHS: [u64; 10] =
    [8, 1 << 10, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 26, 1 << 28];
/// A minute or so; what would take more is far from being chosen.
const MOST_MESSAGES: u64 = 50_000_000;
