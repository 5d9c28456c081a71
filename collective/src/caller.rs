//! A call on its way from the user to the engine: its arguments checked, what is local copied, and
//! the parts of the buffers named that a plan works on.

mod arguments;
mod messages;
mod shaped;

use std::panic::Location;
use std::sync::Arc;

use crate::buffer::{Borrowed, Parts};
use crate::communicator::Communicator;
use crate::contract::{Collective, Role};
use crate::error::Result;
use crate::owned::Owned;
use crate::pending::Pending;
use crate::reduce::{Element, ReduceOp, Reducible};

pub(crate) use arguments::argument;
use shaped::Copied;
pub(crate) use shaped::Shaped;

/// A communicator on which a call is made, with the call's label and place in the program.
#[derive(Clone, Copy)]
pub(crate) struct Caller<'a> {
    pub(crate) communicator: &'a Communicator,
    pub(crate) label: Option<u64>,
    pub(crate) location: &'static Location<'static>,
}

impl Caller<'_> {
    pub(crate) fn all_reduce<T: Reducible>(self, buffer: &mut [T], op: ReduceOp) -> Result<()> {
        let call = self.whole(Collective::AllReduce, Some(op), buffer.len());
        self.in_place(call, buffer)
    }

    pub(crate) fn start_all_reduce<B: Owned<Element: Reducible>>(
        self,
        mut buffer: B,
        op: ReduceOp,
    ) -> Result<Pending<B>> {
        let call = self.whole(Collective::AllReduce, Some(op), buffer.elements().len());
        self.start(call, buffer)
    }

    pub(crate) fn all_reduce_into<T: Reducible>(
        self,
        input: &[T],
        output: &mut [T],
        op: ReduceOp,
    ) -> Result<()> {
        self.same_length("all_reduce", input.len(), output.len())?;
        let call = self.whole(Collective::AllReduce, Some(op), input.len());
        self.into(call, input, output, Copied::OnlyAlone)
    }

    pub(crate) fn reduce_scatter<T: Reducible>(
        self,
        input: &[T],
        output: &mut [T],
        op: ReduceOp,
    ) -> Result<()> {
        self.blocks("reduce_scatter", "input", input.len(), "output", output.len())?;
        let call = self.of_blocks(Collective::ReduceScatter, Some(op), output.len());
        self.into(call, input, output, Copied::OnlyAlone)
    }

    pub(crate) fn reduce_scatter_in_place<T: Reducible>(
        self,
        buffer: &mut [T],
        op: ReduceOp,
    ) -> Result<()> {
        let call = self.reduce_scatter_call(buffer.len(), op)?;
        self.in_place(call, buffer)
    }

    pub(crate) fn start_reduce_scatter<B: Owned<Element: Reducible>>(
        self,
        mut buffer: B,
        op: ReduceOp,
    ) -> Result<Pending<B>> {
        let call = self.reduce_scatter_call(buffer.elements().len(), op)?;
        self.start(call, buffer)
    }

    fn reduce_scatter_call(self, length: usize, op: ReduceOp) -> Result<Shaped> {
        let block = self.block("reduce_scatter", length)?;
        let mut call = self.of_blocks(Collective::ReduceScatter, Some(op), block);
        call.parts = Parts { input: 0..length, output: self.own(block) };
        Ok(call)
    }

    pub(crate) fn all_gather<T: Element>(self, input: &[T], output: &mut [T]) -> Result<()> {
        self.blocks("all_gather", "output", output.len(), "input", input.len())?;
        let call = self.of_blocks(Collective::AllGather, None, input.len());
        self.into(call, input, output, Copied::To(self.own(input.len())))
    }

    pub(crate) fn all_gather_in_place<T: Element>(self, buffer: &mut [T]) -> Result<()> {
        let call = self.all_gather_call(buffer.len())?;
        self.in_place(call, buffer)
    }

    pub(crate) fn start_all_gather<B: Owned>(self, mut buffer: B) -> Result<Pending<B>> {
        let call = self.all_gather_call(buffer.elements().len())?;
        self.start(call, buffer)
    }

    fn all_gather_call(self, length: usize) -> Result<Shaped> {
        let block = self.block("all_gather", length)?;
        let mut call = self.of_blocks(Collective::AllGather, None, block);
        call.parts = Parts { input: self.own(block), output: 0..length };
        Ok(call)
    }

    pub(crate) fn all_gather_v<T: Element>(
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

    pub(crate) fn all_gather_v_in_place<T: Element>(
        self,
        buffer: &mut [T],
        counts: &[usize],
    ) -> Result<()> {
        let call = self.all_gather_v_call(buffer.len(), counts)?;
        self.in_place(call, buffer)
    }

    pub(crate) fn start_all_gather_v<B: Owned>(
        self,
        mut buffer: B,
        counts: &[usize],
    ) -> Result<Pending<B>> {
        let call = self.all_gather_v_call(buffer.elements().len(), counts)?;
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
            role: Role::Data,
            op: None,
            count: total as u64,
            counts: Some(Arc::from(ends)),
            parts: Parts { input: own, output: 0..length },
        })
    }

    pub(crate) fn broadcast<T: Element>(self, buffer: &mut [T], root: usize) -> Result<()> {
        let call = self.broadcast_call(buffer.len(), root)?;
        self.in_place(call, buffer)
    }

    pub(crate) fn start_broadcast<B: Owned>(
        self,
        mut buffer: B,
        root: usize,
    ) -> Result<Pending<B>> {
        let call = self.broadcast_call(buffer.elements().len(), root)?;
        self.start(call, buffer)
    }

    pub(crate) fn broadcast_into<T: Element>(
        self,
        input: &[T],
        output: &mut [T],
        root: usize,
    ) -> Result<()> {
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

    pub(crate) fn reduce<T: Reducible>(
        self,
        buffer: &mut [T],
        op: ReduceOp,
        root: usize,
    ) -> Result<()> {
        let call = self.reduce_call(buffer.len(), op, root)?;
        self.in_place(call, buffer)
    }

    pub(crate) fn start_reduce<B: Owned<Element: Reducible>>(
        self,
        mut buffer: B,
        op: ReduceOp,
        root: usize,
    ) -> Result<Pending<B>> {
        let call = self.reduce_call(buffer.elements().len(), op, root)?;
        self.start(call, buffer)
    }

    pub(crate) fn reduce_into<T: Reducible>(
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

    pub(crate) fn gather<T: Element>(
        self,
        input: &[T],
        output: &mut [T],
        root: usize,
    ) -> Result<()> {
        let wire_root = self.rank_of("gather to", root)?;
        let call = self.of_blocks(Collective::Gather { root: wire_root }, None, input.len());
        if root == self.communicator.rank() {
            self.blocks("gather", "output", output.len(), "input", input.len())?;
            return self.into(call, input, output, Copied::To(self.own(input.len())));
        }
        self.into(call, input, &mut [], Copied::Nothing)
    }

    pub(crate) fn gather_in_place<T: Element>(self, buffer: &mut [T], root: usize) -> Result<()> {
        let call = self.gather_call(buffer.len(), root)?;
        self.in_place(call, buffer)
    }

    pub(crate) fn start_gather<B: Owned>(self, mut buffer: B, root: usize) -> Result<Pending<B>> {
        let call = self.gather_call(buffer.elements().len(), root)?;
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

    pub(crate) fn scatter<T: Element>(
        self,
        input: &[T],
        output: &mut [T],
        root: usize,
    ) -> Result<()> {
        let wire_root = self.rank_of("scatter from", root)?;
        let block = output.len();
        let call = self.of_blocks(Collective::Scatter { root: wire_root }, None, block);
        if root == self.communicator.rank() {
            self.blocks("scatter", "input", input.len(), "output", block)?;
            return self.into(call, input, output, Copied::From(self.own(block)));
        }
        self.into(call, &[], output, Copied::Nothing)
    }

    pub(crate) fn scatter_in_place<T: Element>(self, buffer: &mut [T], root: usize) -> Result<()> {
        let call = self.scatter_call(buffer.len(), root)?;
        self.in_place(call, buffer)
    }

    pub(crate) fn start_scatter<B: Owned>(self, mut buffer: B, root: usize) -> Result<Pending<B>> {
        let call = self.scatter_call(buffer.elements().len(), root)?;
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

    pub(crate) fn all_to_all<T: Element>(self, input: &[T], output: &mut [T]) -> Result<()> {
        self.same_length("all_to_all", input.len(), output.len())?;
        let block = self.block("all_to_all", input.len())?;
        let call = self.of_blocks(Collective::AllToAll, None, block);
        self.into(call, input, output, Copied::Same(self.own(block)))
    }

    pub(crate) fn all_to_all_in_place<T: Element>(self, buffer: &mut [T]) -> Result<()> {
        let call = self.all_to_all_call(buffer.len())?;
        self.in_place(call, buffer)
    }

    pub(crate) fn start_all_to_all<B: Owned>(self, mut buffer: B) -> Result<Pending<B>> {
        let call = self.all_to_all_call(buffer.elements().len())?;
        self.start(call, buffer)
    }

    fn all_to_all_call(self, length: usize) -> Result<Shaped> {
        let block = self.block("all_to_all", length)?;
        let mut call = self.of_blocks(Collective::AllToAll, None, block);
        call.parts = Parts { input: 0..length, output: 0..length };
        Ok(call)
    }

    pub(crate) fn barrier(self) -> Result<()> {
        let call = self.whole(Collective::Barrier, None, 0);
        self.in_place::<u8>(call, &mut [])
    }

    pub(crate) fn start_barrier(self) -> Result<Pending<()>> {
        let call = self.whole(Collective::Barrier, None, 0);
        self.start(call, ())
    }

    /// What every rank gave, in rank order; a collective of its own, for `split` and the like.
    /// The number of that call.
    pub(crate) fn gather_as<T: Element>(self, role: Role, buffer: &mut [T]) -> Result<u64> {
        let mut call = self.all_gather_call(buffer.len())?;
        call.role = role;
        let parts = call.parts.clone();
        let Some(engine) = self.engine() else { return Ok(0) };
        engine.call(&self.shape::<T>(call), Borrowed::in_place(buffer, parts))
    }

    /// As [`gather_as`](Self::gather_as), what rank 0 gave.
    #[cfg(feature = "nccl")]
    pub(crate) fn broadcast_as<T: Element>(self, role: Role, buffer: &mut [T]) -> Result<()> {
        let mut call = self.broadcast_call(buffer.len(), 0)?;
        call.role = role;
        self.in_place(call, buffer)
    }
}
