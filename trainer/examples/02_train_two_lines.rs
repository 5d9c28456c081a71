//! A training loop for one process, and the two lines that make it one for many.
//!
//! Alone: `cargo run --release --example 02_train_two_lines`. With four ranks: build it, then
//! `allfold run -n 4 ./target/release/examples/02_train_two_lines`.

use allfold::Communicator;
use allfold_trainer::{Distributed, Error, digits, fill_from_seed};
use candle_core::{D, DType, Device, Module, Tensor};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, VarBuilder, VarMap, linear, loss, seq};

fn main() -> Result<(), Error> {
    let world = Communicator::from_env_or_single()?;
    let data = digits()?;
    let vars = VarMap::new();
    let builder = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    let model = seq().add(linear(64, 100, builder.pp("hidden"))?).add_fn(Tensor::relu).add(linear(
        100,
        10,
        builder.pp("output"),
    )?);
    fill_from_seed(&vars, 1)?;

    let params = ParamsAdamW { lr: 0.01, ..ParamsAdamW::default() };
    // Before: let mut opt = AdamW::new(vars.all_vars(), params)?;
    let mut opt = Distributed::new(AdamW::new(vars.all_vars(), params)?, &vars, &world)?;
    for epoch in 0..20 {
        let mut mean = 0.0;
        // Before: for batch in shuffled_batches(data.train.len(), 100, epoch) {
        for batch in opt.sampler(data.train.len(), 100, 1).epoch(epoch) {
            let (images, labels) = data.train.batch(&batch, DType::F32)?;
            let logits = model.forward(&images.flatten_from(1)?)?;
            mean = opt.backward_step(&loss::cross_entropy(&logits, &labels)?)?;
        }
        if world.rank() == 0 {
            println!("epoch {:2}  loss of the last batch {mean:.4}", epoch + 1);
        }
    }

    // Every rank has the same model, so any of them can test it.
    if world.rank() == 0 {
        let every: Vec<usize> = (0..data.test.len()).collect();
        let (images, labels) = data.test.batch(&every, DType::F32)?;
        let found = model.forward(&images.flatten_from(1)?)?.argmax(D::Minus1)?;
        let hits: u32 = found.eq(&labels)?.to_dtype(DType::U32)?.sum_all()?.to_scalar()?;
        println!("{hits} of {} test images recognised", every.len());
    }
    opt.digest()?; // an error where the ranks' parameters differ
    Ok(world.close()?)
}
