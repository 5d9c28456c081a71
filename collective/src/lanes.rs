//! All lanes of a rank, as its other threads see them: calls in stripes, flushes, goodbyes, the end.

use std::panic::Location;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::mpsc::UnboundedSender;

use crate::buffer::Lent;
use crate::contract;
use crate::error::Result;
use crate::group::{Begun, Planned};
use crate::lane::{self, Asked, Call, Command, Completer, Completion, Ending, completion_with};
use crate::link::Links;
use crate::machine::Machine;
use crate::plan::{Plan, Stripe};
use crate::world::{Goodbye, World};

/// The lanes' threads.
pub(crate) struct Lanes {
    inboxes: Inboxes,
    threads: Vec<JoinHandle<()>>,
}

/// Where the lanes take what is asked of them; one that has ended completes it with an error.
#[derive(Clone)]
pub(crate) struct Inboxes(Arc<[UnboundedSender<Command>]>);

/// A call, handed to the lanes: all of it to the first, or a stripe to each.
pub(crate) struct Handed {
    calls: Vec<Call>,
    group: u64,
    /// Of the lanes that have no stripe: where calls before it may not have ended, it ends after
    /// them there too.
    behind: Option<Completer>,
}

impl Lanes {
    /// Starts a thread for each of `links`, which are called on them, inside their runtimes.
    pub(crate) fn start<L>(world: &Arc<World>, links: impl IntoIterator<Item = L>) -> Result<Self>
    where
        L: FnOnce() -> Result<Links> + Send + 'static,
    {
        let lanes =
            (0..).zip(links).map(|(number, links)| lane::start(world.clone(), number, links));
        let (inboxes, threads): (Vec<_>, _) =
            lanes.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        Ok(Self { inboxes: Inboxes(inboxes.into()), threads })
    }

    pub(crate) fn inboxes(&self) -> &Inboxes {
        &self.inboxes
    }

    /// Says goodbye, drains and ends the threads; takes at most about a second.
    pub(crate) fn close(self) {
        self.inboxes.each(|| Command::Close);
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

impl Inboxes {
    pub(crate) fn run(&self, call: Handed) {
        let Handed { calls, group, behind } = call;
        if let Some(behind) = &behind {
            for inbox in self.0.iter().skip(calls.len()) {
                let _ = inbox.send(Command::Pass(group, behind.another()));
            }
        }
        for (inbox, call) in self.0.iter().zip(calls) {
            let _ = inbox.send(Command::Run(Box::new(call)));
        }
        if let Some(behind) = behind {
            behind.set(Ok(()));
        }
    }

    /// Completes this once no lane has a call of the communicator.
    pub(crate) fn flush(&self, group: u64, done: Completer) {
        for inbox in self.0.iter().skip(1) {
            let _ = inbox.send(Command::Flush(group, done.another()));
        }
        if let Some(first) = self.0.first() {
            let _ = first.send(Command::Flush(group, done));
        }
    }

    /// Says goodbye on the flows of these communicators.
    pub(crate) fn say_goodbye(&self, goodbyes: &[Goodbye]) {
        self.each(|| Command::Goodbye(goodbyes.to_vec()));
    }

    /// There is a verdict.
    pub(crate) fn abort(&self) {
        self.each(|| Command::Abort);
    }

    fn each(&self, command: impl Fn() -> Command) {
        for inbox in self.0.iter() {
            let _ = inbox.send(command());
        }
    }
}

impl Handed {
    /// A call as it was begun, made at `location`, and the end that waits for it. `is_whole`: its
    /// end is that of the communicator's call; else the ranks of the host go on with it.
    pub(crate) fn new(
        world: &Arc<World>,
        planned: Planned,
        location: &Location<'_>,
        lent: Lent,
        is_whole: bool,
    ) -> (Self, Completion) {
        let Planned { begun: Begun { is_alone, contract, hash }, plan, members } = planned;
        let element_bytes = contract.element.size();
        let segment = world.choice.costs.segment_elements(element_bytes as u32);
        let (group, algorithm) = (contract.group, plan.algorithm());
        let key = contract.key(algorithm);
        let ending = is_whole.then(|| Ending { world: world.clone(), group, key });
        let (done, completion) = completion_with(ending);
        let location = contract::show_location(location);
        let has_others = plan.stripes().len().max(1) < usize::from(world.choice.lanes);
        let behind = (is_whole && !is_alone && has_others).then(|| done.another());
        let call = |plan: Plan, lent: Lent, done: Completer, location: String| {
            let (machine, members) = (Machine::new(plan, segment), members.clone());
            Call { contract, location, hash, members, algorithm, machine, lent, done }
        };
        let Some(Stripe { block, .. }) = plan.stripes().first() else {
            let calls = vec![call(plan, lent, done, location)];
            return (Self { calls, group, behind }, completion);
        };
        let bytes = |elements: u64| elements as usize * element_bytes;
        let columns = plan.stripes().iter().map(|s| bytes(s.own.start)..bytes(s.own.end));
        let parts = plan.stripes().iter().zip(lent.cut(bytes(*block), columns));
        let calls = parts
            .map(|(s, lent)| call(s.plan.clone(), lent, done.another(), location.clone()))
            .collect();
        // From here on the call has the stripes' parts only.
        done.set(Ok(()));
        (Self { calls, group, behind }, completion)
    }

    /// Whom to ask whether somebody waits for it.
    pub(crate) fn asked(&self) -> Option<Asked> {
        self.calls.first().map(|call| call.done.asked())
    }
}
