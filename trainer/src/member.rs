//! A rank of `allfold train` for as long as its process lives: it meets the others, trains, meets
//! them anew after a loss, and may wait after the end.

use std::thread;
use std::time::{Duration, Instant};

use allfold::{Communicator, Config, Doorkeeper, ErrorKind, Identity};
use aws_lc_rs::digest::SHA256;

use crate::data::Data;
use crate::digest::hex;
use crate::error::{Error, LastStep, Result};
use crate::options::{DeviceKind, OnLoss, Options, Resume, WhenDone};
use crate::output::Output;
use crate::resume::is_at_the_end;
use crate::run::{Round, WAITING, train, verdict};
use crate::settings::{Settings, short};
use crate::stop::Stop;

/// `allfold train` as a rank of a job that a launcher has started: connects by `config`, trains,
/// and closes. What [`Options::on_loss`] and [`Options::when_done`] leave open follows from the
/// launcher, `identity`. `data` is what [`Options::check`] gave. `done` is called as soon as the
/// training is complete, before that is said, and before this rank waits for anything.
///
/// # Errors
/// As [`run`](crate::run).
pub fn take_part(
    options: &Options,
    data: Data,
    identity: &Identity,
    config: Config,
    done: &dyn Fn(),
) -> Result<()> {
    // Until there is something to save.
    Stop::end_at_once()?;
    let ended = Member::new(options, data, identity, config, done).live();
    if ended.is_ok() {
        // A loss that it has outlived is not what ended it.
        allfold::report::take_back();
    }
    ended
}

struct Member<'a> {
    options: &'a Options,
    data: Data,
    config: Config,
    on_loss: OnLoss,
    when_done: WhenDone,
    /// Whether `allfold run` has started all ranks, and starts none alone.
    is_of_run: bool,
    /// Whether it is deleted at last, not only ended.
    is_of_pod: bool,
    done: &'a dyn Fn(),
}

impl<'a> Member<'a> {
    fn new(
        options: &'a Options,
        data: Data,
        identity: &Identity,
        config: Config,
        done: &'a dyn Fn(),
    ) -> Self {
        let (is_of_run, is_of_pod) = (identity.is_of_run(), identity.is_of_pod());
        let on_loss = if is_of_pod { OnLoss::Rejoin } else { OnLoss::Exit };
        let when_done = if identity.is_of_stateful_set() { WhenDone::Wait } else { WhenDone::Exit };
        Self {
            options,
            data,
            config,
            on_loss: options.on_loss.unwrap_or(on_loss),
            when_done: options.when_done.unwrap_or(when_done),
            is_of_run,
            is_of_pod,
            done,
        }
    }

    fn live(&self) -> Result<()> {
        if self.may_look() && self.config.rank() == 0 && self.is_at_the_end()? {
            return self.tell_the_end();
        }
        let problems = self.train()?;
        if self.when_done == WhenDone::Wait {
            self.wait(None)?;
        }
        verdict(problems)
    }

    /// Whether this rank may have been started again alone, after the end. Where one launcher starts
    /// all ranks, they meet and see it together.
    fn may_look(&self) -> bool {
        !self.is_of_run
            && match self.when_done {
                WhenDone::Wait => true,
                WhenDone::Exit => self.on_loss == OnLoss::Rejoin && self.options.resume.is_some(),
            }
    }

    fn is_at_the_end(&self) -> Result<bool> {
        is_at_the_end(self.options, &self.data, self.config.size())
    }

    /// On rank 0: the result anew, without the other ranks, which may be done already.
    fn tell_the_end(&self) -> Result<()> {
        (self.done)();
        // Whoever comes meanwhile is told at once.
        let door = self.open_door();
        Output::default().line(TOLD_ALONE)?;
        let (world, options) = (Communicator::single_from_env()?, &mut self.options.clone());
        options.resume.get_or_insert(Resume::Auto);
        // It was not asked for, and so deletes nothing.
        options.keep = usize::MAX;
        let round = Round { succeeds: true, ..Round::default() };
        let problems = train(options, self.data.clone(), &world, &round)?.end(options)?;
        match self.when_done {
            WhenDone::Wait => self.wait(door)?,
            WhenDone::Exit => self.tell_others(door, None)?,
        }
        drop(world);
        verdict(problems)
    }

    /// Trains to the end, through all losses; how many files could not be written.
    fn train(&self) -> Result<usize> {
        // A pod's predecessor may be gone with its host.
        let first =
            || Round { succeeds: self.is_of_pod, done: Some(self.done), ..Round::default() };
        let mut round = first();
        let mut losses = 0;
        // Meetings that came to nothing since the last step.
        let mut in_a_row = 0;
        loop {
            let error = match self.attempt(&round) {
                Ok(problems) => return Ok(problems),
                Err(error) if !self.stays_after(&error) => return self.or_the_end(error),
                Err(error) => error,
            };
            // While it waits a SIGTERM ends it, and one that has come meanwhile does.
            let step = round.step.get();
            if Stop::end_at_once()?.requested() {
                return Err(match error {
                    Error::Stopped { .. } => error,
                    _ => self.stopped(step),
                });
            }
            in_a_row = if step > 0 { 0 } else { in_a_row + 1 };
            if in_a_row > MAX_IN_A_ROW {
                tracing::warn!("{MAX_IN_A_ROW} times in a row no step was done: gave up");
                return Err(error);
            }
            losses += u32::from(!is_refused(&error));
            tracing::warn!("{}", self.said_of(&error, losses));
            thread::sleep(pause(in_a_row));
            let continues = round.continues || round.has_begun.get();
            round = Round { continues, problems: round.problems, ..first() };
        }
    }

