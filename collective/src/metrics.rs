//! Metrics for monitoring: what a rank has counted, and what its program has to say, served to
//! Prometheus where `ALLFOLD_METRICS` asks for it.

pub(crate) mod address;
mod board;
mod exposition;
mod server;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::communicator::Communicator;
use board::{Board, Kind};

pub(crate) use board::About;

/// Where a program puts metrics of its own, beside allfold's; see [`Communicator::metrics`].
///
/// Cheap to clone. Where metrics are off, everything it gives does nothing.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    board: Option<Arc<Board>>,
}

/// A number that goes up and down. Starts at 0; cheap to clone, set from any thread.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Option<Arc<AtomicU64>>);

/// A number that only grows. Starts at 0; cheap to clone, added to from any thread.
#[derive(Clone, Debug, Default)]
pub struct Counter(Option<Arc<AtomicU64>>);

impl Metrics {
    /// On a board where a server shows it.
    fn on(board: Arc<Board>) -> Self {
        Self { board: Some(board) }
    }

    /// Where this rank serves them; None where metrics are off.
    pub fn address(&self) -> Option<SocketAddr> {
        self.board.as_ref().map(|board| board.address())
    }

    /// A gauge of this name, the same one for the same name. `help` is one line that says what it
    /// is. Names are letters, digits and underscores, by Prometheus' custom with the unit at the
    /// end; under one that cannot be used, or is taken, a warning is written and nothing shown.
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        Gauge(self.board.as_ref().and_then(|board| board.own(Kind::Gauge, name, help)))
    }

    /// A counter of this name, as [`gauge`](Self::gauge). It is shown with `_total` at its end,
    /// whether `name` has that or not.
    pub fn counter(&self, name: &str, help: &str) -> Counter {
        let name = name.strip_suffix("_total").unwrap_or(name);
        Counter(self.board.as_ref().and_then(|board| board.own(Kind::Counter, name, help)))
    }
}

impl Gauge {
    /// Shows `value` from now on.
    pub fn set(&self, value: f64) {
        if let Some(bits) = &self.0 {
            bits.store(value.to_bits(), Relaxed);
        }
    }
}

impl Counter {
    /// Shows so many more from now on.
    pub fn add(&self, count: u64) {
        if let Some(value) = &self.0 {
            value.fetch_add(count, Relaxed);
        }
    }
}

impl Communicator {
    /// Metrics of the program's own, served beside allfold's where
    /// [`Config::metrics`](crate::Config::metrics) or `ALLFOLD_METRICS` asks for it.
    ///
    /// ```
    /// let world = allfold::Communicator::from_env_or_single()?;
    /// let loss = world.metrics().gauge("my_loss", "training loss of the last step");
    /// loss.set(0.25);
    /// # Ok::<(), allfold::Error>(())
    /// ```
    pub fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }
}
