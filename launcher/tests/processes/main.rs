//! The launcher as a process, with plain programs as ranks.

#![allow(clippy::unwrap_used, reason = "all of this is test code, its helpers too")]

mod binding;
mod ending;
mod events;
mod hosts;
mod identify;
mod launched;
mod logs;
mod manifest;
mod manual;
mod options;
mod orphans;
mod output;
mod restarts;
mod script;
mod signals;
mod socket;
mod starved;
mod terminal;
