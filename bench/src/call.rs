//! How each collective is called.

use std::mem;

use allfold::{Communicator, Pending, ReduceOp};

use crate::choices::Op;
use crate::collective::Collective;
use crate::element::Number;
use crate::layout::Place;

/// What is measured, apart from type and size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task {
    pub(crate) collective: Collective,
    /// None where nothing is combined.
    pub(crate) op: Option<Op>,
    /// None where all ranks are alike.
    pub(crate) root: Option<usize>,
}

/// The part of a rank's buffers that one call gets.
pub(crate) enum Buffers<'a, T> {
    OutOfPlace { input: &'a [T], output: &'a mut [T] },
    InPlace(&'a mut [T]),
}

/// What a call that is started owns.
#[derive(Default)]
pub(crate) struct Owned<T> {
    /// Of a message; other calls have their input in the output.
    pub(crate) input: Vec<T>,
    pub(crate) output: Vec<T>,
}

/// One who makes the calls: the library, or in tests a faulty one.
pub(crate) trait Caller {
    /// Makes one call. `counts` are those of every rank, where they differ.
    fn call<T: Number>(
        &self,
        world: &Communicator,
        task: Task,
        counts: &[usize],
        buffers: Buffers<'_, T>,
    ) -> allfold::Result<()>;

    /// Starts one call with each of the buffers, then waits for all.
    fn together<T: Number>(
        &self,
        world: &Communicator,
        task: Task,
        counts: &[usize],
        buffers: &mut [Owned<T>],
    ) -> allfold::Result<()> {
        if task.collective == Collective::Barrier {
            let started: allfold::Result<Vec<_>> =
                buffers.iter().map(|_| world.start_barrier()).collect();
            return started?.into_iter().try_for_each(|barrier| barrier.wait().map(drop));
        }
        if task.collective == Collective::SendRecv && world.size() == 1 {
            // A rank sends itself no message; `send_recv` copies.
            return buffers
                .iter_mut()
                .try_for_each(|Owned { input, output }| world.send_recv(input, 0, output, 0));
        }
        let mut pending = Vec::with_capacity(buffers.len());
        for Owned { input, output } in buffers.iter_mut() {
            let (input, output) = (mem::take(input), mem::take(output));
            pending.push(start(world, task, counts, input, output)?);
        }
        for ([sent, received], Owned { input, output }) in pending.into_iter().zip(buffers) {
            if let Some(sent) = sent {
                *input = sent.wait()?;
            }
            if let Some(received) = received {
                *output = received.wait()?;
            }
        }
        Ok(())
    }
}

/// allfold itself.
pub(crate) struct Library;

impl Task {
    /// A rank's place in its calls.
    pub(crate) fn place(self, world: &Communicator) -> Place {
        let root = self.root.unwrap_or_default();
        Place { rank: world.rank(), ranks: world.size(), root }
    }
}

impl Caller for Library {
    fn call<T: Number>(
        &self,
        world: &Communicator,
        task: Task,
        counts: &[usize],
        buffers: Buffers<'_, T>,
    ) -> allfold::Result<()> {
        let op = task.op.unwrap_or_default().into();
        let root = task.root.unwrap_or_default();
        match buffers {
            Buffers::OutOfPlace { input, output } => {
                out_of_place(world, task.collective, (op, root), counts, input, output)
            }
            Buffers::InPlace(buffer) => {
                in_place(world, task.collective, (op, root), counts, buffer)
            }
        }
    }
}

fn out_of_place<T: Number>(
    world: &Communicator,
    collective: Collective,
    (op, root): (ReduceOp, usize),
    counts: &[usize],
    input: &[T],
    output: &mut [T],
) -> allfold::Result<()> {
    match collective {
        Collective::AllReduce => world.all_reduce_into(input, output, op),
        Collective::AllGather => world.all_gather(input, output),
        Collective::ReduceScatter => world.reduce_scatter(input, output, op),
        Collective::Broadcast => world.broadcast_into(input, output, root),
        Collective::Reduce => world.reduce_into(input, output, op, root),
        Collective::AllToAll => world.all_to_all(input, output),
        Collective::Gather => world.gather(input, output, root),
        Collective::Scatter => world.scatter(input, output, root),
        Collective::SendRecv => {
            let (rank, ranks) = (world.rank(), world.size());
            world.send_recv(input, (rank + 1) % ranks, output, (rank + ranks - 1) % ranks)
        }
        Collective::AllGatherV => world.all_gather_v(input, output, counts),
        Collective::Barrier => world.barrier(),
    }
}

fn in_place<T: Number>(
    world: &Communicator,
    collective: Collective,
    (op, root): (ReduceOp, usize),
    counts: &[usize],
    buffer: &mut [T],
) -> allfold::Result<()> {
    match collective {
        Collective::AllReduce => world.all_reduce(buffer, op),
        Collective::AllGather => world.all_gather_in_place(buffer),
        Collective::ReduceScatter => world.reduce_scatter_in_place(buffer, op),
        Collective::Broadcast => world.broadcast(buffer, root),
        Collective::Reduce => world.reduce(buffer, op, root),
        Collective::AllToAll => world.all_to_all_in_place(buffer),
        Collective::Gather => world.gather_in_place(buffer, root),
        Collective::Scatter => world.scatter_in_place(buffer, root),
        // There is no such call: `Collective::halves`.
        Collective::SendRecv => Ok(()),
        Collective::AllGatherV => world.all_gather_v_in_place(buffer, counts),
        Collective::Barrier => world.barrier(),
    }
}

/// Starts one call; a message has two halves.
fn start<T: Number>(
    world: &Communicator,
    task: Task,
    counts: &[usize],
    input: Vec<T>,
    output: Vec<T>,
) -> allfold::Result<[Option<Pending<Vec<T>>>; 2]> {
    let op = task.op.unwrap_or_default().into();
    let root = task.root.unwrap_or_default();
    let (rank, ranks) = (world.rank(), world.size());
    let one = match task.collective {
        Collective::AllReduce => world.start_all_reduce(output, op)?,
        Collective::AllGather => world.start_all_gather(output)?,
        Collective::ReduceScatter => world.start_reduce_scatter(output, op)?,
        Collective::Broadcast => world.start_broadcast(output, root)?,
        Collective::Reduce => world.start_reduce(output, op, root)?,
        Collective::AllToAll => world.start_all_to_all(output)?,
        Collective::Gather => world.start_gather(output, root)?,
        Collective::Scatter => world.start_scatter(output, root)?,
        Collective::SendRecv => {
            let sent = world.start_send(input, (rank + 1) % ranks)?;
            let received = world.start_recv(output, (rank + ranks - 1) % ranks)?;
            return Ok([Some(sent), Some(received)]);
        }
        Collective::AllGatherV => world.start_all_gather_v(output, counts)?,
        // Not of this type: `together`.
        Collective::Barrier => return Ok([None, None]),
    };
    Ok([None, Some(one)])
}
