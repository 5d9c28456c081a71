//! Gradients that are added up while backward goes on, over several batches, clipped; and the word
//! to stop that travels with them.

#![allow(clippy::unwrap_used, reason = "a test says by a panic that it failed")]

mod on_ranks;

use allfold::Communicator;
use allfold_trainer::{Digest, Distributed, Error, Tally, fill_from_seed};
use candle_core::{DType, Device, Module, Result as Candle, Tensor};
use candle_nn::{Linear, Optimizer, SGD, VarBuilder, VarMap, linear};
use on_ranks::on_ranks;

/// Twelve layers, so that the order of names is not that of letters, in buckets of one or two.
struct Deep(Vec<Linear>);

impl Deep {
    fn new(vars: VarBuilder) -> Candle<Self> {
        (1..=12)
            .map(|layer| linear(4, 4, vars.pp(format!("dense{layer}"))))
            .collect::<Candle<_>>()
            .map(Self)
    }

    fn forward(&self, input: &Tensor) -> Candle<Tensor> {
        self.0.iter().try_fold(input.clone(), |values, layer| layer.forward(&values)?.tanh())
    }
}

fn input(rank: usize, batch: usize) -> Tensor {
    let values: Vec<f64> =
        (0..8).map(|at| ((rank * 31 + batch * 17 + at * 7) % 13) as f64 / 13.0).collect();
    Tensor::from_vec(values, (2, 4), &Device::Cpu).unwrap()
}

/// Five steps of this many batches each; the digest, the last mean loss.
fn train(world: &Communicator, limit: usize, batches: usize, is_tracked: bool) -> (Digest, f64) {
    let vars = VarMap::new();
    let model = Deep::new(VarBuilder::from_varmap(&vars, DType::F64, &Device::Cpu)).unwrap();
    fill_from_seed(&vars, 1).unwrap();
    let sgd = SGD::new(vars.all_vars(), 0.5).unwrap();
    let mut opt = Distributed::new(sgd, &vars, world).unwrap().with_bucket_limit(limit).unwrap();
    assert_eq!(opt.overlaps(), world.size() > 1 && limit < 1000);
    opt.weigh(2);
    let mut mean = 0.0;
    for step in 0..5 {
        for batch in 0..batches {
            let input = input(world.rank(), step * batches + batch);
            let loss = |model: &Deep| model.forward(&input).unwrap().sqr().unwrap().mean_all();
            let loss = match is_tracked {
                true => loss(&Deep::new(opt.tracked(DType::F64)).unwrap()),
                false => loss(&model),
            };
            match batch + 1 < batches {
                true => opt.accumulate(&loss.unwrap()).unwrap(),
                false => mean = opt.backward_step(&loss.unwrap()).unwrap(),
            }
        }
    }
    (opt.digest().unwrap(), mean)
}

#[test]
fn tracked_parameters_train_as_others_do() {
    for batches in [1, 3] {
        for limit in [8, 200, 1 << 20] {
            let tracked = on_ranks(3, |world| train(&world, limit, batches, true));
            let plain = on_ranks(3, |world| train(&world, limit, batches, false));
            // Not to the bit: another order of parameters, and other ranks begin their sums.
            for ((digest, loss), (_, expected)) in tracked.iter().zip(&plain) {
                assert_eq!(digest, &tracked[0].0);
                let difference = (loss - expected).abs() / expected;
                assert!(difference < 1e-12, "{limit} bytes, {batches} batches: {difference:e}");
            }
        }
    }
}

#[test]
fn batches_of_a_step_count_as_one() {
    // Three ranks with two batches each are one rank with six.
    let together = on_ranks(3, |world| train(&world, 200, 2, true));
    let vars = VarMap::new();
    let model = Deep::new(VarBuilder::from_varmap(&vars, DType::F64, &Device::Cpu)).unwrap();
    fill_from_seed(&vars, 1).unwrap();
    let world = Communicator::single();
    let sgd = SGD::new(vars.all_vars(), 0.5).unwrap();
    let mut opt = Distributed::new(sgd, &vars, &world).unwrap();
    let mut mean = 0.0;
    for step in 0..5 {
        let batches = (0..6).map(|at| (at / 2, step * 2 + at % 2));
        for (at, (rank, batch)) in batches.enumerate() {
            let losses = model.forward(&input(rank, batch)).unwrap().sqr().unwrap();
            // The sum of two samples' losses, in place of their mean.
            let losses = (losses.mean_all().unwrap() * 2.0).unwrap();
            let loss = losses.to_scalar().unwrap();
            let own = Tally { samples: 2, loss, correct: 0 };
            match at < 5 {
                true => opt.accumulate_sum(Some(&losses), own).unwrap(),
                false => mean = opt.backward_step_of_sum(Some(&losses), own).unwrap().mean_loss(),
            }
        }
    }
    for (_, theirs) in together {
        assert!((theirs - mean).abs() < 1e-12 * mean, "{theirs} and {mean}");
    }
}

