//! A training that was interrupted and goes on from a checkpoint is the one that was not.

#![allow(clippy::unwrap_used, reason = "a test says by a panic that it failed")]

mod on_ranks;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use allfold_trainer::checkpoint::{Every, Folder};
use allfold_trainer::{
    Data, Digest, Event, OptimizerKind, Options, Outcome, Precision, Result, Resume, Stop, Training,
};
use on_ranks::on_ranks;

/// What a rank saw: each step and its mean loss, and how it ended.
#[derive(Debug)]
struct Run {
    losses: Vec<(usize, f64)>,
    outcome: Outcome,
}

impl Run {
    fn digest(&self) -> Digest {
        self.outcome.digest
    }

    fn first_step(&self) -> Option<usize> {
        self.losses.first().map(|(step, _)| *step)
    }
}

/// Trains on ranks as threads. Rank 0 alone has the folder; `stops` names a rank and the step
/// behind which it is asked to stop.
fn train_until(options: &Options, ranks: usize, stops: Option<(usize, usize)>) -> Vec<Result<Run>> {
    on_ranks(ranks, |world| {
        let rank = world.rank();
        let mut options = options.clone();
        let nowhere = options.checkpoint.as_ref().map(|path| path.join("not-on-this-rank"));
        if rank > 0 {
            options.checkpoint.clone_from(&nowhere);
        }
        let result = (|| {
            let mut training = Training::new(&options, &world)?;
            let stop = Stop::new();
            training.stop_on(stop.clone());
            let mut losses = Vec::new();
            let outcome = training.run(|event| {
                if let Event::Step(done) = event {
                    losses.push((done.step, done.train.mean_loss()));
                    if stops == Some((rank, done.step)) {
                        stop.request();
                    }
                }
                Ok(())
            })?;
            Ok(Run { losses, outcome })
        })();
        world.close().unwrap();
        assert!(!nowhere.is_some_and(|path| path.exists()), "only rank 0 writes");
        result
    })
}

/// A training that ends well; as rank 0 saw it, and all alike.
fn train(options: &Options, ranks: usize) -> Run {
    all_alike(train_until(options, ranks, None))
}

fn all_alike(runs: Vec<Result<Run>>) -> Run {
    let mut runs: Vec<Run> = runs.into_iter().map(|run| run.unwrap()).collect();
    for run in &runs {
        assert_eq!(run.losses, runs[0].losses);
        assert_eq!(run.digest(), runs[0].digest());
        assert_eq!(run.outcome.steps, runs[0].outcome.steps);
        assert_eq!(run.outcome.is_saved, runs[0].outcome.is_saved);
    }
    runs.swap_remove(0)
}

/// The error that every rank has.
fn error_of_all(options: &Options, ranks: usize) -> String {
    let errors: Vec<String> = train_until(options, ranks, None)
        .into_iter()
        .map(|run| {
            let error = run.unwrap_err();
            assert_eq!(error.exit_code(), 2, "{error}");
            format!("{error}\n{}", error.help().unwrap_or_default())
        })
        .collect();
    assert!(errors.iter().all(|error| *error == errors[0]), "{errors:#?}");
    errors.into_iter().next().unwrap()
}

/// Twenty steps of a small mlp; the digits in batches of 100 are 15 steps an epoch.
fn options(optimizer: OptimizerKind) -> Options {
    Options {
        model: "mlp".into(),
        hidden: vec![8],
        optimizer,
        steps: Some(20),
        ..Options::default()
    }
}

/// With checkpoints in a folder of the test's own, which is fresh.
fn saving(name: &str, options: &Options) -> (PathBuf, Options) {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("resume").join(name);
    let _ = fs::remove_dir_all(&path);
    let resume = Some(Resume::Auto);
    let options = Options { checkpoint: Some(path.clone()), resume, ..options.clone() };
    (path, options)
}

/// Ends after so many steps.
fn until(steps: usize, options: &Options) -> Options {
    Options { steps: Some(steps), ..options.clone() }
}

/// Interrupts a training behind `at` steps and goes on: it must end as one that was not.
fn resumes(name: &str, at: usize, options: &Options, ranks: usize) {
    let whole = train(options, ranks);
    let (path, saving) = saving(name, options);
    let before = train(&until(at, &saving), ranks);
    assert_eq!(before.outcome.saved, Some(model_file(&path, at)), "{name}");
    let after = train(&saving, ranks);
    assert_eq!(after.first_step(), Some(at + 1), "{name}: not resumed");
    assert_eq!(after.outcome.steps, 20);
    assert_eq!([before.losses, after.losses].concat(), whole.losses, "{name}");
    assert_eq!(after.outcome.digest, whole.outcome.digest, "{name}");
    assert_eq!(after.outcome.test, whole.outcome.test, "{name}");
}

