//! Calls straight to NCCL on the communicator on which all calls are made: for benchmarks, which show
//! what comparing the ranks' calls costs beside them.

use super::calls::OnStream;
use super::pair::Comm;
use crate::error::{Error, Result};

/// Calls that nothing compares, notes or waits for. See [`OnStream::raw`].
#[doc(hidden)]
pub struct Raw<'a> {
    pub(super) on: OnStream<'a>,
    pub(super) comm: Comm,
}

impl OnStream<'_> {
    /// Calls as a program makes them that knows NCCL only. The communicator is held meanwhile:
    /// `calls` makes no others. That all ranks make the same ones is up to them.
    ///
    /// # Errors
    /// That of `calls`; as for every call where the world has ended.
    #[doc(hidden)]
    pub fn raw<R, E: From<Error>>(
        &self,
        calls: impl FnOnce(&Raw<'_>) -> Result<R, E>,
    ) -> Result<R, E> {
        self.gpu.hold(|comm| calls(&Raw { on: *self, comm }))
    }
}

impl Raw<'_> {
    /// Makes the calls of `calls` as one.
    ///
    /// # Errors
    /// That of `calls`, else NCCL's.
    pub fn group(&self, calls: impl FnOnce() -> Result<()>) -> Result<()> {
        let gpu = self.on.gpu;
        // SAFETY: neither takes an argument; the group is of this thread.
        gpu.launch_raw(|nccl| unsafe { (nccl.group_start)() })?;
        let result = calls();
        // SAFETY: as above.
        let ended = gpu.launch_raw(|nccl| unsafe { (nccl.group_end)() });
        result.and(ended)
    }
}
