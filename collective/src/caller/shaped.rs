//! A call with its numbers: what is local is copied, the rest goes to the engine.

use std::ops::Range;
use std::sync::Arc;

use super::Caller;
use crate::buffer::{Borrowed, Parts};
use crate::communicator::Kind;
use crate::contract::{CallShape, Collective, Role};
use crate::engine::Engine;
use crate::error::Result;
use crate::owned::Owned;
use crate::pending::Pending;
use crate::reduce::{Element, ReduceOp};

impl<'a> Caller<'a> {
    /// A call on whole buffers of one length.
    pub(crate) fn whole(
        self,
        collective: Collective,
        op: Option<ReduceOp>,
        length: usize,
    ) -> Shaped {
        let parts = Parts { input: 0..length, output: 0..length };
        Shaped { collective, role: Role::Data, op, count: length as u64, counts: None, parts }
    }

    /// A call on blocks of one length, in separate buffers.
    pub(crate) fn of_blocks(
        self,
        collective: Collective,
        op: Option<ReduceOp>,
        block: usize,
    ) -> Shaped {
        let parts = Parts { input: 0..0, output: 0..0 };
        Shaped { collective, role: Role::Data, op, count: block as u64, counts: None, parts }
    }

    pub(super) fn in_place<T: Element>(self, call: Shaped, buffer: &mut [T]) -> Result<()> {
        let parts = call.parts.clone();
        match self.engine() {
            None => Ok(()),
            Some(engine) => {
                let memory = Borrowed::in_place(buffer, parts);
                engine.call(&self.shape::<T>(call), memory).map(|_| ())
            }
        }
    }

    pub(super) fn into<T: Element>(
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
            Some(engine) => {
                engine.call(&self.shape::<T>(call), Borrowed::new(input, output)).map(|_| ())
            }
        }
    }

    pub(super) fn start<B: Owned>(self, call: Shaped, buffer: B) -> Result<Pending<B>> {
        let parts = call.parts.clone();
        match self.engine() {
            None => Ok(Pending::done(buffer)),
            Some(engine) => engine.start(&self.shape::<B::Element>(call), buffer, parts),
        }
    }

    pub(crate) fn engine(self) -> Option<&'a Engine> {
        match &self.communicator.kind {
            Kind::Single => None,
            Kind::Joined(engine) => Some(engine),
        }
    }

    pub(crate) fn shape<T: Element>(self, call: Shaped) -> CallShape {
        let Shaped { collective, role, op, count, counts, .. } = call;
        let (label, location) = (self.label, self.location);
        CallShape { collective, role, op, element: T::TYPE, count, counts, label, location }
    }
}

/// A call with its numbers.
pub(crate) struct Shaped {
    pub(super) collective: Collective,
    pub(crate) role: Role,
    pub(super) op: Option<ReduceOp>,
    pub(super) count: u64,
    pub(super) counts: Option<Arc<[u64]>>,
    /// In place: which parts of the one buffer are input and output.
    pub(super) parts: Parts,
}

/// What goes from input to output without the network.
pub(super) enum Copied {
    Nothing,
    /// All of it, where there is no other rank.
    OnlyAlone,
    /// The input to this part of the output.
    To(Range<usize>),
    /// This part of the input to the output.
    From(Range<usize>),
    /// The same part of both.
    Same(Range<usize>),
}
