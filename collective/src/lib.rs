//! allfold: the ranks of a training job add up their gradients, with no parameter server.
//!
//! # What it is
//!
//! An all-reduce runtime for CPUs and ordinary networks: all collectives by ring, tree and halving
//! over QUIC, mutual TLS from one secret without set-up, and a control plane that names the rank at
//! fault within seconds.
//!
//! # What it is not
//!
//! Not a launcher (`allfold run` is, or torchrun, or your own script), not a training framework
//! (see the crate `allfold-trainer`), and not elastic: when a rank is lost, the world ends, with
//! the same error on every rank. It trusts whoever holds the job's secret.
//!
//! # Example
//!
//! ```
//! use allfold::{Communicator, ReduceOp, Result};
//!
//! fn main() -> Result<()> {
//!     // Under a launcher every rank connects to all others; without one it is a world of one.
//!     let world = Communicator::from_env_or_single()?;
//!
//!     // Each rank has computed a gradient from its share of the data.
//!     let mut gradient = vec![0.5f32 * (world.rank() + 1) as f32; 1000];
//!
//!     // Afterwards all hold the average, bit-identical.
//!     world.all_reduce(&mut gradient, ReduceOp::Avg)?;
//!     if world.rank() == 0 {
//!         println!("{} ranks, average {}", world.size(), gradient[0]);
//!     }
//!
//!     // Waits until the others have read everything; dropping does the same.
//!     world.close()
//! }
//! ```
//!
//! All collectives are methods of [`Communicator`]; those that `start_` return a [`Pending`] and
//! overlap with what the program does meanwhile. [`Communicator::split`] makes communicators of some
//! of the ranks.
//!
//! Code that uses allfold is tested with [`Communicator::in_memory`]: ranks as threads.
//!
//! # Reading order
//!
//! `communicator.rs` and `collectives.rs` (what a user calls) -> `engine.rs` (one call) -> `lanes.rs`
//! and `lane.rs` (move its bytes) -> `machine.rs` and `plan.rs` (which bytes) -> `group.rs` (whether all make the
//! same calls) -> `world.rs` (what all threads share) -> `rendezvous.rs` (how the ranks meet) ->
//! `control.rs` (who is alive). The page `docs/ARCHITECTURE.md` has the whole map.

#[cfg(windows)]
compile_error!("allfold runs on Linux; on Windows build it inside WSL 2");
#[cfg(target_endian = "big")]
compile_error!("allfold sends elements as they lie in memory, little-endian");

mod active;
mod admission;
mod alloc;
mod bucket;
mod buffer;
mod caller;
mod collectives;
mod communicator;
pub mod config;
mod contract;
mod control;
mod cores;
mod deadlock;
mod departure;
mod engine;
pub mod error;
#[cfg(feature = "faults")]
pub mod faults;
mod fork;
#[cfg(fuzzing)]
pub mod fuzzing;
mod group;
mod host_memory;
pub mod identity;
mod in_memory;
mod lane;
mod lanes;
mod link;
mod liveness;
mod machine;
mod metrics;
pub mod nccl;
mod owned;
mod pending;
mod plan;
pub mod probe;
mod ranks;
mod reduce;
mod rendezvous;
pub mod report;
#[cfg(any(test, feature = "simulation"))]
pub mod simulation;
mod statistics;
mod trust;
mod verdict;
mod wire;
mod world;

pub use alloc::Buffer;
pub use bucket::{AllReduce, Bucket, PendingBucket};
pub use communicator::{Communicator, Labelled};
pub use config::{Config, parse_duration};
pub use error::{Error, ErrorKind, Result};
pub use half::{bf16, f16};
pub use identity::Identity;
pub use in_memory::InMemory;
pub use metrics::{Counter, Gauge, Metrics};
pub use owned::Owned;
pub use pending::Pending;
pub use ranks::Ranks;
pub use reduce::{Element, ReduceOp, Reducible};
pub use rendezvous::Doorkeeper;
pub use statistics::{
    CallStatistics, LateStatistics, LinkStatistics, PeerStatistics, ReasonCount, SocketStatistics,
    Statistics,
};
pub use trust::certificates::PROTOCOL;
pub use trust::secret::Secret;
pub use world::Peer;
