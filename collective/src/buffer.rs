//! Memory: the user's buffer while a lane's thread works in it, and pooled segments.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};

use crate::reduce::Element;

/// Lends the bytes of `slice` to another thread. The [`Loan`] keeps the caller from returning
/// until the [`Lent`] end is dropped, also when it unwinds.
pub(crate) fn lend<T: Element>(slice: &mut [T]) -> (Loan<'_>, Lent) {
    let returned = Arc::new(Returned::default());
    let lent = Lent {
        start: slice.as_mut_ptr().cast(),
        length: size_of_val(slice),
        returned: returned.clone(),
    };
    (Loan { returned, _slice: PhantomData }, lent)
}

/// The lender's end.
pub(crate) struct Loan<'a> {
    returned: Arc<Returned>,
    _slice: PhantomData<&'a mut [u8]>,
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        let mut back = lock(&self.returned.back);
        while !*back {
            back = self.returned.changed.wait(back).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The borrower's end: exclusive access to the bytes until it is dropped.
pub(crate) struct Lent {
    start: *mut u8,
    length: usize,
    returned: Arc<Returned>,
}

// SAFETY: `Lent` is a unique reference to plain bytes of an `Element`, which is Send; the `Loan`
// keeps the memory alive and untouched until `Lent` is dropped, on whichever thread that is.
unsafe impl Send for Lent {}

impl Lent {
    /// The bytes of `range`, within the buffer.
    pub(crate) fn bytes(&self, range: Range<usize>) -> &[u8] {
        assert!(range.start <= range.end && range.end <= self.length);
        // SAFETY: the range is within the lent slice, which is alive and untouched by its owner
        // (see `Send`); every bit pattern of an `Element` is initialised bytes.
        unsafe { std::slice::from_raw_parts(self.start.add(range.start), range.len()) }
    }

    /// The bytes of `range`, within the buffer, to write to.
    pub(crate) fn bytes_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        assert!(range.start <= range.end && range.end <= self.length);
        // SAFETY: as in `bytes`; `&mut self` makes it the only access, and every byte pattern is a
        // value of an `Element`.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        *lock(&self.returned.back) = true;
        self.returned.changed.notify_all();
    }
}

#[derive(Default)]
struct Returned {
    back: Mutex<bool>,
    changed: Condvar,
}

/// Buffers for outgoing segments, used again once quinn has let go of their bytes.
///
/// Bytes handed to quinn must not change until they are acknowledged, so each segment is copied
/// once into one of these. In steady state nothing is allocated: a buffer whose bytes are all
/// acknowledged is reclaimed in place.
#[derive(Default)]
pub(crate) struct SegmentPool {
    small: VecDeque<BytesMut>,
    large: VecDeque<BytesMut>,
}

impl SegmentPool {
    /// One message of the given parts, in one piece.
    pub(crate) fn message(&mut self, parts: &[&[u8]]) -> Bytes {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let (buffers, capacity) = if length <= SMALL_BYTES {
            (&mut self.small, SMALL_BYTES)
        } else {
            (&mut self.large, length.max(LARGE_BYTES))
        };
        // The buffer that was handed out longest ago, if it is free again.
        let free = buffers.front_mut().is_some_and(|oldest| oldest.try_reclaim(length));
        let pooled = if free { buffers.pop_front() } else { None };
        let mut buffer = pooled.unwrap_or_else(|| BytesMut::with_capacity(capacity));
        for part in parts {
            buffer.extend_from_slice(part);
        }
        let message = buffer.split().freeze();
        if buffers.len() < MAX_POOLED {
            buffers.push_back(buffer);
        }
        message
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Headers, contracts and short segments.
const SMALL_BYTES: usize = 4096;
/// A whole segment of 64 KiB with header and contract, in whole pages.
const LARGE_BYTES: usize = 68 * 1024;
/// Large buffers of 8.5 MiB: a full send window.
const MAX_POOLED: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pooled_buffer_comes_back_when_its_message_is_dropped() {
        let mut pool = SegmentPool::default();
        let first = pool.message(&[b"head", &[1; 60_000]]);
        let address = first.as_ptr();
        let second = pool.message(&[b"head", &[2; 60_000]]);
        assert_ne!(second.as_ptr(), address, "a message still in use was overwritten");
        drop(first);
        drop(second);
        let third = pool.message(&[b"head", &[3; 60_000]]);
        assert_eq!(third.as_ptr(), address);
        assert_eq!(&third[..5], b"head\x03");
    }

    #[test]
    fn a_loan_ends_only_when_the_borrower_lets_go() {
        let mut numbers = vec![1.0f32; 1000];
        {
            let (loan, mut lent) = lend(&mut numbers);
            let borrower = std::thread::spawn(move || {
                lent.bytes_mut(0..4).copy_from_slice(&2.0f32.to_le_bytes());
            });
            drop(loan);
            borrower.join().unwrap();
        }
        assert_eq!(numbers[0], 2.0);
    }
}
