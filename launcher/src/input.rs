//! Standard input, which goes to rank 0 only.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Stdio;
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::termios::{isatty, tcgetpgrp};

use crate::output::write_all;

/// How rank 0 gets it.
///
/// A file or pipe is handed on as it is, so that nothing is read that rank 0 does not want. A
/// terminal is relayed: rank 0 is in a process group of its own, and the kernel stops a
/// background process that reads the terminal.
pub(crate) fn of_rank_0() -> Stdio {
    if isatty(io::stdin()) { Stdio::piped() } else { Stdio::inherit() }
}

/// Whether there is a file or pipe with something that nobody has read yet.
pub(crate) fn has_unread() -> bool {
    let stdin = io::stdin();
    let is_file_or_pipe = rustix::fs::fstat(&stdin).is_ok_and(|status| {
        matches!(FileType::from_raw_mode(status.st_mode), FileType::RegularFile | FileType::Fifo)
    });
    is_file_or_pipe && rustix::io::ioctl_fionread(&stdin).is_ok_and(|unread| unread > 0)
}

/// Starts to relay the terminal to rank 0.
pub(crate) fn relay(to: OwnedFd) -> io::Result<()> {
    let relay = move || while relay_once(io::stdin().as_fd(), &to).is_ok() {};
    thread::Builder::new().name("stdin".into()).spawn(relay)?;
    Ok(())
}

fn relay_once(terminal: BorrowedFd<'_>, to: &OwnedFd) -> Result<(), Errno> {
    // An error on the pipe is always reported: rank 0 has closed its end.
    let mut waits =
        [PollFd::new(to, PollFlags::empty()), PollFd::from_borrowed_fd(terminal, PollFlags::IN)];
    if !is_foreground(terminal) {
        // Reading now would stop the launcher. No event tells when it comes to the foreground.
        poll_again(&mut waits[..1], Some(&BACKGROUND_TICK))?;
        return if waits[0].revents().is_empty() { Ok(()) } else { Err(Errno::PIPE) };
    }
    poll_again(&mut waits, None)?;
    if !waits[0].revents().is_empty() {
        return Err(Errno::PIPE);
    }
    if !is_foreground(terminal) {
        return Ok(());
    }
    let mut buffer = [0; 4096];
    match rustix::io::read(terminal, &mut buffer) {
        Ok(0) => Err(Errno::PIPE),
        Ok(size) => write_all(to.as_fd(), &buffer[..size]),
        Err(Errno::INTR | Errno::AGAIN) => Ok(()),
        Err(error) => Err(error),
    }
}

fn poll_again(waits: &mut [PollFd<'_>], timeout: Option<&Timespec>) -> Result<(), Errno> {
    match poll(waits, timeout) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error),
    }
}

fn is_foreground(terminal: BorrowedFd<'_>) -> bool {
    tcgetpgrp(terminal).map_or(true, |group| group == rustix::process::getpgrp())
}

const BACKGROUND_TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };
