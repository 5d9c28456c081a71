//! The launcher as a process, with plain programs as ranks.

#![allow(clippy::unwrap_used, reason = "all of this is test code, its helpers too")]

mod ending;
mod launched;
mod orphans;
mod output;
mod signals;
mod socket;
mod terminal;
