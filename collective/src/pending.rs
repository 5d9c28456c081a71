//! Calls that were started and go on while the program does something else.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::buffer::Held;
use crate::error::Result;
use crate::lane::Completion;
use crate::world::World;

/// A call under way that owns its buffer; [`wait`](Self::wait) or `.await` gives it back.
///
/// Calls of one communicator end in the order in which they were started. A `Pending` that is
/// dropped or leaked leaves its call to the runtime, which makes it all the same, because the other
/// ranks need it; only the result is lost.
#[must_use = "the result is only in the buffer that `wait` or `.await` gives back"]
pub struct Pending<T> {
    call: Option<Started<T>>,
    done: Option<Vec<T>>,
}

struct Started<T> {
    world: Arc<World>,
    /// Communicator and sequence.
    number: (u64, u64),
    completion: Completion,
    held: Held<T>,
}

impl<T> Pending<T> {
    pub(crate) fn new(
        world: Arc<World>,
        number: (u64, u64),
        completion: Completion,
        held: Held<T>,
    ) -> Self {
        Self { call: Some(Started { world, number, completion, held }), done: None }
    }

    /// One that needed nothing done.
    pub(crate) fn done(buffer: Vec<T>) -> Self {
        Self { call: None, done: Some(buffer) }
    }

    /// Waits for the end of the call; gives the buffer back.
    ///
    /// # Errors
    /// As the blocking call; [`finish`](Self::finish) gives the buffer back also then.
    pub fn wait(self) -> Result<Vec<T>> {
        let (buffer, result) = self.finish();
        result.map(|()| buffer)
    }

    /// Waits for the end of the call; gives the buffer back, whose contents are unspecified after
    /// an error.
    pub fn finish(mut self) -> (Vec<T>, Result<()>) {
        match self.call.take() {
            Some(started) => {
                let result = {
                    let (group, sequence) = started.number;
                    let _waiting = started.world.waiting(group, sequence);
                    started.completion.wait()
                };
                started.conclude(result)
            }
            None => (self.done.take().unwrap_or_default(), Ok(())),
        }
    }

    /// Whether the call has ended, so that waiting takes no time.
    pub fn is_done(&self) -> bool {
        self.call.as_ref().is_none_or(|started| started.completion.is_done())
    }
}

impl<T> Future for Pending<T> {
    type Output = Result<Vec<T>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(started) = self.call.take() else {
            return Poll::Ready(Ok(self.done.take().unwrap_or_default()));
        };
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
impl<T> Unpin for Pending<T> {}

impl<T> Started<T> {
    fn conclude(self, result: Result<()>) -> (Vec<T>, Result<()>) {
        let result = self.world.conclude(result);
        (self.held.take(), result)
    }
}
