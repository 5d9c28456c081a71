//! One rank of allfold's training beside a plain candle loop: the same model, data, optimiser and
//! number of threads, in turns, so that a noisy machine is noisy for both.
//!
//! `RAYON_NUM_THREADS=1 cargo run --release -p allfold-trainer --example against_candle`

use std::sync::Arc;
use std::time::Instant;

use allfold::Communicator;
use allfold_trainer::{
    Data, Dataset, Error, Event, OptimizerKind, Options, Result, Shape, Training, fill_from_seed,
};
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::{Optimizer, SGD, VarBuilder, VarMap, linear, loss, seq};

/// Images of 28x28 pixels that mean nothing: the time does not depend on them.
struct Noise;

impl Dataset for Noise {
    fn len(&self) -> usize {
        BATCH * STEPS
    }

    fn batch(&self, samples: &[usize], dtype: DType) -> Result<(Tensor, Tensor)> {
        let pixel = |at: usize| ((at * 2_654_435_761) % 256) as f32 / 255.0;
        let pixels: Vec<f32> = samples
            .iter()
            .flat_map(|&sample| (0..SIDE * SIDE).map(move |at| pixel(sample * SIDE * SIDE + at)))
            .collect();
        let labels: Vec<u32> = samples.iter().map(|&sample| (sample % CLASSES) as u32).collect();
        let images = Tensor::from_vec(pixels, (samples.len(), 1, SIDE, SIDE), &Device::Cpu)?;
        let labels = Tensor::from_vec(labels, samples.len(), &Device::Cpu)?;
        Ok((images.to_dtype(dtype)?, labels))
    }
}

fn main() -> Result<(), Error> {
    println!("mlp 784-4x{WIDTH}-{CLASSES}, batch {BATCH}, sgd; images/s of {STEPS} steps");
    let mut ratios = Vec::new();
    for round in 1..=ROUNDS {
        let (plain, ours) = (plain_candle()?, allfold()?);
        println!("round {round}: candle {plain:.0}  allfold {ours:.0}  ratio {:.3}", ours / plain);
        ratios.push(ours / plain);
    }
    ratios.sort_by(f64::total_cmp);
    println!("median ratio {:.3}", ratios[ROUNDS / 2]);
    Ok(())
}

/// As candle's own examples write it.
fn plain_candle() -> Result<f64> {
    let vars = VarMap::new();
    let builder = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    let mut model = seq();
    let mut inputs = SIDE * SIDE;
    for layer in 1..=4 {
        model = model.add(linear(inputs, WIDTH, builder.pp(format!("dense{layer}")))?);
        model = model.add_fn(Tensor::relu);
        inputs = WIDTH;
    }
    let model = model.add(linear(inputs, CLASSES, builder.pp("dense5"))?);
    fill_from_seed(&vars, 1)?;
    let mut sgd = SGD::new(vars.all_vars(), LR)?;
    let start = Instant::now();
    for step in 0..STEPS {
        let samples: Vec<usize> = (step * BATCH..(step + 1) * BATCH).collect();
        let (images, labels) = Noise.batch(&samples, DType::F32)?;
        let logits = model.forward(&images.flatten_from(1)?)?;
        let loss = loss::cross_entropy(&logits, &labels)?;
        // As allfold does in every step, and any loop that prints its loss.
        loss.to_scalar::<f32>()?;
        sgd.backward_step(&loss)?;
    }
    Ok((BATCH * STEPS) as f64 / start.elapsed().as_secs_f64())
}

/// `allfold train` with one rank, without what it prints.
fn allfold() -> Result<f64> {
    let noise: Arc<dyn Dataset> = Arc::new(Noise);
    let data = Data {
        train: noise.clone(),
        validation: None,
        test: noise,
        shape: Shape::Images { channels: 1, height: SIDE, width: SIDE, classes: CLASSES },
        name: "noise".into(),
        fingerprint: String::new(),
    };
    let options = Options {
        model: "mlp".into(),
        hidden: vec![WIDTH; 4],
        optimizer: OptimizerKind::Sgd,
        momentum: Some(0.0),
        lr: Some(LR),
        batch_size: BATCH,
        epochs: 1,
        ..Options::default()
    };
    let world = Communicator::single();
    let mut rate = 0.0;
    Training::with_data(&options, data, &world)?.run(|event| {
        if let Event::Test(done) = event {
            rate = done.samples_per_second;
        }
        Ok(())
    })?;
    Ok(rate)
}

const SIDE: usize = 28;
const CLASSES: usize = 10;
const WIDTH: usize = 1024;
const BATCH: usize = 128;
const STEPS: usize = 30;
const ROUNDS: usize = 5;
const LR: f64 = 0.01;
