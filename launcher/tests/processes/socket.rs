//! The launcher's socket, as the library in a rank uses it.

use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::launched::{Launched, Scratch, WAIT};

/// A rank's end.
struct Client(UnixStream);

impl Client {
    fn connect(path: &str) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self(stream)
    }

    fn say(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    /// A line, and the socket attached to it.
    fn socket(&mut self) -> (String, OwnedFd) {
        let mut text = [0; 64];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut attached = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut text)];
        let received = recvmsg(&self.0, &mut parts, &mut attached, RecvFlags::CMSG_CLOEXEC);
        let size = received.unwrap().bytes;
        let socket = attached.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
            _ => None,
        });
        (String::from_utf8_lossy(&text[..size]).into_owned(), socket.unwrap())
    }
}

/// Ranks that wait to be released with their exit code, and the path of the socket.
fn start(scratch: &Scratch, ranks: usize) -> (Launched, String, SocketAddr) {
    let script = format!("echo at $ALLFOLD_LAUNCHER $ALLFOLD_RENDEZVOUS $$; {WAIT} eval \"$word\"");
    let mut launched = Launched::start(scratch.run(ranks, &script));
    for rank in 0..ranks {
        launched.expect_line(&format!("[{rank}] ready"));
    }
    let line = launched.expect(|line| line.starts_with("[0] at "));
    let mut words = line.split(' ').skip(2);
    let path = words.next().unwrap().to_owned();
    let address = words.next().unwrap().parse().unwrap();
    (launched, path, address)
}

fn pid(launched: &mut Launched, rank: usize) -> String {
    let line = launched.expect(|line| line.starts_with(&format!("[{rank}] at ")));
    line.rsplit(' ').next().unwrap().to_owned()
}

#[test]
fn rank_0_gets_the_socket_that_holds_the_port() {
    let scratch = Scratch::new();
    let (launched, path, address) = start(&scratch, 2);
    assert!(UdpSocket::bind(address).is_err());
    // A program may listen there over TCP.
    drop(std::net::TcpListener::bind(address).unwrap());

    let mut client = Client::connect(&path);
    client.say("rank 0 pid 1\nrendez");
    client.say("vous\n");
    let (text, socket) = client.socket();
    assert_eq!(text, "socket\n");
    let socket = UdpSocket::from(socket);
    assert_eq!(socket.local_addr().unwrap(), address);

    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let other = UdpSocket::bind("127.0.0.1:0").unwrap();
    other.send_to(b"hello", address).unwrap();
    let mut buffer = [0; 16];
    assert_eq!(socket.recv(&mut buffer).unwrap(), 5);

    scratch.release(0, "exit 0");
    scratch.release(1, "exit 0");
    assert_eq!(launched.finish().code(), Some(0));
    scratch.expect_nothing_left();
}

#[test]
fn every_other_rank_learns_of_an_end() {
    let scratch = Scratch::new();
    let (mut launched, path, _) = start(&scratch, 4);
    let mut watcher = Client::connect(&path);
    watcher.say("rank 0 pid 1\n");
    let mut dead = Client::connect(&path);
    dead.say("rank 2 pid 1\n");
    drop(dead);
    let mut own = Client::connect(&path);
    own.say("rank 1 pid 1\nrendezvous\n");
    // The answer shows that the greeting was read before rank 1 ends.
    own.socket();

    scratch.release(1, "exit 0");
    let first = format!("lost 1 pid {} exit 0\n", pid(&mut launched, 1));
    assert_eq!(watcher.line(), first);
    scratch.release(3, "kill -9 $$");
    let second = format!("lost 3 pid {} signal 9\n", pid(&mut launched, 3));
    assert_eq!(watcher.line(), second);
    // Nobody is told of its own end.
    assert_eq!(own.line(), second);
    // Who comes late is told what happened before.
    let mut late = Client::connect(&path);
    late.say("rank 2 pid 1\n");
    assert_eq!(late.line() + &late.line(), first + &second);

    scratch.release(0, "exit 75");
    scratch.release(2, "exit 75");
    assert_eq!(launched.finish().code(), Some(137));
    scratch.expect_nothing_left();
}

#[test]
fn who_does_not_keep_to_the_protocol_is_sent_away() {
    let scratch = Scratch::new();
    let (launched, path, _) = start(&scratch, 1);
    let long = "x".repeat(5000);
    for text in ["rank 1 pid 1\n", "rank 0\n", "hello\n", &long] {
        let mut client = Client::connect(&path);
        // The launcher may hang up before all is written.
        let _ = client.0.write_all(text.as_bytes());
        let mut rest = Vec::new();
        let _ = client.0.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{text}");
    }
    let mut client = Client::connect(&path);
    client.say("rank 0 pid 1\nrendezvous\n");
    client.socket();
    scratch.release(0, "exit 0");
    assert_eq!(launched.finish().code(), Some(0));
}
