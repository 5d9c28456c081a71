//! The collectives by nccl-tests' names: how many elements a size gives each, how a bandwidth
//! follows from a time, and which halves of a row there are.

use clap::ValueEnum;

use crate::choices::DeviceKind;

/// The collective under test.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Collective {
    /// Every rank gets the combination of all ranks' data
    #[default]
    #[value(name = "all_reduce", aliases = ["all-reduce", "allreduce", "all_reduce_perf"])]
    AllReduce,
    /// Every rank gets all ranks' data
    #[value(name = "all_gather", aliases = ["all-gather", "allgather", "all_gather_perf"])]
    AllGather,
    /// Every rank gets its part of the combination
    #[value(
        name = "reduce_scatter",
        aliases = ["reduce-scatter", "reducescatter", "reduce_scatter_perf"]
    )]
    ReduceScatter,
    /// Every rank gets the root's data
    #[value(name = "broadcast", aliases = ["broadcast_perf"])]
    Broadcast,
    /// The root gets the combination
    #[value(name = "reduce_perf")]
    Reduce,
    /// Every rank sends a part to every rank
    #[value(
        name = "alltoall",
        aliases = ["all_to_all", "all-to-all", "alltoall_perf", "all_to_all_perf"]
    )]
    AllToAll,
    /// The root gets all ranks' data
    #[value(name = "gather", aliases = ["gather_perf"])]
    Gather,
    /// Every rank gets its part of the root's data
    #[value(name = "scatter", aliases = ["scatter_perf"])]
    Scatter,
    /// Every rank sends to the next and receives from the one before
    #[value(
        name = "sendrecv",
        aliases = ["send_recv", "send-recv", "sendrecv_perf", "send_recv_perf"]
    )]
    SendRecv,
    /// allfold's own: all_gather where rank r gives a share of r + 1
    #[value(name = "all_gather_v", aliases = ["all-gather-v", "allgatherv", "all_gather_v_perf"])]
    AllGatherV,
    /// allfold's own: the time until every rank knows that all have come
    #[value(name = "barrier", aliases = ["barrier_perf"])]
    Barrier,
}

/// Which halves of a row allfold has calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Halves {
    pub(crate) out_of_place: bool,
    pub(crate) in_place: bool,
}

