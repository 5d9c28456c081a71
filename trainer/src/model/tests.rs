use super::*;
use crate::data::{Data, Scratch};
use crate::initial::fill_from_seed;
use crate::loss::{count, sum_of_losses};
use crate::optimizer::{Optimiser, OptimizerConfig};
use crate::options::OptimizerKind;
use crate::parameters::by_name;
use crate::random::Random;
use candle_core::{DType, Device, Tensor};
use candle_nn::{Optimizer, VarMap};
use std::collections::HashMap;

fn images(height: usize, width: usize) -> Shape {
    Shape::Images { channels: 1, height, width, classes: 10 }
}

fn text(length: usize) -> Shape {
    Shape::Text { length, vocabulary: ('a'..='l').collect() }
}

fn built(
    kind: ModelKind,
    hidden: &[usize],
    shape: &Shape,
    dtype: DType,
) -> (Box<dyn Module>, VarMap) {
    let map = VarMap::new();
    let vars = VarBuilder::from_varmap(&map, dtype, &Device::Cpu);
    let model = kind.build(hidden, shape, vars).unwrap();
    fill_from_seed(&map, 1).unwrap();
    (model, map)
}

fn count_of(map: &VarMap) -> usize {
    map.all_vars().iter().map(|var| var.elem_count()).sum()
}

/// Three samples of this shape and their targets.
fn samples(shape: &Shape, dtype: DType) -> (Tensor, Tensor) {
    let mut random = Random::new(5, 0);
    match shape {
        &Shape::Images { channels, height, width, classes } => {
            let count = 3 * channels * height * width;
            let pixels: Vec<f64> = (0..count).map(|_| random.unit()).collect();
            let images = Tensor::from_vec(pixels, (3, channels, height, width), &Device::Cpu);
            let labels: Vec<u32> = (0..3).map(|_| random.below(classes) as u32).collect();
            let labels = Tensor::new(labels, &Device::Cpu).unwrap();
            (images.unwrap().to_dtype(dtype).unwrap(), labels)
        }
        Shape::Text { length, vocabulary } => {
            let mut characters = || {
                let numbers: Vec<u32> =
                    (0..3 * length).map(|_| random.below(vocabulary.len()) as u32).collect();
                Tensor::from_vec(numbers, (3, *length), &Device::Cpu).unwrap()
            };
            (characters(), characters())
        }
    }
}

#[test]
fn models_have_their_sizes() {
    let large = [1024; 4];
    for (kind, hidden, shape, expected) in [
        (ModelKind::Cnn, ModelKind::Cnn.default_hidden(), images(8, 8), 13_706),
        (ModelKind::Mlp, ModelKind::Mlp.default_hidden(), images(8, 8), 7_510),
        (ModelKind::Mlp, &large[..], images(28, 28), 785 * 1024 + 3 * 1025 * 1024 + 1025 * 10),
        (ModelKind::Cnn, &[64], images(28, 28), 160 + 4640 + 1569 * 64 - 64 + 64 + 650),
        (ModelKind::Lm, &[8], text(6), 12 * 8 + 6 * 8 + 2 * (12 * 64 + 13 * 8) + 16 + 12 * 9),
    ] {
        let (model, map) = built(kind, hidden, &shape, DType::F64);
        let (inputs, targets) = samples(&shape, DType::F64);
        let logits = model.forward(&inputs).unwrap();
        let classes = if kind == ModelKind::Lm { 12 } else { 10 };
        assert_eq!(logits.dims(), [targets.dims(), &[classes]].concat());
        assert_eq!(count_of(&map), expected, "{kind}");
        assert_eq!(kind.to_string().parse::<ModelKind>().unwrap(), kind);
    }
}

#[test]
fn names_are_those_of_a_pytorch_module() {
    let (_, map) = built(ModelKind::Lm, &[8], &text(6), DType::F32);
    let names: Vec<String> = by_name(&map).into_iter().map(|(name, _)| name).collect();
    for name in [
        "block1.attention.query.weight",
        "block2.mlp.dense2.bias",
        "block2.norm1.weight",
        "embedding.position.weight",
        "embedding.token.weight",
        "norm.bias",
        "output.weight",
    ] {
        assert!(names.iter().any(|found| found == name), "{name} in {names:?}");
    }
    let (_, map) = built(ModelKind::Mlp, &[5, 6], &images(8, 8), DType::F32);
    let names: Vec<String> = by_name(&map).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names[..2], ["dense1.bias", "dense1.weight"]);
    assert_eq!(names[4..], ["dense3.bias", "dense3.weight"]);
}

