//! The ranks of a training job add up their gradients, with no parameter server.

pub mod error;

pub use error::{Error, ErrorKind, Result};

use std::fmt;

/// How the contributions of the ranks are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReduceOp {
    /// The sum over all ranks.
    Sum,
    /// The sum over all ranks, divided by the number of ranks.
    Avg,
}

/// A plain number that can be moved between ranks: u8, i32, u32, i64, u64, f32, f64.
pub trait Element: Copy + Send + Sync + 'static {}
/// An element that can be added up: f32, f64.
pub trait Reducible: Element {}
macro_rules! elements { ($($t:ty)*) => { $(impl Element for $t {})* } }
elements!(u8 i32 u32 i64 u64 f32 f64);
impl Reducible for f32 {}
impl Reducible for f64 {}

/// One rank's end of the world: the collectives are its methods.
pub struct Communicator(());

/// A rank of the world, as told at the start.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its number.
    pub rank: usize,
    /// The host name it gave.
    pub host: String,
    /// Its process id there.
    pub pid: u32,
}

impl Communicator {
    /// Connects by what the launcher's environment says; an error without one.
    pub fn from_env() -> Result<Self> {
        Err(ErrorKind::NoEnvironment.into())
    }
    /// Like `from_env`, but a world of one where no launcher's environment is found.
    pub fn from_env_or_single() -> Result<Self> {
        Ok(Self(()))
    }
    /// A world of one, without a socket.
    pub fn single() -> Self {
        Self(())
    }
    /// `size` ranks within this process, joined by memory: for tests of code that uses allfold.
    pub fn in_memory(size: usize) -> Vec<Self> {
        (0..size).map(|_| Self(())).collect()
    }
    /// This rank's number, 0 to size - 1.
    pub fn rank(&self) -> usize {
        0
    }
    /// The number of ranks.
    pub fn size(&self) -> usize {
        1
    }
    /// This rank's number on its host.
    pub fn local_rank(&self) -> usize {
        0
    }
    /// All ranks in order, this one included.
    pub fn peers(&self) -> Vec<Peer> {
        vec![Peer {
            rank: 0,
            host: String::new(),
            pid: std::process::id(),
        }]
    }
    /// The transport in words for a header, such as `quic on 127.0.0.1` or `alone`.
    pub fn transport(&self) -> String {
        "alone".into()
    }
    /// The security in words for a header, such as `mutual TLS, secret 3f9a12c4`.
    pub fn security(&self) -> String {
        "no network".into()
    }
    /// Every rank's buffer becomes the combination of all, bit-identical on all ranks.
    pub fn all_reduce<T: Reducible>(&self, _buffer: &mut [T], _op: ReduceOp) -> Result<()> {
        Ok(())
    }
    /// Every rank's buffer becomes the root's.
    pub fn broadcast<T: Element>(&self, _buffer: &mut [T], _root: usize) -> Result<()> {
        Ok(())
    }
    /// Returns once every rank has called it.
    pub fn barrier(&self) -> Result<()> {
        Ok(())
    }
    /// The same calls with a label that must be equal on all ranks: it tells calls of one shape apart.
    pub fn labelled(&self, label: u64) -> Labelled<'_> {
        Labelled {
            world: self,
            _label: label,
        }
    }
    /// Says goodbye to all ranks and waits until they have read everything; `Drop` does the same.
    pub fn close(self) -> Result<()> {
        Ok(())
    }
}

/// A communicator whose next call carries a label.
pub struct Labelled<'a> {
    world: &'a Communicator,
    _label: u64,
}
impl Labelled<'_> {
    /// As [`Communicator::all_reduce`].
    pub fn all_reduce<T: Reducible>(&self, buffer: &mut [T], op: ReduceOp) -> Result<()> {
        self.world.all_reduce(buffer, op)
    }
    /// As [`Communicator::broadcast`].
    pub fn broadcast<T: Element>(&self, buffer: &mut [T], root: usize) -> Result<()> {
        self.world.broadcast(buffer, root)
    }
    /// As [`Communicator::barrier`].
    pub fn barrier(&self) -> Result<()> {
        self.world.barrier()
    }
}

/// A job's secret: 32 random bytes.
pub struct Secret([u8; 32]);
impl Secret {
    /// A fresh one.
    pub fn random() -> Result<Self> {
        Ok(Self([7; 32]))
    }
    /// The line that ALLFOLD_SECRET or a line of the secret file holds: 64 hex digits.
    pub fn to_line(&self) -> String {
        self.0.iter().map(|b| format!("{b:02x}")).collect()
    }
    /// 8 hex digits that tell secrets apart without telling them.
    pub fn fingerprint(&self) -> String {
        "00000000".into()
    }
}
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Who this process is, as a launcher's environment tells it.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Rank, 0 to size - 1.
    pub rank: usize,
    /// World size.
    pub size: usize,
    /// Rank among the ranks of this host.
    pub local_rank: usize,
    /// The launcher in words, such as `allfold run` or `torchrun`.
    pub launcher: String,
}
impl Identity {
    /// None where no launcher's variables are set; an error where they are incomplete or contradict.
    pub fn from_env() -> Result<Option<Self>> {
        Ok(None)
    }
}
