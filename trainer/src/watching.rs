//! What rank 0 writes for TensorBoard while it trains.

use std::path::Path;

use crate::problem::Problem;
use crate::report::tested;
use crate::tensorboard::EventFile;
use crate::training::{Event, TestDone};

/// A file of scalars that grows with the training.
pub(crate) struct Scalars {
    file: Option<EventFile>,
    problems: Vec<Problem>,
    /// How many there were.
    failed: usize,
}

impl Scalars {
    /// In a folder; where that cannot be, the training goes on without. After a resume what an
    /// earlier run has written of later steps does not count.
    pub(crate) fn start(folder: &Path, resumed_at: Option<u64>) -> Self {
        let (file, problems) = match EventFile::create(folder, resumed_at) {
            Ok(file) => (Some(file), Vec::new()),
            Err(problem) => (None, vec![problem]),
        };
        Self { file, failed: problems.len(), problems }
    }

    /// Writes what there is to say of an event.
    pub(crate) fn event(&mut self, event: &Event) {
        let Some(file) = &mut self.file else { return };
        match event {
            Event::Step(done) => {
                let step = done.step as u64;
                let mut values = vec![("loss/train", done.train.mean_loss() as f32)];
                values.extend(done.gradient_norm.map(|norm| ("gradient/norm", norm as f32)));
                file.scalars(step, &values);
            }
            // Of no steps: the run before has written it.
            Event::Test(done) if done.train.samples == 0 => {}
            Event::Test(done) => {
                file.scalars(done.step as u64, &of_test(done));
                file.flush();
            }
            Event::Problem(_) => {}
        }
        self.hear();
    }

    /// What could not be written since the last call.
    pub(crate) fn problems(&mut self) -> Vec<Problem> {
        std::mem::take(&mut self.problems)
    }

    /// Writes what is left; how often it failed.
    pub(crate) fn finish(&mut self) -> usize {
        if let Some(file) = &mut self.file {
            file.flush();
        }
        self.hear();
        self.failed
    }

    fn hear(&mut self) {
        let problem = self.file.as_mut().and_then(EventFile::problem);
        self.failed += usize::from(problem.is_some());
        self.problems.extend(problem);
    }
}

fn of_test(done: &TestDone) -> Vec<(&'static str, f32)> {
    let (loss, accuracy) = match tested(done) {
        "validation" => ("loss/validation", "accuracy/validation"),
        _ => ("loss/test", "accuracy/test"),
    };
    let mut values = vec![
        (loss, done.test.mean_loss() as f32),
        (accuracy, done.test.accuracy() as f32),
        ("accuracy/train", done.train.accuracy() as f32),
        ("throughput/samples_per_second", done.samples_per_second as f32),
    ];
    values.extend(done.all_reduce_share.map(|share| ("communication/share", share as f32)));
    values.extend(done.all_reduce_hidden.map(|hidden| ("communication/hidden", hidden as f32)));
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::Tally;

    #[test]
    fn what_is_not_measured_has_no_scalar() {
        let of = |all_reduce_share, all_reduce_hidden| {
            let done = TestDone {
                epoch: 1,
                step: 15,
                train: Tally { samples: 100, loss: 20.0, correct: 90 },
                test: Tally { samples: 100, loss: 20.0, correct: 90 },
                is_validation: false,
                samples_per_second: 1000.0,
                all_reduce_share,
                all_reduce_hidden,
            };
            let tags = of_test(&done).into_iter().map(|(tag, _)| tag);
            tags.filter(|tag| tag.starts_with("communication/")).collect::<Vec<_>>()
        };
        assert_eq!(of(Some(0.1), Some(0.5)), ["communication/share", "communication/hidden"]);
        assert_eq!(of(Some(0.1), None), ["communication/share"]);
        assert_eq!(of(None, None), [""; 0]);
    }
}
