//! What rank 0 tells the user: a header, the progress, the result.

mod header;
mod result;

use std::io::IsTerminal;

use allfold::Peer;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::data::Shape;
use crate::error::Result;
use crate::options::Progress;
use crate::output::Output;
use crate::training::{Event, Outcome, TestDone, Training};
use header::header;
use result::result;

/// Writes to standard output.
pub(crate) struct Report {
    output: Output,
    progress: Progress,
    bar: ProgressBar,
    epochs: usize,
    steps: usize,
    /// What samples are, in the plural.
    samples: &'static str,
    peers: Vec<Peer>,
}

impl Report {
    pub(crate) fn new(progress: Progress) -> Self {
        let progress = match progress {
            Progress::Auto if std::io::stdout().is_terminal() => Progress::Bar,
            Progress::Auto => Progress::Lines,
            chosen => chosen,
        };
        Self {
            output: Output::default(),
            progress,
            bar: ProgressBar::hidden(),
            epochs: 0,
            steps: 0,
            samples: "samples",
            peers: Vec::new(),
        }
    }

    /// Says what will be trained where, and starts the bar.
    pub(crate) fn header(&mut self, training: &Training) -> Result<()> {
        for line in header(training) {
            self.output.line(&line)?;
        }
        let settings = &training.settings;
        let done = training.optimizer.steps();
        if done >= settings.steps as u64 {
            let asked = &settings.asked;
            let line = format!("nothing left to train: the checkpoint is at step {done}, {asked}");
            self.output.line(&line)?;
        }
        self.steps = settings.steps;
        self.peers = training.world.peers();
        self.epochs = settings.steps.div_ceil(settings.steps_per_epoch);
        self.samples = match training.data.shape {
            Shape::Images { .. } => "images",
            Shape::Text { .. } => "characters",
        };
        if self.progress == Progress::Bar {
            // Hides itself where standard output is no terminal.
            let target = ProgressDrawTarget::stdout();
            self.bar = ProgressBar::with_draw_target(Some(self.steps as u64), target);
            self.bar.set_position(training.optimizer.steps());
            self.bar.reset_eta();
            if let Ok(style) = ProgressStyle::with_template(BAR) {
                self.bar.set_style(style);
            }
        }
        Ok(())
    }

    pub(crate) fn event(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Step(done) => {
                if self.progress == Progress::Bar {
                    self.bar.set_position(done.step as u64);
                    self.bar.set_message(format!("loss {:.4}", done.train.mean_loss()));
                }
                Ok(())
            }
            Event::Test(done) => {
                let line = match self.progress {
                    Progress::Lines | Progress::Auto | Progress::Bar if done.train.samples == 0 => {
                        of_no_steps(done)
                    }
                    Progress::Bar => for_people(done, self.epochs, self.samples),
                    Progress::None => return Ok(()),
                    Progress::Lines | Progress::Auto => for_programs(done, self.samples),
                };
                self.bar.suspend(|| self.output.line(&line))
            }
            Event::Problem(problem) => {
                self.bar.suspend(|| tracing::warn!("{problem}; {}", problem.help()));
                Ok(())
            }
        }
    }

    /// Takes the bar away and says how it ended.
    pub(crate) fn end(&mut self, outcome: &Outcome) -> Result<()> {
        self.bar.finish_and_clear();
        for line in result(outcome, self.steps, &self.peers) {
            self.output.line(&line)?;
        }
        Ok(())
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        // After an error the message must not stand on the bar's line.
        self.bar.finish_and_clear();
    }
}

fn for_people(done: &TestDone, epochs: usize, samples: &str) -> String {
    let share = match done.all_reduce_share {
        Some(share) => format!("  all-reduce {:>2.0} %", share * 100.0),
        None => String::new(),
    };
    let hidden = match done.all_reduce_hidden {
        Some(hidden) => format!(", {:.0} % hidden", hidden * 100.0),
        None => String::new(),
    };
    format!(
        "epoch {:>3}/{epochs}  loss {:.4}  train {} %  {} {} %  {} {samples}/s{share}{hidden}",
        done.epoch,
        done.train.mean_loss(),
        percent(done.train.accuracy()),
        tested(done),
        percent(done.test.accuracy()),
        grouped(done.samples_per_second as usize),
    )
}

