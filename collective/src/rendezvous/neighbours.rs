//! Ranks whose memory this one can map, and what became of the attempt.

use std::rc::Rc;
use std::sync::Arc;

use super::table::Entry;
use super::{Meeting, incarnation};
use crate::control::endpoint::{Control, Event};
use crate::host_memory::ARENA_BYTES;
use crate::link::shared_memory::{Arena, Attached, Door, Doorway};
use crate::report;

/// Memory for the ranks of this host, and a door to it.
pub(super) fn share_memory() -> std::io::Result<(Arc<Arena>, Doorway)> {
    let random = || incarnation().map_err(std::io::Error::other);
    let arena = Arena::new(ARENA_BYTES)?;
    let doorway = Doorway::new(random()?, random()?, ARENA_BYTES)?;
    Ok((Arc::new(arena), doorway))
}

/// The other ranks whose memory `rank` can map, if any can.
pub(super) fn neighbours(table: &[Entry], rank: u32) -> Vec<(u32, Door)> {
    let home = |entry: &Entry| entry.door.map(|door| door.home);
    let Some(own) = table.get(rank as usize).and_then(home) else { return Vec::new() };
    let others = table.iter().filter(|entry| entry.rank != rank && home(entry) == Some(own));
    others.filter_map(|entry| Some((entry.rank, entry.door?))).collect()
}

/// Maps the memory behind the doors, and says so in an event.
pub(super) fn map(control: &Rc<Control>, epoch: u64, doors: Vec<(u32, Door)>) {
    let events = control.events.clone();
    tokio::task::spawn_local(async move {
        let mut mapped = Mapped::default();
        for (rank, door) in doors {
            match door.enter().await {
                Ok(arena) => mapped.arenas.push((rank, arena)),
                Err(error) => {
                    report::info(&format!("no shared memory with rank {rank}: {error}"));
                    mapped.failed.get_or_insert_with(|| (rank, error.to_string()));
                }
            }
        }
        let _ = events.send(Event::Mapped { epoch, mapped });
    });
}

/// What became of a rank's attempt to map its neighbours' memory.
#[derive(Default)]
pub(crate) struct Mapped {
    /// By rank.
    pub(crate) arenas: Vec<(u32, Attached)>,
    /// The first that it could not map, and why.
    pub(crate) failed: Option<(u32, String)>,
}

impl Mapped {
    /// Whether it has mapped all.
    pub(crate) fn is_all(&self) -> bool {
        self.failed.is_none()
    }
}

/// Why `rank` does not share memory with all others.
pub(super) fn why_apart(meeting: &Meeting, rank: u32) -> String {
    if let Some((other, problem)) = &meeting.mapped.failed {
        return format!("rank {rank} cannot map the memory of rank {other}: {problem}");
    }
    let near = neighbours(&meeting.table, rank);
    let is_far = |entry: &&Entry| {
        entry.rank != rank && !near.iter().any(|(neighbour, _)| *neighbour == entry.rank)
    };
    match meeting.table.iter().find(is_far) {
        Some(Entry { rank: other, host, door: Some(_), .. }) => {
            format!("rank {other} on {host} is not where rank {rank} is")
        }
        Some(Entry { rank: other, host, .. }) => format!("rank {other} on {host} shares no memory"),
        None => "another rank of this host cannot map the memory of all others".into(),
    }
}
