//! Faults on purpose, for tests of whole processes: a process can be told at which moment it is,
//! and can give its own sockets bad weather.
//!
//! Only with the feature `faults`; without it no line of this is compiled, and nothing asks for it.
//!
//! - [`watch`]: the runtime calls an observer at named [moments](Moment), on its own threads, so
//!   that a test can end the process there.
//! - [`weather`]: what happens to the datagrams of this process: cut, lost, late, twice, out of
//!   order, with a wrong byte, or too large for the way.

mod moments;
mod peers;
mod socket;
mod waiting;
pub mod weather;

pub(crate) use moments::{enter, failed, happens};
pub(crate) use peers::{meet, meet_table};
pub(crate) use socket::open;

pub use moments::{Moment, Step, unwatch, watch};
