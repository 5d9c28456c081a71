//! Checkpoints: what a training needs to go on from a step, in two safetensors files.
//!
//! `step-00000300.safetensors` holds the model's tensors and nothing else, so that PyTorch and
//! candle load it as it is; `step-00000300.optimizer.safetensors` holds the optimiser's. The
//! model's file is written last and names the digest of the other: where it is whole, both are.
//!
//! Reading order: [`Writer`] saves on a thread of its own, [`Folder`] writes, deletes and finds
//! files, `file.rs` is their format, [`Schedule`] says when one is due.

mod file;
mod folder;
mod pair;
mod schedule;
mod writer;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{Tensor, Var};

use crate::error::{Error, Result};

pub use crate::problem::Problem;
pub(crate) use folder::Lock;
pub use folder::{Folder, Found, Skipped, Written};
pub use pair::Stored;
pub use schedule::{Every, Schedule};
pub use writer::{News, Writer};

/// What is to be saved. The tensors are copied before a call that takes it returns.
#[derive(Clone, Copy, Debug)]
pub struct State<'a> {
    /// Steps taken.
    pub step: u64,
    /// What makes a model this one and no other, as name and value, such as `hidden` and `100`.
    pub model: &'a [(String, String)],
    /// How it is trained, as name and value.
    pub settings: &'a [(String, String)],
    /// The parameters with their names.
    pub parameters: &'a [(String, Var)],
    /// The optimiser's tensors with their names.
    pub optimizer: &'a [(String, Tensor)],
}

/// A checkpoint in memory.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The model's file.
    pub path: PathBuf,
    /// Steps taken when it was written.
    pub step: u64,
    /// As [`State::model`], in the order of names.
    pub model: Vec<(String, String)>,
    /// As [`State::settings`], in the order of names.
    pub settings: Vec<(String, String)>,
    /// The parameters by name.
    pub parameters: HashMap<String, Tensor>,
    /// The optimiser's tensors by name; empty where only the model's file was read.
    pub optimizer: HashMap<String, Tensor>,
}

impl Checkpoint {
    /// Reads a model's file; its optimiser is not needed.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] where the file cannot be read, is damaged, or is none of allfold's.
    pub fn read(path: &Path) -> Result<Self> {
        let refuse = |problem: String, help: &str| Error::Checkpoint {
            file: path.display().to_string(),
            problem,
            help: help.into(),
        };
        let give = "give a file such as DIR/step-00000300.safetensors";
        let bytes = folder::read_regular(path)
            .map_err(|error| refuse(error.to_string(), give))?
            .ok_or_else(|| refuse("is no regular file".into(), give))?;
        let model = file::open(&bytes).map_err(|problem| refuse(problem, TRY_ANOTHER))?;
        Self::of_model(path, &model).map_err(|problem| refuse(problem, TRY_ANOTHER))
    }

    fn of_model(path: &Path, file: &file::Opened<'_>) -> Result<Self, String> {
        match file.metadata.get(file::PART).map(String::as_str) {
            Some(file::MODEL) => {}
            Some(file::OPTIMIZER) => {
                return Err("holds the optimiser's state, not the model's".into());
            }
            _ => return Err("does not say that it is a model".into()),
        }
        Ok(Self {
            path: path.into(),
            step: file.step()?,
            model: with_prefix(&file.metadata, file::MODEL_PREFIX),
            settings: with_prefix(&file.metadata, file::SETTINGS_PREFIX),
            parameters: file.tensors()?,
            optimizer: HashMap::new(),
        })
    }

    /// Whether this is a checkpoint of the model that `expected` describes.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] with the first entry that differs.
    pub fn fits(&self, expected: &[(String, String)]) -> Result<()> {
        let here: BTreeMap<&str, &str> = borrowed(expected);
        let there: BTreeMap<&str, &str> = borrowed(&self.model);
        // In the order given: what another model is comes before how it differs.
        let names = expected.iter().map(|(name, _)| name.as_str()).chain(there.keys().copied());
        let Some(name) = names.into_iter().find(|name| here.get(name) != there.get(name)) else {
            return Ok(());
        };
        let value = |of: &BTreeMap<&str, &str>| of.get(name).map_or("not set".into(), in_quotes);
        Err(self.another_model(format!("{name} is {} there, {} here", value(&there), value(&here))))
    }