fn model_file(folder: &Path, step: usize) -> PathBuf {
    folder.join(format!("step-{step:08}.safetensors"))
}

/// Cuts a file in the middle.
fn damage(file: &Path) {
    let bytes = fs::read(file).unwrap();
    fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
}

#[test]
fn every_optimiser_goes_on_as_if_nothing_had_been() {
    for optimizer in OPTIMIZERS {
        resumes(&format!("{optimizer:?}"), 7, &options(optimizer), 2);
    }
}

#[test]
fn every_step_is_a_good_one_to_stop_at() {
    // Batch 15 ends an epoch; behind step 20 there is nothing left to do but the test.
    for at in [1, 14, 15, 16, 19] {
        resumes(&format!("at-{at}"), at, &options(OptimizerKind::Adamw), 1);
    }
    let (_, saving) = saving("at-the-end", &options(OptimizerKind::Adamw));
    let [first, again] = [train(&saving, 2), train(&saving, 2)];
    assert_eq!(again.first_step(), None);
    assert_eq!(again.outcome.test, first.outcome.test);
    assert_eq!(again.digest(), first.digest());
}

#[test]
fn accumulated_and_clipped_steps_go_on_across_an_epoch() {
    for optimizer in OPTIMIZERS {
        // 15 batches are 8 steps, the last of one batch; the norm is beyond this in every step.
        let options =
            Options { accumulate: 2, clip_norm: Some(0.05), validation: 100, ..options(optimizer) };
        let options = Options { batch_size: 90, eval_every: Some(3), ..options };
        resumes(&format!("accumulated-{optimizer:?}"), 7, &options, 2);
        resumes(&format!("accumulated-{optimizer:?}-epoch"), 8, &options, 3);
    }
}

#[test]
fn overlapping_sums_go_on() {
    for accumulate in [1, 2] {
        let options = Options {
            hidden: vec![32, 32],
            // Each bucket takes 1000 bytes: every weight is one of its own.
            bucket_mib: 0.001,
            accumulate,
            ..options(OptimizerKind::Adamw)
        };
        resumes(&format!("overlap-{accumulate}"), 7, &options, 3);
    }
}

#[test]
fn other_models_go_on() {
    for (model, hidden) in [("cnn", 4), ("lm", 8)] {
        let options = Options {
            model: model.into(),
            hidden: vec![hidden],
            batch_size: 8,
            ..options(OptimizerKind::Adamw)
        };
        resumes(model, 7, &options, 2);
    }
}

#[test]
fn another_number_of_ranks_goes_on_within_the_tolerance() {
    // As agreement.rs has it.
    for (precision, tolerance) in [(Precision::F64, 1e-10), (Precision::F32, 1e-4)] {
        for optimizer in OPTIMIZERS {
            let options = Options { precision, ..options(optimizer) };
            let whole = train(&options, 1);
            for (before, after) in [(1, 3), (4, 2), (3, 1)] {
                let name = format!("{precision:?}-{optimizer:?}-{before}-{after}");
                let (_, saving) = saving(&name, &options);
                let first = train(&until(7, &saving), before);
                let rest = train(&saving, after);
                assert_eq!(rest.first_step(), Some(8), "{name}: not resumed");
                let losses = [first.losses, rest.losses].concat();
                assert_eq!(losses.len(), whole.losses.len());
                for ((_, a), (step, b)) in losses.iter().zip(&whole.losses) {
                    assert!((a - b).abs() <= tolerance * b, "{name}, step {step}: {a} and {b}");
                }
            }
        }
    }
}

