//! Runs pure state machines in virtual time, under faults drawn from a seed.
//!
//! A simulation owns a [`Scheduler`] of its own event type, a [`Network`], a [`FaultPlan`] and the
//! [`Health`] of its ranks. Its loop takes the next event, lets the faults that are due happen,
//! and hands the event to the rank it is for; the network only says when something arrives. All
//! choices come from the seed, so that a seed replays exactly; [`seeds()`] runs many and says how
//! to replay the one that fails.
//!
//! ```text
//! while let Some((now, event)) = scheduler.next() {
//!     count += 1;
//!     while let Some(fault) = faults.due(count) { /* cut, freeze, kill */ }
//!     match health.fitness(event.rank(), now) {
//!         Fitness::Fit => /* feed the state machine, carry out its actions */,
//!         Fitness::Frozen { until } => scheduler.at(until, event),
//!         Fitness::Dead => {}
//!     }
//! }
//! ```

pub mod faults;
pub mod network;
pub mod random;
#[cfg(test)]
mod ranks;
pub mod scheduler;
pub mod seeds;
pub mod timing;

pub use faults::{Appetite, Fault, FaultPlan, Fitness, Health, Kind};
pub use network::{Delivery, FlowId, Network, Quality, Transit};
pub use random::Random;
pub use scheduler::Scheduler;
pub use seeds::{seeds, trace};

/// One millisecond of virtual time, which is counted in nanoseconds.
pub const MILLISECOND: u64 = 1_000_000;
/// One second of virtual time.
pub const SECOND: u64 = 1_000 * MILLISECOND;
