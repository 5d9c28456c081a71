//! What `allfold train` can be told.

use std::path::PathBuf;

use allfold::Ranks;
use allfold::nccl::Presence;
use clap::ValueEnum;

use crate::checkpoint::{Every, Folder};
use crate::data::Data;
use crate::device;
use crate::error::{Error, Result};
use crate::memory;
use crate::settings::Settings;

/// The options of `allfold train`.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Ranks to start on this host; auto: one for each core this process may use, gpu: one for each
    /// GPU (under a launcher: leave it out)
    #[arg(short = 'n', long, value_name = "N|auto|gpu", allow_negative_numbers = true)]
    pub ranks: Option<Ranks>,

    /// What to train on: digits, a folder of the MNIST family (IDX, IDX.gz or CSV), a text file
    /// [default: digits; for lm an embedded text]
    #[arg(long, value_name = "DIR|FILE", help_heading = DATA)]
    pub data: Option<String>,

    /// Training samples to hold out: they are tested in place of the test set until the end
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    #[arg(help_heading = DATA)]
    pub validation: usize,

    /// Model: cnn, mlp or lm (a small transformer that continues text)
    #[arg(long, value_name = "NAME", default_value = DEFAULT_MODEL, help_heading = MODEL)]
    pub model: String,

    /// Width of the hidden layers; for an mlp one or more, such as 1024,1024
    /// [default: 64 for cnn and lm, 100 for mlp]
    #[arg(long, value_name = "N,..", value_delimiter = ',', allow_negative_numbers = true)]
    #[arg(help_heading = MODEL)]
    pub hidden: Vec<usize>,

    /// Element type of the model
    #[arg(long, value_name = "TYPE", default_value = "f32", help_heading = MODEL)]
    pub precision: Precision,

    /// Where each rank computes; gpu: one of its own, and NCCL carries the gradients (needs a build
    /// with the feature cuda)
    #[arg(long, value_name = "KIND", default_value = "cpu", help_heading = MODEL)]
    pub device: DeviceKind,

    /// Optimiser
    #[arg(long, value_name = "NAME", default_value = "adamw", help_heading = STEPS)]
    pub optimizer: OptimizerKind,

    /// Learning rate [default: 0.01 for adamw (lm: 0.003), 0.1 for sgd and adagrad]
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = STEPS)]
    pub lr: Option<f64>,

    /// Momentum of sgd [default: 0.9]
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = STEPS)]
    pub momentum: Option<f64>,

    /// Samples of a batch, all ranks together
    #[arg(long, value_name = "N", default_value_t = DEFAULT_BATCH_SIZE, allow_negative_numbers = true)]
    #[arg(help_heading = STEPS)]
    pub batch_size: usize,

    /// Batches whose gradients are added up for a step
    #[arg(long, value_name = "K", default_value_t = 1, allow_negative_numbers = true)]
    #[arg(help_heading = STEPS)]
    pub accumulate: usize,

    /// Shorten gradients to this norm
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = STEPS)]
    pub clip_norm: Option<f64>,

    /// Passes over the training data
    #[arg(long, value_name = "N", default_value_t = DEFAULT_EPOCHS, allow_negative_numbers = true)]
    #[arg(help_heading = STEPS)]
    pub epochs: usize,

    /// Stop after this many steps, however many epochs they are
    #[arg(long, value_name = "N", conflicts_with = "epochs", allow_negative_numbers = true)]
    #[arg(help_heading = STEPS)]
    pub steps: Option<usize>,

    /// Seed of the initial weights and of the order of the samples
    #[arg(long, value_name = "N", default_value_t = DEFAULT_SEED, allow_negative_numbers = true)]
    #[arg(help_heading = STEPS)]
    pub seed: u64,

    /// Test after this many steps [default: after each epoch]
    #[arg(long, value_name = "STEPS", allow_negative_numbers = true, help_heading = WATCHING)]
    pub eval_every: Option<usize>,

    /// What to show while training; auto: a bar on a terminal, else a line a test
    #[arg(long, value_name = "KIND", default_value = "auto", help_heading = WATCHING)]
    pub progress: Progress,

    /// Write scalars for TensorBoard into this folder
    #[arg(long, value_name = "DIR", help_heading = WATCHING)]
    pub tensorboard: Option<PathBuf>,

    /// Save the model and the state of the training in this folder
    #[arg(long, value_name = "DIR", help_heading = CHECKPOINTS)]
    pub checkpoint: Option<PathBuf>,

    /// How often: epoch, a time such as 600s, or steps such as 100steps
    #[arg(long, value_name = "WHEN", default_value_t = Every::Epoch, requires = "checkpoint")]
    #[arg(help_heading = CHECKPOINTS)]
    pub checkpoint_every: Every,

    /// How many to keep
    #[arg(long, value_name = "N", default_value_t = DEFAULT_KEEP, requires = "checkpoint")]
    #[arg(allow_negative_numbers = true, help_heading = CHECKPOINTS)]
    pub keep: usize,

    /// Go on from the newest checkpoint, if there is one; with `=must` it is an error if not
    #[arg(long, value_name = "auto|must", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "auto", requires = "checkpoint", help_heading = CHECKPOINTS)]
    pub resume: Option<Resume>,

    /// When training is done: exit, or wait for SIGTERM, also where a start finds its checkpoint at
    /// the end [default: wait in a StatefulSet, which starts again what ends; else exit]
    #[arg(long, value_name = "WHAT", help_heading = LIFE)]
    pub when_done: Option<WhenDone>,

    /// When another rank is lost: exit, or rejoin: wait until it is back and go on from the last
    /// checkpoint [default: rejoin in Kubernetes, else exit]
    #[arg(long, value_name = "WHAT", help_heading = LIFE)]
    pub on_loss: Option<OnLoss>,

    /// What carries the gradients [ALLFOLD_TRANSPORT, else auto: shared memory where all ranks are
    /// on one host]
    #[arg(long, value_name = "NAME", value_parser = TRANSPORTS, help_heading = COMMUNICATION)]
    pub transport: Option<String>,

    /// Algorithm of all-reduces [ALLFOLD_ALGORITHM, else auto]
    #[arg(long, value_name = "NAME", value_parser = ALGORITHMS, help_heading = COMMUNICATION)]
    pub algorithm: Option<String>,

    /// MiB of gradients in one all-reduce (the first takes 1): each begins as soon as they are there
    #[arg(long, value_name = "MIB", default_value_t = DEFAULT_BUCKET_MIB)]
    #[arg(allow_negative_numbers = true, help_heading = COMMUNICATION)]
    pub bucket_mib: f64,
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