    /// Meets all ranks and trains with them.
    fn attempt(&self, round: &Round<'_>) -> Result<usize> {
        let world = match Communicator::connect(self.config.clone()) {
            Err(error) => match error.kind() {
                ErrorKind::Done { reason } if *reason == self.end()? => {
                    (self.done)();
                    return Ok(round.problems.get());
                }
                ErrorKind::Done { .. } => return Err(Error::AnotherEnd),
                _ => return Err(error.into()),
            },
            Ok(world) => world,
        };
        // What ended the world before is outlived.
        allfold::report::take_back();
        let trained = train(self.options, self.data.clone(), &world, round)?;
        let by_all = trained.by_all.clone();
        let closed = world.close();
        let problems = trained.end(self.options);
        match by_all.and(closed) {
            Ok(()) => {}
            // Rank 0 had saved and said everything before that.
            Err(error) if self.stays() && error.is_retryable() => {
                tracing::warn!("{error}");
                let waits = self.when_done == WhenDone::Wait;
                if self.config.rank() == 0 && !self.is_of_run && !waits && problems.is_ok() {
                    self.tell_others(self.open_door(), lost(&error))?;
                }
            }
            Err(error) => return Err(error.into()),
        }
        problems
    }

    /// Whether it goes on in some way when others are lost.
    fn stays(&self) -> bool {
        self.on_loss == OnLoss::Rejoin || self.when_done == WhenDone::Wait
    }

    /// Where nobody came, those who were to come may be done, and the checkpoint says so.
    fn or_the_end(&self, error: Error) -> Result<usize> {
        let nobody_came = matches!(&error, Error::World(error) if is_timeout(error));
        if nobody_came && self.may_look() && self.is_at_the_end().unwrap_or(false) {
            tracing::warn!("{error}; the checkpoint is at the end of this training");
            return Ok(0);
        }
        Err(error)
    }

    /// Whether another meeting may help, and is wanted.
    fn stays_after(&self, error: &Error) -> bool {
        self.on_loss == OnLoss::Rejoin
            && match error {
                // It has waited as long as it should.
                Error::World(error) if is_timeout(error) => false,
                // The others have given it up, and its pod may have a successor by now; and what has
                // failed on a GPU may have spoiled it for this process.
                Error::World(error) if lost(error) == Some(self.config.rank()) => {
                    !self.is_of_pod && self.options.device == DeviceKind::Cpu
                }
                Error::World(error) => error.is_retryable(),
                // Another rank was, and is started again.
                Error::Stopped { .. } => true,
                // Perhaps it is about to be deleted, too.
                Error::AnotherEnd => true,
                _ => false,
            }
    }

    /// After a SIGTERM to this process, in the middle of a loss.
    fn stopped(&self, step: usize) -> Error {
        let last = match self.options.checkpoint {
            Some(_) => LastStep::Earlier,
            None => LastStep::NotAsked,
        };
        Error::Stopped { step, last }
    }

    fn said_of(&self, error: &Error, losses: u32) -> String {
        let what = match error {
            Error::Stopped { step, .. } => {
                format!("another rank was stopped by SIGTERM after step {step}")
            }
            Error::World(world) => match world.kind() {
                // Who waited for it, and where, is too much for one of many.
                ErrorKind::RankLost { rank, at, how, .. } => format!("rank {rank} ({at}) {how}"),
                _ => world.to_string(),
            },
            other => other.to_string(),
        };
        if is_refused(error) {
            return format!("{what}; trying again");
        }
        let next = match error {
            Error::Stopped { .. } => "waiting for it to come back",
            Error::World(world) if lost(world).is_some_and(|rank| rank != self.config.rank()) => {
                "waiting for it to come back"
            }
            _ => "meeting the others anew",
        };
        let from = match self.options.checkpoint {
            Some(_) => "",
            None => "; nothing is saved, so it starts from the beginning: --checkpoint DIR saves",
        };
        format!("{what}; {next} (rejoin {losses}){from}")
    }

    /// What rank 0 tells whoever is started again after the end: of which training.
    fn end(&self) -> Result<String> {
        let settings = Settings::new(self.options, self.config.size(), &self.data)?;
        let lines = settings.lines(&self.data).join("\n");
        let digest = aws_lc_rs::digest::digest(&SHA256, lines.as_bytes());
        Ok(format!("training complete, of settings {}", short(&hex(digest.as_ref()))))
    }