#[test]
fn a_damaged_checkpoint_gives_way_to_the_one_before() {
    let steps = Every::Steps(3);
    let options = Options { checkpoint_every: steps, ..options(OptimizerKind::Adagrad) };
    let whole = train(&options, 2);
    let (path, saving) = saving("damaged", &options);
    train(&until(7, &saving), 2);
    assert_eq!(Folder::new(&path).steps().unwrap(), [3, 6, 7]);
    damage(&model_file(&path, 7));
    let skipped = Folder::new(&path).latest().unwrap().skipped;
    assert_eq!(skipped.iter().map(|it| &it.path).collect::<Vec<_>>(), [&model_file(&path, 7)]);
    let after = train(&saving, 2);
    assert_eq!(after.first_step(), Some(7));
    assert_eq!(after.digest(), whole.digest());

    for step in Folder::new(&path).steps().unwrap() {
        damage(&model_file(&path, step as usize));
    }
    let bytes = || fs::read(model_file(&path, 20)).unwrap();
    let before = bytes();
    for resume in [Resume::Must, Resume::Auto] {
        let again = Options { resume: Some(resume), ..saving.clone() };
        let error = error_of_all(&again, 3);
        assert!(error.contains("checkpoints can be used; checkpoint "), "{error}");
        assert!(error.ends_with("\nto start fresh, delete them or give another folder"), "{error}");
    }
    assert_eq!(bytes(), before, "left as it was");
}

#[test]
fn a_checkpoint_that_cannot_be_read_is_not_a_damaged_one() {
    let options = Options { checkpoint_every: Every::Steps(3), ..options(OptimizerKind::Sgd) };
    let (path, saving) = saving("unreadable", &options);
    train(&until(6, &saving), 2);
    let optimizer_file = |step| path.join(format!("step-{step:08}.optimizer.safetensors"));
    // A link to itself cannot be read by root either.
    let unreadable = |file: &Path| {
        let aside = path.join("aside");
        fs::rename(file, &aside).unwrap();
        symlink(file, file).unwrap();
        let error = error_of_all(&saving, 3);
        let start = format!("checkpoint {}: cannot be read: ", file.display());
        assert!(error.starts_with(&start), "{error}");
        fs::remove_file(file).unwrap();
        fs::rename(aside, file).unwrap();
    };
    unreadable(&model_file(&path, 6));
    unreadable(&optimizer_file(6));
    damage(&model_file(&path, 6));
    unreadable(&model_file(&path, 3));
    assert_eq!(train(&saving, 2).first_step(), Some(4));
}

#[test]
fn to_resume_from_nothing_can_be_an_error() {
    let (path, saving) = saving("must", &options(OptimizerKind::Sgd));
    let must = Options { resume: Some(Resume::Must), ..saving.clone() };
    let error = error_of_all(&must, 3);
    let start = format!("checkpoint {}: there is no checkpoint to go on from\n", path.display());
    assert!(error.starts_with(&start), "{error}");
    assert!(!path.exists());
    assert_eq!(train(&saving, 3).first_step(), Some(1));
    assert_eq!(train(&must, 3).first_step(), None);
}

#[test]
fn rank_0_alone_decides_whether_to_resume() {
    let (_, saving) = saving("decides", &options(OptimizerKind::Sgd));
    train(&until(7, &saving), 2);
    let first_steps = on_ranks(3, |world| {
        let mut options = saving.clone();
        if world.rank() > 0 {
            (options.checkpoint, options.resume) = (None, None);
        }
        let mut first = None;
        let watch = |event| {
            if let Event::Step(done) = event {
                first.get_or_insert(done.step);
            }
            Ok(())
        };
        Training::new(&options, &world).unwrap().run(watch).unwrap();
        world.close().unwrap();
        first
    });
    assert_eq!(first_steps, [Some(8); 3]);
}

#[test]
fn what_does_not_fit_is_one_error_of_all_ranks() {
    let (path, saving) = saving("another", &options(OptimizerKind::Adamw));
    train(&until(7, &saving), 1);
    let wide = Options { hidden: vec![9], ..saving.clone() };
    let error = error_of_all(&wide, 3);
    let file = model_file(&path, 7);
    let start =
        format!("checkpoint {}: of another model: hidden is 8 there, 9 here", file.display());
    assert!(error.starts_with(&start), "{error}");

    let adagrad = Options { optimizer: OptimizerKind::Adagrad, ..saving.clone() };
    let error = error_of_all(&adagrad, 3);
    let file = file.display();
    let problem = "of another optimizer: adamw there, adagrad here\n";
    assert!(error.starts_with(&format!("checkpoint {file}: {problem}")), "{error}");

    let fresh = Options { resume: None, ..saving.clone() };
    let error = error_of_all(&fresh, 3);
    let problem = "the folder holds checkpoints of an earlier run, up to step 7\ngo on from there";
    assert!(error.starts_with(&format!("checkpoint {}: {problem}", path.display())), "{error}");
    // None of them has touched it.
    assert_eq!(train(&saving, 2).first_step(), Some(8));
}

