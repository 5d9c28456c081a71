//! The link between ranks of one host: memory that all of them have mapped.
//!
//! Each rank owns an *arena*, which the others map as well. In it are, for each communicator, two
//! *posts*, by which a rank shows what call it is in and how far it has come ([`posts`]), and the
//! blocks through which slices that do not lie in shared memory pass ([`stage`]). A rank writes its
//! own post only; it reads the others', and sleeps on them where they are late.

mod arena;
mod handover;
mod meeting;
mod posts;
mod stage;

#[cfg(test)]
mod tests;

pub(crate) use arena::{Arena, Attached, Peers, Place};
pub(crate) use handover::{Door, Doorway};
pub(crate) use posts::{Patience, clear};
pub(crate) use stage::{BYTES, Shared, Stop, Sum};
