//! What is asked of a benchmark on GPUs, and what cannot be.

use allfold::Ranks;
use allfold::nccl::Presence;

use super::Options;
use crate::Error;
use crate::choices::DeviceKind;
use crate::collective::Collective;

impl Options {
    /// Where the data lies.
    pub(crate) fn device(&self) -> DeviceKind {
        let implied = if self.ngpus.is_some() { DeviceKind::Gpu } else { DeviceKind::Cpu };
        self.device.unwrap_or(implied)
    }

    pub(crate) fn is_on_gpu(&self) -> bool {
        self.device() == DeviceKind::Gpu
    }

    /// The number of ranks that the user gives, and by which option. `-g 1` leaves it to a launcher,
    /// where there is one: `mpirun -np 8 all_reduce_perf -g 1`.
    pub(crate) fn given_ranks(&self) -> Option<(Ranks, &'static str)> {
        match (self.ranks, self.ngpus) {
            (Some(ranks), _) => Some((ranks, "--ranks")),
            (None, Some(gpus)) if gpus != 1 => Some((Ranks::Number(gpus), "-g")),
            (None, _) => None,
        }
    }

    /// The number of ranks where the user gives none and there is no launcher; None: the default.
    pub(crate) fn implied_ranks(&self, find: fn() -> Presence) -> Option<usize> {
        match self.ngpus {
            _ if !self.is_on_gpu() => None,
            Some(gpus) => Some(gpus),
            None => Some(find().gpus.len().max(1)),
        }
    }

    /// Whether this host has what every rank will want, before any starts.
    pub(super) fn check_gpus(&self, find: fn() -> Presence) -> Result<(), Error> {
        if !self.is_on_gpu() {
            return Ok(());
        }
        find().check().map_err(|absence| allfold::Error::from(absence).into())
    }

    /// What goes with `--device`, and what does not.
    pub(super) fn check_device(&self) -> Result<(), Error> {
        self.foreign.check(self.device())?;
        self.check_number()?;
        if !self.is_on_gpu() {
            return Ok(());
        }
        if self.collective.halves_on_gpu().is_none() {
            return Err(Error::NotOnGpu {
                what: self.collective.program().into(),
                why: "allfold has no such call on GPUs",
                help: "choose all_reduce, reduce_scatter, all_gather, broadcast, reduce_perf or \
                       sendrecv, or leave --device gpu out",
            });
        }
        let refused = [
            (
                self.algorithm.is_some(),
                "--algorithm",
                "NCCL chooses its own",
                "leave it out; NCCL_ALGO forces one of NCCL's",
            ),
            (
                self.transport.is_some(),
                "--transport",
                "NCCL carries the data its own way",
                "leave it out; NCCL_P2P_DISABLE, NCCL_SHM_DISABLE and NCCL_NET force another way",
            ),
            (
                self.explain,
                "--explain",
                "it looks at links and processors, which NCCL's calls do not use",
                "leave it out; NCCL_DEBUG=INFO shows what NCCL uses",
            ),
        ];
        match refused.into_iter().find(|(is_given, ..)| *is_given) {
            Some((_, what, why, help)) => Err(Error::NotOnGpu { what: what.into(), why, help }),
            None => Ok(()),
        }
    }

    /// A message needs somebody to go to.
    pub(crate) fn check_neighbour(&self, ranks: usize) -> Result<(), Error> {
        match self.collective {
            Collective::SendRecv if self.is_on_gpu() && ranks == 1 => Err(Error::NotOnGpu {
                what: "sendrecv_perf with one rank".into(),
                why: "a rank sends itself no message",
                help: "give --ranks 2 or more",
            }),
            _ => Ok(()),
        }
    }

    /// `-g` beside `--device` and `--ranks`.
    fn check_number(&self) -> Result<(), Error> {
        let Some(gpus) = self.ngpus else { return Ok(()) };
        let refuse =
            |why, help| Err(Error::Foreign { option: "-g", value: gpus.to_string(), why, help });
        match (gpus, self.device(), self.ranks) {
            (0, ..) => refuse("a benchmark needs at least one rank", "give 1 or more"),
            // nccl-tests' default.
            (1, ..) => Ok(()),
            (_, DeviceKind::Cpu, _) => refuse(
                "with --device cpu no rank has a GPU",
                "use --ranks for the number of ranks, or leave --device cpu out",
            ),
            (_, _, Some(ranks)) if ranks != Ranks::Number(gpus) => {
                refuse("it is --device gpu --ranks, and --ranks says another number", "drop one")
            }
            _ => Ok(()),
        }
    }
}
