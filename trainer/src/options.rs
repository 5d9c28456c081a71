//! What `allfold train` can be told, and what of it cannot work.

use clap::ValueEnum;

use crate::data::Split;
use crate::error::{Error, Result};
use crate::model::ModelKind;

/// The options of `allfold train`.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Ranks to start on this host (under a launcher: leave it out)
    #[arg(short = 'n', long, value_name = "N", allow_negative_numbers = true)]
    pub ranks: Option<usize>,

    /// Model: cnn, mlp or lm
    #[arg(long, value_name = "NAME", default_value = DEFAULT_MODEL)]
    pub model: String,

    /// Width of the hidden dense layer [default: 64 for cnn, 100 for mlp]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub hidden: Option<usize>,

    /// Optimiser
    #[arg(long, value_name = "NAME", default_value = "adamw")]
    pub optimizer: OptimizerKind,

    /// Learning rate
    #[arg(long, value_name = "X", default_value_t = DEFAULT_LR, allow_negative_numbers = true)]
    pub lr: f64,

    /// Samples a step, all ranks together
    #[arg(long, value_name = "N", default_value_t = DEFAULT_BATCH_SIZE, allow_negative_numbers = true)]
    pub batch_size: usize,

    /// Passes over the training data
    #[arg(long, value_name = "N", default_value_t = DEFAULT_EPOCHS, allow_negative_numbers = true)]
    pub epochs: usize,

    /// Stop after this many steps, however many epochs they are
    #[arg(long, value_name = "N", conflicts_with = "epochs", allow_negative_numbers = true)]
    pub steps: Option<usize>,

    /// Seed of the initial weights and of the order of the samples
    #[arg(long, value_name = "N", default_value_t = DEFAULT_SEED, allow_negative_numbers = true)]
    pub seed: u64,

    /// Algorithm of all-reduces [ALLFOLD_ALGORITHM, else auto]
    #[arg(long, value_name = "NAME", value_parser = ALGORITHMS)]
    pub algorithm: Option<String>,

    /// Element type of the model
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    pub precision: Precision,

    /// What to show while training; auto: a bar on a terminal, else a line an epoch
    #[arg(long, value_name = "KIND", default_value = "auto")]
    pub progress: Progress,
}

/// An optimiser by name.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptimizerKind {
    /// AdamW with the usual defaults: betas 0.9 and 0.999, weight decay 0.01
    Adamw,
    /// Stochastic gradient descent with momentum, 0.9 where no other is asked for
    Sgd,
    /// Adagrad as TensorFlow has it: the sums of squares start at 0.1
    Adagrad,
}

/// The element type of a model.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// 32 bits
    F32,
    /// 64 bits
    F64,
}

/// What is shown while training.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A bar on a terminal, else lines
    Auto,
    /// A bar, and a line an epoch above it
    Bar,
    /// A line an epoch, of key=value pairs
    Lines,
    /// Nothing but the header and the result
    None,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ranks: None,
            model: DEFAULT_MODEL.into(),
            hidden: None,
            optimizer: OptimizerKind::Adamw,
            lr: DEFAULT_LR,
            batch_size: DEFAULT_BATCH_SIZE,
            epochs: DEFAULT_EPOCHS,
            steps: None,
            seed: DEFAULT_SEED,
            algorithm: None,
            precision: Precision::F32,
            progress: Progress::Auto,
        }
    }
}

impl Options {
    /// How a rank connects: with the algorithm of the command line, if there is one.
    ///
    /// # Errors
    /// As [`allfold::Config::algorithm`].
    pub fn configure(&self, config: allfold::Config) -> allfold::Result<allfold::Config> {
        match &self.algorithm {
            Some(algorithm) => config.algorithm(algorithm),
            None => Ok(config),
        }
    }

    /// Finds what cannot work with `ranks` ranks, before any of them is started.
    ///
    /// # Errors
    /// [`Error::UnknownModel`]; [`Error::Option`] for a number out of range.
    pub fn check(&self, ranks: usize) -> Result<()> {
        let split = crate::data::digits()?;
        self.settings(ranks, &split).map(drop)
    }

    /// The options in the form the training wants them, checked.
    pub(crate) fn settings(&self, ranks: usize, split: &Split) -> Result<Settings> {
        let model: ModelKind = self.model.parse()?;
        let hidden = match self.hidden {
            Some(width) => vec![width],
            None => model.default_hidden().to_vec(),
        };
        in_range("--ranks", ranks, usize::MAX)?;
        for &width in &hidden {
            in_range("--hidden", width, HIDDEN_LIMIT)?;
        }
        model.check_hidden(&hidden)?;
        model.fits(&split.train.shape(), "digits (embedded)")?;
        if !(self.lr.is_finite() && self.lr > 0.0) {
            return Err(Error::Option {
                option: "--lr",
                value: self.lr.to_string(),
                problem: match self.lr.is_finite() {
                    true => "must be positive".into(),
                    false => "must be a finite number".into(),
                },
                help: format!("the default is {DEFAULT_LR}"),
            });
        }
        let train = split.train.len();
        in_range("--batch-size", self.batch_size, usize::MAX)?;
        let batch_size = |problem, help| Error::Option {
            option: "--batch-size",
            value: self.batch_size.to_string(),
            problem,
            help,
        };
        if self.batch_size > train {
            let problem = format!("there are {train} training samples");
            return Err(batch_size(problem, format!("give a number from 1 to {train}")));
        }
        if self.batch_size < ranks {
            let problem = format!("fewer samples than the {ranks} ranks");
            return Err(batch_size(problem, format!("give {ranks} or more, or take fewer ranks")));
        }
        let steps_per_epoch = train.div_ceil(self.batch_size);
        let steps = match self.steps {
            Some(steps) => in_range("--steps", steps, STEP_LIMIT)?,
            None => steps_per_epoch * in_range("--epochs", self.epochs, EPOCH_LIMIT)?,
        };
        Ok(Settings {
            model,
            hidden,
            optimizer: self.optimizer,
            lr: self.lr,
            batch_size: self.batch_size,
            steps,
            seed: self.seed,
            precision: self.precision,
        })
    }
}

