//! nccl-tests for hosts without GPUs, and with them: the options, method, columns, formulas and JSON keys of
//! NVIDIA's nccl-tests 2.19.6, over allfold.
//!
//! Reading order: [`Command`] says what there is to measure, [`Options`] what is asked of a
//! collective, `collective.rs` and `choices.rs` what there is to ask for, and `foreign.rs` what there
//! is not; `run.rs` walks over types, operations, roots and sizes; `measure.rs` times one size and
//! checks its data, and `gpu.rs` does so on GPUs, where `beside.rs` shows what NCCL alone takes;
//! `call.rs` makes the calls; `layout.rs` says what must stand where, and
//! `pattern.rs` makes inputs whose exact result is known for each type of `element.rs`; `table.rs`
//! and `report.rs` write what was found, for people and for programs, `plot.rs` draws it, and
//! `explain.rs` says where the time went, on the cores of `cores.rs`. `link.rs` and `kernels.rs`
//! measure what lies under a collective, through `allfold::probe`; `ladder.rs` is how `shared_sum.rs`
//! and the example `peers` compare one thing with another, and `turns.rs` in which order.

mod beside;
mod call;
mod choices;
mod collective;
mod command;
mod console;
mod cores;
mod deadline;
mod destination;
mod element;
mod error;
mod explain;
mod foreign;
mod gpu;
mod kernels;
#[doc(hidden)]
pub mod ladder;
mod latencies;
mod layout;
mod link;
mod measure;
mod memory;
mod number;
mod options;
mod pattern;
#[doc(hidden)]
pub mod plot;
mod report;
mod run;
mod shared_sum;
mod size;
mod table;
mod timestamp;
#[doc(hidden)]
pub mod turns;
mod world;

pub use choices::{Algorithm, Average, Choice, DataType, DeviceKind, Op, Switch, Transport, Unit};
pub use collective::Collective;
pub use command::Command;
pub use error::Error;
pub use options::Options;
pub use run::run;
pub use size::Step;
