//! Which GPU a rank uses, and whether the ranks' choices fit together: pure.

use serde::{Deserialize, Serialize};

use super::presence::Absence;
use super::word::Word;

/// A rank's GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Choice {
    /// Its number among those that the process sees.
    pub(super) index: usize,
    /// How many the process sees.
    pub(super) of: usize,
    pub(super) name: String,
    /// No two GPUs have the same.
    pub(super) uuid: String,
    /// NCCL has been told to take the rank for one on another host, or to share the GPU.
    pub(super) may_share: bool,
}

/// The number of the GPU for a process that sees `gpus` and is number `local_rank` of its host.
/// More ranks than GPUs take turns, which [`judge`] refuses where it was not asked for.
#[cfg(feature = "nccl")]
pub(super) fn index(local_rank: usize, gpus: usize) -> usize {
    local_rank % gpus.max(1)
}

/// Why the ranks, in order, cannot use NCCL together, as every one of them finds it alike.
/// `places`: where each ran, as errors say it.
pub(super) fn judge(words: &[Word], places: &[String]) -> Result<(), Absence> {
    let place = |rank: usize| match places.get(rank) {
        Some(place) if words.len() > 1 => format!("rank {rank} ({place}): "),
        _ => String::new(),
    };
    for (rank, word) in words.iter().enumerate() {
        if let Word::Absent { problem, help } = word {
            return Err(Absence::new(format!("{}{problem}", place(rank)), help.clone()));
        }
    }
    let ready = words.iter().enumerate().filter_map(|(rank, word)| match word {
        Word::Ready { nccl, gpu } => Some((rank, nccl, gpu)),
        Word::Absent { .. } => None,
    });
    let ready: Vec<_> = ready.collect();
    if let Some((_, first, _)) = ready.first()
        && let Some((rank, other, _)) = ready.iter().find(|(_, nccl, _)| nccl != first)
    {
        let problem = format!("rank 0 has NCCL {first}, rank {rank} has NCCL {other}");
        return Err(Absence::new(problem, "install the same version of NCCL on every host"));
    }
    for (rank, _, gpu) in &ready {
        let same = |(other, _, theirs): &&(usize, &String, &Choice)| {
            other < rank && theirs.uuid == gpu.uuid && !(theirs.may_share && gpu.may_share)
        };
        if let Some((other, _, _)) = ready.iter().find(same) {
            let many = if gpu.of == 1 { "" } else { "s" };
            let problem = format!(
                "rank {other} and rank {rank} would both use GPU {} ({}): their processes see {} \
                 GPU{many}",
                gpu.index, gpu.name, gpu.of
            );
            return Err(Absence::new(
                problem,
                "start one rank for each GPU (`allfold run -n gpu`), and let each process see all \
                 GPUs, or one of its own (CUDA_VISIBLE_DEVICES)",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(index: usize, of: usize, uuid: &str) -> Word {
        let gpu = Choice { index, of, name: "H100".into(), uuid: uuid.into(), may_share: false };
        Word::Ready { nccl: "2.28.9".into(), gpu }
    }

    fn words(judged: Result<(), Absence>) -> String {
        judged.unwrap_err().problem
    }

    fn places(ranks: usize) -> Vec<String> {
        (0..ranks).map(|rank| format!("node-{rank}, pid 7")).collect()
    }

    #[cfg(feature = "nccl")]
    #[test]
    fn each_rank_has_a_gpu_of_its_own() {
        assert_eq!([0, 1, 2, 3].map(|rank| index(rank, 4)), [0, 1, 2, 3]);
        // Of one GPU each that only it sees.
        assert_eq!([0, 1, 2, 3].map(|rank| index(rank, 1)), [0; 4]);
        assert_eq!(judge(&[ready(0, 1, "a"), ready(0, 1, "b")], &places(2)), Ok(()));
    }

    #[test]
    fn more_ranks_than_gpus_are_told() {
        let three = [ready(0, 2, "a"), ready(1, 2, "b"), ready(0, 2, "a")];
        let problem = words(judge(&three, &places(3)));
        assert_eq!(
            problem,
            "rank 0 and rank 2 would both use GPU 0 (H100): their processes see 2 GPUs"
        );
        let share = three.map(|word| match word {
            Word::Ready { nccl, gpu } => {
                Word::Ready { nccl, gpu: Choice { may_share: true, ..gpu } }
            }
            absent => absent,
        });
        assert_eq!(judge(&share, &places(3)), Ok(()));
    }

    #[test]
    fn the_rank_that_cannot_is_named() {
        let absent = Word::Absent { problem: "no driver".into(), help: "install it".into() };
        let both = [ready(0, 1, "a"), absent.clone()];
        assert_eq!(words(judge(&both, &places(2))), "rank 1 (node-1, pid 7): no driver");
        assert_eq!(words(judge(&[absent], &places(1))), "no driver");
    }

    #[test]
    fn versions_must_be_the_same() {
        let older = match ready(1, 2, "b") {
            Word::Ready { gpu, .. } => Word::Ready { nccl: "2.19.3".into(), gpu },
            absent => absent,
        };
        let problem = words(judge(&[ready(0, 2, "a"), older], &places(2)));
        assert_eq!(problem, "rank 0 has NCCL 2.28.9, rank 1 has NCCL 2.19.3");
    }
}
