//! Tries a model on samples that it was not trained with.

use allfold::{Communicator, ReduceOp};
use candle_core::{DType, Device};
use candle_nn::Module;

use crate::data::Dataset;
use crate::error::Result;
use crate::loss::{count, sum_of_losses};
use crate::sampler::share;
use crate::tally::{TALLY_NUMBERS, Tally};

/// Tries the model, of this type and on this device, on all samples, each rank on its share; every rank gets the tally of all.
pub(crate) fn evaluate(
    model: &dyn Module,
    samples: &dyn Dataset,
    world: &Communicator,
    (dtype, device): (DType, &Device),
) -> Result<Tally> {
    let own: Vec<usize> = share(samples.len(), world.rank(), world.size()).collect();
    let mut tally = Tally::default();
    for batch in own.chunks(BATCH) {
        let (inputs, targets) = samples.batch(batch, dtype)?;
        let (inputs, targets) = (inputs.to_device(device)?, targets.to_device(device)?);
        let logits = model.forward(&inputs)?.detach();
        let losses = sum_of_losses(&logits, &targets)?;
        tally += count(&logits, &targets, &losses)?;
    }
    let mut numbers: [f64; TALLY_NUMBERS] = tally.to_numbers();
    world.all_reduce(&mut numbers, ReduceOp::Sum)?;
    Ok(Tally::from_numbers(numbers))
}

/// Samples in one forward pass: bounds the memory it takes.
const BATCH: usize = 256;