    /// What is said of how it was trained, by name.
    pub(crate) fn setting(&self, name: &str) -> Option<&str> {
        let found = self.settings.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Gives the parameters the values of this checkpoint: all of them, or none.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] where a name, shape or element type differs; candle's own.
    pub fn restore(&self, parameters: &[(String, Var)]) -> Result<()> {
        for (name, var) in parameters {
            let Some(tensor) = self.parameters.get(name) else {
                return Err(self.another_model(format!("it has no parameter `{name}`")));
            };
            let in_words = |of: &Tensor| format!("{} {:?}", of.dtype().as_str(), of.dims());
            let (there, here) = (in_words(tensor), in_words(var));
            if there != here {
                let difference = format!("parameter `{name}` is {there} there, {here} here");
                return Err(self.another_model(difference));
            }
        }
        let known = |name: &String| parameters.iter().any(|(known, _)| known == name);
        if let Some(name) = self.parameters.keys().filter(|name| !known(name)).min() {
            return Err(self.another_model(format!("its parameter `{name}` is not known here")));
        }
        for (name, var) in parameters {
            if let Some(tensor) = self.parameters.get(name) {
                var.set(&tensor.to_device(var.device())?)?;
            }
        }
        Ok(())
    }

    fn another_model(&self, difference: String) -> Error {
        Error::Checkpoint {
            file: self.path.display().to_string(),
            problem: format!("of another model: {difference}"),
            help: "give the options that it was trained with, or another folder to --checkpoint"
                .into(),
        }
    }
}

fn borrowed(pairs: &[(String, String)]) -> BTreeMap<&str, &str> {
    pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

/// A value that cannot be taken for another one, on one line.
fn in_quotes(value: &&str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.,+".contains(letter);
    if !value.is_empty() && value.chars().all(plain) {
        (*value).to_string()
    } else {
        format!("`{}`", value.escape_debug())
    }
}

fn with_prefix(metadata: &BTreeMap<String, String>, prefix: &str) -> Vec<(String, String)> {
    metadata
        .iter()
        .filter_map(|(name, value)| Some((name.strip_prefix(prefix)?.to_string(), value.clone())))
        .collect()
}

/// Help for a file that cannot be used.
const TRY_ANOTHER: &str = "give another checkpoint, such as the one before it";

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    fn checkpoint() -> Checkpoint {
        Checkpoint {
            path: "ck/step-00000300.safetensors".into(),
            step: 300,
            model: pairs(&[("hidden", "100"), ("kind", "mlp")]),
            settings: Vec::new(),
            parameters: HashMap::from([("w".into(), tensor(&[1., 2.]))]),
            optimizer: HashMap::new(),
        }
    }

    #[test]
    fn a_checkpoint_of_another_model_is_told_with_both_values() {
        let checkpoint = checkpoint();
        checkpoint.fits(&pairs(&[("kind", "mlp"), ("hidden", "100")])).unwrap();
        for (here, expected) in [
            (pairs(&[("kind", "mlp"), ("hidden", "64")]), "hidden is 100 there, 64 here"),
            (pairs(&[("kind", "mlp")]), "hidden is 100 there, not set here"),
            (pairs(&[("kind", "lm"), ("hidden", "64")]), "kind is mlp there, lm here"),
            (
                pairs(&[("kind", "mlp"), ("hidden", "100"), ("shape", "28x28 px")]),
                "shape is not set there, `28x28 px` here",
            ),
        ] {
            let error = checkpoint.fits(&here).unwrap_err();
            let start = "checkpoint ck/step-00000300.safetensors: of another model: ";
            assert_eq!(error.to_string(), format!("{start}{expected}"));
            assert_eq!(error.exit_code(), 2);
            assert!(error.help().is_some());
        }
    }

    #[test]
    fn all_parameters_are_restored_or_none() {
        let checkpoint = checkpoint();
        let var = |of: Tensor| Var::from_tensor(&of).unwrap();
        let w = var(tensor(&[0., 0.]));
        checkpoint.restore(&[("w".into(), w.clone())]).unwrap();
        assert_eq!(w.to_vec1::<f32>().unwrap(), [1., 2.]);

        w.set(&tensor(&[0., 0.])).unwrap();
        let other = || ("b".to_string(), var(tensor(&[0.])));
        for (parameters, expected) in [
            (vec![("w".into(), w.clone()), other()], "it has no parameter `b`"),
            (vec![], "its parameter `w` is not known here"),
            (
                vec![("w".into(), var(tensor(&[0.; 3])))],
                "parameter `w` is f32 [2] there, f32 [3] here",
            ),
            (
                vec![("w".into(), var(tensor(&[0.; 2]).to_dtype(DType::F64).unwrap()))],
                "parameter `w` is f32 [2] there, f64 [2] here",
            ),
        ] {
            let error = checkpoint.restore(&parameters).unwrap_err().to_string();
            assert!(error.ends_with(expected), "{error}");
            assert_eq!(w.to_vec1::<f32>().unwrap(), [0., 0.]);
        }
    }
}
