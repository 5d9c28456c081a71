//! nccl-tests for hosts without GPUs: the options, method, columns, formulas and JSON keys of
//! NVIDIA's nccl-tests 2.19.6, over allfold.
//!
//! Reading order: [`Options`] says what is asked; `run.rs` walks over the sizes; `measure.rs`
//! times one size and checks its data; `pattern.rs` makes inputs whose exact result is known;
//! `table.rs` and `report.rs` write what was found, for people and for programs.

mod console;
mod error;
mod latencies;
mod measure;
mod memory;
mod number;
mod options;
mod pattern;
mod report;
mod run;
mod size;
mod table;
mod timestamp;
mod world;

pub use error::Error;
pub use options::{Collective, DataType, Op, Options};
pub use run::run;
