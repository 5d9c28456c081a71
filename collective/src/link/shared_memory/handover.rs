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

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::getuid;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

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
        while let Ok((stream, _)) = listener.accept().await {
            let (token, arena) = (self.door.token, arena.clone());
            // Each in its turn: they are of this host, and it takes microseconds.
            let _ = timeout(LIMIT, give(stream, token, &arena)).await;
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
        let stream = StdStream::connect_addr(&self.address()?)?;
        stream.set_nonblocking(true)?;
        let stream = UnixStream::from_std(stream)?;
        if stream.peer_cred()?.uid() != getuid().as_raw() {
            return Err(Error::other("it is another user's"));
        }
        stream.writable().await?;
        // A fresh socket has room for it.
        stream.try_write(&self.token.to_le_bytes())?;
        let file = stream.async_io(Interest::READABLE, || receive(&stream)).await?;
        Attached::new(&file, length)
    }

    fn address(self) -> Result<SocketAddr> {
        SocketAddr::from_abstract_name(format!("allfold-{:032x}", self.name))
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
/// A peer's number; far more than any host has memory.
const MAX_ARENA_BYTES: usize = 1 << 44;
