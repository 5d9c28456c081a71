//! Calls that were started and go on while the program does something else.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::buffer::Held;
use crate::error::{Error, ErrorKind, Result};
use crate::lane::Completion;
use crate::owned::Owned;
use crate::world::World;

/// A call under way that owns its buffer; [`wait`](Self::wait) or `.await` gives it back.
///
/// Collectives of one communicator end in the order in which they were started, and so do messages
/// between two ranks. Up to 1,024 may be outstanding on a communicator, and as many messages in each
/// direction between two ranks; beyond that starting one is an
/// [argument error](ErrorKind::Argument), which loses the buffer. A `Pending` that is
/// dropped or leaked leaves its call to the runtime, which makes it all the same, because the other
/// ranks need it; only the result is lost.
#[must_use = "the result is only in the buffer that `wait` or `.await` gives back"]
pub struct Pending<B> {
    call: Option<Started<B>>,
    done: Option<B>,
}

struct Started<B> {
    world: Arc<World>,
    /// Communicator and sequence.
    number: (u64, u64),
    completion: Completion,
    held: Held<B>,
    /// The process that started it: a fork has no lane that would end it.
    process: u32,
}

impl<B: Owned> Pending<B> {
    pub(crate) fn new(
        world: Arc<World>,
        number: (u64, u64),
        completion: Completion,
        held: Held<B>,
    ) -> Self {
        let process = std::process::id();
        Self { call: Some(Started { world, number, completion, held, process }), done: None }
    }

    /// One that needed nothing done.
    pub(crate) fn done(buffer: B) -> Self {
        Self { call: None, done: Some(buffer) }
    }

    /// Waits for the end of the call; gives the buffer back.
    ///
    /// # Errors
    /// As the blocking call; [`finish`](Self::finish) gives the buffer back also then.
    pub fn wait(self) -> Result<B> {
        let (buffer, result) = self.finish();
        result.map(|()| buffer)
    }

    /// Waits for the end of the call; gives the buffer back, whose contents are unspecified after
    /// an error.
    pub fn finish(mut self) -> (B, Result<()>) {
        match self.call.take() {
            Some(started) => {
                if let Err(error) = started.check_process() {
                    started.abandon();
                    return (B::default(), Err(error));
                }
                let result = {
                    let (group, sequence) = started.number;
                    let _waiting = started.world.note_waiting(group, sequence);
                    started.completion.wait()
                };
                started.conclude(result)
            }
            None => match self.done.take() {
                Some(buffer) => (buffer, Ok(())),
                None => (B::default(), Err(taken())),
            },
        }
    }

    /// Its communicator and sequence, until its result is taken.
    #[cfg(feature = "nccl")]
    pub(crate) fn number(&self) -> Option<(u64, u64)> {
        self.call.as_ref().map(|started| started.number)
    }

    /// Whether the call has ended, so that waiting takes no time.
    pub fn is_done(&self) -> bool {
        self.call.as_ref().is_none_or(|started| started.completion.is_done())
    }
}

impl<B: Owned> Future for Pending<B> {
    type Output = Result<B>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(started) = self.call.take() else {
            return Poll::Ready(self.done.take().ok_or_else(taken));
        };
        if let Err(error) = started.check_process() {
            started.abandon();
            return Poll::Ready(Err(error));
        }
        match started.completion.poll(context) {
            Poll::Ready(result) => {
                let (buffer, result) = started.conclude(result);
                Poll::Ready(result.map(|()| buffer))
            }
            Poll::Pending => {
                self.call = Some(started);
                Poll::Pending
            }
        }
    }
}

// The buffer lies behind a pointer; nothing here is pinned.
impl<B> Unpin for Pending<B> {}

impl<B: Owned> Started<B> {
    fn check_process(&self) -> Result<()> {
        let process = std::process::id();
        if process == self.process {
            return Ok(());
        }
        Err(ErrorKind::Forked { process, connected: self.process }.into())
    }

    /// In a fork the buffer is lent to a thread that is not there: nobody may free it.
    fn abandon(self) {
        std::mem::forget(self);
    }

    fn conclude(self, result: Result<()>) -> (B, Result<()>) {
        let result = self.world.conclude(result);
        (self.held.take(), result)
    }
}

/// The result was given out before.
fn taken() -> Error {
    let problem = "the result of this call has been taken already".to_string();
    ErrorKind::Argument { problem }.into()
}
