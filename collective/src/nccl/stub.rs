//! In place of the real one where allfold is built without the feature `nccl`: as much of it as there is
//! without cudarc's types.

use std::convert::Infallible;
use std::panic::Location;

use super::presence::Absence;
use super::word::{self, Word};
use crate::caller::Caller;
use crate::communicator::Communicator;
use crate::error::{Error, Result};
use crate::report;

/// A rank's GPU; there is none in this build.
#[derive(Debug)]
pub struct Gpu(Infallible);

impl Gpu {
    /// Always an error.
    ///
    /// # Errors
    /// [`ErrorKind::NoGpu`](crate::ErrorKind::NoGpu): this build has no NCCL.
    #[track_caller]
    pub fn connect(communicator: Communicator) -> Result<Self> {
        let refused = Self::refuse(communicator.caller(Location::caller()));
        refused.inspect_err(report::has_failed)
    }

    /// The others may have what this build has not.
    fn refuse(caller: Caller<'_>) -> Result<Self> {
        let absence = Absence::not_built();
        word::agree(caller, Word::of(&absence))?;
        Err(absence.into())
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

    /// Ends the world because this rank's own work on its GPU fails.
    pub fn fail(&self, _problem: &str) -> Error {
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
