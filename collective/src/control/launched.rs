//! The line to `allfold run`: the rendezvous socket for rank 0, and news of ranks that ended.
//!
//! A text protocol over the unix socket in the launcher's private folder. The rank says
//! `rank R pid P`; `rendezvous` asks for the socket that the launcher has kept bound since it chose
//! the port; `lost R pid P exit N`, `lost R pid P signal N` and
//! `lost R pid P memory 9` tell how another rank ended.

use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde::{Deserialize, Serialize};

/// The end of another rank's process, as the launcher saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Obituary {
    pub(crate) rank: u32,
    pub(crate) pid: u32,
    pub(crate) ending: Ending,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ending {
    Exit(i32),
    Signal(i32),
    /// Killed by the kernel, for want of memory.
    OutOfMemory,
}

/// The open line.
pub(crate) struct Launched {
    stream: UnixStream,
    /// Read beyond the answer that was waited for.
    unread: Vec<u8>,
}

impl Launched {
    pub(crate) fn connect(path: &Path, rank: u32) -> io::Result<Self> {
        let mut stream = UnixStream::connect(path)?;
        writeln!(stream, "rank {rank} pid {}", std::process::id())?;
        Ok(Self { stream, unread: Vec::new() })
    }

    /// The UDP socket of the rendezvous port.
    pub(crate) fn rendezvous_socket(&mut self) -> io::Result<UdpSocket> {
        self.stream.write_all(b"rendezvous\n")?;
        self.stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        let mut socket: Option<OwnedFd> = None;
        while socket.is_none() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut bytes = [0; 256];
            let mut slices = [IoSliceMut::new(&mut bytes)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let received = match recvmsg(&self.stream, &mut slices, &mut control, flags) {
                // A signal to the program, as of a profiler.
                Err(Errno::INTR) => continue,
                received => received?,
            };
            if received.bytes == 0 {
                return Err(io::Error::other("the launcher closed the line"));
            }
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    socket = descriptors.last();
                }
            }
            self.unread.extend_from_slice(&bytes[..received.bytes]);
        }
        self.stream.set_read_timeout(None)?;
        socket.map(UdpSocket::from).ok_or_else(|| io::Error::other("no socket came"))
    }

    /// A handle that ends [`watch`](Self::watch) when it is shut down.
    pub(crate) fn handle(&self) -> io::Result<UnixStream> {
        self.stream.try_clone()
    }

    /// Hands every obituary to `each`, until the line ends.
    pub(crate) fn watch(self, each: impl Fn(Obituary)) {
        hear(self.stream, self.unread, each);
    }
}

/// Reads the line to its end, behind what was read before.
fn hear(mut line: impl Read, mut unread: Vec<u8>, each: impl Fn(Obituary)) {
    let mut bytes = [0; 1024];
    loop {
        while let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
            let words: Vec<u8> = unread.drain(..=end).collect();
            if let Some(obituary) = parse(&String::from_utf8_lossy(&words)) {
                each(obituary);
            }
        }
        match line.read(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return,
            Ok(count) => unread.extend_from_slice(&bytes[..count]),
        }
    }
}

impl Ending {
    /// `was killed by signal 9 (SIGKILL)`, as errors say it.
    pub(crate) fn describe(self) -> String {
        match self {
            Ending::Exit(0) => "exited without closing its communicator".into(),
            Ending::Exit(code) => format!("exited with code {code}"),
            Ending::Signal(signal) => match signal_name(signal) {
                Some(name) => format!("was killed by signal {signal} ({name})"),
                None => format!("was killed by signal {signal}"),
            },
            Ending::OutOfMemory => {
                "was killed by the kernel: out of memory (signal 9, exit code 137)".into()
            }
        }
    }
}

fn parse(line: &str) -> Option<Obituary> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let ["lost", rank, "pid", pid, how, number] = words[..] else { return None };
    let number = number.parse().ok()?;
    let ending = match how {
        "exit" => Ending::Exit(number),
        "signal" => Ending::Signal(number),
        "memory" => Ending::OutOfMemory,
        _ => return None,
    };
    Some(Obituary { rank: rank.parse().ok()?, pid: pid.parse().ok()?, ending })
}

fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        _ => return None,
    })
}

/// The launcher answers at once; it must not hold up a start if it does not.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn obituaries_are_read() {
        let obituary = |rank, ending| Some(Obituary { rank, pid: 41, ending });
        assert_eq!(parse("lost 2 pid 41 exit 7\n"), obituary(2, Ending::Exit(7)));
        assert_eq!(parse("lost 11 pid 41 signal 9\n"), obituary(11, Ending::Signal(9)));
        assert_eq!(parse("lost 3 pid 41 memory 9\n"), obituary(3, Ending::OutOfMemory));
        for line in ["", "lost", "lost x pid 1 exit 0", "socket", "lost 1 pid 2 fell 3"] {
            assert_eq!(parse(line), None, "{line}");
        }
        assert_eq!(Ending::Signal(9).describe(), "was killed by signal 9 (SIGKILL)");
    }

    /// Is interrupted before every piece.
    struct Interrupted<'a> {
        pieces: &'a [&'a [u8]],
        is_next: bool,
    }

    impl Read for Interrupted<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.is_next = !self.is_next;
            if self.is_next {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let Some((piece, rest)) = self.pieces.split_first() else { return Ok(0) };
            self.pieces = rest;
            into[..piece.len()].copy_from_slice(piece);
            Ok(piece.len())
        }
    }

    #[test]
    fn a_signal_to_the_program_does_not_end_the_line() {
        let pieces: &[&[u8]] = &[b" pid 7 exit 3\nlost 2 ", b"pid 8 signal 9\n"];
        let heard = std::cell::RefCell::new(Vec::new());
        let line = Interrupted { pieces, is_next: false };
        hear(line, b"lost 1".to_vec(), |obituary| heard.borrow_mut().push(obituary.rank));
        assert_eq!(heard.into_inner(), [1, 2]);
    }
}
