//! One training of `allfold train`: a rank's part, and what rank 0 says of it.

use std::cell::Cell;
use std::time::Duration;

use allfold::{Communicator, ReduceOp};

use crate::data::Data;
use crate::error::{Error, LastStep, Result};
use crate::options::{Options, Resume, WhenDone};
use crate::output::Output;
use crate::report::Report;
use crate::resume::LOCK_PATIENCE;
use crate::stop::Stop;
use crate::training::{Event, Outcome, Training};
use crate::watching::Scalars;

/// `allfold train`: trains on all ranks of `world`, and closes it; rank 0 prints. `data` is what
/// [`Options::check`] gave. A loss ends it: [`take_part`](crate::take_part) may outlive one.
///
/// # Errors
/// Options that cannot be used or differ between ranks, parameters that differ at the end,
/// [`Error::Stopped`] after a SIGTERM to any rank, [`Error::Unwritten`] where files could not be
/// written, allfold's own errors: one line each, with [`Error::help`] and [`Error::exit_code`].
pub fn run(options: &Options, data: Data, world: Communicator) -> Result<()> {
    // Until there is something to save.
    Stop::end_at_once()?;
    let trained = train(options, data, &world, &Round::default())?;
    trained.by_all.clone()?;
    world.close()?;
    let problems = trained.end(options)?;
    if options.when_done == Some(WhenDone::Wait) {
        let stop = Stop::install()?;
        Output::default().line(WAITING)?;
        stop.wait();
    }
    verdict(problems)
}

/// What this process knows of the trainings of its job, of which each loss begins another.
#[derive(Default)]
pub(crate) struct Round<'a> {
    /// Whether another process may have been this rank before, and its lock outlive it.
    pub(crate) succeeds: bool,
    /// Whether one before it has got as far as its first step: the checkpoints are this job's own.
    pub(crate) continues: bool,
    /// Whether this one has.
    pub(crate) has_begun: Cell<bool>,
    /// The last step that this one has taken, from 1; 0 before the first.
    pub(crate) step: Cell<usize>,
    /// What could not be written so far, in this one and those before it that a loss has ended.
    pub(crate) problems: Cell<usize>,
    /// Called as soon as it is trained to the end, before anything is said of that.
    pub(crate) done: Option<&'a dyn Fn()>,
}

/// A training that has ended well.
pub(crate) struct Trained {
    outcome: Outcome,
    /// What could not be written.
    problems: usize,
    /// Whether every rank is known to have got as far.
    pub(crate) by_all: allfold::Result<()>,
}

impl Trained {
    /// How many files could not be written, where it was trained to the end.
    ///
    /// # Errors
    /// [`Error::Stopped`] where it was not.
    pub(crate) fn end(self, options: &Options) -> Result<usize> {
        if self.outcome.test.is_some() {
            return Ok(self.problems);
        }
        let Outcome { steps: step, is_saved, .. } = self.outcome;
        let last = match is_saved {
            true => LastStep::Saved,
            false if options.checkpoint.is_some() => LastStep::Unwritten,
            false => LastStep::NotAsked,
        };
        Err(Error::Stopped { step, last })
    }
}

/// How a training that is complete ends.
pub(crate) fn verdict(problems: usize) -> Result<()> {
    match problems {
        0 => Ok(()),
        problems => Err(Error::Unwritten { problems }),
    }
}

/// Trains, to the end or until a rank is asked to stop.
pub(crate) fn train(
    options: &Options,
    data: Data,
    world: &Communicator,
    round: &Round<'_>,
) -> Result<Trained> {
    let mut report = (world.rank() == 0).then(|| Report::new(options.progress));
    // Rank 0 may be new, and the others know.
    let mut continues = [u64::from(round.continues)];
    world.all_reduce(&mut continues, ReduceOp::Max)?;
    let continues = continues == [1];
    let options = &mut options.clone();
    if continues {
        options.resume.get_or_insert(Resume::Auto);
    }
    let patience = if continues || round.succeeds { LOCK_PATIENCE } else { Duration::ZERO };
    let mut training = Training::within(patience, options, data, world)?;
    round.has_begun.set(true);
    let stop = Stop::install()?;
    training.stop_on(stop);
    let mut scalars = match &options.tensorboard {
        Some(folder) if world.rank() == 0 => {
            let from = training.resumed_from().or(continues.then_some(0));
            Some(Scalars::start(folder, from))
        }
        _ => None,
    };
    if scalars.is_some() {
        training.measure_norm();
    }
    if let Some(report) = &mut report {
        report.header(&training)?;
    }
    for skipped in training.resumed.iter().flat_map(|resumed| &resumed.skipped) {
        tracing::warn!("{skipped}");
    }
    for change in training.resumed.iter().flat_map(|resumed| &resumed.changes) {
        tracing::warn!("resume: {change}");
    }
    let problems_before = round.problems.get();
    let outcome = training.run(|event| {
        if let Event::Step(done) = &event {
            round.step.set(done.step);
        }
        let mut events = vec![event];
        if let Some(scalars) = &mut scalars {
            scalars.event(&events[0]);
            events.extend(scalars.problems().into_iter().map(Event::Problem));
        }
        let problems = events.iter().filter(|event| matches!(event, Event::Problem(_))).count();
        round.problems.set(round.problems.get() + problems);
        match &mut report {
            Some(report) => events.iter().try_for_each(|event| report.event(event)),
            None => Ok(()),
        }
    })?;
    if let Some(done) = round.done.filter(|_| outcome.test.is_some()) {
        done();
    }
    let unwritten = scalars.as_mut().map_or(0, Scalars::finish);
    if let (Some(report), Some(scalars)) = (&mut report, &mut scalars) {
        scalars.problems().into_iter().map(Event::Problem).try_for_each(|it| report.event(&it))?;
    }
    if let Some(report) = &mut report {
        report.end(&outcome)?;
    }
    let problems = problems_before + outcome.problems + unwritten;
    // A broadcast ends on rank 0 before the others have it.
    let by_all = world.all_reduce(&mut [0u64], ReduceOp::Max).map(drop);
    Ok(Trained { outcome, problems, by_all })
}

/// Where nobody deletes the process, but somebody ends it.
pub(crate) const WAITING: &str = "training complete, waiting for SIGTERM (--when-done wait)";
