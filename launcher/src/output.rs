//! Prints what the ranks write, whole lines at a time; one thread for stdout and one for stderr.

mod printer;
mod source;

pub(crate) use source::{Logged, Origin, Printed, Reader, Shape, Source};

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::mailbox::Sender;
use printer::Order;

/// The launcher's two streams.
pub(crate) struct Output {
    stdout: Sender<Order>,
    stderr: Sender<Order>,
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

impl Output {
    /// Starts both threads; each calls `done` when it has printed everything, with what kept it
    /// from that other than a reader that left.
    pub(crate) fn start(done: impl Fn(Option<Errno>) + Clone + Send + 'static) -> io::Result<Self> {
        let stdout = io::stdout().as_fd().try_clone_to_owned()?;
        let stderr = io::stderr().as_fd().try_clone_to_owned()?;
        Self::start_on(stdout, stderr, done)
    }

    /// The same where both are words to the launcher that leads, on standard output: no more of what
    /// ranks print than it has room for, so that its own words never wait behind that.
    pub(crate) fn start_led(
        done: impl Fn(Option<Errno>) + Clone + Send + 'static,
    ) -> io::Result<Self> {
        let stdout = io::stdout().as_fd().try_clone_to_owned()?;
        let start = |name, to, done| printer::start(name, to, LED_TURN.clone(), Some(WINDOW), done);
        let other = stdout.try_clone()?;
        Ok(Self {
            stdout: start("stdout", stdout, done.clone())?,
            stderr: start("stderr", other, done)?,
        })
    }

    fn start_on(
        stdout: OwnedFd,
        stderr: OwnedFd,
        done: impl Fn(Option<Errno>) + Clone + Send + 'static,
    ) -> io::Result<Self> {
        // Where both are one terminal or one pipe, two long writes at once would tear lines;
        // where they differ, a reader that stalls one must not stall the other.
        let turn = Arc::new(Mutex::new(()));
        let other_turn = if is_same_file(&stdout, &stderr) { turn.clone() } else { Arc::default() };
        Ok(Self {
            stdout: printer::start("stdout", stdout, turn, None, done.clone())?,
            stderr: printer::start("stderr", stderr, other_turn, None, done)?,
        })
    }

    /// From now on prints what comes from that source.
    pub(crate) fn add(&self, stream: Stream, source: Source) {
        self.of(stream).send(Order::Add(source));
    }

    /// Prints what still lies in the rank's pipes and lets go of them, even if a process that
    /// left the rank's process group holds their other ends.
    pub(crate) fn drain(&self, rank: usize) {
        self.stdout.send(Order::Drain(rank));
        self.stderr.send(Order::Drain(rank));
    }

    /// Tells the launcher that leads; not behind what the ranks have printed.
    pub(crate) fn tell(&self, line: String) {
        self.stdout.send(Order::Say(line));
    }

    /// Prints what has come from a rank of another host.
    pub(crate) fn print(
        &self,
        stream: Stream,
        rank: usize,
        bytes: Vec<u8>,
        host: Arc<dyn Printed>,
    ) {
        self.of(stream).send(Order::Print { rank, bytes, host });
    }

    /// What the launcher that leads says of what it was sent.
    pub(crate) fn heed(&self, stream: Stream, reader: Reader) {
        self.of(stream).send(Order::Heed(reader));
    }

    /// Prints a line of the launcher's own on stderr, between those of the ranks.
    pub(crate) fn say(&self, line: String) {
        self.stderr.send(Order::Say(line));
    }

    fn of(&self, stream: Stream) -> &Sender<Order> {
        match stream {
            Stream::Out => &self.stdout,
            Stream::Err => &self.stderr,
        }
    }
}

/// Writes a word to the launcher that leads, whole.
pub(crate) fn say_led(line: &str) -> io::Result<()> {
    let _turn = LED_TURN.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(write_all(io::stdout().as_fd(), line.as_bytes())?)
}

/// Writes everything, also to a terminal that another program made non-blocking.
pub(crate) fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(size) => bytes = bytes.get(size..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let mut waits = [PollFd::from_borrowed_fd(to, PollFlags::OUT)];
                match poll(&mut waits, None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn is_same_file(one: &OwnedFd, other: &OwnedFd) -> bool {
    match (rustix::fs::fstat(one), rustix::fs::fstat(other)) {
        (Ok(one), Ok(other)) => one.st_dev == other.st_dev && one.st_ino == other.st_ino,
        _ => true,
    }
}

/// Words to the launcher that leads come from several threads.
static LED_TURN: LazyLock<Arc<Mutex<()>>> = LazyLock::new(Arc::default);
/// What the launcher that leads may have to keep of each stream of a host: four reads.
const WINDOW: i64 = 256 << 10;
