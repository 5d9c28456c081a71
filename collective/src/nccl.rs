//! Calls on GPUs: NCCL moves the data, and everything else is allfold's own.
//!
//! A [`Gpu`] is made of a communicator by all its ranks together. Who the ranks are, who may take
//! part, whether all make the same calls, and who is at fault when one is lost: that is found out as
//! in calls on the host, so that NCCL does not hang without a culprit either. NCCL's unique id
//! travels over the authenticated links; a lost rank, a mismatch or an error of NCCL's own ends
//! NCCL's communicator on every rank, within the same time and with the same error.
//!
//! Driver and library are looked for when a program asks for them, never before; [`Presence::find`]
//! says what there is. Without the feature `nccl`, or on a machine without GPUs, [`Gpu::connect`] is
//! an error that says why, on every rank.
//!
//! ```no_run
//! # #[cfg(feature = "nccl")]
//! # fn main() -> allfold::Result<()> {
//! use allfold::nccl::Gpu;
//! use allfold::{Communicator, ReduceOp};
//!
//! let gpu = Gpu::connect(Communicator::from_env()?)?;
//! let mut gradient = gpu.stream().alloc_zeros::<f32>(1000).unwrap();
//! gpu.all_reduce(&mut gradient, ReduceOp::Avg)?; // returns when it is done
//! gpu.on(gpu.stream()).all_reduce(&mut gradient, ReduceOp::Avg)?; // returns at once
//! gpu.synchronize()?;
//! gpu.close()
//! # }
//! # #[cfg(not(feature = "nccl"))]
//! # fn main() {}
//! ```
//!
//! # When calls are compared
//!
//! A call that blocks ([`Gpu`]'s own methods) is given to NCCL only after every rank is seen to have
//! made the same one, and the same ones before it, so that a mismatch is an error before anything is
//! reduced; it returns once all ranks are seen to have ended it well. A call on a stream ([`Gpu::on`]) is numbered and given to NCCL at once, and compared with
//! all others by [`Gpu::wait`] or [`Gpu::synchronize`], which every rank makes like any other call;
//! messages are compared each by itself. Until one of them has returned, NCCL may be at work on calls
//! that differ, with whatever comes of that in the buffers: a program that waits by CUDA's own means
//! sees results that were not compared. A mismatch is also found by what ranks tell each other twice
//! a second; it ends the world, and NCCL's kernels with it.
//!
//! # What NCCL protects
//!
//! NCCL's own data between hosts is not encrypted, and its own connections are not authenticated
//! beyond the unique id. One line at the start says so where it crosses hosts; `ALLFOLD_NCCL` is
//! `on`, `same-host` or `off`.

#[cfg(feature = "nccl")]
pub(crate) mod buffers;
#[cfg(feature = "nccl")]
mod calls;
mod choice;
#[cfg(feature = "nccl")]
mod driver;
#[cfg(feature = "nccl")]
mod gpu;
#[cfg(feature = "nccl")]
mod inside;
#[cfg(feature = "nccl")]
mod library;
#[cfg(feature = "nccl")]
mod meeting;
#[cfg(feature = "nccl")]
mod pair;
mod presence;
#[cfg(feature = "nccl")]
mod raw;
#[cfg(feature = "nccl")]
mod settings;
#[cfg(not(feature = "nccl"))]
mod stub;
#[cfg(feature = "nccl")]
mod watch;
mod word;

#[cfg(feature = "nccl")]
pub use calls::{Group, OnStream};
#[cfg(feature = "nccl")]
pub use cudarc;
#[cfg(feature = "nccl")]
pub use gpu::Gpu;
pub use presence::{Absence, Presence, Version};
#[cfg(feature = "nccl")]
#[doc(hidden)]
pub use raw::Raw;
#[cfg(not(feature = "nccl"))]
pub use stub::Gpu;
