//! The collectives: their arguments, checked, and which parts of the buffers a plan works on.

use std::panic::Location;
use std::sync::Arc;

use crate::buffer::{self, Parts};
use crate::communicator::{Communicator, Kind, Labelled};
use crate::contract::{CallShape, Collective};
use crate::engine::Engine;
use crate::error::{ErrorKind, Result};
use crate::pending::Pending;
use crate::reduce::{Element, ReduceOp, Reducible};

/// A communicator on which a call is made, with the call's label and place in the program.
#[derive(Clone, Copy)]
pub(crate) struct Caller<'a> {
    pub(crate) communicator: &'a Communicator,
    pub(crate) label: Option<u64>,
    pub(crate) location: &'static Location<'static>,
}

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

    /// Starts an [`all_reduce`](Self::all_reduce) of a vector.
    ///
    /// # Errors
    /// As there, from here or from [`Pending::wait`].
    #[track_caller]
    pub fn start_all_reduce<T: Reducible>(
        &self,
        buffer: Vec<T>,
        op: ReduceOp,
    ) -> Result<Pending<T>> {
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
    pub fn start_reduce_scatter<T: Reducible>(
        &self,
        buffer: Vec<T>,
        op: ReduceOp,
    ) -> Result<Pending<T>> {
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
    pub fn start_all_gather<T: Element>(&self, buffer: Vec<T>) -> Result<Pending<T>> {
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
    pub fn start_all_gather_v<T: Element>(
        &self,
        buffer: Vec<T>,
        counts: &[usize],
    ) -> Result<Pending<T>> {
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
    pub fn start_broadcast<T: Element>(&self, buffer: Vec<T>, root: usize) -> Result<Pending<T>> {
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
    pub fn start_reduce<T: Reducible>(
        &self,
        buffer: Vec<T>,
        op: ReduceOp,
        root: usize,
    ) -> Result<Pending<T>> {
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
    pub fn start_gather<T: Element>(&self, buffer: Vec<T>, root: usize) -> Result<Pending<T>> {
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
    pub fn start_scatter<T: Element>(&self, buffer: Vec<T>, root: usize) -> Result<Pending<T>> {
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
    pub fn start_all_to_all<T: Element>(&self, buffer: Vec<T>) -> Result<Pending<T>> {
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

    /// Starts a [`barrier`](Self::barrier): its end says that every rank has started it.
    ///
    /// # Errors
    /// As there, from here or from [`Pending::wait`].
    #[track_caller]
    pub fn start_barrier(&self) -> Result<Pending<u8>> {
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
    /// their data round a ring. To and from this rank itself it is a copy.
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
    pub fn start_send<T: Element>(&self, input: Vec<T>, to: usize) -> Result<Pending<T>> {
        self.caller(Location::caller()).start_message(input, to, true)
    }

    /// Starts a [`recv`](Self::recv) that fills a vector.
    ///
    /// # Errors
    /// As there, from here or from [`Pending::wait`].
    #[track_caller]
    pub fn start_recv<T: Element>(&self, output: Vec<T>, from: usize) -> Result<Pending<T>> {
        self.caller(Location::caller()).start_message(output, from, false)
    }
}
    )* };
}
collectives!(Communicator, Labelled<'_>);

impl<'a> Caller<'a> {
    fn all_reduce<T: Reducible>(self, buffer: &mut [T], op: ReduceOp) -> Result<()> {
        let call = self.whole(Collective::AllReduce, Some(op), buffer.len());
        self.in_place(call, buffer)
    }

    fn start_all_reduce<T: Reducible>(self, buffer: Vec<T>, op: ReduceOp) -> Result<Pending<T>> {
        let call = self.whole(Collective::AllReduce, Some(op), buffer.len());
        self.start(call, buffer)
    }

    fn all_reduce_into<T: Reducible>(
        self,
        input: &[T],
        output: &mut [T],
        op: ReduceOp,
    ) -> Result<()> {
        self.same_length("all_reduce", input.len(), output.len())?;
        let call = self.whole(Collective::AllReduce, Some(op), input.len());
        self.into(call, input, output, Copied::OnlyAlone)
    }

    fn reduce_scatter<T: Reducible>(
        self,
        input: &[T],
        output: &mut [T],
        op: ReduceOp,
    ) -> Result<()> {
        self.blocks("reduce_scatter", "input", input.len(), "output", output.len())?;
        let call = self.of_blocks(Collective::ReduceScatter, Some(op), output.len());
        self.into(call, input, output, Copied::OnlyAlone)
    }

    fn reduce_scatter_in_place<T: Reducible>(self, buffer: &mut [T], op: ReduceOp) -> Result<()> {
        let call = self.reduce_scatter_call(buffer.len(), op)?;
        self.in_place(call, buffer)
    }

    fn start_reduce_scatter<T: Reducible>(
        self,
        buffer: Vec<T>,
        op: ReduceOp,
    ) -> Result<Pending<T>> {
        let call = self.reduce_scatter_call(buffer.len(), op)?;
        self.start(call, buffer)
    }

    fn reduce_scatter_call(self, length: usize, op: ReduceOp) -> Result<Shaped> {
        let block = self.block("reduce_scatter", length)?;
        let mut call = self.of_blocks(Collective::ReduceScatter, Some(op), block);
        call.parts = Parts { input: 0..length, output: self.own(block) };
        Ok(call)
    }

    fn all_gather<T: Element>(self, input: &[T], output: &mut [T]) -> Result<()> {
        self.blocks("all_gather", "output", output.len(), "input", input.len())?;
        let call = self.of_blocks(Collective::AllGather, None, input.len());
        self.into(call, input, output, Copied::To(self.own(input.len())))
    }

    fn all_gather_in_place<T: Element>(self, buffer: &mut [T]) -> Result<()> {
        let call = self.all_gather_call(buffer.len())?;
        self.in_place(call, buffer)
    }

    fn start_all_gather<T: Element>(self, buffer: Vec<T>) -> Result<Pending<T>> {
        let call = self.all_gather_call(buffer.len())?;
        self.start(call, buffer)
    }

    fn all_gather_call(self, length: usize) -> Result<Shaped> {
        let block = self.block("all_gather", length)?;
        let mut call = self.of_blocks(Collective::AllGather, None, block);
        call.parts = Parts { input: self.own(block), output: 0..length };
        Ok(call)
    }

    fn all_gather_v<T: Element>(
        self,
        input: &[T],
        output: &mut [T],
        counts: &[usize],
    ) -> Result<()> {
        let call = self.all_gather_v_call(output.len(), counts)?;
        let own = call.parts.input.clone();
        if own.len() != input.len() {
            let (rank, count, given) = (self.communicator.rank(), own.len(), input.len());
            return argument(format!(
                "all_gather_v: the count of rank {rank} is {count}, but its input has {given} \
                 elements"
            ));
        }
        self.into(call, input, output, Copied::To(own))
    }

    fn all_gather_v_in_place<T: Element>(self, buffer: &mut [T], counts: &[usize]) -> Result<()> {
        let call = self.all_gather_v_call(buffer.len(), counts)?;
        self.in_place(call, buffer)
    }

    fn start_all_gather_v<T: Element>(
        self,
        buffer: Vec<T>,
        counts: &[usize],
    ) -> Result<Pending<T>> {
        let call = self.all_gather_v_call(buffer.len(), counts)?;
        self.start(call, buffer)
    }

    fn all_gather_v_call(self, length: usize, counts: &[usize]) -> Result<Shaped> {
        let size = self.communicator.size();
        if counts.len() != size {
            let given = counts.len();
            return argument(format!("all_gather_v: {given} counts for {size} ranks"));
        }
        let mut total = 0usize;
        let mut ends = Vec::with_capacity(size);
        for count in counts {
            // More than fits is more than the buffer has.
            total = total.saturating_add(*count);
            ends.push(total as u64);
        }
        if total != length {
            return argument(format!(
                "all_gather_v: the counts add up to {total}, but the buffer has {length} elements"
            ));
        }
        let rank = self.communicator.rank();
        let end = ends.get(rank).map_or(0, |end| *end as usize);
        let own = end - counts.get(rank).copied().unwrap_or(0)..end;
        Ok(Shaped {
            collective: Collective::AllGatherV,
            splits: false,
            op: None,
            count: total as u64,
            counts: Some(Arc::from(ends)),
            parts: Parts { input: own, output: 0..length },
        })
    }

    fn broadcast<T: Element>(self, buffer: &mut [T], root: usize) -> Result<()> {
        let call = self.broadcast_call(buffer.len(), root)?;
        self.in_place(call, buffer)
    }

    fn start_broadcast<T: Element>(self, buffer: Vec<T>, root: usize) -> Result<Pending<T>> {
        let call = self.broadcast_call(buffer.len(), root)?;
        self.start(call, buffer)
    }

    fn broadcast_into<T: Element>(self, input: &[T], output: &mut [T], root: usize) -> Result<()> {
        let call = self.broadcast_call(output.len(), root)?;
        if root == self.communicator.rank() {
            self.same_length("broadcast", input.len(), output.len())?;
            return self.into(call, input, output, Copied::To(0..output.len()));
        }
        self.in_place(call, output)
    }

    fn broadcast_call(self, length: usize, root: usize) -> Result<Shaped> {
        let root = self.rank_of("broadcast from", root)?;
        let mut call = self.whole(Collective::Broadcast { root }, None, length);
        call.parts.input = 0..0;
        Ok(call)
    }

    fn reduce<T: Reducible>(self, buffer: &mut [T], op: ReduceOp, root: usize) -> Result<()> {
        let call = self.reduce_call(buffer.len(), op, root)?;
        self.in_place(call, buffer)
    }

    fn start_reduce<T: Reducible>(
        self,
        buffer: Vec<T>,
        op: ReduceOp,
        root: usize,
    ) -> Result<Pending<T>> {
        let call = self.reduce_call(buffer.len(), op, root)?;
        self.start(call, buffer)
    }

    fn reduce_into<T: Reducible>(
        self,
        input: &[T],
        output: &mut [T],
        op: ReduceOp,
        root: usize,
    ) -> Result<()> {
        let call = self.reduce_call(input.len(), op, root)?;
        if root == self.communicator.rank() {
            self.same_length("reduce", input.len(), output.len())?;
            return self.into(call, input, output, Copied::OnlyAlone);
        }
        self.into(call, input, &mut [], Copied::Nothing)
    }

    fn reduce_call(self, length: usize, op: ReduceOp, root: usize) -> Result<Shaped> {
        let is_root = root == self.communicator.rank();
        let root = self.rank_of("reduce to", root)?;
        let mut call = self.whole(Collective::Reduce { root }, Some(op), length);
        call.parts.output = 0..if is_root { length } else { 0 };
        Ok(call)
    }

    fn gather<T: Element>(self, input: &[T], output: &mut [T], root: usize) -> Result<()> {
        let wire_root = self.rank_of("gather to", root)?;
        let call = self.of_blocks(Collective::Gather { root: wire_root }, None, input.len());
        if root == self.communicator.rank() {
            self.blocks("gather", "output", output.len(), "input", input.len())?;
            return self.into(call, input, output, Copied::To(self.own(input.len())));
        }
        self.into(call, input, &mut [], Copied::Nothing)
    }

    fn gather_in_place<T: Element>(self, buffer: &mut [T], root: usize) -> Result<()> {
        let call = self.gather_call(buffer.len(), root)?;
        self.in_place(call, buffer)
    }

    fn start_gather<T: Element>(self, buffer: Vec<T>, root: usize) -> Result<Pending<T>> {
        let call = self.gather_call(buffer.len(), root)?;
        self.start(call, buffer)
    }

    fn gather_call(self, length: usize, root: usize) -> Result<Shaped> {
        let wire_root = self.rank_of("gather to", root)?;
        let is_root = root == self.communicator.rank();
        let block = if is_root { self.block("gather", length)? } else { length };
        let mut call = self.of_blocks(Collective::Gather { root: wire_root }, None, block);
        call.parts = match is_root {
            true => Parts { input: self.own(block), output: 0..length },
            false => Parts { input: 0..length, output: 0..0 },
        };
        Ok(call)
    }

    fn scatter<T: Element>(self, input: &[T], output: &mut [T], root: usize) -> Result<()> {
        let wire_root = self.rank_of("scatter from", root)?;
        let block = output.len();
        let call = self.of_blocks(Collective::Scatter { root: wire_root }, None, block);
        if root == self.communicator.rank() {
            self.blocks("scatter", "input", input.len(), "output", block)?;
            return self.into(call, input, output, Copied::From(self.own(block)));
        }
        self.into(call, &[], output, Copied::Nothing)
    }

    fn scatter_in_place<T: Element>(self, buffer: &mut [T], root: usize) -> Result<()> {
        let call = self.scatter_call(buffer.len(), root)?;
        self.in_place(call, buffer)
    }

    fn start_scatter<T: Element>(self, buffer: Vec<T>, root: usize) -> Result<Pending<T>> {
        let call = self.scatter_call(buffer.len(), root)?;
        self.start(call, buffer)
    }

    fn scatter_call(self, length: usize, root: usize) -> Result<Shaped> {
        let wire_root = self.rank_of("scatter from", root)?;
        let is_root = root == self.communicator.rank();
        let block = if is_root { self.block("scatter", length)? } else { length };
        let mut call = self.of_blocks(Collective::Scatter { root: wire_root }, None, block);
        call.parts = match is_root {
            true => Parts { input: 0..length, output: self.own(block) },
            false => Parts { input: 0..0, output: 0..length },
        };
        Ok(call)
    }

    fn all_to_all<T: Element>(self, input: &[T], output: &mut [T]) -> Result<()> {
        self.same_length("all_to_all", input.len(), output.len())?;
        let block = self.block("all_to_all", input.len())?;
        let call = self.of_blocks(Collective::AllToAll, None, block);
        self.into(call, input, output, Copied::Same(self.own(block)))
    }

    fn all_to_all_in_place<T: Element>(self, buffer: &mut [T]) -> Result<()> {
        let call = self.all_to_all_call(buffer.len())?;
        self.in_place(call, buffer)
    }

    fn start_all_to_all<T: Element>(self, buffer: Vec<T>) -> Result<Pending<T>> {
        let call = self.all_to_all_call(buffer.len())?;
        self.start(call, buffer)
    }

    fn all_to_all_call(self, length: usize) -> Result<Shaped> {
        let block = self.block("all_to_all", length)?;
        let mut call = self.of_blocks(Collective::AllToAll, None, block);
        call.parts = Parts { input: 0..length, output: 0..length };
        Ok(call)
    }

    fn barrier(self) -> Result<()> {
        let call = self.whole(Collective::Barrier, None, 0);
        self.in_place::<u8>(call, &mut [])
    }

    fn start_barrier(self) -> Result<Pending<u8>> {
        let call = self.whole(Collective::Barrier, None, 0);
        self.start(call, Vec::new())
    }

    fn send<T: Element>(self, input: &[T], to: usize) -> Result<()> {
        let to = self.other_rank("send to", to)?;
        match &self.communicator.kind {
            Kind::Single => Ok(()),
            Kind::Joined(engine) => {
                engine.exchange(Some((to, input)), None, self.label, self.location)
            }
        }
    }

    fn recv<T: Element>(self, output: &mut [T], from: usize) -> Result<()> {
        let from = self.other_rank("recv from", from)?;
        match &self.communicator.kind {
            Kind::Single => Ok(()),
            Kind::Joined(engine) => {
                engine.exchange(None, Some((from, output)), self.label, self.location)
            }
        }
    }

    fn send_recv<T: Element>(
        self,
        input: &[T],
        to: usize,
        output: &mut [T],
        from: usize,
    ) -> Result<()> {
        let rank = self.communicator.rank();
        if to == rank && from == rank {
            self.same_length("send_recv", input.len(), output.len())?;
            output.copy_from_slice(input);
            return Ok(());
        }
        let (to, from) =
            (self.other_rank("send_recv to", to)?, self.other_rank("send_recv from", from)?);
        match &self.communicator.kind {
            Kind::Single => Ok(()),
            Kind::Joined(engine) => {
                engine.exchange(Some((to, input)), Some((from, output)), self.label, self.location)
            }
        }
    }

    fn start_message<T: Element>(
        self,
        buffer: Vec<T>,
        peer: usize,
        sends: bool,
    ) -> Result<Pending<T>> {
        let peer = self.other_rank(if sends { "send to" } else { "recv from" }, peer)?;
        match &self.communicator.kind {
            Kind::Single => Ok(Pending::done(buffer)),
            Kind::Joined(engine) => {
                engine.start_message((peer, sends), buffer, self.label, self.location)
            }
        }
    }

    /// What every rank gave, in rank order; a collective of its own, for `split`.
    pub(crate) fn gather_for_split(self, buffer: &mut [u64]) -> Result<()> {
        let mut call = self.all_gather_call(buffer.len())?;
        call.splits = true;
        self.in_place(call, buffer)
    }

    /// A call on whole buffers of one length.
    fn whole(self, collective: Collective, op: Option<ReduceOp>, length: usize) -> Shaped {
        let parts = Parts { input: 0..length, output: 0..length };
        Shaped { collective, splits: false, op, count: length as u64, counts: None, parts }
    }

    /// A call on blocks of one length, in separate buffers.
    fn of_blocks(self, collective: Collective, op: Option<ReduceOp>, block: usize) -> Shaped {
        let parts = Parts { input: 0..0, output: 0..0 };
        Shaped { collective, splits: false, op, count: block as u64, counts: None, parts }
    }

    fn in_place<T: Element>(self, call: Shaped, buffer: &mut [T]) -> Result<()> {
        let parts = call.parts.clone();
        match self.engine() {
            None => Ok(()),
            Some(engine) => {
                engine.call(&self.shape::<T>(call), buffer::lend_in_place(buffer, parts))
            }
        }
    }

    fn into<T: Element>(
        self,
        call: Shaped,
        input: &[T],
        output: &mut [T],
        copied: Copied,
    ) -> Result<()> {
        match copied {
            Copied::OnlyAlone if self.communicator.size() == 1 => output.copy_from_slice(input),
            Copied::OnlyAlone | Copied::Nothing => {}
            Copied::To(own) => output[own].copy_from_slice(input),
            Copied::From(own) => output.copy_from_slice(&input[own]),
            Copied::Same(own) => output[own.clone()].copy_from_slice(&input[own]),
        }
        match self.engine() {
            None => Ok(()),
            Some(engine) => engine.call(&self.shape::<T>(call), buffer::lend(input, output)),
        }
    }

    fn start<T: Element>(self, call: Shaped, buffer: Vec<T>) -> Result<Pending<T>> {
        let parts = call.parts.clone();
        match self.engine() {
            None => Ok(Pending::done(buffer)),
            Some(engine) => engine.start(&self.shape::<T>(call), buffer, parts),
        }
    }

    fn engine(self) -> Option<&'a Engine> {
        match &self.communicator.kind {
            Kind::Single => None,
            Kind::Joined(engine) => Some(engine),
        }
    }

    fn shape<T: Element>(self, call: Shaped) -> CallShape {
        let Shaped { collective, splits, op, count, counts, .. } = call;
        let (label, location) = (self.label, self.location);
        CallShape { collective, splits, op, element: T::TYPE, count, counts, label, location }
    }

    /// This rank's block.
    fn own(self, block: usize) -> std::ops::Range<usize> {
        let start = self.communicator.rank() * block;
        start..start + block
    }

    /// The length of one rank's block of `length` elements.
    fn block(self, what: &str, length: usize) -> Result<usize> {
        let size = self.communicator.size();
        if !length.is_multiple_of(size) {
            return argument(format!(
                "{what}: {length} elements cannot be dealt to {size} ranks in equal blocks"
            ));
        }
        Ok(length / size)
    }

    fn blocks(
        self,
        what: &str,
        long: &str,
        length: usize,
        short: &str,
        block: usize,
    ) -> Result<()> {
        let size = self.communicator.size();
        if block.checked_mul(size) != Some(length) {
            return argument(format!(
                "{what}: the {long} of {length} elements must be {size} times the {short} of \
                 {block}, once for each rank"
            ));
        }
        Ok(())
    }

    fn same_length(self, what: &str, input: usize, output: usize) -> Result<()> {
        if input != output {
            return argument(format!(
                "{what}: the input has {input} elements, the output {output}"
            ));
        }
        Ok(())
    }

    fn rank_of(self, what: &str, rank: usize) -> Result<u32> {
        let size = self.communicator.size();
        match u32::try_from(rank) {
            Ok(wire) if rank < size => Ok(wire),
            _ => argument(format!("{what} rank {rank}, but there are {size} ranks")),
        }
    }

    fn other_rank(self, what: &str, rank: usize) -> Result<u32> {
        let wire = self.rank_of(what, rank)?;
        if rank == self.communicator.rank() {
            return argument(format!("{what} rank {rank}, which is this rank itself"));
        }
        Ok(wire)
    }
}

/// A call with its numbers.
struct Shaped {
    collective: Collective,
    splits: bool,
    op: Option<ReduceOp>,
    count: u64,
    counts: Option<Arc<[u64]>>,
    /// In place: which parts of the one buffer are input and output.
    parts: Parts,
}

/// What goes from input to output without the network.
enum Copied {
    Nothing,
    /// All of it, where there is no other rank.
    OnlyAlone,
    /// The input to this part of the output.
    To(std::ops::Range<usize>),
    /// This part of the input to the output.
    From(std::ops::Range<usize>),
    /// The same part of both.
    Same(std::ops::Range<usize>),
}

fn argument<T>(problem: String) -> Result<T> {
    Err(ErrorKind::Argument { problem }.into())
}
