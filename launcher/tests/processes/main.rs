//! The launcher as a process, with plain programs as ranks.

mod ending;
mod launched;
mod orphans;
mod output;
mod signals;
mod socket;
mod terminal;