    /// Until a SIGTERM.
    fn wait(&self, door: Option<Doorkeeper>) -> Result<()> {
        let stop = Stop::install()?;
        let door = door.or_else(|| self.open_door());
        Output::default().line(if self.is_of_pod { TO_BE_DELETED } else { WAITING })?;
        stop.wait();
        drop(door);
        Ok(())
    }

    /// On rank 0, where ranks are started again one by one: tells them that the training is complete.
    fn open_door(&self) -> Option<Doorkeeper> {
        let is_asked = self.config.rank() == 0 && self.config.size() > 1 && !self.is_of_run;
        let door = is_asked.then(|| Ok(Doorkeeper::start(self.config.clone(), &self.end()?)?));
        door.transpose().unwrap_or_else(|error: Error| {
            tracing::warn!("a rank that is started again will wait in vain: {error}");
            None
        })
    }

    /// On rank 0, before it ends: the others, which did not hear the end or are started again, as far
    /// as they come in the time that they would wait for rank 0. Of these, `lost` is sure to come.
    fn tell_others(&self, door: Option<Doorkeeper>, lost: Option<usize>) -> Result<()> {
        let Some(door) = door else { return Ok(()) };
        let stop = Stop::install()?;
        let limit = self.config.patience();
        tracing::warn!(
            "the training is complete; waiting up to {} s to tell ranks that do not know",
            limit.as_secs()
        );
        let began = Instant::now();
        let (mut told, mut since) = (door.told(), began);
        while !stop.requested() && began.elapsed() < limit {
            thread::sleep(LOOK_EVERY);
            let now = door.told();
            if now != told {
                (told, since) = (now, Instant::now());
            }
            let is_lost_told = lost.is_some_and(|rank| told.contains(&rank));
            if told.len() + 1 == self.config.size()
                || is_lost_told && since.elapsed() >= NOBODY_ELSE
            {
                break;
            }
        }
        Ok(())
    }
}

/// Whether rank 0 has let this rank in nowhere: it does not know of a loss yet, or is of another
/// training.
fn is_refused(error: &Error) -> bool {
    match error {
        Error::World(error) => matches!(error.kind(), ErrorKind::Refused { .. }),
        other => matches!(other, Error::AnotherEnd),
    }
}

/// Which rank is.
fn lost(error: &allfold::Error) -> Option<usize> {
    match error.kind() {
        ErrorKind::RankLost { rank, .. } => Some(*rank),
        _ => None,
    }
}

fn is_timeout(error: &allfold::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectTimeout { .. } | ErrorKind::UnknownHost { .. })
}

/// Before the next meeting, after so many in a row that came to nothing.
fn pause(in_a_row: u32) -> Duration {
    match in_a_row {
        0 => Duration::ZERO,
        more => FIRST_PAUSE.saturating_mul(2u32.saturating_pow(more - 1)).min(LAST_PAUSE),
    }
}

const TOLD_ALONE: &str = "training complete: rank 0 tells it from the checkpoint, alone";
const TO_BE_DELETED: &str = "training complete, waiting to be deleted";
/// Meetings without a step between them: all pauses together are 56 s, in which a rank that was
/// lost is found out (`ALLFOLD_DEAD_AFTER`). A fault that stays, such as a port that is closed, is
/// an error then, and whoever starts the process again has longer pauses.
const MAX_IN_A_ROW: u32 = 10;
/// Ranks that were lost in their last call come back at once, or after the first few pauses.
const NOBODY_ELSE: Duration = Duration::from_secs(10);
/// A rank that is told may wait so long for rank 0 to end, which is nothing to it.
const LOOK_EVERY: Duration = Duration::from_millis(250);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_that_failed_itself_may_leave_a_new_process_to_go_on() {
        let stays = |lost, device, is_of_pod| {
            let options = Options { device, ..Options::default() };
            let member = Member {
                options: &options,
                data: options.open().unwrap(),
                config: Config::new(1, 2, "localhost:29500").unwrap(),
                on_loss: OnLoss::Rejoin,
                when_done: WhenDone::Exit,
                is_of_run: false,
                is_of_pod,
                done: &|| {},
            };
            let (at, how) = ("host-1".into(), "failed: candle: out of memory".into());
            let kind = ErrorKind::RankLost { rank: lost, at, how, call: None, help: None };
            member.stays_after(&Error::World(kind.into()))
        };
        assert!(stays(0, DeviceKind::Gpu, true), "another's failure");
        assert!(!stays(1, DeviceKind::Gpu, false), "its GPU may be of no more use to this process");
        assert!(!stays(1, DeviceKind::Cpu, true), "a pod may have a successor");
        assert!(stays(1, DeviceKind::Cpu, false));
    }

    #[test]
    fn pauses_grow_and_end() {
        let all: Vec<Duration> = (0..=MAX_IN_A_ROW).map(pause).collect();
        assert_eq!(all[..4], [0, 250, 500, 1000].map(Duration::from_millis));
        assert!(all.is_sorted());
        assert_eq!(all.iter().sum::<Duration>(), Duration::from_millis(55_750));
        assert_eq!(pause(u32::MAX), LAST_PAUSE);
    }
}