/// Where a rank computes.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// On the processors of its host
    Cpu,
    /// On a GPU of its own; NCCL adds up the gradients
    Gpu,
}

/// What is shown while training.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A bar on a terminal, else lines
    Auto,
    /// A bar, and a line a test above it
    Bar,
    /// A line a test, of name=value pairs
    Lines,
    /// Nothing but the header and the result
    None,
}

/// Whether to go on from a checkpoint.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// If there is one, else start fresh
    Auto,
    /// It is an error if there is none
    Must,
}

/// What to do when training is done.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenDone {
    /// End
    Exit,
    /// Wait for SIGTERM: a StatefulSet starts again what ends
    Wait,
}

/// What to do when another rank is lost.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnLoss {
    /// End with its error
    Exit,
    /// Stay, meet all ranks anew when the lost one is back, and go on from the last checkpoint
    Rejoin,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ranks: None,
            data: None,
            validation: 0,
            model: DEFAULT_MODEL.into(),
            hidden: Vec::new(),
            precision: Precision::F32,
            device: DeviceKind::Cpu,
            optimizer: OptimizerKind::Adamw,
            lr: None,
            momentum: None,
            batch_size: DEFAULT_BATCH_SIZE,
            accumulate: 1,
            clip_norm: None,
            epochs: DEFAULT_EPOCHS,
            steps: None,
            seed: DEFAULT_SEED,
            eval_every: None,
            progress: Progress::Auto,
            tensorboard: None,
            checkpoint: None,
            checkpoint_every: Every::Epoch,
            keep: DEFAULT_KEEP,
            resume: None,
            when_done: None,
            on_loss: None,
            transport: None,
            algorithm: None,
            bucket_mib: DEFAULT_BUCKET_MIB,
        }
    }
}