/// Every parameter's gradient against the change of the loss when one of its elements changes.
#[test]
fn gradients_are_the_slopes_of_the_loss() {
    for (kind, hidden, shape) in [
        (ModelKind::Mlp, &[7, 5][..], images(4, 5)),
        (ModelKind::Cnn, &[6], images(8, 8)),
        // Odd before and after the first pooling.
        (ModelKind::Cnn, &[6], images(9, 11)),
        (ModelKind::Lm, &[8], text(6)),
    ] {
        let (model, map) = built(kind, hidden, &shape, DType::F64);
        let (inputs, targets) = samples(&shape, DType::F64);
        let loss = || sum_of_losses(&model.forward(&inputs).unwrap(), &targets).unwrap();
        let value = || loss().to_scalar::<f64>().unwrap();
        let gradients = loss().backward().unwrap();
        let mut random = Random::new(9, 0);
        for (name, var) in by_name(&map) {
            let gradient = gradients.get(&var).unwrap_or_else(|| panic!("{kind}: {name}"));
            let gradient = gradient.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            let before = var.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            if !(kind == ModelKind::Lm && name.ends_with("key.bias")) {
                assert!(gradient.iter().any(|slope| slope.abs() > 1e-9), "{kind}: {name} is 0");
            }
            for _ in 0..4 {
                let at = random.below(before.len());
                let moved = |by: f64| {
                    let mut values = before.clone();
                    values[at] += by;
                    var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
                    value()
                };
                let step = 1e-5;
                let slope = (moved(step) - moved(-step)) / (2.0 * step);
                moved(0.0);
                let error = (slope - gradient[at]).abs();
                let what = format!("{kind}: {name}[{at}] is {}, not {slope}", gradient[at]);
                assert!(error < 1e-6 * slope.abs().max(1.0), "{what}");
            }
        }
    }
}

#[test]
fn a_model_can_be_built_from_tensors_at_every_step() {
    for (kind, shape) in
        [(ModelKind::Mlp, images(8, 8)), (ModelKind::Cnn, images(8, 8)), (ModelKind::Lm, text(6))]
    {
        let (model, map) = built(kind, kind.default_hidden(), &shape, DType::F32);
        let tensors: HashMap<String, Tensor> =
            by_name(&map).into_iter().map(|(name, var)| (name, var.as_tensor().clone())).collect();
        let vars = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        let again = kind.build(kind.default_hidden(), &shape, vars).unwrap();
        let (inputs, _) = samples(&shape, DType::F32);
        let [a, b] = [model, again].map(|model| {
            let logits = model.forward(&inputs).unwrap();
            logits.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        });
        assert_eq!(a, b);
    }
}

#[test]
fn no_character_is_told_by_those_after_it() {
    let (model, _) = built(ModelKind::Lm, &[8], &text(6), DType::F64);
    let logits = |characters: [u32; 6]| {
        let characters = Tensor::new(&[characters], &Device::Cpu).unwrap();
        model.forward(&characters).unwrap().get(0).unwrap().to_vec2::<f64>().unwrap()
    };
    let [a, b] = [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 0, 6]].map(logits);
    assert_eq!(a[..4], b[..4]);
    assert_ne!(a[4], b[4]);
    assert_ne!(a[5], b[5], "what came before counts");
}

#[test]
fn widths_and_data_that_do_not_fit() {
    for (kind, hidden, expected) in [
        (ModelKind::Cnn, &[64, 64][..], "--hidden 64,64: cnn has one width"),
        (ModelKind::Lm, &[64, 64], "--hidden 64,64: lm has one width"),
        (ModelKind::Lm, &[30], "--hidden 30: lm has 4 heads of equal width"),
        (ModelKind::Lm, &[8192], "--hidden 8192: more than 4096"),
        (ModelKind::Mlp, &[], "--hidden : no layer"),
    ] {
        let error = kind.check_hidden(hidden).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert!(error.help().is_some());
    }
    for kind in [ModelKind::Cnn, ModelKind::Mlp, ModelKind::Lm] {
        kind.check_hidden(kind.default_hidden()).unwrap();
    }
    ModelKind::Mlp.check_hidden(&[1024; 4]).unwrap();

    for (kind, shape, expected) in [
        (ModelKind::Lm, images(8, 8), "model lm does not fit DATA: it takes text, not images"),
        (ModelKind::Mlp, text(6), "model mlp does not fit DATA: it takes images, not text"),
        (
            ModelKind::Cnn,
            images(28, 3),
            "model cnn does not fit DATA: images of 28x3 cannot be halved twice, 4x4 can",
        ),
    ] {
        let error = kind.fits(&shape, "DATA").unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert!(error.help().is_some());
        assert_eq!(error.exit_code(), 2);
        let vars = VarBuilder::zeros(DType::F32, &Device::Cpu);
        if !matches!((kind, &shape), (ModelKind::Cnn, Shape::Images { .. })) {
            assert!(kind.build(kind.default_hidden(), &shape, vars).is_err());
        }
    }
}

