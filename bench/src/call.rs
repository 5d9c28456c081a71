//! How each collective is called.

use allfold::{Communicator, ReduceOp};

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
