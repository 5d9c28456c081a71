//! The command line.

use std::ffi::{OsStr, OsString};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser, Subcommand};

use crate::doctor::DoctorOptions;
use crate::error::Error;
use crate::gpus;
use crate::hosts;
use crate::keeper;
use crate::manifest::ManifestOptions;
use crate::manual::{CompletionsOptions, ManOptions};
use crate::options::{BenchOptions, EnvOptions, RunOptions, TrainOptions};

/// All-reduce between the ranks of a training job, without a parameter server
#[derive(Parser, Debug)]
#[command(name = "allfold", bin_name = "allfold", version, subcommand_required = true)]
#[command(arg_required_else_help = true, disable_help_subcommand = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// A subcommand and its options.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Start a program on N ranks
    Run(Box<RunOptions>),
    /// Train a model on N ranks
    Train(Box<TrainOptions>),
    /// Try a saved model on a test set
    Eval(allfold_trainer::EvalOptions),
    /// Measure a collective, with nccl-tests' table
    Bench(Box<BenchOptions>),
    /// Show which rank this process is, and which variables say so
    #[command(after_long_help = ENV_EXIT_CODES)]
    Env(EnvOptions),
    /// Find out how well the ranks reach each other, and what mends it
    Doctor(DoctorOptions),
    /// Print what starts a job in Kubernetes
    Manifest(Box<ManifestOptions>),
    /// Print a new secret for a job
    Secret,
    /// Print the script that completes words in a shell
    Completions(CompletionsOptions),
    /// Print a manual page, to read with `man -l -`
    Man(ManOptions),
    #[command(name = keeper::SUBCOMMAND, hide = true)]
    Keeper,
    #[command(name = hosts::SUBCOMMAND, hide = true)]
    Host,
    #[command(name = gpus::SUBCOMMAND, hide = true)]
    Gpus,
}

impl Arguments {
    /// From the words of the command line; None where help or the version was asked for, and
    /// printed.
    pub(crate) fn parse_words(words: Vec<OsString>) -> Result<Option<Self>, Error> {
        Self::parse(words, |page| {
            // A closed stdout is no error.
            let _ = page.print();
        })
    }

    /// The command line of another process, such as a container's; None where it only asks for
    /// help.
    pub(crate) fn parse_other(words: &[String]) -> Result<Option<Self>, Error> {
        let parsed = Self::parse(words.iter().map(Into::into).collect(), |_| ());
        parsed.map_err(|error| match error {
            Error::Usage { problem, help } => {
                Error::Usage { problem: format!("the command: {problem}"), help }
            }
            other => other,
        })
    }

    fn parse(words: Vec<OsString>, show: impl FnOnce(&clap::Error)) -> Result<Option<Self>, Error> {
        let page = where_to_look(&words);
        match Self::try_parse_from(with_plain_n(words)) {
            Ok(arguments) => Ok(Some(arguments)),
            Err(error) => match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                    show(&error);
                    Ok(None)
                }
                ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => Err(Error::Usage {
                    problem: "no subcommand given".into(),
                    help: Some(
                        "run, train, eval, bench, env, doctor, manifest, secret, completions or \
                         man; see `allfold --help`"
                            .into(),
                    ),
                }),
                _ => Err(usage(&error, &page)),
            },
        }
    }
}

/// mpirun's users write -np, which the parser would read as `-n p`.
fn with_plain_n(mut words: Vec<OsString>) -> Vec<OsString> {
    if words.get(1).is_none_or(|word| word != "run") {
        return words;
    }
    let command = Arguments::command();
    let run = command.find_subcommand("run");
    let mut index = 2;
    while let Some(word) = words.get_mut(index) {
        if word == "-np" {
            *word = "-n".into();
        }
        if word == "--" || !word.as_encoded_bytes().starts_with(b"-") {
            break;
        }
        // What follows some is their value, and not the program.
        index += if run.is_some_and(|run| takes_next(run, word)) { 2 } else { 1 };
    }
    words
}

/// Whether the word is an option whose value is the next word.
fn takes_next(command: &clap::Command, word: &OsStr) -> bool {
    let Some(word) = word.to_str() else {
        return false;
    };
    let is_meant = |option: &clap::Arg| match word.strip_prefix("--") {
        Some(long) => {
            option.get_long() == Some(long)
                || option.get_all_aliases().is_some_and(|aliases| aliases.contains(&long))
        }
        None => option.get_short().is_some_and(|short| word == format!("-{short}")),
    };
    command.get_arguments().filter(|option| option.get_action().takes_values()).any(is_meant)
}

