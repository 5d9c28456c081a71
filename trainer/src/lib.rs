//! Data-parallel training on [candle](https://docs.rs/candle-core), over allfold.
//!
//! Every rank holds the whole model and a share of each batch; the gradients are added up with
//! one all-reduce a bucket, and every rank takes the same step. An existing candle loop changes
//! two lines: see [`Distributed`].
//!
//! Reading order: `member.rs` is `allfold train` under a launcher, `run.rs` one training of it,
//! `training.rs` its loop. [`Distributed`] is the step
//! of all ranks: `reduction.rs` says when which bucket is sent, `bucket.rs` what is in it,
//! `tracked.rs` how backward reports a gradient, `device.rs` and `nccl.rs` what is otherwise on GPUs; `sampler.rs` says who gets which samples. Then
//! `agreement.rs` and `digest.rs`: what is compared between ranks; `data.rs`, `model.rs`,
//! `loss.rs`, `optimizer.rs`, `memory.rs`, `initial.rs`, `random.rs`: what is trained and how; [`checkpoint`],
//! `saving.rs`, `resume.rs`, [`Stop`]: how it ends early and goes on; `evaluation.rs`, `eval.rs`:
//! how well it works; `options.rs`, `settings.rs`, `report.rs`, `interval.rs`, `arrivals.rs`, `watching.rs`,
//! `gauges.rs`, `error.rs`, `problem.rs`: what the user gives and sees.

mod agreement;
mod arrivals;
mod bucket;
pub mod checkpoint;
mod data;
mod device;
mod digest;
mod distributed;
mod error;
mod eval;
mod evaluation;
mod gauges;
mod initial;
mod interval;
mod loss;
mod member;
mod memory;
mod model;
mod nccl;
mod norm;
mod optimizer;
mod options;
mod output;
mod parameters;
mod problem;
mod random;
mod reduction;
mod report;
mod resume;
mod run;
mod sampler;
mod saving;
mod settings;
mod stop;
mod tally;
mod tensorboard;
mod tracked;
mod training;
mod watching;

pub use arrivals::{Arrival, Arrivals};
pub use data::{Data, Dataset, Images, Shape, Split, Text, Windows, digits};
pub use device::gpu;
pub use digest::Digest;
pub use distributed::Distributed;
pub use error::{Error, LastStep, Result};
pub use eval::{EvalOptions, eval};
pub use initial::fill_from_seed;
pub use member::take_part;
pub use model::ModelKind;
pub use optimizer::{DEFAULT_MOMENTUM, Optimiser, OptimizerConfig};
pub use options::{
    DeviceKind, OnLoss, OptimizerKind, Options, Precision, Progress, Resume, WhenDone,
};
pub use problem::Problem;
pub use run::run;
pub use sampler::{Batch, Epoch, Sampler};
pub use stop::Stop;
pub use tally::Tally;
pub use tensorboard::EventFile;
pub use training::{Event, Outcome, StepDone, TestDone, Training};
