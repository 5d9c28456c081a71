//! `allfold train` and `allfold eval` from end to end: data of one's own, checkpoints, stops, and
//! what a user sees of mistakes.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

mod checkpoints;
mod command;
mod refusals;
mod scratch;
mod stops;
mod tensorboard;
