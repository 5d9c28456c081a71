//! The collectives, as a user sees them. What each does with its arguments stands in `caller.rs`.

use std::panic::Location;

use crate::communicator::{Communicator, Labelled};
#[cfg(doc)]
use crate::error::ErrorKind;
use crate::error::Result;
use crate::owned::Owned;
use crate::pending::Pending;
use crate::reduce::{Element, ReduceOp, Reducible};

/// Writes the collectives for a type that has `caller`.
macro_rules! collectives {
    ($($type:ty),*) => { $(
impl $type {
    /// Every rank's buffer becomes the combination of all ranks' buffers, bit-identical on all.
    ///
    /// All ranks give the same number of elements, of the same type; it may be 0, and it need not
    /// divide by the number of ranks. What is added to what first depends only on the number of
    /// ranks, the length and the algorithm (`docs/algorithms.md`), so a call gives the same bits
    /// each time; see [`ReduceOp`] for each operation.
    ///
    /// # Errors
    /// [`ErrorKind::Mismatch`] if the ranks' calls differ, [`ErrorKind::RankLost`] if a rank is
    /// gone; see [`ErrorKind`].
    #[track_caller]
    pub fn all_reduce<T: Reducible>(&self, buffer: &mut [T], op: ReduceOp) -> Result<()> {
        self.caller(Location::caller()).all_reduce(buffer, op)
    }

    /// As [`all_reduce`](Self::all_reduce), with the result in `output`, as long as `input`.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`] if the lengths differ; else as there.
    #[track_caller]
    pub fn all_reduce_into<T: Reducible>(
        &self,
        input: &[T],
        output: &mut [T],
        op: ReduceOp,
    ) -> Result<()> {
        self.caller(Location::caller()).all_reduce_into(input, output, op)
    }

    /// Starts an [`all_reduce`](Self::all_reduce) of a buffer that it takes in: a vector, or one of
    /// [`alloc`](Communicator::alloc).
    ///
    /// # Errors
    /// As there, from here or from [`Pending::wait`].
    #[track_caller]
    pub fn start_all_reduce<B: Owned<Element: Reducible>>(
        &self,
        buffer: B,
        op: ReduceOp,
    ) -> Result<Pending<B>> {
        self.caller(Location::caller()).start_all_reduce(buffer, op)
    }

    /// Combines the ranks' inputs and leaves each rank with its part: `input` has one block for
    /// each rank, and `output` becomes this rank's block of the combination.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`] if `input` is not world size times as long as `output`; else as
    /// [`all_reduce`](Self::all_reduce).
    #[track_caller]
    pub fn reduce_scatter<T: Reducible>(
        &self,
        input: &[T],
        output: &mut [T],
        op: ReduceOp,
    ) -> Result<()> {
        self.caller(Location::caller()).reduce_scatter(input, output, op)
    }

    /// As [`reduce_scatter`](Self::reduce_scatter), with the result in the rank's own block of the
    /// buffer; the other blocks stay as they are.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`] if the length does not divide by the number of ranks; else as there.
    #[track_caller]
    pub fn reduce_scatter_in_place<T: Reducible>(
        &self,
        buffer: &mut [T],
        op: ReduceOp,
    ) -> Result<()> {
        self.caller(Location::caller()).reduce_scatter_in_place(buffer, op)
    }

    /// Starts a [`reduce_scatter_in_place`](Self::reduce_scatter_in_place) of a vector.
    ///
    /// # Errors
    /// As there, from here or from [`Pending::wait`].
    #[track_caller]
    pub fn start_reduce_scatter<B: Owned<Element: Reducible>>(
        &self,
        buffer: B,
        op: ReduceOp,
    ) -> Result<Pending<B>> {
        self.caller(Location::caller()).start_reduce_scatter(buffer, op)
    }

    /// Every rank gets every rank's input: `output` becomes all of them in rank order.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`] if `output` is not world size times as long as `input`; else as
    /// [`all_reduce`](Self::all_reduce).
    #[track_caller]
    pub fn all_gather<T: Element>(&self, input: &[T], output: &mut [T]) -> Result<()> {
        self.caller(Location::caller()).all_gather(input, output)
    }

    /// As [`all_gather`](Self::all_gather), where each rank's input stands in its own block of the
    /// buffer already.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`] if the length does not divide by the number of ranks; else as there.
    #[track_caller]
    pub fn all_gather_in_place<T: Element>(&self, buffer: &mut [T]) -> Result<()> {
        self.caller(Location::caller()).all_gather_in_place(buffer)
    }

    /// Starts an [`all_gather_in_place`](Self::all_gather_in_place) of a vector.
    ///
    /// # Errors
    /// As there, from here or from [`Pending::wait`].
    #[track_caller]
    pub fn start_all_gather<B: Owned>(&self, buffer: B) -> Result<Pending<B>> {
        self.caller(Location::caller()).start_all_gather(buffer)
    }

    /// As [`all_gather`](Self::all_gather), where rank r gives `counts[r]` elements. All ranks know
    /// all counts.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`] if there is not one count for each rank, or the lengths do not fit
    /// them; else as there.
    #[track_caller]
    pub fn all_gather_v<T: Element>(
        &self,
        input: &[T],
        output: &mut [T],
        counts: &[usize],
    ) -> Result<()> {
        self.caller(Location::caller()).all_gather_v(input, output, counts)
    }

    /// As [`all_gather_v`](Self::all_gather_v), where each rank's input stands in its place in the
    /// buffer already.
    ///
    /// # Errors
    /// As there.
    #[track_caller]
    pub fn all_gather_v_in_place<T: Element>(
        &self,
        buffer: &mut [T],
        counts: &[usize],
    ) -> Result<()> {
        self.caller(Location::caller()).all_gather_v_in_place(buffer, counts)
    }

    /// Starts an [`all_gather_v_in_place`](Self::all_gather_v_in_place) of a vector.
    ///
    /// # Errors
    /// As there, from here or from [`Pending::wait`].
    #[track_caller]
    pub fn start_all_gather_v<B: Owned>(
        &self,
        buffer: B,
        counts: &[usize],
    ) -> Result<Pending<B>> {
        self.caller(Location::caller()).start_all_gather_v(buffer, counts)
    }

    /// Every rank's buffer becomes the buffer of rank `root`.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`] if there is no rank `root`; else as
    /// [`all_reduce`](Self::all_reduce). The root, and ranks near it, may return before the
    /// others have made the call.
    #[track_caller]
    pub fn broadcast<T: Element>(&self, buffer: &mut [T], root: usize) -> Result<()> {
        self.caller(Location::caller()).broadcast(buffer, root)
    }

    /// Every rank's `output`, the root's included, becomes the root's `input`; the other ranks'
    /// `input` is not read and may be empty.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`] if the root's lengths differ; else as
    /// [`broadcast`](Self::broadcast).
    #[track_caller]
    pub fn broadcast_into<T: Element>(
        &self,
        input: &[T],
        output: &mut [T],
        root: usize,
    ) -> Result<()> {
        self.caller(Location::caller()).broadcast_into(input, output, root)
    }

    /// Starts a [`broadcast`](Self::broadcast) of a vector.
    ///
    /// # Errors
    /// As there, from here or from [`Pending::wait`].
    #[track_caller]
    pub fn start_broadcast<B: Owned>(&self, buffer: B, root: usize) -> Result<Pending<B>> {
        self.caller(Location::caller()).start_broadcast(buffer, root)
    }

    /// The buffer of rank `root` becomes the combination of all ranks' buffers; the others stay as
    /// they are.
    ///
    /// # Errors
    /// As [`broadcast`](Self::broadcast). Ranks far from the root may return before the others have
    /// made the call.
    #[track_caller]
    pub fn reduce<T: Reducible>(&self, buffer: &mut [T], op: ReduceOp, root: usize) -> Result<()> {
        self.caller(Location::caller()).reduce(buffer, op, root)
    }

    /// As [`reduce`](Self::reduce), with the result in the root's `output`; the other ranks'
    /// `output` is not written and may be empty.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`] if the root's lengths differ; else as there.
    #[track_caller]
    pub fn reduce_into<T: Reducible>(
        &self,
        input: &[T],
        output: &mut [T],
        op: ReduceOp,
        root: usize,
    ) -> Result<()> {
        self.caller(Location::caller()).reduce_into(input, output, op, root)
    }

    /// Starts a [`reduce`](Self::reduce) of a vector.
    ///
    /// # Errors
    /// As there, from here or from [`Pending::wait`].
    #[track_caller]
    pub fn start_reduce<B: Owned<Element: Reducible>>(
        &self,
        buffer: B,
        op: ReduceOp,
        root: usize,
    ) -> Result<Pending<B>> {
        self.caller(Location::caller()).start_reduce(buffer, op, root)
    }

    /// The root's `output` becomes all ranks' inputs in rank order; the other ranks' `output` is
    /// not written and may be empty.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`] if the root's `output` is not world size times as long as `input`;
    /// else as [`reduce`](Self::reduce).
    #[track_caller]
    pub fn gather<T: Element>(&self, input: &[T], output: &mut [T], root: usize) -> Result<()> {
        self.caller(Location::caller()).gather(input, output, root)
    }

    /// As [`gather`](Self::gather): on the root the buffer has one block for each rank, its own
    /// filled in; on the others it is the input.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`] if the root's length does not divide by the number of ranks; else as
    /// there.
    #[track_caller]
    pub fn gather_in_place<T: Element>(&self, buffer: &mut [T], root: usize) -> Result<()> {
        self.caller(Location::caller()).gather_in_place(buffer, root)
    }

    /// Starts a [`gather_in_place`](Self::gather_in_place) of a vector.
    ///
    /// # Errors
    /// As there, from here or from [`Pending::wait`].
    #[track_caller]
    pub fn start_gather<B: Owned>(&self, buffer: B, root: usize) -> Result<Pending<B>> {
        self.caller(Location::caller()).start_gather(buffer, root)
    }

    /// Every rank's `output` becomes its block of the root's `input`; the other ranks' `input` is
    /// not read and may be empty.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`] if the root's `input` is not world size times as long as `output`;
    /// else as [`broadcast`](Self::broadcast).
    #[track_caller]
    pub fn scatter<T: Element>(&self, input: &[T], output: &mut [T], root: usize) -> Result<()> {
        self.caller(Location::caller()).scatter(input, output, root)
    }

    /// As [`scatter`](Self::scatter): on the root the buffer has one block for each rank and stays
    /// as it is; on the others it becomes their block.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`] if the root's length does not divide by the number of ranks; else as
    /// there.
    #[track_caller]
    pub fn scatter_in_place<T: Element>(&self, buffer: &mut [T], root: usize) -> Result<()> {
        self.caller(Location::caller()).scatter_in_place(buffer, root)
    }

    /// Starts a [`scatter_in_place`](Self::scatter_in_place) of a vector.
    ///
    /// # Errors
    /// As there, from here or from [`Pending::wait`].
    #[track_caller]
    pub fn start_scatter<B: Owned>(&self, buffer: B, root: usize) -> Result<Pending<B>> {
        self.caller(Location::caller()).start_scatter(buffer, root)
    }

    /// Every rank sends a block to every rank: block r of `input` goes to rank r, and block r of
    /// `output` comes from there.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`] if the lengths differ or do not divide by the number of ranks; else
    /// as [`all_reduce`](Self::all_reduce).
    #[track_caller]
    pub fn all_to_all<T: Element>(&self, input: &[T], output: &mut [T]) -> Result<()> {
        self.caller(Location::caller()).all_to_all(input, output)
    }

    /// As [`all_to_all`](Self::all_to_all) within one buffer.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`] if the length does not divide by the number of ranks; else as there.
    #[track_caller]
    pub fn all_to_all_in_place<T: Element>(&self, buffer: &mut [T]) -> Result<()> {
        self.caller(Location::caller()).all_to_all_in_place(buffer)
    }

    /// Starts an [`all_to_all_in_place`](Self::all_to_all_in_place) of a vector.
    ///
    /// # Errors
    /// As there, from here or from [`Pending::wait`].
    #[track_caller]
    pub fn start_all_to_all<B: Owned>(&self, buffer: B) -> Result<Pending<B>> {
        self.caller(Location::caller()).start_all_to_all(buffer)
    }

    /// Returns once every rank has called it.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce).
    #[track_caller]
    pub fn barrier(&self) -> Result<()> {
        self.caller(Location::caller()).barrier()
    }

    /// Starts a [`barrier`](Self::barrier): its end, with an empty vector, says that every rank has
    /// started it.
    ///
    /// # Errors
    /// As there, from here or from [`Pending::wait`].
    #[track_caller]
    pub fn start_barrier(&self) -> Result<Pending<()>> {
        self.caller(Location::caller()).start_barrier()
    }

    /// Sends `input` to rank `to`, which receives it with [`recv`](Self::recv). Messages from one
    /// rank to another are matched in order, apart from all other calls; both sides give the same
    /// type and number of elements.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`] if there is no other rank `to`; [`ErrorKind::Mismatch`] if the
    /// receiver expects another message; else as [`all_reduce`](Self::all_reduce). May return
    /// before the receiver has made its call.
    #[track_caller]
    pub fn send<T: Element>(&self, input: &[T], to: usize) -> Result<()> {
        self.caller(Location::caller()).send(input, to)
    }

    /// Receives into `output` what rank `from` sends with [`send`](Self::send).
    ///
    /// # Errors
    /// As there.
    #[track_caller]
    pub fn recv<T: Element>(&self, output: &mut [T], from: usize) -> Result<()> {
        self.caller(Location::caller()).recv(output, from)
    }

    /// Sends to one rank and receives from another, or the same, at once: what ranks do that shift
    /// their data round a ring. Both to and from this rank itself it is a copy; only one of the two
    /// is an argument error.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    #[track_caller]
    pub fn send_recv<T: Element>(
        &self,
        input: &[T],
        to: usize,
        output: &mut [T],
        from: usize,
    ) -> Result<()> {
        self.caller(Location::caller()).send_recv(input, to, output, from)
    }

    /// Starts a [`send`](Self::send) of a vector.
    ///
    /// # Errors
    /// As there, from here or from [`Pending::wait`].
    #[track_caller]
    pub fn start_send<B: Owned>(&self, input: B, to: usize) -> Result<Pending<B>> {
        self.caller(Location::caller()).start_message(input, to, true)
    }

    /// Starts a [`recv`](Self::recv) that fills a vector.
    ///
    /// # Errors
    /// As there, from here or from [`Pending::wait`].
    #[track_caller]
    pub fn start_recv<B: Owned>(&self, output: B, from: usize) -> Result<Pending<B>> {
        self.caller(Location::caller()).start_message(output, from, false)
    }
}
    )* };
}
collectives!(Communicator, Labelled<'_>);