impl Options {
    /// How a rank connects: with the transport and the algorithm of the command line, if given.
    ///
    /// # Errors
    /// As [`allfold::Config::transport`] and [`allfold::Config::algorithm`].
    pub fn configure(&self, config: allfold::Config) -> allfold::Result<allfold::Config> {
        let config = match &self.transport {
            Some(transport) => config.transport(transport)?,
            None => config,
        };
        match &self.algorithm {
            Some(algorithm) => config.algorithm(algorithm),
            None => Ok(config),
        }
    }

    /// Finds what cannot work with `ranks` ranks, before any of them is started; gives the data
    /// that it has read for it.
    ///
    /// # Errors
    /// [`UnknownModel`](crate::Error::UnknownModel); [`Option`](crate::Error::Option) for a number
    /// out of range and for a model that this host has not the memory for; where there is no GPU to
    /// compute on, [`Error::Gpu`] and [`allfold::ErrorKind::NoGpu`]; as [`Data::open`].
    pub fn check(&self, ranks: usize) -> Result<Data> {
        self.check_with(ranks, Presence::find)
    }

    /// As [`check`](Self::check), in a process that is to have nothing of CUDA in it: another one
    /// looks for GPUs where `find` asks it to.
    ///
    /// # Errors
    /// As there.
    pub fn check_with(&self, ranks: usize, find: impl FnOnce() -> Presence) -> Result<Data> {
        // First without the data: large ones take seconds.
        self.check_numbers(ranks)?;
        device::check(self.device, ranks, find)?;
        let data = self.open()?;
        let settings = Settings::new(self, ranks, &data)?;
        if self.device == DeviceKind::Cpu {
            memory::check(&settings, &data.shape)?;
        }
        Ok(data)
    }

    /// Finds what cannot work where `allfold train` starts all ranks itself, before any of them is
    /// started: a rank that is started anew goes on from the folder that was free then.
    ///
    /// # Errors
    /// [`Error::Option`] for `--on-loss rejoin`; [`Error::Checkpoint`] where a fresh start finds
    /// checkpoints.
    pub fn check_start(&self) -> Result<()> {
        if self.on_loss == Some(OnLoss::Rejoin) {
            return Err(Error::Option {
                option: "--on-loss",
                value: "rejoin".into(),
                problem: "after a loss all ranks that it has started itself end".into(),
                help: "--max-restarts N starts all of them anew".into(),
            });
        }
        match (&self.checkpoint, self.resume) {
            (Some(folder), None) => Folder::new(folder).must_be_unused(),
            _ => Ok(()),
        }
    }

    /// The data asked for.
    pub(crate) fn open(&self) -> Result<Data> {
        Data::open(self.data.as_deref(), self.model.parse()?, self.validation, self.seed)
    }
}

const DATA: &str = "Data";
const MODEL: &str = "Model";
const STEPS: &str = "Steps";
const WATCHING: &str = "Watching";
const CHECKPOINTS: &str = "Checkpoints";
const LIFE: &str = "After a loss and after the end";
const COMMUNICATION: &str = "Communication";

