//! The wrapper around a user's own optimiser: what it compares, how it weighs, what it leaves.

#![allow(clippy::unwrap_used, reason = "a test says by a panic that it failed")]

mod on_ranks;

use allfold::Communicator;
use allfold_trainer::{Distributed, Error, Options, Training, digits, fill_from_seed};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::{AdamW, Optimizer, SGD, VarBuilder, VarMap, linear, loss::cross_entropy};
use on_ranks::on_ranks;

/// Names, types and shapes.
type List<'a> = &'a [(&'a str, DType, &'a [usize])];

fn vars(list: List) -> VarMap {
    let map = VarMap::new();
    for &(name, dtype, shape) in list {
        map.get(shape, name, candle_nn::Init::Const(0.0), dtype, &Device::Cpu).unwrap();
    }
    map
}

fn sgd(vars: &VarMap) -> SGD {
    SGD::new(vars.all_vars(), 1.0).unwrap()
}

fn values(vars: &VarMap, name: &str) -> Vec<f64> {
    let map = vars.data().lock().unwrap();
    map[name].flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

#[test]
fn a_model_that_differs_is_named_on_every_rank() {
    use DType::{F32, F64};
    let rank_0: List = &[("a", F32, &[2, 3]), ("b", F32, &[3])];
    let cases: [(List, &str, &str); 5] = [
        (&[("a", F32, &[2, 3]), ("b", F32, &[4])], "`b` f32 [4]", "`b` f32 [3]"),
        (&[("a", F64, &[2, 3]), ("b", F32, &[3])], "`a` f64 [2, 3]", "`a` f32 [2, 3]"),
        (&[("a", F32, &[2, 3]), ("c", F32, &[3])], "`c` f32 [3]", "`b` f32 [3]"),
        (&[("a", F32, &[2, 3])], "nothing more", "`b` f32 [3]"),
        (&[("a", F32, &[2, 3]), ("b", F32, &[3]), ("c", F32, &[1])], "`c` f32 [1]", "nothing more"),
    ];
    for (rank_2, theirs, ours) in cases {
        let errors = on_ranks(4, |world| {
            let vars = vars(if world.rank() == 2 { rank_2 } else { rank_0 });
            Distributed::new(sgd(&vars), &vars, &world).err().unwrap()
        });
        for error in errors {
            assert_eq!(
                error.to_string(),
                format!("ranks disagree on the parameters: rank 2 has {theirs}, rank 0 has {ours}")
            );
            assert_eq!(error.exit_code(), 3);
        }
    }
}

#[test]
fn options_that_differ_are_named_on_every_rank() {
    let errors = on_ranks(3, |world| {
        let batch_size = if world.rank() == 1 { 50 } else { 100 };
        let options = Options { batch_size, steps: Some(5), ..Options::default() };
        Training::new(&options, &world).err().unwrap().to_string()
    });
    for error in errors {
        assert_eq!(
            error,
            "ranks disagree on the options: rank 1 has batch size 50, rank 0 has batch size 100"
        );
    }
}

#[test]
fn every_rank_starts_with_the_weights_of_rank_0() {
    let list: List =
        &[("a", DType::F32, &[2, 3]), ("b", DType::F32, &[2, 3]), ("c", DType::F64, &[5])];
    let starts = on_ranks(3, |world| {
        let vars = vars(list);
        fill_from_seed(&vars, world.rank() as u64).unwrap();
        let before = values(&vars, "b");
        let optimizer = Distributed::new(sgd(&vars), &vars, &world).unwrap();
        optimizer.digest().unwrap();
        (before, ["a", "b", "c"].map(|name| values(&vars, name)))
    });
    assert_ne!(starts[0].0, starts[1].0);
    assert_eq!(starts[0].0, starts[0].1[1], "rank 0 keeps its own");
    assert_ne!(starts[0].1[0], starts[0].1[1], "equal shapes are not mixed up");
    for start in &starts {
        assert_eq!(start.1, starts[0].1);
    }
}

#[test]
fn parameters_that_went_apart_are_a_failed_check_that_names_the_ranks() {
    let errors = on_ranks(4, |world| {
        let vars = vars(&[("a", DType::F32, &[2])]);
        let optimizer = Distributed::new(sgd(&vars), &vars, &world).unwrap();
        if world.rank() == 2 {
            let other = Tensor::new(&[0.0f32, 1e-30], &Device::Cpu).unwrap();
            vars.all_vars()[0].set(&other).unwrap();
        }
        optimizer.digest().unwrap_err()
    });
    for error in errors {
        let text = error.to_string();
        assert!(text.starts_with("parameters differ: digest "), "{text}");
        assert!(text.contains("... on ranks 0, 1, 3, digest "), "{text}");
        assert!(text.ends_with("... on rank 2"), "{text}");
        assert_eq!(error.exit_code(), 1);
    }
}

/// An own loop: 9 samples in batches of 5 (for two ranks 3 + 2, then 2 + 2), or of 8 (4 + 4, then
/// 1 + 0).
fn own_loop(world: &Communicator, batch_size: usize) -> (Vec<f64>, Vec<f64>) {
    let train = digits().unwrap().train;
    let vars = VarMap::new();
    let builder = VarBuilder::from_varmap(&vars, DType::F64, &Device::Cpu);
    let model = linear(64, 10, builder).unwrap();
    fill_from_seed(&vars, 3).unwrap();
    let adamw = AdamW::new_lr(vars.all_vars(), 0.1).unwrap();
    let mut opt = Distributed::new(adamw, &vars, world).unwrap();
    let mut losses = Vec::new();
    for epoch in 0..3 {
        for batch in opt.sampler(9, batch_size, 1).epoch(epoch) {
            let (images, labels) = train.batch(&batch, DType::F64).unwrap();
            let logits = model.forward(&images.flatten_from(1).unwrap()).unwrap();
            losses.push(opt.backward_step(&cross_entropy(&logits, &labels).unwrap()).unwrap());
        }
    }
    opt.digest().unwrap();
    (losses, values(&vars, "weight"))
}

#[test]
fn an_own_loop_takes_the_steps_of_one_process() {
    for batch_size in [5, 8] {
        let (losses, weights) = own_loop(&Communicator::single(), batch_size);
        for (ours, weight) in on_ranks(2, |world| own_loop(&world, batch_size)) {
            assert_eq!(ours.len(), losses.len());
            for (a, b) in ours.iter().chain(&weight).zip(losses.iter().chain(&weights)) {
                assert!((a - b).abs() < 1e-10, "batches of {batch_size}: {a} and {b}");
            }
        }
    }
}

/// One step of sgd with rate 1 on the loss `(a * (rank + 1)).mean()`.
fn one_step(world: &Communicator, samples: Option<usize>) -> Result<(f64, Vec<f64>), Error> {
    let vars = vars(&[("a", DType::F64, &[2]), ("unused", DType::F64, &[2])]);
    let mut opt = Distributed::new(sgd(&vars), &vars, world)?;
    if let Some(samples) = samples {
        opt.weigh(samples);
    }
    let a = vars.data().lock().unwrap()["a"].as_tensor().clone();
    let loss = ((a + 1.0)? * (world.rank() + 1) as f64)?.mean_all()?;
    let mean = opt.backward_step(&loss)?;
    Ok((mean, values(&vars, "a")))
}

#[test]
fn losses_are_weighed_by_samples() {
    // Losses 1 and 2 with gradients 1/2 and 1 for each element, 3 samples to 1.
    let weigh = |world: Communicator| one_step(&world, Some([3, 1][world.rank()])).unwrap();
    for (mean, a) in on_ranks(2, weigh) {
        assert_eq!((mean, a), (1.25, vec![-0.625, -0.625]));
    }
    // Without a word about samples both count the same.
    for (mean, a) in on_ranks(2, |world| one_step(&world, None).unwrap()) {
        assert_eq!((mean, a), (1.5, vec![-0.75, -0.75]));
    }
    // A rank without samples joins with zeros.
    let weigh = |world: Communicator| one_step(&world, Some([0, 1][world.rank()])).unwrap();
    for (mean, a) in on_ranks(2, weigh) {
        assert_eq!((mean, a), (2.0, vec![-1.0, -1.0]));
    }
}

/// One step of sgd with rate 1 from the gradients `gradient * (rank + 1)` of the mean of so many
/// samples, for parameters of each type.
fn one_step_of_types(world: &Communicator, gradient: f64, samples: usize) -> [Vec<f64>; 4] {
    let list: List = &[
        ("a", DType::BF16, &[2]),
        ("b", DType::F16, &[2]),
        ("c", DType::F32, &[2]),
        ("d", DType::F64, &[2]),
    ];
    let vars = vars(list);
    let mut opt = Distributed::new(sgd(&vars), &vars, world).unwrap();
    opt.weigh(samples);
    let mut gradients = GradStore::default();
    for (name, dtype, _) in list {
        let var = vars.data().lock().unwrap()[*name].clone();
        let gradient = Tensor::new(vec![gradient * (world.rank() + 1) as f64; 2], &Device::Cpu);
        gradients.insert(&var, gradient.unwrap().to_dtype(*dtype).unwrap());
    }
    opt.step(&gradients).unwrap();
    opt.digest().unwrap();
    ["a", "b", "c", "d"].map(|name| values(&vars, name))
}

#[test]
fn half_floats_are_weighed_as_exactly_as_the_others() {
    // Neither 3001 nor the part of a rank, 1001/3001, is a number of f16 or bf16; and 64 times 3001
    // is beyond f16.
    for samples in [[1001, 2000], [0, 3001], [1, 0], [1, 1]] {
        let own = |rank: usize| samples[rank] as f64 / samples.iter().sum::<usize>() as f64;
        let want = -64.0 * (own(0) + 2.0 * own(1));
        let step = |world: Communicator| one_step_of_types(&world, 64.0, samples[world.rank()]);
        for weights in on_ranks(2, step) {
            // Three roundings: of each part and of the sum.
            let bounds = [2f64.powi(-9), 2f64.powi(-12), 2f64.powi(-24), 2f64.powi(-53)];
            for (weights, bound) in weights.iter().zip(bounds) {
                for weight in weights {
                    let error = (weight - want).abs() / want.abs();
                    assert!(error <= 3.0 * bound, "{samples:?}: {weight}, not {want}");
                }
            }
        }
    }
}

#[test]
fn a_half_float_model_is_told_its_loss_exactly() {
    for dtype in [DType::F16, DType::BF16] {
        for (mean, weights) in on_ranks(2, |world| {
            let vars = vars(&[("a", dtype, &[2]), ("unused", dtype, &[2])]);
            let mut opt = Distributed::new(sgd(&vars), &vars, &world).unwrap();
            opt.weigh([2999, 2][world.rank()]);
            let a = vars.data().lock().unwrap()["a"].as_tensor().clone();
            let loss = ((a + 1.0).unwrap() * (world.rank() * 3001) as f64).unwrap();
            let mean = opt.backward_step(&loss.mean_all().unwrap()).unwrap();
            assert_eq!(values(&vars, "unused"), [0.0; 2]);
            (mean, values(&vars, "a"))
        }) {
            // 3001 is no number of either type.
            let near = if dtype == DType::F16 { 3000.0 } else { 3008.0 };
            assert_eq!(mean, near * 2.0 / 3001.0);
            assert!(weights.iter().all(|w| (w + 1.0).abs() < 0.01), "{weights:?}");
        }
    }
}

#[test]
fn no_samples_for_half_floats_is_an_error_on_every_rank() {
    for error in on_ranks(2, |world| {
        let vars = vars(&[("a", DType::BF16, &[2])]);
        let mut opt = Distributed::new(sgd(&vars), &vars, &world).unwrap();
        opt.weigh(0);
        opt.step(&GradStore::default()).unwrap_err()
    }) {
        assert_eq!(error.to_string(), "step 0: no rank has a sample");
    }
}

/// A step of as many parameters, each in a bucket of its own, because the type changes with each.
fn step_of_many(world: &Communicator, buckets: usize) -> Vec<f64> {
    let names: Vec<String> = (0..buckets).map(|number| format!("p{number:04}")).collect();
    let dtype = |number: usize| [DType::F32, DType::F64][number % 2];
    let list: Vec<(&str, DType, &[usize])> =
        names.iter().enumerate().map(|(at, name)| (&**name, dtype(at), &[2][..])).collect();
    let vars = vars(&list);
    let mut opt = Distributed::new(sgd(&vars), &vars, world).unwrap();
    let mut gradients = GradStore::default();
    for (at, name) in names.iter().enumerate() {
        let var = vars.data().lock().unwrap()[name].clone();
        let gradient = vec![(at * (world.rank() + 1)) as f64; 2];
        let gradient = Tensor::new(gradient, &Device::Cpu).unwrap().to_dtype(dtype(at)).unwrap();
        gradients.insert(&var, gradient);
    }
    opt.step(&gradients).unwrap();
    names.iter().flat_map(|name| values(&vars, name)).collect()
}

#[test]
fn more_buckets_than_calls_may_be_outstanding_are_one_step() {
    for weights in on_ranks(2, |world| step_of_many(&world, 1100)) {
        assert!(weights.iter().enumerate().all(|(at, w)| *w == (at / 2) as f64 * -1.5));
    }
}

#[test]
fn a_gradient_that_does_not_fit_leaves_the_buckets_under_way_usable() {
    for weights in on_ranks(2, |world| {
        let vars = vars(&[("a", DType::F32, &[2]), ("b", DType::F64, &[2])]);
        let mut opt = Distributed::new(sgd(&vars), &vars, &world).unwrap();
        let var = |name: &str| vars.data().lock().unwrap()[name].clone();
        let mut gradients = GradStore::default();
        gradients.insert(&var("b"), Tensor::ones(2, DType::F64, &Device::Cpu).unwrap());
        gradients.insert(&var("a"), Tensor::ones(3, DType::F32, &Device::Cpu).unwrap());
        // The bucket of `b` is on its way by then.
        let error = opt.step(&gradients).unwrap_err();
        assert!(error.to_string().contains("shape [3]"), "{error}");
        gradients.insert(&var("a"), Tensor::ones(2, DType::F32, &Device::Cpu).unwrap());
        opt.step(&gradients).unwrap();
        [values(&vars, "a"), values(&vars, "b")]
    }) {
        assert_eq!(weights, [[-1.0, -1.0], [-1.0, -1.0]]);
    }
}

#[test]
fn a_step_without_any_sample_is_an_error_on_every_rank() {
    for error in on_ranks(2, |world| one_step(&world, Some(0)).unwrap_err()) {
        assert_eq!(error.to_string(), "step 0: no rank has a sample");
    }
}

#[test]
fn nothing_to_train_is_an_error() {
    let vars = VarMap::new();
    let world = Communicator::single();
    let error = Distributed::new(sgd(&vars), &vars, &world).err().unwrap();
    assert_eq!(error.to_string(), "the model has no parameters");
}

#[test]
fn a_loss_that_is_not_finite_ends_every_rank_alike() {
    let errors = on_ranks(3, |world| {
        let vars = vars(&[("a", DType::F32, &[2])]);
        let mut optimizer = Distributed::new(sgd(&vars), &vars, &world).unwrap();
        let a = vars.all_vars()[0].clone();
        let one = a.sum_all().unwrap();
        optimizer.backward_step(&one).unwrap();
        // One rank is enough.
        let scale = if world.rank() == 1 { f64::INFINITY } else { 1.0 };
        let loss = (a.sum_all().unwrap() * scale).unwrap();
        let before = values(&vars, "a");
        let error = optimizer.backward_step(&loss).unwrap_err();
        assert_eq!(values(&vars, "a"), before);
        error
    });
    for error in errors {
        assert_eq!(error.to_string(), "the loss is not finite at step 2");
        assert!(error.help().unwrap().contains("--lr"));
        assert_eq!(error.exit_code(), 1);
    }
}

#[test]
fn a_training_that_diverges_is_an_error() {
    let options = Options { lr: Some(1e30), epochs: 1, model: "mlp".into(), ..Options::default() };
    let world = Communicator::single();
    let error = Training::new(&options, &world).unwrap().run(|_| Ok(())).unwrap_err();
    assert!(error.to_string().starts_with("the loss is not finite at step "), "{error}");
    // The last step has none after it whose loss would tell.
    let options = Options { steps: Some(1), ..options };
    let error = Training::new(&options, &world).unwrap().run(|_| Ok(())).unwrap_err();
    assert_eq!(error.to_string(), "the loss is not finite at step 1");
}