/// Trains for so many steps; the accuracy on the first samples of the test part.
fn train(
    kind: ModelKind,
    hidden: &[usize],
    data: &Data,
    config: OptimizerConfig,
    batch: usize,
    steps: usize,
) -> f64 {
    let (model, map) = built(kind, hidden, &data.shape, DType::F32);
    let mut optimiser = Optimiser::new(config, &by_name(&map)).unwrap();
    let mut random = Random::new(2, 0);
    for _ in 0..steps {
        let samples: Vec<usize> = (0..batch).map(|_| random.below(data.train.len())).collect();
        let (inputs, targets) = data.train.batch(&samples, DType::F32).unwrap();
        let losses = sum_of_losses(&model.forward(&inputs).unwrap(), &targets).unwrap();
        let mean = (losses / targets.elem_count() as f64).unwrap();
        optimiser.backward_step(&mean).unwrap();
    }
    let samples: Vec<usize> = (0..data.test.len().min(1000)).collect();
    let (inputs, targets) = data.test.batch(&samples, DType::F32).unwrap();
    let logits = model.forward(&inputs).unwrap().detach();
    let losses = sum_of_losses(&logits, &targets).unwrap();
    count(&logits, &targets, &losses).unwrap().accuracy()
}

#[test]
fn every_optimiser_learns_the_digits() {
    let data = Data::open(None, ModelKind::Mlp, 0, 1).unwrap();
    for kind in [OptimizerKind::Sgd, OptimizerKind::Adagrad, OptimizerKind::Adamw] {
        let accuracy = train(ModelKind::Mlp, &[100], &data, OptimizerConfig::new(kind), 64, 200);
        assert!(accuracy > 0.9, "{kind:?}: {accuracy}");
    }
}

/// No single character tells the next one here, and no place does: a window and the sentence are
/// of different lengths.
#[test]
fn the_transformer_learns_from_what_it_saw() {
    let folder = Scratch::new("lm");
    let sentence = "all ranks add up their gradients, and then each of them takes the same step. ";
    let path = folder.write("a.txt", sentence.repeat(60).as_bytes());
    let data = Data::open(path.to_str(), ModelKind::Lm, 0, 1).unwrap();
    let accuracy =
        train(ModelKind::Lm, &[32], &data, OptimizerConfig::new(OptimizerKind::Adamw), 8, 100);
    assert!(accuracy > 0.65, "{accuracy}");
}

#[test]
fn fashion_mnist_is_learnt_to_four_fifths() {
    if !std::path::Path::new(FASHION).is_dir() {
        use std::io::Write;
        let told = "skipped: fashion_mnist_is_learnt_to_four_fifths: install Debian's \
                    dataset-fashion-mnist";
        // Through the handle: the test runner captures `eprintln!`.
        writeln!(std::io::stderr(), "{told}").unwrap();
        return;
    }
    let data = Data::open(Some(FASHION), ModelKind::Mlp, 2000, 1).unwrap();
    assert_eq!(data.train.len(), 58_000);
    assert_eq!(data.validation.as_ref().unwrap().len(), 2_000);
    assert_eq!((data.test.len(), data.shape.to_string()), (10_000, "28x28".into()));
    let config = OptimizerConfig { lr: 0.002, ..OptimizerConfig::new(OptimizerKind::Adamw) };
    let accuracy = train(ModelKind::Mlp, &[100], &data, config, 64, 400);
    assert!(accuracy > 0.65, "{accuracy}");
}

/// Where Debian's package puts it.
const FASHION: &str = "/usr/share/datasets/fashion-mnist";
