//! Options that were checked, and what they come to for a set of data.

use candle_core::DType;
use clap::ValueEnum;

use crate::data::{Data, Shape};
use crate::error::{Error, Result};
use crate::model::{ModelKind, widths};
use crate::optimizer::OptimizerConfig;
use crate::options::{DeviceKind, OptimizerKind, Options, Precision};

/// What a training does. All ranks must have the same: [`lines`](Self::lines) is what they compare.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) model: ModelKind,
    pub(crate) hidden: Vec<usize>,
    pub(crate) precision: Precision,
    pub(crate) device: DeviceKind,
    pub(crate) optimizer: OptimizerKind,
    pub(crate) lr: f64,
    pub(crate) momentum: f64,
    pub(crate) batch_size: usize,
    pub(crate) accumulate: usize,
    pub(crate) clip_norm: Option<f64>,
    pub(crate) steps: usize,
    /// The option that says so, for people: `--steps is 300`.
    pub(crate) asked: String,
    pub(crate) steps_per_epoch: usize,
    pub(crate) eval_every: Option<usize>,
    pub(crate) seed: u64,
    pub(crate) bucket_bytes: usize,
}

impl Options {
    /// What can be found wrong without the data.
    pub(crate) fn check_numbers(&self, ranks: usize) -> Result<()> {
        let model: ModelKind = self.model.parse()?;
        in_range("--ranks", ranks, usize::MAX)?;
        let hidden = self.hidden_of(model);
        for &width in hidden {
            in_range("--hidden", width, HIDDEN_LIMIT)?;
        }
        model.check_hidden(hidden)?;
        if let Some(lr) = self.lr {
            positive("--lr", lr, || {
                format!("the default is {}", model.default_lr(self.optimizer))
            })?;
        }
        if let Some(momentum) = self.momentum {
            let problem = match self.optimizer {
                OptimizerKind::Sgd if (0.0..1.0).contains(&momentum) => None,
                OptimizerKind::Sgd => Some("must be from 0 to below 1".to_string()),
                other => Some(format!("{} has none", name(&other))),
            };
            if let Some(problem) = problem {
                return Err(Error::Option {
                    option: "--momentum",
                    value: momentum.to_string(),
                    problem,
                    help: "`--optimizer sgd --momentum 0.9` is the default of sgd".into(),
                });
            }
        }
        if let Some(norm) = self.clip_norm {
            positive("--clip-norm", norm, || "leave it out to clip nothing".into())?;
        }
        positive("--bucket-mib", self.bucket_mib, || "the default is 25".into())?;
        in_range("--batch-size", self.batch_size, usize::MAX)?;
        in_range("--accumulate", self.accumulate, usize::MAX)?;
        in_range("--keep", self.keep, usize::MAX)?;
        if let Some(steps) = self.eval_every {
            in_range("--eval-every", steps, STEP_LIMIT)?;
        }
        match self.steps {
            Some(steps) => in_range("--steps", steps, STEP_LIMIT)?,
            None => in_range("--epochs", self.epochs, EPOCH_LIMIT)?,
        };
        Ok(())
    }

    fn hidden_of(&self, model: ModelKind) -> &[usize] {
        match self.hidden.is_empty() {
            true => model.default_hidden(),
            false => &self.hidden,
        }
    }
}

impl Settings {
    /// Checks options for so many ranks and this data.
    ///
    /// # Errors
    /// [`Error::UnknownModel`]; [`Error::Option`].
    pub(crate) fn new(options: &Options, ranks: usize, data: &Data) -> Result<Self> {
        options.check_numbers(ranks)?;
        let model: ModelKind = options.model.parse()?;
        let train = data.train.len();
        let batch_size = |problem, help| Error::Option {
            option: "--batch-size",
            value: options.batch_size.to_string(),
            problem,
            help,
        };
        if options.batch_size > train {
            let problem = format!("there are {train} training samples");
            return Err(batch_size(problem, format!("give a number from 1 to {train}")));
        }
        if options.batch_size < ranks {
            let problem = format!("fewer samples than the {ranks} ranks");
            return Err(batch_size(problem, format!("give {ranks} or more, or take fewer ranks")));
        }
        let batches = train.div_ceil(options.batch_size);
        if options.accumulate > batches {
            return Err(Error::Option {
                option: "--accumulate",
                value: options.accumulate.to_string(),
                problem: format!("an epoch has {batches} batches"),
                help: format!("give {batches} or less, or a smaller --batch-size"),
            });
        }
        let steps_per_epoch = batches.div_ceil(options.accumulate);
        let usual = OptimizerConfig::new(options.optimizer);
        Ok(Self {
            model,
            hidden: options.hidden_of(model).to_vec(),
            precision: options.precision,
            device: options.device,
            optimizer: options.optimizer,
            lr: options.lr.unwrap_or(model.default_lr(options.optimizer)),
            momentum: options.momentum.unwrap_or(usual.momentum),
            batch_size: options.batch_size,
            accumulate: options.accumulate,
            clip_norm: options.clip_norm,
            steps: options.steps.unwrap_or(steps_per_epoch.saturating_mul(options.epochs)),
            asked: match options.steps {
                Some(steps) => format!("--steps is {steps}"),
                None => format!("--epochs is {}", options.epochs),
            },
            steps_per_epoch,
            eval_every: options.eval_every,
            seed: options.seed,
            bucket_bytes: (options.bucket_mib * MIB) as usize,
        })
    }

