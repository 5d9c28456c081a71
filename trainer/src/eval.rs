//! `allfold eval`: tries a saved model on a test set.

use std::path::PathBuf;

use allfold::Communicator;
use candle_core::DType;
use candle_nn::{VarBuilder, VarMap};

use crate::checkpoint::Checkpoint;
use crate::data::Data;
use crate::device;
use crate::error::{Error, Result};
use crate::evaluation::evaluate;
use crate::model::ModelKind;
use crate::options::DeviceKind;
use crate::output::Output;
use crate::parameters::by_name;
use crate::report::{counted, grouped, percent};
use crate::settings::describe_model;

/// The options of `allfold eval`.
#[derive(clap::Args, Clone, Debug)]
pub struct EvalOptions {
    /// The model's file of a checkpoint, such as DIR/step-00000300.safetensors
    #[arg(long, value_name = "FILE")]
    pub checkpoint: PathBuf,

    /// The data whose test set to try it on, as for `allfold train`
    /// [default: the embedded set that fits the model]
    #[arg(long, value_name = "DIR|FILE")]
    pub data: Option<String>,

    /// Where to compute; gpu needs a build with the feature cuda
    #[arg(long, value_name = "KIND", default_value = "cpu")]
    pub device: DeviceKind,
}

/// Tries a saved model on a test set, in this process, and prints its accuracy.
///
/// # Errors
/// [`Error::Checkpoint`] for a file that is none, is damaged, or is of a model that does not fit
/// the data; [`Error::LossNotFinite`]; as [`Data::open`] and [`gpu`](crate::gpu).
pub fn eval(options: &EvalOptions) -> Result<()> {
    let world = Communicator::single();
    let device = device::open(options.device, &world)?;
    let checkpoint = Checkpoint::read(&options.checkpoint)?;
    let kind: ModelKind = entry(&checkpoint, "model")?.parse()?;
    let hidden: Vec<usize> = entry(&checkpoint, "hidden")?
        .split(',')
        .map(|width| width.parse().map_err(|_| damaged(&checkpoint, "hidden")))
        .collect::<Result<_>>()?;
    let (dtype, precision) = match entry(&checkpoint, "precision")? {
        "f32" => (DType::F32, "f32"),
        "f64" => (DType::F64, "f64"),
        _ => return Err(damaged(&checkpoint, "precision")),
    };
    let data = Data::open(options.data.as_deref(), kind, 0, 0)?;
    checkpoint.fits(&describe_model(kind, &hidden, precision, &data.shape)).map_err(|error| {
        match error {
            Error::Checkpoint { file, problem, .. } => {
                let help = "give the data that it was trained on by --data".into();
                Error::Checkpoint { file, problem, help }
            }
            other => other,
        }
    })?;
    kind.check_hidden(&hidden)?;

    let vars = VarMap::new();
    let builder = VarBuilder::from_varmap(&vars, dtype, &device);
    let model = kind.build(&hidden, &data.shape, builder)?;
    let parameters = by_name(&vars);
    checkpoint.restore(&parameters)?;
    let test = evaluate(&*model, &*data.test, &world, (dtype, &device))?;

    let elements = parameters.iter().map(|(_, var)| var.elem_count()).sum();
    let mut output = Output::default();
    output.line(&format!(
        "allfold {} · step {} of {}",
        env!("CARGO_PKG_VERSION"),
        grouped(checkpoint.step as usize),
        checkpoint.path.display()
    ))?;
    output.line(&format!(
        "  data   {}: {} test, {}",
        data.name,
        grouped(data.test.len()),
        data.shape
    ))?;
    output.line(&format!("  model  {kind}, {}", counted(elements, "parameter")))?;
    output.line(&format!(
        "test_loss={:.4} test_accuracy={:.4}",
        test.mean_loss(),
        test.accuracy()
    ))?;
    output.line(&format!(
        "test accuracy {} % ({} of {})",
        percent(test.accuracy()),
        grouped(test.correct),
        grouped(test.samples)
    ))?;
    match test.loss.is_finite() {
        true => Ok(()),
        false => {
            Err(Error::LossNotFinite { step: checkpoint.step, resumed: Some(checkpoint.step) })
        }
    }
}

/// What the checkpoint says of its model.
fn entry<'c>(checkpoint: &'c Checkpoint, name: &str) -> Result<&'c str> {
    let found = checkpoint.model.iter().find(|(known, _)| known == name);
    found.map(|(_, value)| value.as_str()).ok_or_else(|| damaged(checkpoint, name))
}

fn damaged(checkpoint: &Checkpoint, name: &str) -> Error {
    Error::Checkpoint {
        file: checkpoint.path.display().to_string(),
        problem: format!("does not say the {name} of its model in a way that is known here"),
        help: "give a checkpoint of `allfold train`, of this version or an earlier one".into(),
    }
}
