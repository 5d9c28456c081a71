//! In place of the real one where allfold is built without the feature `nccl`.

use std::convert::Infallible;

use super::presence::Absence;
use crate::communicator::Communicator;
use crate::error::Result;

/// A rank's GPU; there is none in this build.
#[derive(Debug)]
pub struct Gpu(Infallible);

impl Gpu {
    /// Always an error.
    ///
    /// # Errors
    /// [`ErrorKind::NoGpu`](crate::ErrorKind::NoGpu): this build has no NCCL.
    pub fn connect(communicator: Communicator) -> Result<Self> {
        drop(communicator);
        Err(Absence::not_built().into())
    }

    /// The communicator that it was made of.
    pub fn communicator(&self) -> &Communicator {
        match self.0 {}
    }

    /// Its number among the GPUs that this process sees.
    pub fn index(&self) -> usize {
        match self.0 {}
    }

    /// What it calls itself.
    pub fn name(&self) -> &str {
        match self.0 {}
    }

    /// Waits for all calls.
    ///
    /// # Errors
    /// None here.
    pub fn synchronize(&self) -> Result<()> {
        match self.0 {}
    }

    /// Waits for what is queued here.
    pub fn settle(&self) {
        match self.0 {}
    }

    /// Waits for all calls and closes the communicator.
    ///
    /// # Errors
    /// None here.
    pub fn close(self) -> Result<()> {
        match self.0 {}
    }
}
