//! The report for people: everybody's times, and allfold's against what it is held to.

use std::fmt::Write;

use crate::report::Report;

/// The whole of it, as Markdown.
pub(crate) fn print(report: &Report) -> String {
    let mut text = format!("# {} ranks: {}\n\n", report.ranks, report.collective);
    for environment in &report.environments {
        for (name, value) in environment {
            let _ = writeln!(text, "- {name}: {value}");
        }
        text.push('\n');
    }
    for problem in &report.problems {
        let _ = writeln!(text, "- **{problem}**");
    }
    text += "\nMicroseconds of the median call, on the rank for which it took longest:\n\n";
    text += &times(report);
    let short = report.short().map(|(row, most)| {
        format!("{} at {} ({} of {most})", row.by, size(row.bytes), row.turns.len())
    });
    let short: Vec<String> = short.collect();
    if !short.is_empty() {
        let _ = writeln!(text, "\nMedians of fewer turns than others': {}.", short.join(", "));
    }
    match report.mtu {
        Some(mtu) => text += &between_hosts(report, mtu),
        None => {
            text += &within_host(report);
            text += &network(report);
        }
    }
    text
}

fn times(report: &Report) -> String {
    let names = report.names();
    let mut text = header(["bytes".into()].into_iter().chain(names.iter().map(|n| n.to_string())));
    for bytes in report.sizes() {
        let times = names.iter().map(|name| figure(report.time(name, bytes)));
        line(&mut text, [size(bytes)].into_iter().chain(times));
    }
    text
}

/// Shared memory, against the best of all peers and against the probe.
fn within_host(report: &Report) -> String {
    let has = |name| report.names().contains(&name);
    let ours = ["allfold-alloc", "allfold-slices"].into_iter().filter(|name| has(name));
    let mut text = String::new();
    for name in ours {
        let _ = writeln!(text, "\n{name} against the best peer, and against the probe:\n");
        let words = ["bytes", "best peer", "us", name, "peer / own", "target", "", "probe / own"];
        let target = if name == ALLOC && report.ranks == 2 { &["target", ""][..] } else { &[] };
        text += &header(words.iter().chain(target).map(|word| word.to_string()));
        for bytes in report.sizes() {
            let Some(own) = report.time(name, bytes) else { continue };
            let best = best(report, bytes);
            let mut cells = vec![size(bytes)];
            cells.push(best.map_or("-".into(), |(peer, _)| peer.into()));
            cells.push(figure(best.map(|(_, us)| us)));
            cells.push(figure(Some(own)));
            let target = target_within_host(name, report.ranks, bytes);
            cells.extend(judged(best.map(|(_, us)| us / own), target));
            let probe = report.time("probe", bytes).map(|us| us / own);
            match name == ALLOC && report.ranks == 2 {
                true => cells.extend(judged(probe, OF_PROBE)),
                false => cells.push(figure(probe)),
            }
            line(&mut text, cells.into_iter());
        }
    }
    text
}

/// QUIC, encrypted, against plain TCP.
fn network(report: &Report) -> String {
    let name = "allfold-quic";
    if !report.names().contains(&name) {
        return String::new();
    }
    let mut text = format!("\n{name} against plain TCP:\n\n");
    let words = ["bytes", "gloo", name, "gloo / own", "target", "", "open-mpi-tcp", "that / own"];
    text += &header(words.iter().map(|word| word.to_string()));
    for bytes in report.sizes() {
        let Some(own) = report.time(name, bytes) else { continue };
        let (gloo, mpi) = (report.time("gloo", bytes), report.time("open-mpi-tcp", bytes));
        let mut cells = vec![size(bytes), figure(gloo), figure(Some(own))];
        let target = if bytes <= 64 << 10 { 3.0 } else { 1.0 };
        cells.extend(judged(gloo.map(|us| us / own), target));
        cells.extend([figure(mpi), figure(mpi.map(|us| us / own))]);
        line(&mut text, cells.into_iter());
    }
    text
}

