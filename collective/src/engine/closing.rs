//! How a communicator is closed, and with the last one the world is left.

use std::sync::atomic::Ordering;

use super::{Engine, Runtime};
use crate::error::Result;
use crate::lane;
use crate::verdict::Loss;
use crate::world::WHOLE_WORLD;

impl Engine {
    /// Waits for outstanding calls and says goodbye; the last communicator of the world also waits
    /// for the peers' readers and ends the threads. An error that no call has returned, such as a
    /// different number of calls, is returned here.
    pub(crate) fn close(&self) -> Result<()> {
        let (world, runtime) = (self.world(), &self.runtime);
        if !runtime.process.is_this() {
            // The threads live in the process that forked; there is nothing to close here.
            std::mem::forget(runtime.lanes().take());
            return Ok(());
        }
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.flush();
        if let Some(here) = &self.here {
            here.end();
        }
        if world.error().is_none() {
            let goodbyes = world.close_group(self.group);
            if let Some(control) = world.control() {
                goodbyes.iter().for_each(|goodbye| control.say_goodbye(goodbye.clone()));
            }
            if let Some(lanes) = &*runtime.lanes() {
                // The flows of the whole world say it when this rank leaves.
                let mut goodbyes = goodbyes;
                goodbyes.retain(|goodbye| goodbye.group != WHOLE_WORLD);
                lanes.inboxes().say_goodbye(&goodbyes);
            }
        }
        let is_last = runtime.open.fetch_sub(1, Ordering::AcqRel) == 1;
        if is_last {
            runtime.end();
        }
        match world.error() {
            Some(error) if world.tell() => Err(error),
            _ => Ok(()),
        }
    }

    /// The user's code is unwinding: the others must not wait for this rank.
    pub(crate) fn close_in_panic(&self) {
        let world = self.world();
        if self.runtime.process.is_this() {
            world.lose(world.rank, Loss::Panicked);
        }
        let _ = self.close();
    }

    /// Waits until no call is under way, here or on a pair.
    fn flush(&self) {
        let world = self.world();
        for group in std::iter::once(self.group).chain(world.pairs(self.group)) {
            if world.is_idle(group) {
                continue;
            }
            let (done, completion) = lane::completion();
            let here = self.here.as_ref().filter(|_| group == self.group);
            match &*self.runtime.lanes() {
                Some(_) if here.is_some() => {
                    if let Some(here) = here {
                        here.flush(done);
                    }
                }
                Some(lanes) => lanes.inboxes().flush(group, done),
                None => return,
            }
            let last = world.calls(group).map_or(0, |(calls, _)| calls.saturating_sub(1));
            let _waiting = world.note_waiting(group, last);
            let _ = completion.wait();
        }
    }
}

impl Runtime {
    /// Leaves the world: waits for the peers' readers, at most a second, and ends the threads.
    fn end(&self) {
        self.world.counters.closed();
        if let Some(control) = self.world.control()
            && self.world.error().is_none()
        {
            self.world.note_left(self.world.rank);
            control.leave();
        }
        let lanes = self.lanes().take();
        if let Some(lanes) = lanes {
            lanes.close();
        }
        if let Some(control) = self.world.control() {
            control.close();
        }
    }
}
