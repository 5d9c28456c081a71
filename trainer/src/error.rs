//! What can go wrong in training, what to do about it, and the exit code it means.

use std::fmt;

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in one line.
///
/// `Display` and `Debug` print the same line, so that `fn main() -> Result` reads well.
#[derive(Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No model has this name.
    #[error("unknown model `{name}`")]
    UnknownModel {
        /// The name given.
        name: String,
    },

    /// An option has a value that cannot be used.
    #[error("{option} {value}: {problem}")]
    Option {
        /// The option, such as `--batch-size`.
        option: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        help: String,
    },

    /// A parameter cannot take part.
    #[error("parameter `{name}`: {problem}")]
    Parameter {
        /// Its name in the `VarMap`.
        name: String,
        /// What is wrong with it.
        problem: String,
    },

    /// There is no GPU to compute on, or not that one.
    #[error("{problem}")]
    Gpu {
        /// What is missing or wrong.
        problem: String,
        /// What to do.
        help: String,
    },

    /// There is nothing to train.
    #[error("the model has no parameters")]
    NoParameters,

    /// No rank had a sample in a step.
    #[error("step {step}: no rank has a sample")]
    NoSamples {
        /// The step, from 0.
        step: u64,
    },

    /// The loss of all ranks is infinite or no number; every rank gets the same error.
    #[error("the loss is not finite at step {step}")]
    LossNotFinite {
        /// The step, from 1.
        step: u64,
        /// The step of the checkpoint whose parameters give this loss, where they were read.
        resumed: Option<u64>,
    },

    /// A rank has not what rank 0 has; every rank gets the same error.
    #[error("ranks disagree on the {subject}: rank {rank} has {theirs}, rank 0 has {ours}")]
    Disagree {
        /// What was compared.
        subject: &'static str,
        /// The first rank that differs.
        rank: usize,
        /// Its first entry that differs.
        theirs: String,
        /// Rank 0's entry in that place.
        ours: String,
    },

    /// The list that a rank wants to compare is too long to be sent.
    #[error("the names of the parameters take {bytes} bytes, more than {limit}")]
    ListTooLong {
        /// Its length in bytes.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },

    /// The parameters differ between ranks, though every rank saw the same sums.
    #[error("parameters differ: {groups}")]
    ParametersDiffer {
        /// Which ranks have which digest.
        groups: String,
    },

    /// A model made of tracked parameters was used in a later step.
    #[error("the model holds the parameters of an earlier step")]
    StaleModel,

    /// Two models made of tracked parameters are behind one loss.
    #[error("a parameter has two gradients in one step")]
    TwoGradients,

    /// A setting of the optimiser that the first step has fixed.
    #[error("the size of buckets cannot change after the first step")]
    TooLate,

    /// The embedded data is damaged.
    #[error("embedded digits: line {line} is damaged")]
    Data {
        /// The line, from 1.
        line: usize,
    },

    /// A checkpoint cannot be used.
    #[error("checkpoint {file}: {problem}")]
    Checkpoint {
        /// Its file or folder.
        file: String,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        help: String,
    },

    /// Another process writes checkpoints there, and it did not end in time; every rank gets the
    /// same error.
    #[error("checkpoint {folder}: another process writes checkpoints here (waited {waited})")]
    Locked {
        /// The folder.
        folder: String,
        /// How long, in words.
        waited: String,
    },

    /// A file or folder of the user's cannot be used.
    #[error("{place}: {problem}")]
    Input {
        /// Its path, and behind a colon the line, from 1, where there is one.
        place: String,
        /// What is wrong with it, what was found and what expected.
        problem: String,
        /// What to do.
        help: String,
    },

    /// The system does not let the process hear SIGTERM.
    #[error("cannot listen for SIGTERM: {problem}")]
    Signals {
        /// The system's word.
        problem: String,
    },

    /// The model cannot take this data.
    #[error("model {model} does not fit {data}: {problem}")]
    Unfit {
        /// The model's name.
        model: String,
        /// The name of the data.
        data: String,
        /// Why not.
        problem: String,
        /// What to do.
        help: String,
    },

    /// A saved state of an optimiser is not that of this one.
    #[error("optimizer state `{name}` {problem}")]
    OptimizerState {
        /// The name of the part.
        name: String,
        /// What is wrong with it.
        problem: String,
    },

    /// A rank was asked to stop; every rank gets the same error at the same step.
    #[error("stopped by SIGTERM after step {step}")]
    Stopped {
        /// The last step, from 1.
        step: usize,
        /// Whether it can go on from there.
        last: LastStep,
    },

    /// Rank 0 has ended a training with other options or data, and waits.
    #[error("rank 0 waits at the end of a training with other options or data")]
    AnotherEnd,

    /// Training is done, but files could not be written.
    #[error("training is done, but {problems} {} could not be written", if *.problems == 1 { "file" } else { "files" })]
    Unwritten {
        /// How often.
        problems: usize,
    },

    /// Standard output takes nothing more, and not because its reader left.
    #[error("cannot write to standard output: {problem}")]
    Output {
        /// The system's word.
        problem: String,
    },

    /// candle refused a tensor operation.
    #[error("candle: {problem}")]
    Candle {
        /// Its message without a backtrace.
        problem: String,
    },

    /// allfold's own error, passed through.
    #[error(transparent)]
    World(#[from] allfold::Error),
}

/// Whether the step at which a training was stopped is in a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastStep {
    /// It is.
    Saved,
    /// It could not be written.
    Unwritten,
    /// An earlier one may be: this rank was stopped while another was lost.
    Earlier,
    /// There is no folder for checkpoints.
    NotAsked,
}

