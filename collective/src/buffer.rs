//! Memory: the user's buffers while a lane's thread works in them, and pooled segments.

use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};

use crate::owned::Owned;
use crate::plan::{Place, Space};
use crate::reduce::Element;

/// The caller's slices, for the time of a call.
pub(crate) struct Borrowed<'a> {
    input: Span,
    output: Span,
    _slices: PhantomData<&'a mut [u8]>,
}

impl<'a> Borrowed<'a> {
    pub(crate) fn new<T: Element>(input: &'a [T], output: &'a mut [T]) -> Self {
        let input = Span { start: input.as_ptr().cast_mut().cast(), length: size_of_val(input) };
        let output = Span { start: output.as_mut_ptr().cast(), length: size_of_val(output) };
        Self { input, output, _slices: PhantomData }
    }

    /// Parts of one slice, which may overlap: the input lies within what becomes the output, or the
    /// other way round.
    pub(crate) fn in_place<T: Element>(slice: &'a mut [T], parts: Parts) -> Self {
        let (input, output) = parts.spans(slice);
        Self { input, output, _slices: PhantomData }
    }

    /// Lends the bytes to another thread. The [`Loan`] keeps the caller from returning until the
    /// [`Lent`] end is dropped, also when it unwinds.
    pub(crate) fn lend(self) -> (Loan<'a>, Lent) {
        let returned = Arc::new(Returned::default());
        let lent = Lent { input: self.input, output: self.output, owner: returned.clone() };
        (Loan { returned, _slices: PhantomData }, lent)
    }

    /// The output, which holds the input from now on.
    pub(crate) fn output(&mut self) -> &mut [u8] {
        copy_over(self.input, self.output);
        // SAFETY: `self` is all that is left of the slices it was made of.
        unsafe { std::slice::from_raw_parts_mut(self.output.start, self.output.length) }
    }
}

/// Takes a buffer in, to lend it for as long as the borrower wants.
pub(crate) fn hold<B: Owned>(buffer: B, parts: Parts) -> (Held<B>, Lent) {
    let kept = Arc::new(Kept { returned: Returned::default(), buffer: UnsafeCell::new(buffer) });
    // SAFETY: nobody else has the cell yet.
    let (input, output) = parts.spans(unsafe { &mut *kept.buffer.get() }.elements());
    let lent = Lent { input, output, owner: kept.clone() };
    (Held(kept), lent)
}

/// Which elements of one buffer are the call's input and output.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    pub(crate) input: Range<usize>,
    pub(crate) output: Range<usize>,
}

impl Parts {
    fn spans<T: Element>(self, slice: &mut [T]) -> (Span, Span) {
        let (length, start) = (slice.len(), slice.as_mut_ptr());
        let span = |part: Range<usize>| {
            assert!(part.start <= part.end && part.end <= length);
            // SAFETY: within the slice; both spans come from the one mutable borrow.
            let start = unsafe { start.add(part.start) };
            Span { start: start.cast(), length: part.len() * size_of::<T>() }
        };
        (span(self.input), span(self.output))
    }
}

/// The lender's end of borrowed slices.
pub(crate) struct Loan<'a> {
    returned: Arc<Returned>,
    _slices: PhantomData<&'a mut [u8]>,
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        self.returned.wait();
    }
}

/// The lender's end of an owned buffer; dropped or leaked, it leaves the buffer to the borrower.
pub(crate) struct Held<B>(Arc<Kept<B>>);

impl<B: Owned> Held<B> {
    /// The buffer, once the borrower has let go of it.
    pub(crate) fn take(self) -> B {
        self.0.returned.wait();
        // SAFETY: the `Lent` end is gone, and this is the only other one.
        std::mem::take(unsafe { &mut *self.0.buffer.get() })
    }
}

struct Kept<B> {
    returned: Returned,
    buffer: UnsafeCell<B>,
}

// SAFETY: the cell is only used by `hold`, before it is shared, and by `take`, after the borrower
// has let go; the mutex in `returned` orders the two.
unsafe impl<B: Send> Sync for Kept<B> {}

