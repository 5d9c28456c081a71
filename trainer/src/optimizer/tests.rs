use super::*;
use candle_nn::{AdamW, ParamsAdamW, SGD};

use crate::random::Random;

const STEPS: usize = 20;

/// A parameter of `shape` and its gradients for some steps.
fn drawn(shape: (usize, usize), dtype: DType, seed: u64) -> (Var, Vec<Tensor>) {
    let mut random = Random::new(seed, 0);
    let mut tensor = || {
        let values: Vec<f64> = (0..shape.0 * shape.1).map(|_| 2.0 * random.unit() - 1.0).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
    };
    (Var::from_tensor(&tensor()).unwrap(), (0..STEPS).map(|_| tensor()).collect())
}

fn values(tensor: &Tensor) -> Vec<f64> {
    let tensor = tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap();
    tensor.to_vec1().unwrap()
}

fn run(optimizer: &mut impl Optimizer, var: &Var, gradients: &[Tensor]) -> Vec<f64> {
    for gradient in gradients {
        let mut store = GradStore::default();
        store.insert(var, gradient.clone());
        optimizer.step(&store).unwrap();
    }
    values(var)
}

fn config(kind: OptimizerKind, lr: f64) -> OptimizerConfig {
    OptimizerConfig { lr, ..OptimizerConfig::new(kind) }
}

fn optimiser(config: OptimizerConfig, var: &Var) -> Optimiser {
    Optimiser::new(config, &[("a".into(), var.clone())]).unwrap()
}

#[track_caller]
fn assert_close(ours: &[f64], theirs: &[f64], tolerance: f64) {
    assert_eq!(ours.len(), theirs.len());
    for (a, b) in ours.iter().zip(theirs) {
        assert!((a - b).abs() <= tolerance * a.abs().max(1e-3), "{a} and {b}");
    }
}

#[test]
fn adamw_is_candles() {
    for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::F64, 1e-14)] {
        let (var, gradients) = drawn((3, 5), dtype, 1);
        let theirs = Var::from_tensor(&var.copy().unwrap()).unwrap();
        let params = ParamsAdamW { lr: 0.02, ..ParamsAdamW::default() };
        let mut candle = <AdamW as Optimizer>::new(vec![theirs.clone()], params).unwrap();
        let theirs = run(&mut candle, &theirs, &gradients);
        let before = values(&var);
        let ours = run(&mut optimiser(config(OptimizerKind::Adamw, 0.02), &var), &var, &gradients);
        assert_ne!(ours, before);
        assert_close(&ours, &theirs, tolerance);
    }
}

#[test]
fn sgd_without_momentum_is_candles() {
    let (var, gradients) = drawn((4, 4), DType::F32, 2);
    let theirs = Var::from_tensor(&var.copy().unwrap()).unwrap();
    let mut candle = SGD::new(vec![theirs.clone()], 0.3).unwrap();
    let theirs = run(&mut candle, &theirs, &gradients);
    let plain = OptimizerConfig { momentum: 0.0, ..config(OptimizerKind::Sgd, 0.3) };
    let ours = run(&mut optimiser(plain, &var), &var, &gradients);
    assert_close(&ours, &theirs, 1e-6);
}

fn two_steps(kind: OptimizerKind, lr: f64) -> Vec<f64> {
    let var = Var::new(&[1.0f64, -2.0], &Device::Cpu).unwrap();
    let gradients =
        [[0.5, 1.0], [0.25, -2.0]].map(|gradient| Tensor::new(&gradient, &Device::Cpu).unwrap());
    run(&mut optimiser(config(kind, lr), &var), &var, &gradients)
}

#[test]
fn momentum_by_hand() {
    // Velocities 0.5, 1; then 0.9 * 0.5 + 0.25 = 0.7 and 0.9 - 2 = -1.1.
    let expected = [1.0 - 0.1 * 0.5 - 0.1 * 0.7, -2.0 - 0.1 + 0.1 * 1.1];
    assert_close(&two_steps(OptimizerKind::Sgd, 0.1), &expected, 1e-15);
}

#[test]
fn adagrad_by_hand() {
    // Sums 0.1 + 0.25, then + 0.0625; and 0.1 + 1, then + 4.
    let expected = [
        1.0 - 0.1 * 0.5 / 0.35f64.sqrt() - 0.1 * 0.25 / 0.4125f64.sqrt(),
        -2.0 - 0.1 / 1.1f64.sqrt() + 0.1 * 2.0 / 5.1f64.sqrt(),
    ];
    assert_close(&two_steps(OptimizerKind::Adagrad, 0.1), &expected, 1e-15);
}

const KINDS: [OptimizerKind; 3] =
    [OptimizerKind::Sgd, OptimizerKind::Adagrad, OptimizerKind::Adamw];

#[test]
fn a_restored_state_goes_on_with_the_same_bits() {
    for kind in KINDS {
        for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
            let (var, gradients) = drawn((2, 7), dtype, 3);
            let config = OptimizerConfig::new(kind);
            let other = Var::from_tensor(&var.copy().unwrap()).unwrap();
            let whole = run(&mut optimiser(config, &var), &var, &gradients);

            let mut first = optimiser(config, &other);
            run(&mut first, &other, &gradients[..STEPS / 2]);
            let saved: HashMap<String, Tensor> = first.state().unwrap().into_iter().collect();
            // What was saved is a copy.
            run(&mut first, &Var::from_tensor(&other.copy().unwrap()).unwrap(), &gradients[..1]);
            let mut second = optimiser(config, &other);
            second.restore(&saved).unwrap();
            let resumed = run(&mut second, &other, &gradients[STEPS / 2..]);
            assert_eq!(whole, resumed, "{kind:?} {dtype:?}");
        }
    }
}