#[test]
fn ranks_without_a_model_take_the_order_of_rank_0() {
    // Rank 1 has no sample in the first step, and so no model that would tell an order.
    for digest in on_ranks(2, |world| {
        let vars = VarMap::new();
        Deep::new(VarBuilder::from_varmap(&vars, DType::F64, &Device::Cpu)).unwrap();
        let sgd = SGD::new(vars.all_vars(), 0.5).unwrap();
        let mut opt = Distributed::new(sgd, &vars, &world).unwrap().with_bucket_limit(8).unwrap();
        for step in 0..2 {
            if step == 0 && world.rank() == 1 {
                opt.backward_step_of_sum(None, Tally::default()).unwrap();
                continue;
            }
            let model = Deep::new(opt.tracked(DType::F64)).unwrap();
            let losses = model.forward(&input(0, step)).unwrap().sum_all().unwrap();
            let own = Tally { samples: 2, ..Tally::default() };
            opt.backward_step_of_sum(Some(&losses), own).unwrap();
        }
        opt.digest().unwrap()
    }) {
        assert_eq!(digest.to_string().len(), 64);
    }
}

/// A wrapped optimiser of `a` and `b`, in buckets of their own.
fn two(world: &Communicator) -> (VarMap, Distributed<'_, SGD>) {
    let vars = VarMap::new();
    for name in ["a", "b"] {
        vars.get(2, name, candle_nn::Init::Const(1.0), DType::F32, &Device::Cpu).unwrap();
    }
    let sgd = SGD::new(vars.all_vars(), 1.0).unwrap();
    let opt = Distributed::new(sgd, &vars, world).unwrap().with_bucket_limit(8).unwrap();
    (vars, opt)
}

fn values(vars: &VarMap, name: &str) -> Vec<f32> {
    vars.data().lock().unwrap()[name].to_vec1().unwrap()
}

#[test]
fn a_parameter_that_is_used_twice_is_one() {
    for (a, b) in on_ranks(2, |world| {
        let (vars, mut opt) = two(&world);
        let tracked = opt.tracked(DType::F32);
        let [a, again, b] = ["a", "a", "b"].map(|name| tracked.get(2, name).unwrap());
        let loss = ((a + again).unwrap() * b).unwrap().sum_all().unwrap();
        opt.backward_step(&loss).unwrap();
        (values(&vars, "a"), values(&vars, "b"))
    }) {
        assert_eq!((a, b), (vec![-1.0; 2], vec![-1.0; 2]));
    }
}

#[test]
fn a_model_of_another_step_is_refused() {
    for error in on_ranks(2, |world| {
        let (vars, mut opt) = two(&world);
        let tracked = opt.tracked(DType::F32);
        let loss = || {
            let [a, b] = ["a", "b"].map(|name| tracked.get(2, name).unwrap());
            (a * b).unwrap().sum_all().unwrap()
        };
        opt.backward_step(&loss()).unwrap();
        let error = opt.backward_step(&loss()).unwrap_err();
        assert_eq!(values(&vars, "a"), [0.0; 2], "the step was not taken");
        // Nothing of it is left for the next step.
        let tracked = opt.tracked(DType::F32);
        let loss = tracked.get(2, "a").unwrap().sum_all().unwrap();
        opt.backward_step(&loss).unwrap();
        assert_eq!([values(&vars, "a"), values(&vars, "b")], [[-1.0; 2], [0.0; 2]]);
        error
    }) {
        assert_eq!(error.to_string(), "the model holds the parameters of an earlier step");
        assert!(error.help().unwrap().contains("tracked"));
        assert_eq!(error.exit_code(), 2);
    }
}

