//! What the arguments of a call must be: ranks that there are, lengths that fit together.

use std::ops::Range;

use super::Caller;
use crate::error::{ErrorKind, Result};

impl Caller<'_> {
    /// This rank's block.
    pub(super) fn own(self, block: usize) -> Range<usize> {
        let start = self.communicator.rank() * block;
        start..start + block
    }

    /// The length of one rank's block of `length` elements.
    pub(super) fn block(self, what: &str, length: usize) -> Result<usize> {
        let size = self.communicator.size();
        if !length.is_multiple_of(size) {
            return argument(format!(
                "{what}: {length} elements cannot be dealt to {size} ranks in equal blocks"
            ));
        }
        Ok(length / size)
    }

    /// Whether the long buffer has a block like the short one for each rank.
    pub(crate) fn blocks(
        self,
        what: &str,
        long: &str,
        length: usize,
        short: &str,
        block: usize,
    ) -> Result<()> {
        let size = self.communicator.size();
        if block.checked_mul(size) != Some(length) {
            return argument(format!(
                "{what}: the {long} of {length} elements must be {size} times the {short} of \
                 {block}, once for each rank"
            ));
        }
        Ok(())
    }

    pub(crate) fn same_length(self, what: &str, input: usize, output: usize) -> Result<()> {
        if input != output {
            return argument(format!(
                "{what}: the input has {input} elements, the output {output}"
            ));
        }
        Ok(())
    }

    pub(crate) fn rank_of(self, what: &str, rank: usize) -> Result<u32> {
        let size = self.communicator.size();
        match u32::try_from(rank) {
            Ok(wire) if rank < size => Ok(wire),
            _ => argument(format!("{what} rank {rank}, but there are {size} ranks")),
        }
    }

    pub(crate) fn other_rank(self, what: &str, rank: usize) -> Result<u32> {
        let wire = self.rank_of(what, rank)?;
        if rank == self.communicator.rank() {
            return argument(format!("{what} rank {rank}, which is this rank itself"));
        }
        Ok(wire)
    }
}

pub(crate) fn argument<T>(problem: String) -> Result<T> {
    Err(ErrorKind::Argument { problem }.into())
}
