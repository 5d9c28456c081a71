//! Prints what the ranks write, whole lines at a time; one thread for stdout and one for stderr.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::hosts::words;
use crate::lines::Lines;
use crate::logs::Log;
use crate::mailbox::{Receiver, Sender, mailbox};

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

    /// The same where both are words to the launcher that leads, on standard output.
    pub(crate) fn start_led(
        done: impl Fn(Option<Errno>) + Clone + Send + 'static,
    ) -> io::Result<Self> {
        let stdout = io::stdout().as_fd().try_clone_to_owned()?;
        Self::start_on(stdout.try_clone()?, stdout, done)
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
            stdout: start_printer("stdout", stdout, turn, done.clone())?,
            stderr: start_printer("stderr", stderr, other_turn, done)?,
        })
    }

    /// From now on prints what comes out of the source's pipe.
    pub(crate) fn add(&self, stream: Stream, source: Source) {
        self.of(stream).send(Order::Add(source));
    }

    /// Prints what still lies in the rank's pipes and lets go of them, even if a process that
    /// left the rank's process group holds their other ends.
    pub(crate) fn drain(&self, rank: usize) {
        self.stdout.send(Order::Drain(rank));
        self.stderr.send(Order::Drain(rank));
    }

    /// Tells the launcher that leads, behind what the ranks have printed so far on that stream.
    pub(crate) fn tell(&self, line: String) {
        self.stdout.send(Order::Say(line));
    }

    /// Nobody reads this stream any more: ranks that write there see a broken pipe.
    pub(crate) fn close(&self, stream: Stream) {
        self.of(stream).send(Order::Close);
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

enum Order {
    Add(Source),
    Drain(usize),
    Say(String),
    Close,
}

/// One stream of one rank, and where it goes.
pub(crate) struct Source {
    pub(crate) rank: usize,
    pub(crate) pipe: OwnedFd,
    /// None where it is not shown.
    pub(crate) shown: Option<Shape>,
    pub(crate) log: Option<Logged>,
}

/// How a stream is shown.
pub(crate) enum Shape {
    /// To people.
    Lines(Lines),
    /// To the launcher that leads: as it comes, and whose it is.
    Words { rank: usize, stream: Stream },
}

impl Shape {
    fn push(&mut self, bytes: &[u8], shown: &mut Vec<u8>) {
        match self {
            Self::Lines(lines) => lines.push(bytes, shown),
            Self::Words { rank, stream } => words::print(*rank, *stream, bytes, shown),
        }
    }

    fn finish(&mut self, shown: &mut Vec<u8>) {
        match self {
            Self::Lines(lines) => lines.finish(shown),
            Self::Words { .. } => {}
        }
    }
}

/// The lines of a log are the rank's own, without its number.
pub(crate) struct Logged {
    pub(crate) lines: Lines,
    pub(crate) log: Arc<Log>,
}

impl Source {
    /// Appends to `shown` the lines that `bytes` complete, and logs them.
    fn push(&mut self, bytes: &[u8], shown: &mut Vec<u8>) {
        if let Some(shape) = &mut self.shown {
            shape.push(bytes, shown);
        }
        if let Some(logged) = &mut self.log {
            let mut text = Vec::new();
            logged.lines.push(bytes, &mut text);
            logged.log.write(&text);
        }
    }

    /// The same for a last line without an end.
    fn finish(&mut self, shown: &mut Vec<u8>) {
        if let Some(shape) = &mut self.shown {
            shape.finish(shown);
        }
        if let Some(logged) = &mut self.log {
            let mut text = Vec::new();
            logged.lines.finish(&mut text);
            logged.log.write(&text);
        }
    }
}

fn start_printer(
    name: &str,
    destination: OwnedFd,
    turn: Arc<Mutex<()>>,
    done: impl FnOnce(Option<Errno>) + Send + 'static,
) -> io::Result<Sender<Order>> {
    let (sender, orders) = mailbox()?;
    let mut printer = Printer {
        sources: Vec::new(),
        destination: Some(destination),
        problem: None,
        turn,
        text: Vec::new(),
        buffer: vec![0; READ_SIZE],
    };
    thread::Builder::new().name(name.into()).spawn(move || {
        printer.run(&orders);
        done(printer.problem);
    })?;
    Ok(sender)
}

struct Printer {
    sources: Vec<Source>,
    /// None once its reader is gone.
    destination: Option<OwnedFd>,
    /// Why nothing more can be printed, where its reader is still there.
    problem: Option<Errno>,
    turn: Arc<Mutex<()>>,
    text: Vec<u8>,
    buffer: Vec<u8>,
}

impl Printer {
    fn run(&mut self, orders: &Receiver<Order>) {
        loop {
            let (has_orders, readable) = match self.wait(orders.bell()) {
                Ok(ready) => ready,
                Err(Errno::INTR) => continue,
                // Only lack of memory can end here; the ranks must not block on full pipes.
                Err(_) => return,
            };
            let had_reader = self.destination.is_some();
            // Backwards, because a source that ends is taken out.
            for index in readable.into_iter().rev() {
                self.read(index);
                if had_reader && self.destination.is_none() {
                    // Others were taken out too, and the numbers no longer fit.
                    break;
                }
            }
            if !has_orders {
                continue;
            }
            let (letters, closed) = orders.take();
            for order in letters {
                match order {
                    // Without a reader of ours the rank must see a broken pipe, as if it wrote
                    // there itself.
                    Order::Add(source) if source.shown.is_some() && self.destination.is_none() => {}
                    Order::Add(source) => self.sources.push(source),
                    Order::Drain(rank) => self.drain(|source| source.rank == rank),
                    Order::Close => self.sources.clear(),
                    Order::Say(line) => {
                        self.text.extend_from_slice(line.as_bytes());
                        self.print();
                    }
                }
            }
            if closed {
                return self.drain(|_| true);
            }
        }
    }

    /// Whether there are orders, and the sources that can be read.
    fn wait(&self, bell: BorrowedFd<'_>) -> Result<(bool, Vec<usize>), Errno> {
        let mut waits = vec![PollFd::from_borrowed_fd(bell, PollFlags::IN)];
        let pipes = self.sources.iter();
        waits.extend(pipes.map(|source| PollFd::new(&source.pipe, PollFlags::IN)));
        poll(&mut waits, None)?;
        let mut ready = waits.iter().map(|wait| !wait.revents().is_empty());
        let has_orders = ready.next().unwrap_or(false);
        let readable = ready.enumerate().filter_map(|(index, is_ready)| is_ready.then_some(index));
        Ok((has_orders, readable.collect()))
    }

    fn read(&mut self, index: usize) {
        let Some(source) = self.sources.get_mut(index) else {
            return;
        };
        match rustix::io::read(&source.pipe, &mut self.buffer) {
            Err(Errno::INTR | Errno::AGAIN) => return,
            Ok(0) | Err(_) => {
                source.finish(&mut self.text);
                self.sources.remove(index);
            }
            Ok(size) => source.push(&self.buffer[..size], &mut self.text),
        }
        self.print();
    }

    fn drain(&mut self, is_meant: impl Fn(&Source) -> bool) {
        let (drained, kept) = self.sources.drain(..).partition(|source| is_meant(source));
        self.sources = kept;
        let drained: Vec<Source> = drained;
        for mut source in drained {
            // What lies there now is all that is owed: who still writes is no longer the rank.
            let mut owed = rustix::io::ioctl_fionread(&source.pipe).unwrap_or(0);
            while owed > 0 {
                match rustix::io::read(&source.pipe, &mut self.buffer) {
                    Err(Errno::INTR) => {}
                    Ok(0) | Err(_) => break,
                    Ok(size) => {
                        owed = owed.saturating_sub(size as u64);
                        source.push(&self.buffer[..size], &mut self.text);
                    }
                }
            }
            source.finish(&mut self.text);
            self.print();
        }
    }

    fn print(&mut self) {
        if let Some(destination) = &self.destination {
            let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = write_all(destination.as_fd(), &self.text) {
                self.problem = (error != Errno::PIPE).then_some(error);
                self.destination = None;
                self.sources.retain(|source| source.shown.is_none());
            }
        }
        self.text.clear();
        self.text.shrink_to(KEPT_TEXT);
    }
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

/// A pipe holds 64 KiB by default, so one read empties it.
const READ_SIZE: usize = 64 << 10;
/// After a very long line the memory goes back.
const KEPT_TEXT: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Read, Write, pipe};

    use super::*;

    fn printer(to: OwnedFd) -> Sender<Order> {
        start_printer("test", to, Arc::default(), |_| ()).unwrap()
    }

    fn source(pipe: PipeReader, lines: Lines) -> Source {
        Source { rank: 1, pipe: pipe.into(), shown: Some(Shape::Lines(lines)), log: None }
    }

    #[test]
    fn a_pipe_that_stays_open_is_drained_and_let_go() {
        let (mut shown, to) = pipe().unwrap();
        let (from, mut rank) = pipe().unwrap();
        let orders = printer(to.into());
        rank.write_all(b"whole\npartial").unwrap();
        orders.send(Order::Add(source(from, Lines::of_rank(1, 2))));
        orders.send(Order::Drain(1));
        drop(orders);
        let mut text = String::new();
        shown.read_to_string(&mut text).unwrap();
        assert_eq!(text, "[1] whole\n[1] partial\n");
        assert!(rank.write_all(b"late").is_err());
    }

    #[test]
    fn ranks_see_a_broken_pipe_when_nobody_reads() {
        let (shown, to) = pipe().unwrap();
        drop(shown);
        let (from, mut rank) = pipe().unwrap();
        let orders = printer(to.into());
        orders.send(Order::Add(source(from, Lines::plain())));
        // Ends because the printer closes the pipe at its first failed write.
        while rank.write_all(&[b'\n'; 4096]).is_ok() {}
    }
}
