//! allfold: the ranks of a training job add up their gradients, with no parameter server.
mod buffer;
mod communicator;
pub mod config;
mod contract;
mod control;
mod engine;
pub mod error;
pub mod identity;
mod lane;
mod link;
mod liveness;
mod machine;
mod plan;
mod reduce;
mod rendezvous;
mod report;
mod trust;
mod verdict;
mod wire;
mod world;

pub use communicator::{Communicator, Labelled};
pub use config::Config;
pub use error::{Error, ErrorKind, Result};
pub use identity::Identity;
pub use reduce::{Element, ReduceOp, Reducible};
pub use trust::secret::Secret;
pub use world::Peer;