impl Collective {
    /// The name of nccl-tests' program for it, or what they would call it.
    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::AllReduce => "all_reduce_perf",
            Self::AllGather => "all_gather_perf",
            Self::ReduceScatter => "reduce_scatter_perf",
            Self::Broadcast => "broadcast_perf",
            Self::Reduce => "reduce_perf",
            Self::AllToAll => "alltoall_perf",
            Self::Gather => "gather_perf",
            Self::Scatter => "scatter_perf",
            Self::SendRecv => "sendrecv_perf",
            Self::AllGatherV => "all_gather_v_perf",
            Self::Barrier => "barrier_perf",
        }
    }

    /// Whether it combines, so that it is repeated for every operation.
    pub(crate) fn reduces(self) -> bool {
        matches!(self, Self::AllReduce | Self::ReduceScatter | Self::Reduce)
    }

    /// Whether one rank differs from the others, so that it is repeated for every root.
    pub(crate) fn has_root(self) -> bool {
        matches!(self, Self::Broadcast | Self::Reduce | Self::Gather | Self::Scatter)
    }

    /// Whether there is anything to repeat it for.
    pub(crate) fn has_data(self) -> bool {
        self != Self::Barrier
    }

    /// Calls that are `started` own one buffer, which holds input and output.
    pub(crate) fn halves(self, started: bool) -> Halves {
        let in_place = self != Self::SendRecv;
        Halves { out_of_place: self != Self::Barrier && !(started && in_place), in_place }
    }

    /// On GPUs a call has the buffers that the library's call has. None: there is no such call.
    pub(crate) fn halves_on_gpu(self) -> Option<Halves> {
        match self {
            Self::AllReduce | Self::AllGather | Self::ReduceScatter => {
                Some(Halves { out_of_place: true, in_place: true })
            }
            Self::Broadcast | Self::Reduce => Some(Halves { out_of_place: false, in_place: true }),
            Self::SendRecv => Some(Halves { out_of_place: true, in_place: false }),
            Self::AllToAll | Self::Gather | Self::Scatter | Self::AllGatherV | Self::Barrier => {
                None
            }
        }
    }

    /// What the column `count` says where `elements` of `size` bytes are asked for: elements of one
    /// rank's part, a multiple of 16 bytes, where the collective deals in parts.
    pub(crate) fn count(self, elements: usize, size: usize, ranks: usize) -> usize {
        match self {
            Self::Barrier => 0,
            _ if self.is_in_parts() => (elements / ranks) & !(ALIGNMENT / size - 1),
            _ => elements,
        }
    }

    /// Elements in the larger of a rank's two buffers, for that column.
    pub(crate) fn elements(self, count: usize, ranks: usize) -> usize {
        if self.is_in_parts() { count * ranks } else { count }
    }

    /// Bus bandwidth by algorithm bandwidth: how often each byte crosses a link.
    pub(crate) fn bus_factor(self, ranks: usize) -> f64 {
        let others = (ranks as f64 - 1.0) / ranks as f64;
        match self {
            Self::AllReduce => 2.0 * others,
            Self::AllGather
            | Self::AllGatherV
            | Self::ReduceScatter
            | Self::AllToAll
            | Self::Gather
            | Self::Scatter => others,
            Self::Broadcast | Self::Reduce | Self::SendRecv => 1.0,
            Self::Barrier => 0.0,
        }
    }

    /// Why a half of every row is empty.
    pub(crate) fn remark(self, device: DeviceKind, started: bool) -> Option<&'static str> {
        match self {
            Self::SendRecv => Some(
                "Out of place only: allfold sends from one buffer and receives into another, so \
                 in-place stays empty",
            ),
            Self::Barrier => {
                Some("Time only: a barrier moves no data, so there is nothing to check")
            }
            Self::Broadcast | Self::Reduce if device == DeviceKind::Gpu => {
                Some("In place only: on GPUs the call has one buffer, so out-of-place stays empty")
            }
            _ if device == DeviceKind::Gpu => None,
            _ if started => {
                Some("In place only: a call that is started owns one buffer, its input and output")
            }
            _ => None,
        }
    }

    fn is_in_parts(self) -> bool {
        matches!(
            self,
            Self::AllGather | Self::ReduceScatter | Self::AllToAll | Self::Gather | Self::Scatter
        )
    }
}

/// Of a part, in bytes; nccl-tests'.
const ALIGNMENT: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_multiples_of_16_bytes() {
        let count = |elements, size| Collective::AllGather.count(elements, size, 3);
        assert_eq!(count(100, 1), 32);
        assert_eq!(count(100, 2), 32);
        assert_eq!(count(100, 4), 32);
        assert_eq!(count(100, 8), 32);
        assert_eq!(count(50, 8), 16);
        assert_eq!(count(11, 4), 0);
        assert_eq!(Collective::AllGather.elements(32, 3), 96);
        for whole in [Collective::AllReduce, Collective::Broadcast, Collective::SendRecv] {
            assert_eq!((whole.count(11, 4, 3), whole.elements(11, 3)), (11, 11));
        }
        assert_eq!(Collective::Barrier.count(11, 4, 3), 0);
    }

    #[test]
    fn bus_factors_are_nccl_tests() {
        for collective in Collective::value_variants() {
            let expected = match collective.program() {
                "all_reduce_perf" => 1.5,
                "broadcast_perf" | "reduce_perf" | "sendrecv_perf" => 1.0,
                "barrier_perf" => 0.0,
                _ => 0.75,
            };
            assert_eq!(collective.bus_factor(4), expected, "{collective:?}");
        }
    }

    #[test]
    fn every_collective_has_a_half() {
        for collective in Collective::value_variants() {
            for started in [false, true] {
                let Halves { out_of_place, in_place } = collective.halves(started);
                assert!(out_of_place || in_place);
                let remark = collective.remark(DeviceKind::Cpu, started);
                assert_eq!(out_of_place && in_place, remark.is_none());
            }
            if let Some(Halves { out_of_place, in_place }) = collective.halves_on_gpu() {
                assert!(out_of_place || in_place);
                let remark = collective.remark(DeviceKind::Gpu, false);
                assert_eq!(out_of_place && in_place, remark.is_none());
            }
        }
    }
}