const DEFAULT_MODEL: &str = "cnn";
const DEFAULT_BATCH_SIZE: usize = 100;
const DEFAULT_EPOCHS: usize = 20;
const DEFAULT_KEEP: usize = 3;
const DEFAULT_SEED: u64 = 1;
/// As PyTorch's DDP.
const DEFAULT_BUCKET_MIB: f64 = 25.0;
/// As `allfold::Config::transport` takes them.
const TRANSPORTS: [&str; 3] = ["auto", "quic", "shared-memory"];
/// As `allfold::Config::algorithm` takes them.
const ALGORITHMS: [&str; 5] = ["auto", "ring", "tree", "recursive-doubling", "halving-doubling"];

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
        assert_eq!(parsed.ranks, Some(Ranks::Number(4)));
        assert_eq!(parse("-n gpu").unwrap().ranks, Some(Ranks::Gpu));
        for (ranks, problem) in
            [("-1", "must not be negative"), ("all", "must be a number, auto or gpu")]
        {
            let error = parse(&format!("-n {ranks}")).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
        assert_eq!(parsed.steps, Some(7));
        assert_eq!(parsed.progress, Progress::Lines);
        assert_eq!(parsed.precision, Precision::F64);
        assert_eq!(parse("--device gpu").unwrap().device, DeviceKind::Gpu);
        assert!(parse("--device tpu").is_err());
        assert!(parse("--steps 7 --epochs 2").is_err());
        assert!(parse("--optimizer lion").is_err());
    }

    #[test]
    fn the_classic_run_is_understood() {
        let options = parse(
            "--data D --model mlp --hidden 100 --optimizer adagrad --lr 0.01 --batch-size 100 \
             --steps 10000 --eval-every 100 --validation 2000 --checkpoint C \
             --checkpoint-every 600s --resume",
        )
        .unwrap();
        assert_eq!(options.data.as_deref(), Some("D"));
        assert_eq!((options.hidden, options.optimizer), (vec![100], OptimizerKind::Adagrad));
        assert_eq!((options.eval_every, options.validation), (Some(100), 2000));
        assert_eq!(options.checkpoint_every.to_string(), "600s");
        assert_eq!(options.resume, Some(Resume::Auto));
        assert_eq!(parse("--checkpoint C --resume=must").unwrap().resume, Some(Resume::Must));
        assert_eq!(parse("--hidden 1024,1024").unwrap().hidden, [1024, 1024]);
        for nowhere in ["--resume", "--keep 2", "--checkpoint-every epoch"] {
            assert!(parse(nowhere).is_err(), "{nowhere} without --checkpoint");
        }
        assert!(parse("--checkpoint C --checkpoint-every 600").is_err());
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
            ("--optimizer sgd --momentum 1", 1, "--momentum 1: must be from 0 to below 1"),
            ("--momentum 0.5", 1, "--momentum 0.5: adamw has none"),
            ("--clip-norm 0", 1, "--clip-norm 0: must be positive"),
            ("--bucket-mib nan", 1, "--bucket-mib NaN: must be a finite number"),
            ("--accumulate 0", 1, "--accumulate 0: must be at least 1"),
            ("--accumulate 16", 1, "--accumulate 16: an epoch has 15 batches"),
            ("--eval-every 0", 1, "--eval-every 0: must be at least 1"),
            ("--hidden 0", 1, "--hidden 0: must be at least 1"),
            ("--hidden 99999999999", 1, "--hidden 99999999999: more than 65536"),
            ("--hidden 5,6", 1, "--hidden 5,6: cnn has one width"),
            ("--steps 0", 1, "--steps 0: must be at least 1"),
            ("--epochs 0", 1, "--epochs 0: must be at least 1"),
            ("--checkpoint C --keep 0", 1, "--keep 0: must be at least 1"),
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
    fn the_hidden_layer_and_the_rate_follow_the_names() {
        for (line, hidden, lr) in [
            ("--model cnn", 64, 0.01),
            ("--model mlp --optimizer sgd", 100, 0.1),
            ("--model mlp --optimizer adagrad", 100, 0.1),
            ("--model lm --optimizer sgd", 64, 0.1),
            ("--model lm", 64, 0.003),
        ] {
            let options = parse(line).unwrap();
            let settings = Settings::new(&options, 1, &options.open().unwrap()).unwrap();
            assert_eq!((&settings.hidden[..], settings.lr), (&[hidden][..], lr));
        }
    }
}