fn for_programs(done: &TestDone, samples: &str) -> String {
    let share = match done.all_reduce_share {
        Some(share) => format!(" all_reduce_share={share:.3}"),
        None => String::new(),
    };
    let hidden = match done.all_reduce_hidden {
        Some(hidden) => format!(" all_reduce_hidden={hidden:.3}"),
        None => String::new(),
    };
    let tested = tested(done);
    format!(
        "epoch={} step={} loss={:.4} train_accuracy={:.4} {tested}_loss={:.4} \
         {tested}_accuracy={:.4} {samples}_per_second={:.0}{share}{hidden}",
        done.epoch,
        done.step,
        done.train.mean_loss(),
        done.train.accuracy(),
        done.test.mean_loss(),
        done.test.accuracy(),
        done.samples_per_second,
    )
}

/// Where nothing was left to train.
fn of_no_steps(done: &TestDone) -> String {
    let (tested, step) = (tested(done), done.step);
    let (loss, accuracy) = (done.test.mean_loss(), done.test.accuracy());
    format!("step={step} {tested}_loss={loss:.4} {tested}_accuracy={accuracy:.4}")
}

/// Which samples a test was of.
pub(crate) fn tested(done: &TestDone) -> &'static str {
    if done.is_validation { "validation" } else { "test" }
}

/// The pids on each host, hosts in the order of their first rank.
fn hosts(peers: &[Peer]) -> Vec<(&str, Vec<u32>)> {
    let mut hosts: Vec<(&str, Vec<u32>)> = Vec::new();
    for peer in peers {
        match hosts.iter_mut().find(|(host, _)| *host == peer.host) {
            Some((_, pids)) => pids.push(peer.pid),
            None => hosts.push((&peer.host, vec![peer.pid])),
        }
    }
    hosts
}

/// `1 rank`, `1,438 ranks`.
pub(crate) fn counted(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {what}{plural}", grouped(number))
}

/// Digits in groups of three: `13,706`.
pub(crate) fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub(crate) fn percent(part: f64) -> String {
    format!("{:.1}", part * 100.0)
}

/// The bar's line.
const BAR: &str = "{bar:40} {pos}/{len} steps  {msg}  {eta} left";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::Tally;

    fn done() -> TestDone {
        let tally = |correct| Tally { samples: 1438, loss: 301.98, correct };
        TestDone {
            epoch: 3,
            step: 45,
            train: tally(1352),
            test: tally(1338),
            is_validation: false,
            samples_per_second: 15_800.4,
            all_reduce_share: Some(0.11),
            all_reduce_hidden: None,
        }
    }

    #[test]
    fn a_test_for_programs_and_for_people() {
        assert_eq!(
            for_programs(&done(), "images"),
            "epoch=3 step=45 loss=0.2100 train_accuracy=0.9402 test_loss=0.2100 \
             test_accuracy=0.9305 images_per_second=15800 all_reduce_share=0.110"
        );
        assert_eq!(
            for_people(&done(), 20, "images"),
            "epoch   3/20  loss 0.2100  train 94.0 %  test 93.0 %  15,800 images/s  all-reduce 11 %"
        );
        let hidden = TestDone { is_validation: true, all_reduce_hidden: Some(0.614), ..done() };
        let line = for_programs(&hidden, "characters");
        assert!(line.contains(" validation_accuracy=0.9305 characters_per_second="), "{line}");
        assert!(line.ends_with(" all_reduce_share=0.110 all_reduce_hidden=0.614"), "{line}");
        let line = for_people(&hidden, 20, "images");
        assert!(line.ends_with("all-reduce 11 %, 61 % hidden"), "{line}");
        let on_gpus = TestDone { all_reduce_share: None, ..done() };
        let line = for_programs(&on_gpus, "images");
        assert!(line.ends_with(" images_per_second=15800"), "{line}");
        let line = for_people(&on_gpus, 20, "images");
        assert!(line.ends_with("  15,800 images/s"), "{line}");
    }

    #[test]
    fn numbers_are_grouped() {
        let texts = [0, 999, 1000, 13_706, 1_234_567].map(grouped);
        assert_eq!(texts, ["0", "999", "1,000", "13,706", "1,234,567"]);
    }
}
