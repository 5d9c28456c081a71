//! `allfold train`: a rank's part, and what rank 0 says of it.

use allfold::Communicator;

use crate::data::Data;
use crate::error::{Error, LastStep, Result};
use crate::options::{Options, WhenDone};
use crate::report::Report;
use crate::stop::Stop;
use crate::training::{Event, Outcome, Training};
use crate::watching::Scalars;

/// `allfold train`: trains on all ranks of `world`, and closes it; rank 0 prints. `data` is what
/// [`Options::check`] gave.
///
/// # Errors
/// Options that cannot be used or differ between ranks, parameters that differ at the end,
/// [`Error::Stopped`] after a SIGTERM to any rank, [`Error::Unwritten`] where files could not be
/// written, allfold's own errors: one line each, with [`Error::help`] and [`Error::exit_code`].
pub fn run(options: &Options, data: Data, world: Communicator) -> Result<()> {
    // Until there is something to save.
    Stop::end_at_once()?;
    let mut report = (world.rank() == 0).then(|| Report::new(options.progress));
    let trained = train(options, data, &world, &mut report)?;
    world.close()?;
    if trained.outcome.test.is_none() {
        let Outcome { steps: step, is_saved, .. } = trained.outcome;
        let last = match is_saved {
            true => LastStep::Saved,
            false if options.checkpoint.is_some() => LastStep::Unwritten,
            false => LastStep::NotAsked,
        };
        return Err(Error::Stopped { step, last });
    }
    if options.when_done == WhenDone::Wait {
        if let Some(report) = &mut report {
            report.waiting()?;
        }
        trained.stop.wait();
    }
    match trained.problems {
        0 => Ok(()),
        problems => Err(Error::Unwritten { problems }),
    }
}

struct Trained {
    outcome: Outcome,
    stop: Stop,
    /// What could not be written.
    problems: usize,
}

fn train(
    options: &Options,
    data: Data,
    world: &Communicator,
    report: &mut Option<Report>,
) -> Result<Trained> {
    let mut training = Training::with_data(options, data, world)?;
    let stop = Stop::install()?;
    training.stop_on(stop.clone());
    let mut scalars = match &options.tensorboard {
        Some(folder) if world.rank() == 0 => Some(Scalars::start(folder, training.resumed_from())),
        _ => None,
    };
    if scalars.is_some() {
        training.measure_norm();
    }
    if let Some(report) = report {
        report.header(&training)?;
    }
    for skipped in training.resumed.iter().flat_map(|resumed| &resumed.skipped) {
        tracing::warn!("{skipped}");
    }
    for change in training.resumed.iter().flat_map(|resumed| &resumed.changes) {
        tracing::warn!("resume: {change}");
    }
    let outcome = training.run(|event| {
        let mut events = vec![event];
        if let Some(scalars) = &mut scalars {
            scalars.event(&events[0]);
            events.extend(scalars.problems().into_iter().map(Event::Problem));
        }
        match report {
            Some(report) => events.iter().try_for_each(|event| report.event(event)),
            None => Ok(()),
        }
    })?;
    let unwritten = scalars.as_mut().map_or(0, Scalars::finish);
    if let (Some(report), Some(scalars)) = (report.as_mut(), &mut scalars) {
        scalars.problems().into_iter().map(Event::Problem).try_for_each(|it| report.event(&it))?;
    }
    if let Some(report) = report {
        report.end(&outcome)?;
    }
    let problems = outcome.problems + unwritten;
    Ok(Trained { outcome, stop, problems })
}
