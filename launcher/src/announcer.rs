//! The launcher's socket: tells the ranks who ended, and hands out the rendezvous socket.
//!
//! Text, one line each. From a rank: `rank R pid P`, `rendezvous`. To it: `socket` with the UDP
//! socket attached, `lost R pid P exit CODE`, `lost R pid P signal N`,
//! `lost R pid P memory 9`. It lies in a directory of
//! mode 0700, so whoever connects is the same user.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::ending::Ending;
use crate::mailbox::{Receiver, Sender, mailbox};

/// The socket and the thread that serves it; dropping it ends both.
pub(crate) struct Announcer(Sender<Ending>);

impl Announcer {
    /// Listens at `path` and keeps `rendezvous` bound until the end; None where rank 0 is on another
    /// host.
    pub(crate) fn start(
        path: &Path,
        rendezvous: Option<UdpSocket>,
        ranks: usize,
    ) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        let (sender, endings) = mailbox()?;
        let mut server = Server {
            listener,
            rendezvous,
            ranks,
            lost: Vec::new(),
            connections: Vec::new(),
            is_full: false,
        };
        thread::Builder::new()
            .name("announcer".into())
            .spawn(move || while server.serve(&endings) {})?;
        Ok(Self(sender))
    }

    /// Tells every other rank, those that connect later included.
    pub(crate) fn announce(&self, ending: Ending) {
        self.0.send(ending);
    }
}

struct Server {
    listener: UnixListener,
    rendezvous: Option<UdpSocket>,
    ranks: usize,
    lost: Vec<Ending>,
    connections: Vec<Connection>,
    /// No descriptor was left for the last one who knocked.
    is_full: bool,
}

impl Server {
    /// One round; false at the end.
    fn serve(&mut self, endings: &Receiver<Ending>) -> bool {
        let mut waits = vec![PollFd::from_borrowed_fd(endings.bell(), PollFlags::IN)];
        let knocks = if self.is_full { PollFlags::empty() } else { PollFlags::IN };
        waits.push(PollFd::new(&self.listener, knocks));
        waits.extend(self.connections.iter().map(Connection::wait));
        let timeout = self.is_full.then_some(&FULL_PAUSE);
        match poll(&mut waits, timeout) {
            Err(Errno::INTR) => return true,
            Err(_) => return false,
            Ok(_) => {}
        }
        let ready: Vec<bool> = waits.iter().map(|wait| !wait.revents().is_empty()).collect();
        drop(waits);
        self.is_full = false;

        let (lost, closed) = endings.take();
        for ending in lost {
            self.lost.push(ending);
            for connection in &mut self.connections {
                connection.tell(&ending);
            }
        }
        let mut is_ready = ready.iter().skip(FIXED_WAITS).copied();
        let (ranks, past) = (self.ranks, &self.lost);
        self.connections.retain_mut(|connection| {
            (!is_ready.next().unwrap_or(false) || connection.read(ranks, past).is_ok())
                && connection.flush(self.rendezvous.as_ref()).is_ok()
        });
        if ready.get(1) == Some(&true) {
            self.accept();
        }
        !closed
    }

    fn accept(&mut self) {
        match self.listener.accept() {
            Ok((stream, _)) => {
                if self.connections.len() < MAX_CONNECTIONS && stream.set_nonblocking(true).is_ok()
                {
                    self.connections.push(Connection::new(stream));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.is_full = true,
        }
    }
}

struct Connection {
    stream: UnixStream,
    /// Who it is, once it has said so.
    rank: Option<usize>,
    input: Vec<u8>,
    outbox: VecDeque<Message>,
}

struct Message {
    bytes: Vec<u8>,
    carries_socket: bool,
}

impl Connection {
    fn new(stream: UnixStream) -> Self {
        Self { stream, rank: None, input: Vec::new(), outbox: VecDeque::new() }
    }

    fn wait(&self) -> PollFd<'_> {
        let mut events = PollFlags::IN;
        // A reader that is slow is written to when it has room, and never waited for.
        events.set(PollFlags::OUT, !self.outbox.is_empty());
        PollFd::new(&self.stream, events)
    }

    /// Takes what is there; an error ends the connection.
    fn read(&mut self, ranks: usize, lost: &[Ending]) -> Result<(), Errno> {
        let mut buffer = [0; MAX_LINE];
        match rustix::io::read(&self.stream, &mut buffer) {
            Ok(0) => return Err(Errno::PIPE),
            Ok(size) => self.input.extend_from_slice(&buffer[..size]),
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Err(error) => return Err(error),
        }
        while let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            self.obey(line.trim_ascii_end(), ranks, lost)?;
        }
        if self.input.len() > MAX_LINE { Err(Errno::MSGSIZE) } else { Ok(()) }
    }

