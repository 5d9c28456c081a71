//! How ranks of one host come to map each other's arenas: each listens at an abstract socket and
//! gives its arena to whoever shows the token that the world table carries. An abstract socket
//! leaves nothing behind, and is found only in the same network namespace; ranks elsewhere use
//! QUIC. What works is tried, not guessed.

use std::io::{Error, IoSlice, IoSliceMut, Result};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener, UnixStream as StdStream};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg,
    sendmsg, socket_with,
};
use rustix::process::getuid;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{Arena, Attached};
use crate::contract;
use crate::identity::host_name;

/// Where a rank gives its arena away, and to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Door {
    /// The network namespace of one start of one kernel: elsewhere nobody finds the socket.
    pub(crate) home: u64,
    /// Names the socket.
    name: u128,
    token: u128,
    /// Of the arena.
    length: u64,
}

/// The listening end of a door.
pub(crate) struct Doorway {
    listener: StdListener,
    door: Door,
}

impl Doorway {
    /// Listens; `name` and `token` are random.
    ///
    /// # Errors
    /// Where the system has no such sockets.
    pub(crate) fn new(name: u128, token: u128, length: usize) -> Result<Self> {
        let home = home().ok_or_else(|| Error::other("this host has no name of its own"))?;
        let door = Door { home, name, token, length: length as u64 };
        let listener = StdListener::bind_addr(&door.address()?)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, door })
    }

    pub(crate) fn door(&self) -> Door {
        self.door
    }

    /// Gives the arena to all who show the token, until it is dropped.
    pub(crate) async fn serve(self, arena: Arc<Arena>) {
        let Ok(listener) = UnixListener::from_std(self.listener) else { return };
        let accept = async || listener.accept().await.map(|(stream, _)| stream);
        serve(accept, self.door.token, arena).await;
    }
}

/// Gives the arena to all that `accept` lets in and who show the token, side by side.
async fn serve(accept: impl AsyncFn() -> Result<UnixStream>, token: u128, arena: Arc<Arena>) {
    let mut visits = JoinSet::new();
    loop {
        while visits.try_join_next().is_some() {}
        if visits.len() >= MAX_VISITS {
            visits.join_next().await;
            continue;
        }
        match accept().await {
            Ok(stream) => {
                let arena = arena.clone();
                visits.spawn_local(async move {
                    let _ = timeout(LIMIT, give(stream, token, &arena)).await;
                });
            }
            // Who knocked has gone, or there are too many open files just now.
            Err(_) => sleep(PAUSE).await,
        }
    }
}

impl Door {
    /// Maps the arena behind it.
    ///
    /// # Errors
    /// Where it is not to be had: another network namespace, another user.
    pub(crate) async fn enter(self) -> Result<Attached> {
        timeout(LIMIT, self.attach()).await.map_err(|_| Error::other("no answer"))?
    }

    async fn attach(self) -> Result<Attached> {
        let length = usize::try_from(self.length).map_err(Error::other)?;
        if length > MAX_ARENA_BYTES {
            return Err(Error::other("an arena beyond all limits"));
        }
        let stream = self.knock().await?;
        if stream.peer_cred()?.uid() != getuid().as_raw() {
            return Err(Error::other("it is another user's"));
        }
        stream.writable().await?;
        // A fresh socket has room for it.
        stream.try_write(&self.token.to_le_bytes())?;
        let file = stream.async_io(Interest::READABLE, || receive(&stream)).await?;
        Attached::new(&file, length)
    }

    /// Connects. The thread has more to do than wait for a process that may be stopped.
    async fn knock(self) -> Result<UnixStream> {
        let address = SocketAddrUnix::new_abstract_name(self.socket_name().as_bytes())?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // No event tells when there is room in front of the door.
        while let Err(problem) = connect(&socket, &address) {
            match problem {
                Errno::AGAIN => sleep(PAUSE).await,
                problem => return Err(problem.into()),
            }
        }
        UnixStream::from_std(StdStream::from(socket))
    }

    fn address(self) -> Result<SocketAddr> {
        SocketAddr::from_abstract_name(self.socket_name())
    }

    fn socket_name(self) -> String {
        format!("allfold-{:032x}", self.name)
    }
}

async fn give(stream: UnixStream, token: u128, arena: &Arena) -> Result<()> {
    if stream.peer_cred()?.uid() != getuid().as_raw() {
        return Ok(());
    }
    let mut shown = [0; 16];
    let read = stream.async_io(Interest::READABLE, || stream.try_read(&mut shown)).await?;
    if read < shown.len() || u128::from_le_bytes(shown) != token {
        return Ok(());
    }
    stream.async_io(Interest::WRITABLE, || send(&stream, arena.file())).await
}