    pub(crate) fn dtype(&self) -> DType {
        match self.precision {
            Precision::F32 => DType::F32,
            Precision::F64 => DType::F64,
        }
    }

    pub(crate) fn optimizer_config(&self) -> OptimizerConfig {
        OptimizerConfig { kind: self.optimizer, lr: self.lr, momentum: self.momentum }
    }

    /// One setting a line, for the comparison between ranks.
    pub(crate) fn lines(&self, data: &Data) -> Vec<String> {
        let mut lines = vec![
            format!("version {}", env!("CARGO_PKG_VERSION")),
            // Not its place, which may be another one on each host.
            format!("data of sha-256 {}", short(&data.fingerprint)),
            format!("{} training samples", data.train.len()),
        ];
        lines.extend(self.model_lines(&data.shape).iter().map(|(name, value)| match &**name {
            // A text of characters is long; the data's fingerprint covers it.
            VOCABULARY => format!("{} characters", value.chars().count()),
            _ => format!("{name} {value}"),
        }));
        lines.extend(self.training_lines().iter().map(|(name, value)| format!("{name} {value}")));
        let eval = self.eval_every.map_or("epoch".into(), |steps| format!("{steps} steps"));
        lines.push(format!("eval-every {eval}"));
        lines.push(format!("device {}", name(&self.device)));
        lines.push(format!("bucket {} bytes", self.bucket_bytes));
        lines
    }

    /// What makes the model this one and no other.
    pub(crate) fn model_lines(&self, shape: &Shape) -> Vec<(String, String)> {
        describe_model(self.model, &self.hidden, &name(&self.precision), shape)
    }

    /// How it is trained.
    pub(crate) fn training_lines(&self) -> Vec<(String, String)> {
        [
            (OPTIMIZER, name(&self.optimizer)),
            ("lr", self.lr.to_string()),
            ("momentum", self.momentum.to_string()),
            (BATCH_SIZE, self.batch_size.to_string()),
            (ACCUMULATE, self.accumulate.to_string()),
            ("clip-norm", self.clip_norm.map_or("off".into(), |norm| norm.to_string())),
            (STEPS, self.steps.to_string()),
            (SEED, self.seed.to_string()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_string(), value))
        .collect()
    }
}

/// What a checkpoint says of how it was trained: [`Settings::training_lines`] and of what.
pub(crate) fn saved_lines(settings: &Settings, data: &Data) -> Vec<(String, String)> {
    let validation = data.validation.as_ref().map_or(0, |samples| samples.len());
    let mut lines = settings.training_lines();
    lines.push((DATA.into(), data.fingerprint.clone()));
    lines.push((VALIDATION.into(), validation.to_string()));
    lines
}

/// What makes a model this one and no other, as name and value.
pub(crate) fn describe_model(
    model: ModelKind,
    hidden: &[usize],
    precision: &str,
    shape: &Shape,
) -> Vec<(String, String)> {
    let mut lines = vec![
        ("model", model.to_string()),
        ("hidden", widths(hidden)),
        ("precision", precision.to_string()),
    ];
    match shape {
        Shape::Images { classes, .. } => {
            lines.extend([("inputs", shape.to_string()), ("classes", classes.to_string())]);
        }
        Shape::Text { length, vocabulary } => {
            let characters: String = vocabulary.iter().collect();
            lines.extend([("inputs", length.to_string()), (VOCABULARY, characters)]);
        }
    }
    lines.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
}

/// The name by which the command line knows a value.
pub(crate) fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default()
}

/// Enough of a digest to tell two apart.
pub(crate) fn short(digest: &str) -> &str {
    digest.get(..8).unwrap_or(digest)
}

fn positive(option: &'static str, value: f64, help: impl FnOnce() -> String) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    let problem = if value.is_finite() { "must be positive" } else { "must be a finite number" };
    Err(Error::Option { option, value: value.to_string(), problem: problem.into(), help: help() })
}

fn in_range(option: &'static str, value: usize, limit: usize) -> Result<usize> {
    let problem = match value {
        0 => "must be at least 1".to_string(),
        _ if value > limit => format!("more than {limit}"),
        _ => return Ok(value),
    };
    Err(Error::Option {
        option,
        value: value.to_string(),
        problem,
        help: match limit {
            usize::MAX => "give 1 or more".into(),
            _ => format!("give a number from 1 to {limit}"),
        },
    })
}

/// The name of the characters of a text among the lines that describe a model.
pub(crate) const VOCABULARY: &str = "vocabulary";
/// The names of settings that a resume looks at.
pub(crate) const OPTIMIZER: &str = "optimizer";
pub(crate) const BATCH_SIZE: &str = "batch size";
pub(crate) const ACCUMULATE: &str = "accumulate";
pub(crate) const STEPS: &str = "steps";
pub(crate) const SEED: &str = "seed";
pub(crate) const DATA: &str = "data";
pub(crate) const VALIDATION: &str = "validation";
/// A wider layer takes more memory than a mistyped number should.
const HIDDEN_LIMIT: usize = 1 << 16;
/// Leaves a step's number room beside the bucket in a label, which is step times a million.
const STEP_LIMIT: usize = 1 << 40;
/// With the steps of an epoch of some thousand single samples still below the limit of steps.
const EPOCH_LIMIT: usize = 1 << 29;
const MIB: f64 = (1 << 20) as f64;
