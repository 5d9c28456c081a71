//! Training must not depend on the number of ranks: 1, 2 and 4 take the same steps.

#![allow(clippy::unwrap_used, reason = "a test says by a panic that it failed")]

mod on_ranks;

use allfold_trainer::{Event, Options, Outcome, Precision, Training};
use on_ranks::on_ranks;

/// The mean loss of each step, and how it ended.
struct Run {
    losses: Vec<f64>,
    outcome: Outcome,
}

impl Run {
    fn accuracy(&self) -> f64 {
        self.outcome.test.unwrap().accuracy()
    }
}

/// Trains with `ranks` ranks as threads of this process; the run as rank 0 saw it.
fn train(options: &Options, ranks: usize) -> Run {
    let runs = on_ranks(ranks, |world| {
        let mut losses = Vec::new();
        let mut training = Training::new(options, &world).unwrap();
        let outcome = training.run(|event| {
            if let Event::Step(done) = event {
                losses.push(done.train.mean_loss());
            }
            Ok(())
        });
        world.close().unwrap();
        Run { losses, outcome: outcome.unwrap() }
    });
    for run in &runs {
        assert_eq!(run.losses, runs[0].losses);
        assert_eq!(run.outcome.digest, runs[0].outcome.digest);
        assert_eq!(run.outcome.ranks, ranks);
    }
    runs.into_iter().next().unwrap()
}

fn options(model: &str) -> Options {
    Options {
        model: model.into(),
        // At 0.01 a cnn multiplies a rounding error by a hundred thousand in a hundred steps, once
        // it has made another of two nearly equal pixels the larger.
        lr: (model == "cnn").then_some(0.001),
        // Divides neither by 2 nor by 4, and leaves 80 samples for the last batch of an epoch.
        batch_size: 97,
        ..Options::default()
    }
}

/// The largest relative difference between the losses of the first 100 steps.
fn difference(one: &Run, other: &Run) -> f64 {
    assert!(one.losses.len() >= 100 && one.losses.len() == other.losses.len());
    let pairs = one.losses.iter().zip(&other.losses).take(100);
    pairs.map(|(a, b)| (a - b).abs() / a).fold(0.0, f64::max)
}

fn agrees_in_f32(model: &str, least: f64) {
    let alone = train(&options(model), 1);
    assert!(alone.accuracy() >= least, "{:?}", alone.outcome);
    assert_eq!(alone.outcome.test.unwrap().samples, 359);
    for ranks in [2, 4] {
        let together = train(&options(model), ranks);
        let difference = difference(&alone, &together);
        println!("{model}, {ranks} ranks, f32: losses differ by {difference:.1e}");
        assert!(difference <= 1e-4, "{ranks} ranks: {difference:e}");
        let [one, other] = [&alone, &together].map(Run::accuracy);
        assert!((one - other).abs() <= 0.005, "{one} and {other}");
        assert!(other >= least, "{other}");
    }
}

fn agrees_in_f64(model: &str) {
    let options = Options { precision: Precision::F64, steps: Some(100), ..options(model) };
    let alone = train(&options, 1);
    for ranks in [2, 4] {
        let difference = difference(&alone, &train(&options, ranks));
        println!("{model}, {ranks} ranks, f64: losses differ by {difference:.1e}");
        assert!(difference <= 1e-10, "{ranks} ranks: {difference:e}");
    }
}

#[test]
fn cnn_agrees_and_reaches_97_percent() {
    agrees_in_f32("cnn", 0.97);
}

#[test]
fn mlp_agrees_and_reaches_94_percent() {
    agrees_in_f32("mlp", 0.94);
}

#[test]
fn cnn_agrees_in_f64() {
    agrees_in_f64("cnn");
}

#[test]
fn mlp_agrees_in_f64() {
    agrees_in_f64("mlp");
}

#[test]
fn ranks_without_samples_change_nothing() {
    // 1,438 samples in batches of 479 leave one for the last batch, so that one rank of four has
    // it and three join with zeros.
    let options =
        Options { batch_size: 479, epochs: 2, precision: Precision::F64, ..options("mlp") };
    let alone = train(&options, 1);
    let together = train(&options, 4);
    assert_eq!(alone.losses.len(), 8);
    for (a, b) in alone.losses.iter().zip(&together.losses) {
        assert!((a - b).abs() <= 1e-10 * a, "{a} and {b}");
    }
}

#[test]
fn the_seed_decides_everything() {
    let run = |seed| {
        let options = Options { seed, steps: Some(20), ..options("mlp") };
        train(&options, 2)
    };
    let [first, again, other] = [run(1), run(1), run(2)];
    assert_eq!(first.losses, again.losses);
    assert_eq!(first.outcome.digest, again.outcome.digest);
    assert_ne!(first.outcome.digest, other.outcome.digest);
}
