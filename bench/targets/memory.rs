//! Resident memory of an idle rank, and what a call takes beside the user's buffers.

use std::fs;

use allfold::{Communicator, ReduceOp};

use crate::{Row, Target, ranks};

/// Two ranks: idle, then calls of 64 MiB.
pub(crate) fn measure() -> Result<Vec<Row>, String> {
    let mut rows = Vec::new();
    for (how, transport, name) in [
        ("alloc", "auto", "shared memory, `alloc`"),
        ("slices", "auto", "shared memory, plain slices"),
        ("slices", "quic", "QUIC"),
    ] {
        let text = ranks::run(2, &["memory", how], transport)?;
        rows.push(Row {
            what: format!("memory: an idle rank of 2, {name}"),
            unit: "MiB",
            measured: ranks::number(&text, "idle")?,
            target: Target::AtMost(25.0),
        });
        rows.push(Row {
            what: format!("memory: extra during calls of 64 MiB, {name}"),
            unit: "MiB",
            measured: ranks::number(&text, "extra")?,
            target: Target::AtMost(32.0),
        });
    }
    Ok(rows)
}

/// One rank; rank 0 prints. Where ranks share memory, the others' buffers are mapped here as well:
/// they are resident once more by the system's count, but take no memory, and are not counted.
pub(crate) fn rank(how: &str) {
    let world = Communicator::from_env().expect("a launched rank");
    world.barrier().expect("a barrier");
    let idle = resident("VmRSS:");
    let mut aside = Vec::new();
    let mut shared;
    let (buffer, foreign): (&mut [f32], f64) = match how {
        "alloc" => {
            shared = world.alloc::<f32>(BYTES / 4);
            let is_shared = world.size() as f64 - 1.0;
            (&mut shared, is_shared * (BYTES >> 20) as f64)
        }
        _ => {
            aside.resize(BYTES / 4, 0.0);
            (&mut aside, 0.0)
        }
    };
    buffer.fill(1.0);
    let before = resident("VmRSS:");
    // The highest mark begins anew.
    fs::write("/proc/self/clear_refs", "5").expect("the marks of this process");
    for _ in 0..CALLS {
        world.all_reduce(buffer, ReduceOp::Avg).expect("an all-reduce");
    }
    if world.rank() == 0 {
        println!("idle {idle}\nextra {}", resident("VmHWM:") - before - foreign);
    }
    world.close().expect("the end");
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