/// What keeps lent memory alive, and is told when it is let go.
trait Owner: Send + Sync {
    fn returned(&self) -> &Returned;
}

impl Owner for Returned {
    fn returned(&self) -> &Returned {
        self
    }
}

impl<B: Send> Owner for Kept<B> {
    fn returned(&self) -> &Returned {
        &self.returned
    }
}

#[derive(Clone, Copy)]
struct Span {
    start: *mut u8,
    length: usize,
}

impl Span {
    fn at(self, range: &Range<usize>) -> *mut u8 {
        assert!(range.start <= range.end && range.end <= self.length);
        // SAFETY: within the span.
        unsafe { self.start.add(range.start) }
    }
}

/// The borrower's end: exclusive access to the bytes until it is dropped.
pub(crate) struct Lent {
    input: Span,
    output: Span,
    owner: Arc<dyn Owner>,
}

// SAFETY: `Lent` is the only user of plain bytes of an `Element`, which is Send; the lender's end
// keeps the memory alive and untouched until `Lent` is dropped, on whichever thread that is.
unsafe impl Send for Lent {}

impl Lent {
    fn input(&self, range: Range<usize>) -> &[u8] {
        let start = self.input.at(&range);
        // SAFETY: the memory is alive and untouched by its owner (see `Send`), and `&self` keeps
        // `output_mut` away; every bit pattern of an `Element` is initialised bytes.
        unsafe { std::slice::from_raw_parts(start, range.len()) }
    }

    fn output(&self, range: Range<usize>) -> &[u8] {
        let start = self.output.at(&range);
        // SAFETY: as in `input`.
        unsafe { std::slice::from_raw_parts(start, range.len()) }
    }

    fn output_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        let start = self.output.at(&range);
        // SAFETY: as in `input`; `&mut self` makes it the only access, also where input and output
        // overlap, and every byte pattern is a value of an `Element`.
        unsafe { std::slice::from_raw_parts_mut(start, range.len()) }
    }

    /// The output, which holds the input.
    pub(crate) fn in_place(&mut self) -> &mut [u8] {
        copy_over(self.input, self.output);
        self.output_mut(0..self.output.length)
    }

    /// Copies input to output; nothing where they are the same bytes.
    fn copy_over(&mut self, from: Range<usize>, into: Range<usize>) {
        let source = Span { start: self.input.at(&from), length: from.len() };
        copy_over(source, Span { start: self.output.at(&into), length: into.len() });
    }
}

/// Nothing where they are the same bytes.
fn copy_over(from: Span, into: Span) {
    assert_eq!(from.length, into.length);
    if from.start != into.start {
        // SAFETY: both are memory that the call has for itself; `copy` allows them to overlap.
        unsafe { std::ptr::copy(from.start, into.start, from.length) }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.owner.returned().set();
    }
}

#[derive(Default)]
struct Returned {
    back: Mutex<bool>,
    changed: Condvar,
}