fn send(stream: impl AsFd, file: &OwnedFd) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let files = [file.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&files));
    sendmsg(stream, &[IoSlice::new(&[1])], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(stream: impl AsFd) -> Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut into = [IoSliceMut::new(&mut byte)];
    recvmsg(stream, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let files = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    });
    files.flatten().next().ok_or_else(|| Error::other("it was refused"))
}

/// Equal in processes that can find each other's abstract sockets. None where it cannot be known.
fn home() -> Option<u64> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let space = std::fs::read_link("/proc/self/ns/net").ok()?;
    let words = format!("{}{}{}", boot.trim(), space.display(), host_name());
    Some(words.bytes().fold(0, |hash, byte| contract::mix(hash ^ u64::from(byte))))
}

/// Two processes of one host need microseconds.
const LIMIT: Duration = Duration::from_secs(2);
/// Before something is tried again that cannot be waited for.
const PAUSE: Duration = Duration::from_millis(5);
/// Who is not let in yet waits in front of the door.
const MAX_VISITS: usize = 64;
/// A peer's number; far more than any host has memory.
const MAX_ARENA_BYTES: usize = 1 << 44;

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use rustix::net::{bind, listen};

    use super::*;

    fn on_runtime(main: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, main);
    }

    fn arena() -> Arc<Arena> {
        Arc::new(Arena::new(LENGTH).unwrap())
    }

    fn name() -> u128 {
        let mut name = [0; 16];
        crate::trust::secret::fill_random(&mut name).unwrap();
        u128::from_le_bytes(name)
    }

    #[test]
    fn others_are_served_while_one_says_nothing() {
        on_runtime(async {
            let doorway = Doorway::new(name(), 7, LENGTH).unwrap();
            let door = doorway.door();
            let _serving = tokio::task::spawn_local(doorway.serve(arena()));
            let mut silent = Vec::new();
            for _ in 0..3 {
                silent.push(door.knock().await.unwrap());
            }
            // In their turn it would have to wait for their time to pass, longer than it does.
            assert!(door.enter().await.is_ok());
            let stranger = Door { token: 8, ..door };
            assert!(stranger.enter().await.is_err());
        });
    }

    #[test]
    fn a_door_stays_open_after_errors() {
        on_runtime(async {
            let doorway = Doorway::new(name(), 7, LENGTH).unwrap();
            let door = doorway.door();
            let listener = UnixListener::from_std(doorway.listener).unwrap();
            let errors = RefCell::new(vec![Errno::MFILE, Errno::CONNABORTED, Errno::NOBUFS]);
            let next = || errors.borrow_mut().pop();
            let accept = async || match next() {
                Some(error) => Err(error.into()),
                None => listener.accept().await.map(|(stream, _)| stream),
            };
            tokio::select! {
                () = serve(accept, 7, arena()) => unreachable!("it has no end"),
                entered = door.enter() => assert!(entered.is_ok()),
            }
            assert!(errors.borrow().is_empty());
        });
    }

    #[test]
    fn whoever_finds_a_crowd_at_the_door_lets_its_thread_go_on() {
        let name = name();
        let door = Door { home: 0, name, token: 7, length: LENGTH as u64 };
        // Takes in hardly anybody who is not accepted.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let knock = || socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        let address = SocketAddrUnix::new_abstract_name(door.socket_name().as_bytes()).unwrap();
        let socket = knock();
        bind(&socket, &address).unwrap();
        listen(&socket, 0).unwrap();
        let mut crowd = vec![knock()];
        while let Ok(()) = connect(&crowd[crowd.len() - 1], &address) {
            assert!(crowd.len() < 100, "it takes in everybody");
            crowd.push(knock());
        }
        on_runtime(async {
            let waited = Cell::new(false);
            let serving = async {
                // The thread is free: this runs after the other has found no room.
                tokio::task::yield_now().await;
                waited.set(true);
                drop(crowd);
                Doorway { listener: socket.into(), door }.serve(arena()).await;
            };
            tokio::select! {
                biased;
                entered = door.enter() => assert!(entered.is_ok()),
                () = serving => unreachable!("it has no end"),
            }
            assert!(waited.get());
        });
    }

    const LENGTH: usize = 4096;
}
