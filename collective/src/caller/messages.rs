//! Messages on their way from the user to the engine: from one rank to another.

use super::Caller;
use crate::communicator::Kind;
use crate::error::Result;
use crate::owned::Owned;
use crate::pending::Pending;
use crate::reduce::Element;

impl Caller<'_> {
    pub(crate) fn send<T: Element>(self, input: &[T], to: usize) -> Result<()> {
        let to = self.other_rank("send to", to)?;
        match &self.communicator.kind {
            Kind::Single => Ok(()),
            Kind::Joined(engine) => {
                engine.exchange(Some((to, input)), None, self.label, self.location)
            }
        }
    }

    pub(crate) fn recv<T: Element>(self, output: &mut [T], from: usize) -> Result<()> {
        let from = self.other_rank("recv from", from)?;
        match &self.communicator.kind {
            Kind::Single => Ok(()),
            Kind::Joined(engine) => {
                engine.exchange(None, Some((from, output)), self.label, self.location)
            }
        }
    }

    pub(crate) fn send_recv<T: Element>(
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

    pub(crate) fn start_message<B: Owned>(
        self,
        buffer: B,
        peer: usize,
        sends: bool,
    ) -> Result<Pending<B>> {
        let peer = self.other_rank(if sends { "send to" } else { "recv from" }, peer)?;
        match &self.communicator.kind {
            Kind::Single => Ok(Pending::done(buffer)),
            Kind::Joined(engine) => {
                engine.start_message((peer, sends), buffer, self.label, self.location)
            }
        }
    }
}
