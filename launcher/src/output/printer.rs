//! The thread that prints one of the launcher's streams, and reads the ranks' pipes for it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::source::{Origin, Printed, Reader, Source};
use super::{Stream, write_all};
use crate::mailbox::{Receiver, Sender, mailbox};

/// Starts a printer; `room` is what the launcher that leads takes at first, where one leads.
pub(super) fn start(
    name: &str,
    destination: OwnedFd,
    turn: Arc<Mutex<()>>,
    room: Option<i64>,
    done: impl FnOnce(Option<Errno>) + Send + 'static,
) -> io::Result<Sender<Order>> {
    let (sender, orders) = mailbox()?;
    let stream = if name == "stderr" { Stream::Err } else { Stream::Out };
    let mut printer = Printer {
        stream,
        sources: Vec::new(),
        room,
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

/// What a printer does beside reading.
pub(super) enum Order {
    Add(Source),
    Drain(usize),
    Say(String),
    Print { rank: usize, bytes: Vec<u8>, host: Arc<dyn Printed> },
    Heed(Reader),
}

struct Printer {
    stream: Stream,
    sources: Vec<Source>,
    /// How many bytes the launcher that leads takes until it has printed some, where one leads.
    /// Less than none after a rank's end, with which all that it has printed is sent.
    room: Option<i64>,
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
                    Order::Add(source) if source.shown.is_some() && self.destination.is_none() => {
                        self.leave(&source);
                    }
                    Order::Add(source) => self.sources.push(source),
                    Order::Drain(rank) => self.drain(|source| source.rank == rank),
                    Order::Print { rank, bytes, host } => {
                        if let Some(source) = self.sources.iter_mut().find(|own| own.rank == rank) {
                            source.push(&bytes, &mut self.text);
                            self.print();
                        }
                        host.tell(self.stream, Reader::Took(bytes.len()));
                    }
                    Order::Heed(Reader::Took(bytes)) => {
                        self.room = self.room.map(|room| room.saturating_add(size(bytes)));
                    }
                    Order::Heed(Reader::Left { rank }) => {
                        self.sources.retain(|source| source.rank != rank);
                    }
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
        let mut indices = Vec::new();
        for (index, source) in self.sources.iter().enumerate().filter(|_| self.has_room()) {
            if let Origin::Pipe(pipe) = &source.origin {
                indices.push(index);
                waits.push(PollFd::new(pipe, PollFlags::IN));
            }
        }
        poll(&mut waits, None)?;
        let mut ready = waits.iter().map(|wait| !wait.revents().is_empty());
        let has_orders = ready.next().unwrap_or(false);
        let readable = indices.into_iter().zip(ready).filter_map(|(index, is)| is.then_some(index));
        Ok((has_orders, readable.collect()))
    }

    fn has_room(&self) -> bool {
        self.room.is_none_or(|room| room > 0)
    }

    fn take_room(&mut self, bytes: usize) {
        self.room = self.room.map(|room| room.saturating_sub(size(bytes)));
    }

    fn read(&mut self, index: usize) {
        if !self.has_room() {
            return;
        }
        let Some(source) = self.sources.get_mut(index) else {
            return;
        };
        let Origin::Pipe(pipe) = &source.origin else { return };
        match rustix::io::read(pipe, &mut self.buffer) {
            Err(Errno::INTR | Errno::AGAIN) => return,
            Ok(0) | Err(_) => {
                source.finish(&mut self.text);
                self.sources.remove(index);
            }
            Ok(size) => {
                source.push(&self.buffer[..size], &mut self.text);
                self.take_room(size);
            }
        }
        self.print();
    }

    fn drain(&mut self, is_meant: impl Fn(&Source) -> bool) {
        let (drained, kept) = self.sources.drain(..).partition(|source| is_meant(source));
        self.sources = kept;
        let drained: Vec<Source> = drained;
        for mut source in drained {
            let mut left = None;
            // What lies there now is all that is owed: who still writes is no longer the rank.
            while let Origin::Pipe(pipe) = &source.origin {
                let owed =
                    *left.get_or_insert_with(|| rustix::io::ioctl_fionread(pipe).unwrap_or(0));
                if owed == 0 {
                    break;
                }
                match rustix::io::read(pipe, &mut self.buffer) {
                    Err(Errno::INTR) => {}
                    Ok(0) | Err(_) => break,
                    Ok(size) => {
                        left = Some(owed.saturating_sub(size as u64));
                        source.push(&self.buffer[..size], &mut self.text);
                        self.take_room(size);
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
                let all = std::mem::take(&mut self.sources).into_iter();
                let (kept, left): (Vec<_>, Vec<_>) = all.partition(|source| source.shown.is_none());
                self.sources = kept;
                left.iter().for_each(|source| self.leave(source));
            }
        }
        self.text.clear();
        self.text.shrink_to(KEPT_TEXT);
    }

    /// A pipe that is closed says it by itself.
    fn leave(&self, source: &Source) {
        if let Origin::Host(host) = &source.origin {
            host.tell(self.stream, Reader::Left { rank: source.rank });
        }
    }
}

fn size(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// A pipe holds 64 KiB by default, so one read empties it.
const READ_SIZE: usize = 64 << 10;
/// After a very long line the memory goes back.
const KEPT_TEXT: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Read, Write, pipe};

    use super::super::source::Shape;
    use super::*;
    use crate::hosts::words;
    use crate::lines::Lines;

    fn printer(to: OwnedFd) -> Sender<Order> {
        start("test", to, Arc::default(), None, |_| ()).unwrap()
    }

    fn source(pipe: PipeReader, lines: Lines) -> Source {
        let origin = Origin::Pipe(pipe.into());
        Source { rank: 1, origin, shown: Some(Shape::Lines(lines)), log: None }
    }

    /// A host that passes on what it is told.
    struct Host(std::sync::mpsc::Sender<(Stream, Reader)>);

    impl Printed for Host {
        fn tell(&self, stream: Stream, reader: Reader) {
            self.0.send((stream, reader)).unwrap();
        }
    }

    #[test]
    fn words_do_not_wait_for_room() {
        let (mut shown, to) = pipe().unwrap();
        let orders = start("test", to.into(), Arc::default(), Some(0), |_| ()).unwrap();
        let (from, mut rank) = pipe().unwrap();
        rank.write_all(b"printed").unwrap();
        let origin = Origin::Pipe(from.into());
        let shape = Shape::Words { rank: 1, stream: Stream::Out };
        orders.send(Order::Add(Source { rank: 1, origin, shown: Some(shape), log: None }));
        let mut read = |wanted: &[u8]| {
            let mut bytes = vec![0; wanted.len()];
            shown.read_exact(&mut bytes).unwrap();
            assert_eq!(bytes.escape_ascii().to_string(), wanted.escape_ascii().to_string());
        };
        for word in ["one\n", "two\n"] {
            orders.send(Order::Say(word.into()));
            read(word.as_bytes());
        }
        let printed = |text: &[u8]| {
            let mut bytes = Vec::new();
            words::print(1, Stream::Out, text, &mut bytes);
            bytes
        };
        orders.send(Order::Heed(Reader::Took(1)));
        read(&printed(b"printed"));
        // The debt is paid back first; what an end leaves is sent all the same.
        rank.write_all(b"last").unwrap();
        orders.send(Order::Heed(Reader::Took(6)));
        orders.send(Order::Say("three\n".into()));
        read(b"three\n");
        orders.send(Order::Drain(1));
        read(&printed(b"last"));
    }

    #[test]
    fn a_host_learns_what_became_of_its_ranks_output() {
        let (mut shown, to) = pipe().unwrap();
        let orders = printer(to.into());
        let (sender, told) = std::sync::mpsc::channel();
        let host: Arc<dyn Printed> = Arc::new(Host(sender));
        let origin = Origin::Host(host.clone());
        let lines = Some(Shape::Lines(Lines::of_rank(1, 2)));
        orders.send(Order::Add(Source { rank: 1, origin, shown: lines, log: None }));
        let print = |bytes: &[u8]| {
            orders.send(Order::Print { rank: 1, bytes: bytes.into(), host: host.clone() });
        };
        print(b"a\nb");
        assert_eq!(told.recv().unwrap(), (Stream::Out, Reader::Took(3)));
        let mut line = [0; 6];
        shown.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"[1] a\n");
        drop(shown);
        print(b"c\n");
        assert_eq!(told.recv().unwrap(), (Stream::Out, Reader::Left { rank: 1 }));
        assert_eq!(told.recv().unwrap(), (Stream::Out, Reader::Took(2)));
        // Room is given back for what comes before the host has heard of it.
        print(b"d\n");
        assert_eq!(told.recv().unwrap(), (Stream::Out, Reader::Took(2)));
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
