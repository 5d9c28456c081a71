//! Staying awake: a lane whose call somebody waits for asks its sockets for a short while before it
//! sleeps.
//!
//! Waking a thread takes longer than everything else about a small message: on a virtual machine,
//! whose idle cores are handed back to its host, 20 to 50 us each time. Where nobody waits the
//! program computes, and its cores are its own.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::Driver;
use crate::cores;
use crate::link::Links;
use crate::world::World;

impl Driver {
    /// Keeps the lane from sleeping for as long as something has just happened.
    pub(super) async fn stay_awake(self: Rc<Self>) {
        if !matches!(self.links, Links::Quic(_)) || !has_cores(&self.world, self.number + 1) {
            return;
        }
        loop {
            self.stirred.notified().await;
            let (mut moved, mut since) = (self.moved.get(), Instant::now());
            loop {
                // Whoever shares this core, the caller perhaps, goes first.
                std::thread::yield_now();
                // Everything else of this lane has a turn, and the system is asked what has come.
                tokio::task::yield_now().await;
                if self.moved.get() != moved {
                    (moved, since) = (self.moved.get(), Instant::now());
                }
                let still = since.elapsed();
                if still >= AWAKE || still >= CALLER_TURN && !self.is_awaited_now() {
                    break;
                }
            }
        }
    }

    /// Whether somebody waits for a call that is under way, or did for the last one.
    fn is_awaited_now(&self) -> bool {
        let calls = self.calls.borrow();
        let mut active = calls.values().filter_map(|calls| calls.active.as_ref()).peekable();
        match active.peek() {
            Some(_) => active.any(|active| active.done.awaited().is_some()),
            None => self.was_awaited.get(),
        }
    }
}

/// Whether each rank of this host has so many cores, so that lanes that poll take them from nobody.
pub(crate) fn has_cores(world: &World, each: u16) -> bool {
    cores::suffice(world.rank, &world.peers, each)
}

/// Several small calls, or a round trip in a rack. Measured on two cores: 30 to 400 us are alike for
/// calls in a row, and with 1 ms the lane is in the way of the caller.
const AWAKE: Duration = Duration::from_micros(100);
/// Until a caller that has handed over its call waits for it.
const CALLER_TURN: Duration = Duration::from_micros(10);