#[test]
fn what_has_changed_is_said_and_other_samples_are_refused() {
    let (path, saving) = saving("changed", &options(OptimizerKind::Sgd));
    train(&until(5, &saving), 1);
    let mut data = Data::open(None, "mlp".parse().unwrap(), 0, 1).unwrap();
    data.fingerprint = "other".into();
    let error = on_ranks(2, |world| {
        let error = Training::with_data(&saving, data.clone(), &world).err().unwrap().to_string();
        world.close().unwrap();
        error
    });
    let start = format!("checkpoint {}: of other data: sha-256 ", model_file(&path, 5).display());
    assert!(error.iter().all(|error| error.starts_with(&start)), "{error:?}");
    let held_out = Options { validation: 50, ..saving.clone() };
    let error = error_of_all(&held_out, 2);
    assert!(error.contains("held out: validation was 0, is 50 with --validation\n"), "{error}");

    // Three epochs of 15 steps would be 30, but its first 5 steps were of other batches.
    let smaller = Options { batch_size: 50, seed: 2, steps: Some(29), ..saving.clone() };
    let other = train(&smaller, 2);
    assert_eq!((other.first_step(), other.outcome.epochs), (Some(6), None));
    let again = train(&until(58, &smaller), 2);
    assert_eq!((again.first_step(), again.outcome.epochs), (Some(30), None));

    let (_, saving) =
        self::saving("held-out", &Options { validation: 50, ..options(OptimizerKind::Sgd) });
    train(&until(5, &saving), 1);
    for other in
        [Options { seed: 2, ..saving.clone() }, Options { validation: 0, ..saving.clone() }]
    {
        let error = error_of_all(&other, 2);
        assert!(error.contains(": other samples were held out: "), "{error}");
    }
    assert_eq!(train(&saving, 2).first_step(), Some(6));
}

#[test]
fn parameters_that_are_not_finite_are_not_saved() {
    let options = Options { checkpoint_every: Every::Steps(1), ..options(OptimizerKind::Sgd) };
    let (path, saving) = saving("not-finite", &Options { keep: 1, ..options });
    train(&until(3, &saving), 2);
    let wild = Options { lr: Some(1e38), ..saving.clone() };
    for run in train_until(&wild, 2, None) {
        let error = run.unwrap_err();
        assert!(error.to_string().starts_with("the loss is not finite at step "), "{error}");
        assert_eq!((error.exit_code(), error.help().unwrap()), (1, LOWER.into()));
    }
    // What is left can be gone on from.
    let left = Folder::new(&path).latest().unwrap();
    assert!(left.skipped.is_empty());
    let parameters = left.newest.unwrap().decode().unwrap().parameters;
    for tensor in parameters.values() {
        let sum = tensor.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(sum.is_finite());
    }
}

#[test]
fn fewer_are_kept_from_the_start_on() {
    let options = Options { checkpoint_every: Every::Steps(2), ..options(OptimizerKind::Sgd) };
    let (path, saving) = saving("fewer", &Options { keep: 10, ..options });
    train(&until(6, &saving), 2);
    assert_eq!(Folder::new(&path).steps().unwrap(), [2, 4, 6]);
    let one = on_ranks(2, |world| {
        let begun = Training::new(&Options { keep: 1, ..saving.clone() }, &world).map(drop);
        world.close().unwrap();
        begun
    });
    assert!(one.iter().all(Result::is_ok));
    assert_eq!(Folder::new(&path).steps().unwrap(), [6]);
    // Nothing left to train, and one test of it.
    let tests = on_ranks(2, |world| {
        let mut tests = Vec::new();
        let mut training = Training::new(&until(5, &saving), &world).unwrap();
        let watch = |event| {
            tests.push(event);
            Ok(())
        };
        let outcome = training.run(watch).unwrap();
        world.close().unwrap();
        let [Event::Test(done)] = &tests[..] else { panic!("{tests:?}") };
        assert_eq!((done.step, done.train.samples, Some(done.test)), (6, 0, outcome.test));
    });
    assert_eq!(tests.len(), 2);
}

#[test]
fn a_folder_has_one_writer() {
    let (path, saving) = saving("two", &options(OptimizerKind::Sgd));
    let [other] = &on_ranks(1, |world| {
        let first = Training::new(&saving, &world).unwrap();
        let error = error_of_all(&saving, 2);
        drop(first);
        world.close().unwrap();
        error
    })[..] else {
        panic!()
    };
    let problem = "another process writes checkpoints here";
    assert!(other.starts_with(&format!("checkpoint {}: {problem}\n", path.display())), "{other}");
    assert_eq!(train(&saving, 2).first_step(), Some(1));
}

