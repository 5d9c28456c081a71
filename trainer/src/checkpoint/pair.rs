//! The two files of a checkpoint, in memory: how they are made, and that they belong together.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::file::{self, Contents, Sealed};
use super::{Checkpoint, State, TRY_ANOTHER};
use crate::error::{Error, Result};

/// A copy of a [`State`] that no later step changes.
pub(super) struct Snapshot {
    pub(super) step: u64,
    model: Contents,
    optimizer: Contents,
    /// Of both files.
    shared: BTreeMap<String, String>,
    /// Of the model's file alone.
    described: BTreeMap<String, String>,
}

impl Snapshot {
    pub(super) fn copy(state: &State<'_>) -> Result<Self> {
        let parameters = state.parameters.iter();
        let optimizer = state.optimizer.iter();
        // PyTorch's libraries ask for the format.
        let shared = [
            ("format", "pt".to_string()),
            ("allfold.version", env!("CARGO_PKG_VERSION").into()),
            (file::STEP, state.step.to_string()),
        ];
        let described = with_prefix(file::MODEL_PREFIX, state.model)
            .chain(with_prefix(file::SETTINGS_PREFIX, state.settings));
        Ok(Self {
            step: state.step,
            model: Contents::copy(parameters.map(|(name, var)| (&**name, var.as_tensor())))?,
            optimizer: Contents::copy(optimizer.map(|(name, tensor)| (&**name, tensor)))?,
            shared: shared.map(|(name, value)| (name.into(), value)).into(),
            described: described.collect(),
        })
    }

    /// The first parameter that holds an infinity or no number, where one does.
    pub(super) fn not_finite(&self) -> Option<&str> {
        self.model.not_finite()
    }

    /// The model's file and the optimiser's.
    pub(super) fn seal(self) -> serde_json::Result<[Sealed; 2]> {
        let mut of_optimizer = self.shared.clone();
        of_optimizer.insert(file::PART.into(), file::OPTIMIZER.into());
        let optimizer = file::seal(self.optimizer, of_optimizer)?;

        let mut of_model = self.shared;
        of_model.extend(self.described);
        of_model.insert(file::PART.into(), file::MODEL.into());
        of_model.insert(file::OPTIMIZER_DIGEST.into(), optimizer.sha256.clone());
        Ok([file::seal(self.model, of_model)?, optimizer])
    }
}

fn with_prefix(prefix: &str, pairs: &[(String, String)]) -> impl Iterator<Item = (String, String)> {
    pairs.iter().map(move |(name, value)| (format!("{prefix}{name}"), value.clone()))
}

/// The bytes of a checkpoint's two files. Rank 0 reads them; the others get them by broadcast.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The model's file.
    pub path: PathBuf,
    /// The model's file in bytes.
    pub model: Vec<u8>,
    /// The optimiser's file in bytes.
    pub optimizer: Vec<u8>,
}

impl Stored {
    /// The checkpoint that they are.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] where one is damaged or they do not belong together.
    pub fn decode(&self) -> Result<Checkpoint> {
        self.read(|model, optimizer| {
            let optimizer = optimizer.tensors()?;
            Ok(Checkpoint { optimizer, ..Checkpoint::of_model(&self.path, model)? })
        })
        .map_err(|problem| Error::Checkpoint {
            file: self.path.display().to_string(),
            problem,
            help: TRY_ANOTHER.into(),
        })
    }

    /// Whether both are whole and of `step`.
    pub(super) fn check(&self, step: u64) -> Result<(), String> {
        self.read(|model, _| match model.step()? {
            found if found == step => Ok(()),
            found => Err(format!("is of step {found}, not of step {step} as its name says")),
        })
    }

    fn read<R>(
        &self,
        read: impl FnOnce(&file::Opened<'_>, &file::Opened<'_>) -> Result<R, String>,
    ) -> Result<R, String> {
        let model = file::open(&self.model)?;
        let optimizer =
            file::open(&self.optimizer).map_err(|it| format!("its optimiser's file is {it}"))?;
        if model.metadata.get(file::OPTIMIZER_DIGEST) != Some(&optimizer.sha256) {
            return Err("its optimiser's file is of another checkpoint".into());
        }
        read(&model, &optimizer)
    }
}
