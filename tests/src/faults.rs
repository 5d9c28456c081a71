//! The fault suite: something happens to one rank of a whole job, and every other rank must say so,
//! soon, and name the right one.
//!
//! A [`Case`] says what happens to whom and when. It is told to the ranks by one variable
//! ([`victim`]), so that the rank under test does it to itself at the very moment. [`world`] runs a
//! case's processes and collects what they say, [`judge`] compares that with what is promised,
//! [`table`] counts.

pub mod busy;
pub mod case;
pub mod chaos;
pub mod judge;
pub mod table;
pub mod victim;
pub mod waking;
pub mod world;

pub use case::Case;
pub use world::Programs;
