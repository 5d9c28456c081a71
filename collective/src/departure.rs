//! Tells the other ranks when the program ends with a world still open.
//!
//! `std::process::exit`, or a return from `main` while a communicator lies in a static or was
//! forgotten, runs no destructor of it. The C library still runs those of the main thread's
//! variables, and there is such a variable here. Nobody is told where the exit comes from another
//! thread, or where the main thread never touched allfold: the others find out by themselves. A
//! communicator in a thread-local variable of the main thread must be closed by the program: which
//! of such variables is destroyed first is not for allfold to say.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::process::getpid;
use rustix::thread::gettid;

use crate::world::World;

/// From now on the end of the main thread is the end of this world, if that is open then.
pub(crate) fn announce(world: &Arc<World>) {
    let mut worlds = WORLDS.lock().unwrap_or_else(PoisonError::into_inner);
    worlds.retain(|(_, world)| world.strong_count() > 0);
    worlds.push((std::process::id(), Arc::downgrade(world)));
    drop(worlds);
    watch_this_thread();
}

/// A call is made on this thread: if it is the main thread, its end will be noticed.
pub(crate) fn watch_this_thread() {
    // Too late, where the thread is ending already.
    let _ = LAST_WORDS.try_with(|_| ());
}

thread_local! {
    static LAST_WORDS: LastWords = LastWords { is_main: gettid() == getpid() };
}

struct LastWords {
    is_main: bool,
}

impl Drop for LastWords {
    fn drop(&mut self) {
        if !self.is_main {
            return;
        }
        let worlds = std::mem::take(&mut *WORLDS.lock().unwrap_or_else(PoisonError::into_inner));
        // A fork's worlds are its parent's.
        let own = worlds.iter().filter(|(process, _)| *process == std::process::id());
        for world in own.filter_map(|(_, world)| world.upgrade()) {
            if !world.has_left(world.rank) && world.error().is_none() {
                world.depart();
                world.wait_told();
            }
        }
    }
}

/// With the process that joined each.
static WORLDS: Mutex<Vec<(u32, Weak<World>)>> = Mutex::new(Vec::new());