impl Error {
    /// What to do about it, where there is something to do.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::UnknownModel { .. } => Some(format!("--model takes {}", crate::model::NAMES)),
            Self::Option { help, .. }
            | Self::Gpu { help, .. }
            | Self::Checkpoint { help, .. }
            | Self::Input { help, .. }
            | Self::Unfit { help, .. } => Some(help.clone()),
            Self::Parameter { .. } => {
                Some("allfold adds f32 and f64: build the model with one of them".into())
            }
            Self::NoParameters => {
                Some("build the model from the VarMap before the optimiser is wrapped".into())
            }
            Self::NoSamples { .. } => {
                Some("end the epoch on every rank when the data is used up".into())
            }
            Self::LossNotFinite { resumed: None, .. } => {
                Some("lower --lr, the learning rate".into())
            }
            Self::LossNotFinite { resumed: Some(step), .. } => Some(format!(
                "the checkpoint holds it already: delete step-{step:08}.* and resume with a lower \
                 --lr"
            )),
            Self::Disagree { .. } => {
                Some("start every rank with the same program and the same options".into())
            }
            Self::ListTooLong { .. } => Some("give the parameters shorter names".into()),
            Self::ParametersDiffer { .. } => Some(
                "train again; if the same host differs again, suspect its memory, else report it \
                 as a bug in allfold"
                    .into(),
            ),
            Self::StaleModel => {
                Some("make it anew of `Distributed::tracked` for every loss".into())
            }
            Self::TwoGradients => Some(
                "make one model of one `Distributed::tracked` for each loss; several losses of a \
                 step: `Distributed::accumulate`"
                    .into(),
            ),
            Self::TooLate => Some("set it where the optimiser is wrapped".into()),
            Self::Data { .. } => Some("build again from a clean checkout".into()),
            Self::OptimizerState { .. } => {
                Some("give the model and the --optimizer that the state was saved with".into())
            }
            Self::Stopped { last, .. } => Some(
                match last {
                    LastStep::Saved => "--resume goes on from there",
                    LastStep::Earlier => "--resume goes on from the last checkpoint",
                    LastStep::Unwritten => "this step could not be saved: see the warnings",
                    LastStep::NotAsked => {
                        "nothing was saved: --checkpoint DIR saves, --resume goes on"
                    }
                }
                .into(),
            ),
            Self::AnotherEnd => {
                Some("end it, too: it has not been started with these options".into())
            }
            Self::Locked { .. } => Some(
                "try again: a host that is gone holds its lock until the file server forgets it; \
                 where the other one is alive, end it, or give another folder"
                    .into(),
            ),
            Self::Unwritten { .. } => {
                Some("see the warnings; the model is that of the digest".into())
            }
            Self::Signals { .. } | Self::Output { .. } | Self::Candle { .. } => None,
            Self::World(error) => error.help(),
        }
    }

    /// The exit code a program should end with: 1 a check failed, 2 usage or input, 3 ranks
    /// disagree, otherwise allfold's own.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::ParametersDiffer { .. } | Self::LossNotFinite { .. } | Self::Unwritten { .. } => {
                EXIT_CHECK_FAILED
            }
            Self::Stopped { .. } => EXIT_STOPPED,
            Self::Disagree { .. } => allfold::error::EXIT_DISAGREE,
            Self::AnotherEnd | Self::Locked { .. } => allfold::error::EXIT_TRY_AGAIN,
            Self::World(error) => error.exit_code(),
            Self::UnknownModel { .. }
            | Self::Option { .. }
            | Self::Parameter { .. }
            | Self::Gpu { .. }
            | Self::NoParameters
            | Self::NoSamples { .. }
            | Self::ListTooLong { .. }
            | Self::StaleModel
            | Self::TwoGradients
            | Self::TooLate
            | Self::Data { .. }
            | Self::Checkpoint { .. }
            | Self::Signals { .. }
            | Self::Input { .. }
            | Self::Unfit { .. }
            | Self::OptimizerState { .. }
            | Self::Output { .. }
            | Self::Candle { .. } => allfold::error::EXIT_USAGE,
        }
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Candle { problem: without_backtrace(&error) }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// candle puts a backtrace under its message when RUST_BACKTRACE is set, at any depth.
fn without_backtrace(error: &candle_core::Error) -> String {
    use candle_core::Error::{Context, WithBacktrace, WithPath};
    match error {
        WithBacktrace { inner, .. } => without_backtrace(inner),
        Context { inner, context } => format!("{context}: {}", without_backtrace(inner)),
        WithPath { inner, path } => format!("{}: {}", path.display(), without_backtrace(inner)),
        other => {
            let text = other.to_string();
            let lines: Vec<&str> = text
                .lines()
                .map(str::trim)
                .take_while(|line| !is_frame(line))
                .filter(|line| !line.is_empty())
                .collect();
            lines.join("; ")
        }
    }
}

