//! What must be equal on all ranks is compared with rank 0's, and all ranks learn the result: a
//! difference is one error on every rank, not a wait on those that are right.

use allfold::{Communicator, ReduceOp};

use crate::error::{Error, Result};

/// Compares a list of lines with rank 0's.
///
/// # Errors
/// [`Error::Disagree`] on every rank, with the first line that differs on the first rank that
/// differs; allfold's own errors.
pub(crate) fn compare(world: &Communicator, subject: &'static str, lines: &[String]) -> Result<()> {
    let zero = broadcast_text(world, &lines.join("\n"), 0)?;
    let zero: Vec<&str> = zero.lines().collect();
    let place = (0..lines.len().max(zero.len()))
        .find(|&at| lines.get(at).map(String::as_str) != zero.get(at).copied());

    // One slot a rank: 0 where it agrees, else one more than the place of its first difference.
    let mut places = vec![0.0f64; world.size()];
    if let (Some(slot), Some(place)) = (places.get_mut(world.rank()), place) {
        *slot = (place + 1) as f64;
    }
    world.all_reduce(&mut places, ReduceOp::Sum)?;
    let Some(rank) = places.iter().position(|&place| place != 0.0) else {
        return Ok(());
    };

    let at = places[rank] as usize - 1;
    let own = lines.get(at).map_or(NOTHING, String::as_str);
    Err(Error::Disagree {
        subject,
        rank,
        theirs: broadcast_text(world, own, rank)?,
        ours: zero.get(at).copied().unwrap_or(NOTHING).to_string(),
    })
}

/// What every rank must have: this one's, if all of them have theirs.
///
/// # Errors
/// This rank's own; else [`Error::Gpu`], with that of the first rank that has one.
pub(crate) fn on_all<T>(world: &Communicator, own: Result<T>) -> Result<T> {
    let mut failed = vec![0u64; world.size()];
    if let (Some(slot), Err(_)) = (failed.get_mut(world.rank()), &own) {
        *slot = 1;
    }
    world.all_reduce(&mut failed, ReduceOp::Sum)?;
    let Some(rank) = failed.iter().position(|&failed| failed > 0) else { return own };
    let words = own.as_ref().err().map(ToString::to_string).unwrap_or_default();
    let problem = broadcast_text(world, &words, rank)?;
    own.and_then(|_| {
        let (problem, help) = (format!("rank {rank} cannot take part: {problem}"), SEE_RANK.into());
        Err(Error::Gpu { problem, help })
    })
}

/// The root's text on every rank.
pub(crate) fn broadcast_text(world: &Communicator, own: &str, root: usize) -> Result<String> {
    let mut length = [own.len() as u64];
    world.broadcast(&mut length, root)?;
    let length = length[0];
    // Every rank sees the same length, so every rank takes this way out.
    if length > TEXT_LIMIT {
        return Err(Error::ListTooLong { bytes: length, limit: TEXT_LIMIT });
    }
    let mut bytes =
        if world.rank() == root { own.as_bytes().to_vec() } else { vec![0; length as usize] };
    world.broadcast(&mut bytes, root)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

const SEE_RANK: &str = "what that rank wrote last says more";
/// What a rank has where its list has ended.
const NOTHING: &str = "nothing more";
/// Bytes of a list: a million parameters with names of 60 bytes.
const TEXT_LIMIT: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_rank_lacks_all_are_told() {
        let worlds = Communicator::in_memory(3).unwrap();
        let told = std::thread::scope(|scope| {
            let of = |world: &Communicator| match on_all(world, own(world.rank())) {
                Ok(rank) => format!("has {rank}"),
                Err(error) => error.to_string(),
            };
            let ranks: Vec<_> = worlds.iter().map(|world| scope.spawn(move || of(world))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(told, [OTHER, "it is full", OTHER]);
        let alone = on_all(&Communicator::single(), own(0));
        assert_eq!(alone.unwrap(), 0);
    }

    const OTHER: &str = "rank 1 cannot take part: it is full";

    fn own(rank: usize) -> Result<usize> {
        match rank {
            1 => Err(Error::Gpu { problem: "it is full".into(), help: String::new() }),
            _ => Ok(rank),
        }
    }
}
