//! Memory: the user's buffers while the lanes' threads work in them.

mod segments;

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::owned::Owned;
use crate::plan::{Place, Space};
use crate::reduce::Element;
pub(crate) use segments::SegmentPool;

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
        let returned = Arc::new(Returned::new());
        let lent =
            Lent { input: self.input, output: self.output, columns: None, owner: returned.clone() };
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
    let kept = Arc::new(Kept { returned: Returned::new(), buffer: UnsafeCell::new(buffer) });
    // SAFETY: nobody else has the cell yet.
    let (input, output) = parts.spans(unsafe { &mut *kept.buffer.get() }.elements());
    let lent = Lent { input, output, columns: None, owner: kept.clone() };
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

    fn overlaps(self, other: Self) -> bool {
        let [(a, a_end), (b, b_end)] =
            [self, other].map(|span| (span.start.addr(), span.start.addr() + span.length));
        self.length.min(other.length) > 0 && a < b_end && b < a_end
    }
}

/// What one of several borrowers has of the same memory: of every block of so many bytes, the same
/// part. It numbers them without those of the others.
#[derive(Clone, Debug)]
struct Columns {
    block: usize,
    own: Range<usize>,
}

impl Columns {
    /// Where bytes lie, which must be of one block.
    fn place(&self, range: Range<usize>) -> Range<usize> {
        let width = self.own.end - self.own.start;
        if range.is_empty() || width == 0 {
            assert!(range.is_empty(), "none of it is this borrower's");
            return 0..0;
        }
        let (block, offset) = (range.start / width, range.start % width);
        assert!(offset + range.len() <= width, "more than one block");
        let start = block * self.block + self.own.start + offset;
        start..start + range.len()
    }
}

/// The borrower's end: exclusive access to the bytes until it is dropped.
pub(crate) struct Lent {
    input: Span,
    output: Span,
    /// None: all bytes.
    columns: Option<Columns>,
    owner: Arc<dyn Owner>,
}

// SAFETY: a `Lent` is the only user of its bytes, plain bytes of an `Element`, which is Send; the
// lender's end keeps the memory alive and untouched until every `Lent` of it is dropped, on whichever
// thread that is.
unsafe impl Send for Lent {}

impl Lent {
    /// The same memory in the hands of several borrowers: each has its columns of every block of
    /// so many bytes.
    ///
    /// # Panics
    /// If columns overlap or are not of a block, or if input and output overlap and do not lie alike
    /// in blocks.
    pub(crate) fn cut(
        self,
        block: usize,
        columns: impl Iterator<Item = Range<usize>>,
    ) -> Vec<Self> {
        assert!(self.columns.is_none(), "it is cut already");
        let distance = self.input.start.addr().abs_diff(self.output.start.addr());
        let is_aligned = block > 0 && distance.is_multiple_of(block);
        assert!(is_aligned || !self.input.overlaps(self.output), "blocks would overlap");
        let mut taken = 0;
        columns
            .map(|own| {
                assert!(taken <= own.start && own.start <= own.end && own.end <= block);
                taken = own.end;
                self.owner.returned().lend_again();
                let columns = Some(Columns { block, own });
                Self { columns, owner: self.owner.clone(), ..self }
            })
            .collect()
    }

    fn input(&self, range: Range<usize>) -> &[u8] {
        let range = self.place(range);
        let start = self.input.at(&range);
        // SAFETY: the memory is alive and untouched by its owner (see `Send`), `&self` keeps
        // `output_mut` away, and other borrowers have other columns (see `cut`); every bit pattern of an `Element` is initialised bytes.
        unsafe { std::slice::from_raw_parts(start, range.len()) }
    }

    fn output(&self, range: Range<usize>) -> &[u8] {
        let range = self.place(range);
        let start = self.output.at(&range);
        // SAFETY: as in `input`.
        unsafe { std::slice::from_raw_parts(start, range.len()) }
    }

    fn output_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        let range = self.place(range);
        let start = self.output.at(&range);
        // SAFETY: as in `input`; `&mut self` makes it the only access, also where input and output
        // overlap, and every byte pattern is a value of an `Element`.
        unsafe { std::slice::from_raw_parts_mut(start, range.len()) }
    }

    /// The output, which holds the input.
    ///
    /// # Panics
    /// If it was cut.
    pub(crate) fn in_place(&mut self) -> &mut [u8] {
        assert!(self.columns.is_none(), "others have the rest of it");
        copy_over(self.input, self.output);
        self.output_mut(0..self.output.length)
    }

    fn place(&self, range: Range<usize>) -> Range<usize> {
        match &self.columns {
            Some(columns) => columns.place(range),
            None => range,
        }
    }

    /// Copies input to output; nothing where they are the same bytes.
    fn copy_over(&mut self, from: Range<usize>, into: Range<usize>) {
        let (from, into) = (self.place(from), self.place(into));
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

struct Returned {
    /// Borrowers that have not let go.
    out: Mutex<usize>,
    changed: Condvar,
}

impl Returned {
    /// Of memory that is lent to one borrower.
    fn new() -> Self {
        Self { out: Mutex::new(1), changed: Condvar::new() }
    }

    fn lend_again(&self) {
        *lock(&self.out) += 1;
    }

    fn set(&self) {
        *lock(&self.out) -= 1;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let mut out = lock(&self.out);
        while *out > 0 {
            out = self.changed.wait(out).unwrap_or_else(PoisonError::into_inner);
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn borrowers_of_one_buffer_have_the_columns_of_every_block_between_them() {
        // Three blocks of five bytes; what comes out goes into the second.
        let mut buffer: Vec<u8> = (0..15).collect();
        let parts = Parts { input: 0..15, output: 5..10 };
        let (loan, lent) = Borrowed::in_place(&mut buffer, parts).lend();
        let columns = [0..2, 2..2, 2..5];
        let mut stripes = lent.cut(5, columns.into_iter()).into_iter();
        let [mut first, none, mut last] = [(); 3].map(|()| stripes.next().unwrap());
        assert_eq!([first.input(2..4), last.input(3..6)], [&[5, 6][..], &[7, 8, 9]]);
        assert_eq!(
            (first.input(4..5), last.input(6..7), last.output(1..3)),
            (&[10][..], &[12][..], &[8, 9][..])
        );
        assert!(none.input(0..0).is_empty());
        let writers = [std::thread::spawn(move || first.output_mut(0..2).fill(1))];
        last.copy_over(6..9, 0..3);
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        drop((none, last));
        drop(loan);
        assert_eq!(buffer[5..10], [1, 1, 12, 13, 14]);
    }

    #[test]
    fn a_borrower_reaches_nothing_but_its_columns() {
        let panics = |use_it: &dyn Fn(Lent)| {
            let (held, lent) = hold(vec![0u8; 15], Parts { input: 0..15, output: 0..15 });
            drop(held);
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| use_it(lent))).is_err()
        };
        let of =
            |lent: Lent, columns: Range<usize>| lent.cut(5, std::iter::once(columns)).remove(0);
        assert!(!panics(&|lent| _ = of(lent, 1..3).input(4..6)));
        assert!(panics(&|lent| _ = of(lent, 1..3).input(1..3)), "of two blocks");
        assert!(panics(&|lent| _ = of(lent, 1..3).input(6..7)), "of a fourth block");
        assert!(panics(&|lent| _ = of(lent, 1..1).input(0..1)), "it has nothing");
        assert!(panics(&|lent| _ = of(lent, 3..6)), "beyond the block");
        assert!(panics(&|lent| _ = lent.cut(5, [1..3, 2..4].into_iter())), "of another's");
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