#[test]
fn two_models_behind_one_loss_are_refused() {
    for error in on_ranks(2, |world| {
        let (_vars, mut opt) = two(&world);
        let [one, other] = [(), ()].map(|()| opt.tracked(DType::F32).get(2, "a").unwrap());
        let loss = (one * other).unwrap().sum_all().unwrap();
        opt.backward_step(&loss).unwrap_err()
    }) {
        assert!(matches!(error, Error::TwoGradients), "{error}");
    }
}

#[test]
fn a_model_that_asks_for_what_is_not_there_is_told() {
    for world in [Communicator::single()].into_iter().chain(Communicator::in_memory(1).unwrap()) {
        let (_vars, opt) = two(&world);
        let tracked = opt.tracked(DType::F32);
        let text = |error: candle_core::Error| Error::from(error).to_string();
        assert!(text(tracked.get(2, "c").unwrap_err()).contains("no parameter `c`"));
        assert!(text(tracked.get(3, "a").unwrap_err()).contains("parameter `a`"));
        let other = opt.tracked(DType::F64);
        let expected = "candle: parameter `a` is of type f32, not f64";
        assert_eq!(text(other.get(2, "a").unwrap_err()), expected);
        assert!(tracked.contains_tensor("a") && !tracked.contains_tensor("c"));
    }
}

#[test]
fn the_gradient_is_clipped_over_all_parameters_and_ranks() {
    let clipped = |world: Communicator| {
        let (vars, mut opt) = two(&world);
        opt.set_clip_norm(Some(0.5));
        let a = vars.data().lock().unwrap()["a"].clone();
        let b = vars.data().lock().unwrap()["b"].clone();
        // The mean over two ranks of 1.5 times as much is that of one.
        let factor = if world.size() == 1 { 1.0 } else { [0.5, 1.5][world.rank()] };
        let loss = (a.as_tensor() * 3.0).unwrap() + (b.as_tensor() * 4.0).unwrap();
        opt.backward_step(&(loss.unwrap() * factor).unwrap().sum_all().unwrap()).unwrap();
        (opt.gradient_norm(), values(&vars, "a"), values(&vars, "b"))
    };
    let alone = clipped(Communicator::single());
    assert_eq!(alone.0, Some(50f64.sqrt()));
    for together in on_ranks(2, clipped) {
        assert_eq!(together, alone);
    }
    let (a, b) = (1.0 - alone.1[0], 1.0 - alone.2[0]);
    assert!(((2.0 * (a * a + b * b)).sqrt() - 0.5).abs() < 1e-6);
}

#[test]
fn one_rank_asks_and_all_stop_at_one_step() {
    let stops = on_ranks(3, |world| {
        let (_vars, mut opt) = two(&world);
        (0..4)
            .map(|step| {
                if (world.rank(), step) == (1, 2) {
                    opt.ask_to_stop();
                }
                let loss = opt.tracked(DType::F32).get(2, "a").unwrap().sum_all().unwrap();
                opt.backward_step(&loss).unwrap();
                opt.is_stopping()
            })
            .collect::<Vec<_>>()
    });
    assert_eq!(stops, vec![vec![false, false, true, true]; 3]);
    let world = Communicator::single();
    let (vars, mut opt) = two(&world);
    opt.ask_to_stop();
    let loss = vars.data().lock().unwrap()["a"].as_tensor().sum_all().unwrap();
    opt.backward_step(&loss).unwrap();
    assert!(opt.is_stopping());
}

#[test]
fn half_floats_add_up_over_batches_and_ranks() {
    for weights in on_ranks(2, |world| {
        let vars = VarMap::new();
        vars.get(2, "a", candle_nn::Init::Const(0.0), DType::F16, &Device::Cpu).unwrap();
        let sgd = SGD::new(vars.all_vars(), 1.0).unwrap();
        let mut opt = Distributed::new(sgd, &vars, &world).unwrap();
        let a = vars.all_vars()[0].clone();
        // 3,001 samples with a gradient of 64 in two uneven batches, others without.
        let loss = |factor: f64| (a.as_tensor() * factor).unwrap().sum_all().unwrap();
        opt.weigh([1000, 1][world.rank()]);
        opt.accumulate(&loss(64.0)).unwrap();
        opt.weigh([1, 2000][world.rank()]);
        opt.backward_step(&loss([0.0, 64.0][world.rank()])).unwrap();
        vars.all_vars()[0].to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap()
    }) {
        let want = -64.0 * 3001.0 / 3002.0;
        assert!(weights.iter().all(|w| (w - want).abs() < 0.1), "{weights:?}, not {want}");
    }
}
