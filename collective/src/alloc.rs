//! Buffers that lie where the runtime wants them.

use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::Arc;

use crate::communicator::{Communicator, Kind};
use crate::host_memory::HostMemory;
use crate::reduce::Element;

/// A buffer that lies where calls need no copy of it: in memory that the ranks of a host share,
/// where they do. It is used as a slice; every call takes plain slices as well, at the price of a
/// copy.
pub struct Buffer<T: Element>(Lies<T>);

enum Lies<T: Element> {
    Shared(Shared<T>),
    Private(Vec<T>),
}

struct Shared<T: Element> {
    start: NonNull<T>,
    length: usize,
    part: Range<usize>,
    memory: Arc<HostMemory>,
}

// SAFETY: it owns its elements, which are plain numbers; other processes write to them only during
// a call, which has the buffer borrowed.
unsafe impl<T: Element> Send for Shared<T> {}
// SAFETY: as above; through a shared reference it is only read.
unsafe impl<T: Element> Sync for Shared<T> {}

impl Communicator {
    /// A buffer of `length` elements, all zero, for calls on this communicator and others of its
    /// world. Every rank may have as many as it likes, of any length; a call is fastest where all
    /// ranks give such a buffer.
    pub fn alloc<T: Element>(&self, length: usize) -> Buffer<T> {
        let memory = match &self.kind {
            Kind::Single => None,
            Kind::Joined(engine) => engine.memory(),
        };
        let shared = memory.and_then(|memory| {
            let (part, start) = memory.take(length.checked_mul(size_of::<T>())?)?;
            Some(Shared { start: start.cast(), length, part, memory: memory.clone() })
        });
        Buffer(match shared {
            Some(shared) => Lies::Shared(shared),
            None => {
                // SAFETY: every pattern of bits is a value of an `Element`.
                let zero: T = unsafe { std::mem::zeroed() };
                Lies::Private(vec![zero; length])
            }
        })
    }
}

impl<T: Element> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.0 {
            // SAFETY: the part is this buffer's alone, aligned to a line, and all its bytes are
            // initialised; it stays mapped for as long as `memory` is held.
            Lies::Shared(s) => unsafe { std::slice::from_raw_parts(s.start.as_ptr(), s.length) },
            Lies::Private(elements) => elements,
        }
    }
}

impl<T: Element> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match &mut self.0 {
            // SAFETY: as in `deref`.
            Lies::Shared(s) => unsafe {
                std::slice::from_raw_parts_mut(s.start.as_ptr(), s.length)
            },
            Lies::Private(elements) => elements,
        }
    }
}

impl<T: Element> Default for Buffer<T> {
    /// One without elements.
    fn default() -> Self {
        Vec::new().into()
    }
}

/// One that lies where the vector did: it serves every call, at the price of a copy.
impl<T: Element> From<Vec<T>> for Buffer<T> {
    fn from(elements: Vec<T>) -> Self {
        Self(Lies::Private(elements))
    }
}

impl<T: Element + PartialEq> PartialEq for Buffer<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Element> Drop for Shared<T> {
    fn drop(&mut self) {
        self.memory.give(self.part.clone());
    }
}

impl<T: Element + fmt::Debug> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}
