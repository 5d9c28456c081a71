//! SIGTERM: the wish of Kubernetes, systemd or a person that training ends well.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::SIGTERM;
use signal_hook::iterator::Signals;

use crate::error::{Error, Result};

/// Whether this process was asked to stop. Clones share the answer.
///
/// A second SIGTERM, a second or more after the first, ends the process at once with exit code
/// 143. Earlier ones are the same wish told twice: systemd and `timeout` signal every process,
/// and `allfold run` passes on what it gets. SIGINT keeps its default.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    asked: Arc<Asked>,
}

#[derive(Debug, Default)]
struct Asked {
    first: Mutex<Option<Instant>>,
    wake: Condvar,
    /// Whether nobody looks at it yet, so that a first SIGTERM ends the process.
    is_unheeded: AtomicBool,
}

/// What a SIGTERM means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    Stop,
    TheSame,
    EndAtOnce,
}

impl Stop {
    /// From now on SIGTERM sets this; also as PID 1, where it would otherwise do nothing. Once a
    /// process: later calls give the same one.
    ///
    /// # Errors
    /// [`Error::Signals`] where the system refuses.
    pub fn install() -> Result<Self> {
        let stop = Self::of_process(false)?;
        stop.asked.is_unheeded.store(false, Ordering::Relaxed);
        Ok(stop)
    }

    /// From now on, until the next [`install`](Self::install), SIGTERM ends the process at once
    /// with exit code 143; also as PID 1. The answer knows of one that came before.
    ///
    /// # Errors
    /// [`Error::Signals`] where the system refuses.
    pub fn end_at_once() -> Result<Self> {
        let stop = Self::of_process(true)?;
        stop.asked.is_unheeded.store(true, Ordering::Relaxed);
        Ok(stop)
    }

    fn of_process(is_unheeded: bool) -> Result<Self> {
        static PROCESS: OnceLock<Stop> = OnceLock::new();
        if let Some(stop) = PROCESS.get() {
            return Ok(stop.clone());
        }
        let stop = Self::new();
        stop.asked.is_unheeded.store(is_unheeded, Ordering::Relaxed);
        stop.listen().map_err(|error| Error::Signals { problem: error.to_string() })?;
        // Of two threads that come here at once both are heard; one is remembered.
        Ok(PROCESS.get_or_init(|| stop).clone())
    }

    /// One that no signal sets, only [`Self::request`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether a stop was asked for.
    pub fn requested(&self) -> bool {
        self.first().is_some()
    }

    /// Asks for a stop, as a first SIGTERM does.
    pub fn request(&self) {
        self.hear(Instant::now());
    }

    /// Sleeps until a stop is asked for.
    pub fn wait(&self) {
        let first = self.first();
        let asked = self.asked.wake.wait_while(first, |first| first.is_none());
        drop(asked.unwrap_or_else(PoisonError::into_inner));
    }

    fn listen(&self) -> io::Result<()> {
        let mut signals = Signals::new([SIGTERM])?;
        let stop = self.clone();
        thread::Builder::new().name("signals".into()).spawn(move || {
            for _ in &mut signals {
                if stop.hear(Instant::now()) == Meaning::EndAtOnce {
                    // Not by the default of SIGTERM, which PID 1 has not.
                    signal_hook::low_level::exit(EXIT_STOPPED);
                }
            }
        })?;
        Ok(())
    }

    fn hear(&self, now: Instant) -> Meaning {
        let mut first = self.first();
        match *first {
            _ if self.asked.is_unheeded.load(Ordering::Relaxed) => Meaning::EndAtOnce,
            None => {
                *first = Some(now);
                self.asked.wake.notify_all();
                Meaning::Stop
            }
            Some(first) if now.saturating_duration_since(first) < SAME_WISH => Meaning::TheSame,
            Some(_) => Meaning::EndAtOnce,
        }
    }

    fn first(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.asked.first.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A wish that several programs pass on arrives within milliseconds; a person who asks twice has
/// seen that nothing happened yet.
const SAME_WISH: Duration = Duration::from_secs(1);
/// 128 + SIGTERM, as a shell would say.
const EXIT_STOPPED: i32 = 143;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_told_twice_is_one() {
        let stop = Stop::new();
        assert!(!stop.requested());
        let start = Instant::now();
        assert_eq!(stop.hear(start), Meaning::Stop);
        assert!(stop.clone().requested());
        assert_eq!(stop.hear(start + SAME_WISH / 2), Meaning::TheSame);
        assert_eq!(stop.hear(start + SAME_WISH), Meaning::EndAtOnce);
    }

    #[test]
    fn nobody_looks_yet() {
        let stop = Stop::new();
        stop.asked.is_unheeded.store(true, Ordering::Relaxed);
        assert_eq!(stop.hear(Instant::now()), Meaning::EndAtOnce);
        assert!(!stop.requested());
    }

    #[test]
    fn a_request_wakes_who_waits() {
        let stop = Stop::new();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| stop.wait());
            stop.request();
            waiting.join().unwrap();
        });
        stop.wait();
    }
}