#[test]
fn states_have_names_and_the_step() {
    for (kind, expected) in [
        (OptimizerKind::Sgd, &["sgd.steps", "sgd.momentum.a"][..]),
        (OptimizerKind::Adagrad, &["adagrad.steps", "adagrad.accumulator.a"]),
        (OptimizerKind::Adamw, &["adamw.steps", "adamw.first.a", "adamw.second.a"]),
    ] {
        let (var, gradients) = drawn((2, 3), DType::F32, 4);
        let mut optimiser = optimiser(OptimizerConfig::new(kind), &var);
        run(&mut optimiser, &var, &gradients);
        let state = optimiser.state().unwrap();
        assert!(state.iter().map(|(name, _)| name.as_str()).eq(expected.iter().copied()));
        assert_eq!(state[0].1.to_vec1::<i64>().unwrap(), [STEPS as i64]);
        assert_eq!(state[1].1.dims(), [2, 3]);
    }
}

#[test]
fn a_state_that_does_not_fit_changes_nothing() {
    let (var, gradients) = drawn((2, 3), DType::F32, 5);
    let mut optimiser = optimiser(OptimizerConfig::new(OptimizerKind::Adamw), &var);
    run(&mut optimiser, &var, &gradients);
    let before: HashMap<String, Tensor> = optimiser.state().unwrap().into_iter().collect();
    let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
    for (name, tensor, expected) in [
        ("adamw.second.a", None, "is missing"),
        ("adamw.second.a", Some(zeros(&[3, 2], DType::F32)), "is f32 [3, 2], expected f32 [2, 3]"),
        ("adamw.first.a", Some(zeros(&[2, 3], DType::F64)), "is f64 [2, 3], expected f32 [2, 3]"),
        ("adamw.steps", None, "is missing"),
        ("adamw.steps", Some(zeros(&[1], DType::F32)), "is f32 [1], expected i64 [1]"),
    ] {
        let mut damaged = before.clone();
        damaged.insert("adamw.first.a".into(), zeros(&[2, 3], DType::F32));
        match tensor {
            Some(tensor) => damaged.insert(name.into(), tensor),
            None => damaged.remove(name),
        };
        let error = optimiser.restore(&damaged).unwrap_err();
        assert_eq!(error.to_string(), format!("optimizer state `{name}` {expected}"));
        assert_eq!(error.exit_code(), 2);
        for (name, tensor) in optimiser.state().unwrap() {
            let [after, before] = [&tensor, &before[&name]].map(values);
            assert_eq!(after, before);
        }
    }
}

#[test]
fn a_parameter_without_gradient_is_left_alone() {
    for kind in KINDS {
        let (var, gradients) = drawn((2, 3), DType::F32, 6);
        let idle = Var::new(&[1.0f32, 2.0], &Device::Cpu).unwrap();
        let named = [("a".to_string(), var.clone()), ("idle".to_string(), idle.clone())];
        let mut optimiser = Optimiser::new(OptimizerConfig::new(kind), &named).unwrap();
        let state = |optimiser: &Optimiser| {
            let all = optimiser.state().unwrap();
            all.iter().filter(|(name, _)| name.ends_with("idle")).map(|(_, t)| values(t)).collect()
        };
        let before: Vec<Vec<f64>> = state(&optimiser);
        run(&mut optimiser, &var, &gradients);
        assert_eq!(values(&idle), [1.0, 2.0]);
        let after: Vec<Vec<f64>> = state(&optimiser);
        assert_eq!(before, after);
    }
}

#[test]
fn gradients_may_lie_anyhow_in_memory() {
    let (var, gradients) = drawn((3, 5), DType::F32, 7);
    let other = Var::from_tensor(&var.copy().unwrap()).unwrap();
    let config = OptimizerConfig::new(OptimizerKind::Adagrad);
    let plain = run(&mut optimiser(config, &var), &var, &gradients);
    let turned: Vec<Tensor> = gradients
        .iter()
        .map(|gradient| gradient.t().unwrap().contiguous().unwrap().t().unwrap())
        .collect();
    assert_eq!(run(&mut optimiser(config, &other), &other, &turned), plain);
}

/// What a GPU computes, computed by the host.
#[test]
fn operations_of_candles_take_the_same_steps() {
    use OptimizerKind::{Adagrad, Adamw, Sgd};
    for kind in [Sgd, Adagrad, Adamw] {
        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F64, 1e-13), (DType::BF16, 0.01)] {
            let (var, gradients) = drawn((3, 5), dtype, 1);
            let other = Var::from_tensor(&var.copy().unwrap()).unwrap();
            let host = run(&mut optimiser(config(kind, 0.02), &var), &var, &gradients);
            let mut by_tensors = optimiser(config(kind, 0.02), &other);
            by_tensors.parameters[0].state = RefCell::new(State::of_tensors(kind, &other).unwrap());
            let (before, after) = gradients.split_at(STEPS / 2);
            run(&mut by_tensors, &other, before);
            // Its state can be saved and put back, there and on the host.
            let state: HashMap<String, Tensor> = by_tensors.state().unwrap().into_iter().collect();
            let on_host = Var::from_tensor(&other.copy().unwrap()).unwrap();
            let mut resumed = optimiser(config(kind, 0.02), &on_host);
            for optimizer in [&mut by_tensors, &mut resumed] {
                optimizer.restore(&state).unwrap();
            }
            assert!(matches!(*by_tensors.parameters[0].state.borrow(), State::Tensors(_)));
            assert_close(&run(&mut by_tensors, &other, after), &host, tolerance);
            assert_close(&run(&mut resumed, &on_host, after), &host, tolerance);
        }
    }
}