impl Returned {
    fn set(&self) {
        *lock(&self.back) = true;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let mut back = lock(&self.back);
        while !*back {
            back = self.changed.wait(back).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// All memory of one call: what the user lent, and the relay.
pub(crate) struct CallMemory {
    lent: Lent,
    relay: Vec<u8>,
    element_bytes: usize,
}

impl CallMemory {
    /// `relay` is as long as the call's machine says.
    pub(crate) fn new(lent: Lent, relay: Vec<u8>, element_bytes: usize) -> Self {
        Self { lent, relay, element_bytes }
    }

    /// Elements to send.
    pub(crate) fn bytes(&self, place: Place, elements: u64) -> &[u8] {
        let range = self.range(place, elements);
        match place.space {
            Space::Input => self.lent.input(range),
            Space::Output => self.lent.output(range),
            Space::Relay => &self.relay[range],
        }
    }

    /// Elements to write to; not of the input, which no plan writes.
    pub(crate) fn bytes_mut(&mut self, place: Place, elements: u64) -> &mut [u8] {
        let range = self.range(place, elements);
        match place.space {
            Space::Input => &mut [],
            Space::Output => self.lent.output_mut(range),
            Space::Relay => &mut self.relay[range],
        }
    }

    /// Makes `into` hold what `local` does, so that a reduction goes on there.
    pub(crate) fn bring(&mut self, local: Place, into: Place, elements: u64) {
        if local == into {
            return;
        }
        let (from, to) = (self.range(local, elements), self.range(into, elements));
        match (local.space, into.space) {
            (Space::Input, Space::Output) => self.lent.copy_over(from, to),
            (Space::Input, Space::Relay) => self.relay[to].copy_from_slice(self.lent.input(from)),
            (Space::Output, Space::Relay) => self.relay[to].copy_from_slice(self.lent.output(from)),
            (Space::Relay, Space::Output) => {
                self.lent.output_mut(to).copy_from_slice(&self.relay[from]);
            }
            (Space::Output, Space::Output) | (Space::Relay, Space::Relay) | (_, Space::Input) => {
                debug_assert!(false, "no plan moves {local:?} to {into:?}");
            }
        }
    }

    /// Lets go of the user's memory; the relay can be used again.
    pub(crate) fn into_relay(self) -> Vec<u8> {
        self.relay
    }

    fn range(&self, place: Place, elements: u64) -> Range<usize> {
        let start = place.start as usize * self.element_bytes;
        start..start + elements as usize * self.element_bytes
    }
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
        // One that was handed out long ago is free again, unless its flow has stalled.
        let pooled = (0..LOOKS.min(buffers.len())).find_map(|_| {
            let mut oldest = buffers.pop_front()?;
            if oldest.try_reclaim(length) {
                return Some(oldest);
            }
            buffers.push_back(oldest);
            None
        });
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
/// A whole segment of 63 KiB with header and contract, in whole pages.
const LARGE_BYTES: usize = 68 * 1024;
/// More than the messages of a few stalled flows within a process; a look takes nanoseconds.
const LOOKS: usize = 16;
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
        let input = [2.0f32; 4];
        {
            let (loan, lent) = Borrowed::new(&input, &mut numbers).lend();
            let borrower = std::thread::spawn(move || {
                let mut memory = CallMemory::new(lent, Vec::new(), 4);
                let place = |space, start| Place { space, start };
                memory.bring(place(Space::Input, 1), place(Space::Output, 0), 2);
            });
            drop(loan);
            borrower.join().unwrap();
        }
        assert_eq!(numbers[..3], [2.0, 2.0, 1.0]);
    }

    #[test]
    fn a_held_vector_outlives_its_holder_and_comes_back_changed() {
        let all = Parts { input: 0..4, output: 0..4 };
        let (held, lent) = hold(vec![1u8, 2, 3, 4], all.clone());
        drop(held);
        assert_eq!(lent.input(1..3), [2, 3]);
        drop(lent);
        let (held, mut lent) = hold(vec![1u8, 2, 3, 4], all);
        let borrower = std::thread::spawn(move || lent.output_mut(0..2).fill(9));
        assert_eq!(held.take(), [9, 9, 3, 4]);
        borrower.join().unwrap();
    }

    #[test]
    fn parts_of_one_buffer_may_overlap() {
        let mut buffer = [1u8, 2, 3, 4];
        {
            let parts = Parts { input: 2..4, output: 0..4 };
            let (_loan, lent) = Borrowed::in_place(&mut buffer, parts).lend();
            let mut memory = CallMemory::new(lent, Vec::new(), 1);
            let (input, output) = (Space::Input, Space::Output);
            // The same bytes: nothing to do. Others: a copy.
            memory.bring(Place { space: input, start: 0 }, Place { space: output, start: 2 }, 2);
            memory.bring(Place { space: input, start: 1 }, Place { space: output, start: 0 }, 1);
        }
        assert_eq!(buffer, [4, 2, 3, 4]);
    }
}
