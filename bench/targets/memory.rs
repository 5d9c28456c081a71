//! Resident memory of an idle rank, and what a call takes beside the user's buffers.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use allfold::{Communicator, ReduceOp};

use crate::{Row, Target, number, ranks};

/// Two ranks: idle, then calls of 64 MiB.
pub(crate) fn measure() -> Result<Vec<Row>, String> {
    let mut rows = Vec::new();
    for (how, transport, name) in [
        ("alloc", "auto", "shared memory, `alloc`"),
        ("slices", "auto", "shared memory, plain slices"),
        ("slices", "quic", "QUIC"),
    ] {
        let text = ranks::run(2, &["memory", how], transport, LIMIT)
            .map_err(|error| format!("{name}: {error}"))?;
        rows.push(Row {
            what: format!("memory: an idle rank of 2, {name}"),
            unit: "MiB",
            measured: number(&text, "idle")?,
            target: Target::AtMost(25.0),
        });
        rows.push(Row {
            what: format!("memory: extra during calls of 64 MiB, {name}"),
            unit: "MiB",
            measured: number(&text, "extra")?,
            target: Target::AtMost(32.0),
        });
    }
    Ok(rows)
}

/// One rank; rank 0 prints. The highest mark of a call counts, but where buffers are shared: the
/// others' are resident here as well by the system's count, so that there this rank's own memory
/// counts, as it is between calls.
pub(crate) fn rank(how: &str) {
    let world = Communicator::from_env().expect("a launched rank");
    world.barrier().expect("a barrier");
    let idle = resident("VmRSS:");
    let mut aside = Vec::new();
    let mut shared;
    let buffer: &mut [f32] = match how {
        "alloc" => {
            shared = world.alloc::<f32>(BYTES / 4);
            &mut shared
        }
        _ => {
            aside.resize(BYTES / 4, 0.0);
            &mut aside
        }
    };
    buffer.fill(1.0);
    let (before, own_before) = (resident("VmRSS:"), own());
    assert!(own_before * f64::from(1 << 20) >= BYTES as f64, "its buffer is this rank's own");
    // The highest mark begins anew.
    fs::write("/proc/self/clear_refs", "5").expect("the marks of this process");
    for _ in 0..CALLS {
        world.all_reduce(buffer, ReduceOp::Avg).expect("an all-reduce");
    }
    let extra = match how {
        "alloc" => own() - own_before,
        _ => resident("VmHWM:") - before,
    };
    if world.rank() == 0 {
        println!("idle {idle}\nextra {extra}");
    }
    world.close().expect("the end");
}

/// This rank's memory in MiB: private, and the shared memory that it has made.
fn own() -> f64 {
    let is_own = |entry: &fs::DirEntry| {
        fs::read_link(entry.path()).is_ok_and(|to| to.starts_with("/memfd:allfold (deleted)"))
    };
    let entries = fs::read_dir("/proc/self/fd").expect("the files of this process").flatten();
    let made = entries.filter(is_own).filter_map(|entry| fs::metadata(entry.path()).ok());
    let made: u64 = made.map(|file| file.blocks() * 512).sum();
    resident("RssAnon:") + resident("RssFile:") + made as f64 / f64::from(1 << 20)
}

/// In MiB.
fn resident(name: &str) -> f64 {
    let text = fs::read_to_string("/proc/self/status").expect("the state of this process");
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a line for it");
    let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kibibytes / 1024.0
}

const BYTES: usize = 64 << 20;
/// Pools are full after some.
const CALLS: usize = 5;
/// They take seconds.
const LIMIT: Duration = Duration::from_secs(60);
