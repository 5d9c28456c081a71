//! What the user and the system tell the launcher by signals.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use signal_hook::consts::{
    SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2,
};
use signal_hook::iterator::Signals;

use crate::exit_code;
use crate::supervisor::Event;

/// Until [`subscribe`] SIGTERM ends this process at once; also as PID 1, which has no default
/// action.
pub(crate) fn end_at_once() -> io::Result<()> {
    if is_in(ignored(), SIGTERM) {
        return Ok(());
    }
    let mut signals = Signals::new([SIGTERM])?;
    thread::Builder::new().name("early signals".into()).spawn(move || {
        let Some(signal) = signals.forever().next() else {
            return;
        };
        // A launcher that has ranks must not leave them.
        if !ARE_EVENTS.load(Ordering::SeqCst) {
            signal_hook::low_level::exit(exit_code::of_signal(signal).into());
        }
    })?;
    Ok(())
}

/// From now on signals are events.
pub(crate) fn subscribe(events: mpsc::Sender<Event>) -> io::Result<()> {
    let ignored = ignored();
    let stops = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP];
    // nohup, and a shell for its background jobs, ignore some on purpose.
    let wanted = stops.into_iter().filter(|signal| !is_in(ignored, *signal));
    // SIGCHLD always: where it is ignored, the kernel keeps no exit codes.
    let always = [SIGCONT, SIGUSR1, SIGUSR2, SIGCHLD];
    let mut signals = Signals::new(wanted.chain(always))?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in &mut signals {
            if events.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    })?;
    ARE_EVENTS.store(true, Ordering::SeqCst);
    Ok(())
}

/// The set of signals that were ignored at the start.
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignored_in(&status)
}

fn ignored_in(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

fn is_in(set: u64, signal: i32) -> bool {
    set & (1 << (signal - 1)) != 0
}

/// Whether somebody else decides what a signal means.
static ARE_EVENTS: AtomicBool = AtomicBool::new(false);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nohup_is_respected() {
        let set = ignored_in("Name:\tx\nSigBlk:\t0000000000000003\nSigIgn:\t0000000000001001\n");
        assert!(is_in(set, SIGHUP));
        assert!(!is_in(set, SIGINT));
        assert_eq!(ignored_in(""), 0);
    }
}