    fn obey(&mut self, line: &[u8], ranks: usize, lost: &[Ending]) -> Result<(), Errno> {
        if line == b"rendezvous" {
            return self.post(b"socket\n".to_vec(), true);
        }
        let rank = greeting(line).filter(|rank| *rank < ranks).ok_or(Errno::BADMSG)?;
        if self.rank.replace(rank).is_none() {
            for ending in lost {
                self.tell(ending);
            }
        }
        Ok(())
    }

    fn tell(&mut self, ending: &Ending) {
        if self.rank.is_some_and(|rank| rank != ending.rank) {
            let message = Message { bytes: ending.to_line().into_bytes(), carries_socket: false };
            self.outbox.push_back(message);
        }
    }

    fn post(&mut self, bytes: Vec<u8>, carries_socket: bool) -> Result<(), Errno> {
        if self.outbox.iter().filter(|message| message.carries_socket).count() >= MAX_UNREAD {
            return Err(Errno::NOBUFS);
        }
        self.outbox.push_back(Message { bytes, carries_socket });
        Ok(())
    }

    /// Sends what the reader has room for.
    fn flush(&mut self, rendezvous: Option<&UdpSocket>) -> Result<(), Errno> {
        while let Some(message) = self.outbox.front_mut() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut attached = SendAncillaryBuffer::new(&mut space);
            let sockets: Vec<_> = rendezvous.iter().map(|socket| socket.as_fd()).collect();
            if message.carries_socket {
                // Only rank 0 asks, and it is elsewhere.
                if sockets.is_empty() {
                    return Err(Errno::BADMSG);
                }
                if !attached.push(SendAncillaryMessage::ScmRights(&sockets)) {
                    return Err(Errno::NOBUFS);
                }
            }
            let text = [IoSlice::new(&message.bytes)];
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match sendmsg(&self.stream, &text, &mut attached, flags) {
                Ok(size) if size < message.bytes.len() => {
                    message.bytes.drain(..size);
                    message.carries_socket = false;
                }
                Ok(_) => {
                    self.outbox.pop_front();
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The rank in `rank R pid P`.
fn greeting(line: &[u8]) -> Option<usize> {
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    let (rank, pid) = match (words.next(), words.next(), words.next(), words.next()) {
        (Some("rank"), Some(rank), Some("pid"), Some(pid)) => (rank, pid),
        _ => return None,
    };
    pid.parse::<u32>().ok()?;
    if words.next().is_some() { None } else { rank.parse().ok() }
}

/// The bell and the listener stand before the connections.
const FIXED_WAITS: usize = 2;
/// No line from a rank is near this long.
const MAX_LINE: usize = 256;
/// Far more than the ranks of one host, so that a runaway program does not eat all descriptors.
const MAX_CONNECTIONS: usize = 4096;
/// Answers that a rank may leave unread.
const MAX_UNREAD: usize = 16;
/// How long the listener is left alone when no descriptor is left.
const FULL_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_greeting_is_one() {
        assert_eq!(greeting(b"rank 3 pid 71"), Some(3));
        for bad in ["rank 3", "rank -1 pid 7", "rank 3 pid x", "rank 3 pid 7 8", "RANK 3 pid 7", ""]
        {
            assert_eq!(greeting(bad.as_bytes()), None, "{bad}");
        }
    }
}