#[test]
fn so_many_are_kept_of_those_that_were_due() {
    let mut options = options(OptimizerKind::Sgd);
    for (every, keep, expected) in [
        (Every::Steps(3), 100, vec![3, 6, 9, 12, 15, 18, 20]),
        (Every::Steps(3), 2, vec![18, 20]),
        (Every::Steps(5), 1, vec![20]),
        (Every::Epoch, 3, vec![15, 20]),
    ] {
        (options.checkpoint_every, options.keep) = (every, keep);
        let (path, saving) = saving("kept", &options);
        let run = train(&saving, 2);
        assert_eq!(run.outcome.problems, 0);
        assert_eq!(Folder::new(&path).steps().unwrap(), expected, "{every}, {keep} kept");
        // Two files each, nothing half written, and the lock.
        assert_eq!(fs::read_dir(&path).unwrap().count(), 2 * expected.len() + 1);
    }
}

#[test]
fn any_rank_can_stop_all_behind_the_same_step() {
    let options = options(OptimizerKind::Adamw);
    let whole = train(&options, 3);
    for rank in 0..3 {
        let (path, saving) = saving(&format!("stop-{rank}"), &options);
        let stopped = all_alike(train_until(&saving, 3, Some((rank, 6))));
        // The word travels with the next step.
        assert_eq!((stopped.outcome.steps, stopped.outcome.test), (7, None));
        assert_eq!(stopped.losses, whole.losses[..7]);
        assert_eq!(stopped.outcome.saved, Some(model_file(&path, 7)));
        assert!(stopped.outcome.is_saved);
        let resumed = train(&saving, 3);
        assert_eq!(resumed.first_step(), Some(8));
        assert_eq!(resumed.digest(), whole.digest());
        assert_eq!(resumed.outcome.test, whole.outcome.test);
    }
}

#[test]
fn a_stop_at_any_time_is_heard() {
    let options = Options {
        hidden: vec![32],
        bucket_mib: 0.001,
        accumulate: 2,
        ..options(OptimizerKind::Sgd)
    };
    let whole = train(&options, 2);
    // At an epoch's end, and so late that the last step is done.
    for at in [7, 8, 19] {
        let (_, saving) = saving(&format!("stop-at-{at}"), &options);
        let stopped = all_alike(train_until(&saving, 2, Some((1, at))));
        assert_eq!((stopped.outcome.steps, stopped.outcome.test), (at + 1, None));
        let resumed = train(&saving, 2);
        assert_eq!((resumed.digest(), resumed.outcome.test), (whole.digest(), whole.outcome.test));
    }
    // Behind the last step nobody listens any more.
    let late = all_alike(train_until(&options, 2, Some((1, 20))));
    assert_eq!((late.digest(), late.outcome.test), (whole.digest(), whole.outcome.test));
    // A world of one.
    let (_, saving) = saving("stop-alone", &options);
    let alone = train(&options, 1);
    let stopped = all_alike(train_until(&saving, 1, Some((0, 4))));
    assert_eq!((stopped.outcome.steps, stopped.outcome.test), (5, None));
    assert_eq!(train(&saving, 1).digest(), alone.digest());
}

#[test]
fn without_a_folder_to_write_training_goes_on() {
    let options = Options { checkpoint_every: Every::Steps(5), ..options(OptimizerKind::Sgd) };
    let whole = train(&options, 2);
    let (path, saving) = saving("a-file", &options);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "in the way").unwrap();
    let runs = train_until(&saving, 2, None);
    let problems: Vec<usize> =
        runs.iter().map(|run| run.as_ref().unwrap().outcome.problems).collect();
    // Steps 5, 10, 15 and 20; on the rank that writes.
    assert_eq!(problems, [4, 0]);
    let run = all_alike(runs);
    assert!(!run.outcome.is_saved);
    assert_eq!((run.digest(), run.outcome.saved), (whole.digest(), None));
    assert_eq!(fs::read(&path).unwrap(), b"in the way");
    fs::remove_file(path).unwrap();
}

const OPTIMIZERS: [OptimizerKind; 3] =
    [OptimizerKind::Adamw, OptimizerKind::Sgd, OptimizerKind::Adagrad];
const LOWER: &str = "lower --lr, the learning rate";