/// Over virtual cards: rates, and what they cost.
fn between_hosts(report: &Report, mtu: u32) -> String {
    let (gloo, own) = ("gloo", "allfold-quic");
    // An Ethernet header goes with each packet, and IPv4's and UDP's headers are in it.
    let carried = |rate: u32| f64::from(rate) / 8e3 * f64::from(mtu - 28) / f64::from(mtu + 14);
    let limit = report.rate_mbit.map(carried);
    let mut text = format!("\nMTU {mtu}");
    let _ = match (report.rate_mbit, limit) {
        (Some(rate), Some(limit)) => writeln!(
            text,
            ", {rate} Mbit/s, which carry {limit:.4} GB/s in UDP's payload; bus bandwidth:\n"
        ),
        _ => writeln!(text, ", as fast as memory; bus bandwidth:\n"),
    };
    let words = [
        "bytes",
        "gloo GB/s",
        "allfold-quic GB/s",
        "allfold / gloo",
        "target",
        "",
        "of the link",
        "target",
        "",
        "gloo CPU s/GB",
        "allfold-quic CPU s/GB",
    ];
    text += &header(words.iter().map(|word| word.to_string()));
    for bytes in report.sizes() {
        let rate = |name| Some(report.sent(bytes) / report.time(name, bytes)? / 1e3);
        let (theirs, ours) = (rate(gloo), rate(own));
        let ratio = theirs.zip(ours).map(|(theirs, ours)| ours / theirs);
        let mut cells = vec![size(bytes), fine(theirs), fine(ours)];
        // On a link that is held to a rate, the rate is the measure, once it can be reached.
        cells.extend(match limit {
            None => judged(ratio, 0.7),
            Some(_) => [figure(ratio), "-".into(), "-".into()],
        });
        let part = ours.zip(limit).map(|(ours, limit)| ours / limit);
        cells.extend(match bytes >= 16 << 20 {
            true if part.is_some() => judged(part, 0.95),
            _ => [figure(part), "-".into(), "-".into()],
        });
        cells.extend([gloo, own].map(|name| figure(report.processor(name, bytes))));
        line(&mut text, cells.into_iter());
    }
    text
}

fn fine(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| format!("{value:.4}"))
}

/// The fastest of all peers, whatever it takes.
fn best(report: &Report, bytes: usize) -> Option<(&'static str, f64)> {
    let peers = report.names().into_iter().filter(|name| !name.starts_with("allfold"));
    peers
        .filter(|name| *name != "probe")
        .filter_map(|name| Some((name, report.time(name, bytes)?)))
        .min_by(|a, b| a.1.total_cmp(&b.1))
}

/// How many times as long the best peer is to take.
fn target_within_host(name: &str, ranks: usize, bytes: usize) -> f64 {
    match bytes {
        _ if name != ALLOC || ranks > 2 => {
            if bytes < 1 << 20 {
                1.0
            } else {
                3.0
            }
        }
        0..=64 => 1.0,
        65..=65_536 => 1.2,
        65_537..=1_048_576 => 2.0,
        _ => 5.0,
    }
}

/// A ratio, what it should be at least, and whether it is.
fn judged(ratio: Option<f64>, target: f64) -> [String; 3] {
    let verdict = match ratio {
        Some(ratio) if ratio >= target => "met",
        Some(_) => "**missed**",
        None => "-",
    };
    [figure(ratio), target.to_string(), verdict.into()]
}

fn figure(value: Option<f64>) -> String {
    match value {
        None => "-".into(),
        Some(value) if value >= 1000.0 => format!("{value:.0}"),
        Some(value) if value >= 100.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

fn size(bytes: usize) -> String {
    match bytes {
        _ if bytes >= 1 << 20 && bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        _ if bytes >= 1 << 10 && bytes.is_multiple_of(1 << 10) => format!("{} KiB", bytes >> 10),
        _ => bytes.to_string(),
    }
}

fn header(words: impl Iterator<Item = String>) -> String {
    let words: Vec<String> = words.collect();
    format!("| {} |\n|{}\n", words.join(" | "), " ---: |".repeat(words.len()))
}

fn line(text: &mut String, cells: impl Iterator<Item = String>) {
    let cells: Vec<String> = cells.collect();
    let _ = writeln!(text, "| {} |", cells.join(" | "));
}

const ALLOC: &str = "allfold-alloc";
/// The part of what the host allows that two ranks are to reach.
const OF_PROBE: f64 = 0.7;