/// Checked options. All ranks must have the same: `lines` is what they compare.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) model: ModelKind,
    pub(crate) hidden: Vec<usize>,
    pub(crate) optimizer: OptimizerKind,
    pub(crate) lr: f64,
    pub(crate) batch_size: usize,
    pub(crate) steps: usize,
    pub(crate) seed: u64,
    pub(crate) precision: Precision,
}

impl Settings {
    /// One setting a line.
    pub(crate) fn lines(&self) -> Vec<String> {
        vec![
            format!("version {}", env!("CARGO_PKG_VERSION")),
            format!("model {}", self.model),
            format!("hidden {}", crate::model::widths(&self.hidden)),
            format!("optimizer {}", name(&self.optimizer)),
            format!("lr {}", self.lr),
            format!("batch size {}", self.batch_size),
            format!("{} steps", self.steps),
            format!("seed {}", self.seed),
            format!("precision {}", name(&self.precision)),
        ]
    }
}

/// The name by which the command line knows a value.
pub(crate) fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default()
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

const DEFAULT_MODEL: &str = "cnn";
const DEFAULT_LR: f64 = 0.01;
const DEFAULT_BATCH_SIZE: usize = 100;
const DEFAULT_EPOCHS: usize = 20;
/// As `allfold::Config::algorithm` takes them.
const ALGORITHMS: [&str; 5] = ["auto", "ring", "tree", "recursive-doubling", "halving-doubling"];
const DEFAULT_SEED: u64 = 1;

/// A wider layer takes more memory than a mistyped number should.
const HIDDEN_LIMIT: usize = 1 << 16;
/// Leaves a step's number room beside the bucket in a label, which is step times a million.
const STEP_LIMIT: usize = 1 << 40;
/// With the 1,438 steps of an epoch of single samples still below the limit of steps.
const EPOCH_LIMIT: usize = 1 << 29;

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser, Debug)]
    struct Program {
        #[command(flatten)]
        options: Options,
    }

    fn parse(line: &str) -> Result<Options, clap::Error> {
        let words = std::iter::once("train").chain(line.split_whitespace());
        Program::try_parse_from(words).map(|program| program.options)
    }

    #[test]
    fn the_command_line_has_the_defaults_of_the_library() {
        let parsed = parse("").unwrap();
        assert_eq!(format!("{parsed:?}"), format!("{:?}", Options::default()));
        let parsed = parse("-n 4 --model mlp --steps 7 --progress lines --precision f64").unwrap();
        assert_eq!(parsed.ranks, Some(4));
        assert_eq!(parsed.steps, Some(7));
        assert_eq!(parsed.progress, Progress::Lines);
        assert_eq!(parsed.precision, Precision::F64);
        assert!(parse("--steps 7 --epochs 2").is_err());
        assert!(parse("--optimizer lion").is_err());
    }

    #[test]
    fn what_cannot_work_is_said_in_one_line() {
        for (line, ranks, expected) in [
            ("--model resnet", 1, "unknown model `resnet`"),
            ("--batch-size 3", 4, "--batch-size 3: fewer samples than the 4 ranks"),
            ("--batch-size 0", 1, "--batch-size 0: must be at least 1"),
            ("--batch-size 1439", 1, "--batch-size 1439: there are 1438 training samples"),
            ("--lr -1", 1, "--lr -1: must be positive"),
            ("--lr inf", 1, "--lr inf: must be a finite number"),
            ("--hidden 0", 1, "--hidden 0: must be at least 1"),
            ("--hidden 99999999999", 1, "--hidden 99999999999: more than 65536"),
            ("--steps 0", 1, "--steps 0: must be at least 1"),
            ("--epochs 0", 1, "--epochs 0: must be at least 1"),
            ("", 0, "--ranks 0: must be at least 1"),
        ] {
            let error = parse(line).unwrap().check(ranks).unwrap_err();
            assert_eq!(error.to_string(), expected);
            assert!(error.help().is_some(), "{expected}");
            assert_eq!(error.exit_code(), 2);
        }
        parse("--batch-size 4").unwrap().check(4).unwrap();
    }

    #[test]
    fn the_hidden_layer_follows_the_model() {
        let split = crate::data::digits().unwrap();
        for (model, hidden) in [("cnn", 64), ("mlp", 100)] {
            let options = parse(&format!("--model {model}")).unwrap();
            let settings = options.settings(1, &split).unwrap();
            assert_eq!((settings.hidden, settings.steps), (vec![hidden], 300));
        }
    }
}