/// Whether a line is the first of a stack frame, such as `0: candle_core::error::Error::bt`.
fn is_frame(line: &str) -> bool {
    line.split_once(": ").is_some_and(|(number, _)| number.parse::<u32>().is_ok())
}

/// A check failed: a digest that differs, a loss that is not finite.
const EXIT_CHECK_FAILED: u8 = 1;
/// 128 + SIGTERM: stopped, and saved where that was asked for.
const EXIT_STOPPED: u8 = 143;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candle_errors_are_one_line_without_a_backtrace() {
        let traced = candle_core::Error::WithBacktrace {
            inner: Box::new(candle_core::Error::Msg("shape mismatch".into())),
            backtrace: Box::new(std::backtrace::Backtrace::force_capture()),
        };
        assert!(traced.to_string().lines().count() > 1);
        let inner = traced.context("while adding");
        let error = Error::from(candle_core::Error::WithBacktrace {
            inner: Box::new(inner),
            backtrace: Box::new(std::backtrace::Backtrace::force_capture()),
        });
        assert_eq!(error.to_string(), "candle: while adding: shape mismatch");
        assert_eq!(format!("{error:?}"), error.to_string());
    }

    #[test]
    fn text_that_hides_a_backtrace_is_cut() {
        let error = Error::from(candle_core::Error::Msg(
            "cannot add\n  f32 to u8\n   0: candle_core::bt\n             at src/error.rs:1".into(),
        ));
        assert_eq!(error.to_string(), "candle: cannot add; f32 to u8");
    }

    #[test]
    fn codes_follow_the_table() {
        let differ = Error::ParametersDiffer { groups: "".into() };
        assert_eq!(differ.exit_code(), 1);
        let unknown = Error::UnknownModel { name: "vgg".into() };
        assert_eq!(unknown.exit_code(), 2);
        assert_eq!(unknown.help().as_deref(), Some("--model takes cnn, mlp or lm"));
        let closed = Error::World(allfold::ErrorKind::Closed.into());
        assert_eq!(closed.to_string(), "the communicator is closed");
    }
}