/// One line and what to do, from the parser's several.
fn usage(error: &clap::Error, page: &str) -> Error {
    let text = error.render().to_string();
    let mut paragraphs = text.split("\n\n");
    let words: Vec<&str> = paragraphs.next().unwrap_or_default().split_whitespace().collect();
    let problem = words.join(" ");
    let problem = problem.strip_prefix("error: ").unwrap_or(&problem).to_owned();
    let tip = paragraphs.flat_map(str::lines).find_map(|line| line.trim().strip_prefix("tip: "));
    let problem = match is_negative(error) {
        true => problem.replace(NO_DIGIT, "must not be negative"),
        false => problem,
    };
    Error::Usage { problem, help: Some(tip.map_or_else(|| page.into(), Into::into)) }
}

/// Whether the value that was refused is a number below zero.
fn is_negative(error: &clap::Error) -> bool {
    matches!(error.get(ContextKind::InvalidValue),
        Some(ContextValue::String(value)) if value.parse::<f64>().is_ok_and(|value| value < 0.0))
}

/// The page that says all, where the parser's usage line says too little to mend anything by.
fn where_to_look(words: &[OsString]) -> String {
    let subcommand = words.get(1).and_then(|word| word.to_str());
    match subcommand.filter(|name| Arguments::command().find_subcommand(name).is_some()) {
        Some(name) => format!("see `allfold {name} --help`"),
        None => "see `allfold --help`".into(),
    }
}

const ENV_EXIT_CODES: &str = "\
Exit codes: 0 when this process can be a rank, 2 when it cannot, and standard error says why and \
what to set.";
/// The standard library's word for a minus sign before a number that has none.
const NO_DIGIT: &str = "invalid digit found in string";

#[cfg(test)]
mod tests {
    use allfold::Ranks;

    use super::*;

    fn parse(line: &str) -> Result<Option<Arguments>, Error> {
        Arguments::parse_words(line.split(' ').map(Into::into).collect())
    }

    fn run_of(line: &str) -> (Ranks, Vec<OsString>) {
        match parse(line).unwrap().unwrap().command {
            Command::Run(options) => (options.ranks.unwrap(), options.command),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn run_needs_no_dashes_before_the_program() {
        for line in [
            "allfold run -n 4 prog -n 7 --help -- x",
            "allfold run -np 4 prog -n 7 --help -- x",
            "allfold run --ranks 4 prog -n 7 --help -- x",
            "allfold run --ranks=4 prog -n 7 --help -- x",
            "allfold run -n4 prog -n 7 --help -- x",
            "allfold run -n 4 -- prog -n 7 --help -- x",
            "allfold run --np 4 prog -n 7 --help -- x",
            "allfold run --log-dir d --timestamp -x A=b -np 4 prog -n 7 --help -- x",
            "allfold run --prefix=never --only-rank 0,1 --grace 2m -np 4 prog -n 7 --help -- x",
        ] {
            let (ranks, command) = run_of(line);
            assert_eq!(ranks, Ranks::Number(4), "{line}");
            assert_eq!(command, ["prog", "-n", "7", "--help", "--", "x"], "{line}");
        }
        // the program's own -np is not ours
        assert_eq!(run_of("allfold run -n 2 mpirun -np 3").1, ["mpirun", "-np", "3"]);
    }

    #[test]
    fn a_usage_error_is_one_line_and_help() {
        for (line, problem) in [
            (
                "allfold run prog",
                "the following required arguments were not provided: --ranks <N|auto|gpu>",
            ),
            (
                "allfold run -n x prog",
                "invalid value 'x' for '--ranks <N|auto|gpu>': must be a number, auto or gpu",
            ),
            (
                "allfold run -n -2 prog",
                "invalid value '-2' for '--ranks <N|auto|gpu>': must not be negative",
            ),
            (
                "allfold run -n 2 --grace 1h prog",
                "invalid value '1h' for '--grace <TIME>': must be a duration such as 90, 90s, \
                 500ms or 2m",
            ),
            (
                "allfold run -n 2 --max-restarts -1 prog",
                "invalid value '-1' for '--max-restarts <N>': must not be negative",
            ),
            ("allfold run -n 2 --frob prog", "unexpected argument '--frob' found"),
            ("allfold frob", "unrecognized subcommand 'frob'"),
            (
                "allfold train -n -3",
                "invalid value '-3' for '--ranks <N|auto|gpu>': must not be negative",
            ),
            ("allfold bench -b -1", "invalid value '-1' for '--minbytes <SIZE>': must be positive"),
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.to_string(), problem, "{line}");
            assert_eq!(error.exit_code(), 2);
            assert!(!error.help().unwrap_or_default().contains('\n'), "{line}");
        }
        let help = |line| parse(line).unwrap_err().help().unwrap();
        assert_eq!(help("allfold run prog"), "see `allfold run --help`");
        assert_eq!(help("allfold train --lr x"), "see `allfold train --help`");
        assert_eq!(help("allfold frob"), "see `allfold --help`");
    }

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }
}
