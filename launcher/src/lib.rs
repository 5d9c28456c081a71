//! The programs behind the one binary: run, train, eval, bench, env, doctor, manifest, secret,
//! completions, man.
//!
//! Reading order: `arguments` and `options` say what there is; `job` starts the ranks, and again
//! where that may help, each time as an `attempt`; `supervisor` watches over them, `verdict` says
//! how it ended; `copies` is how train, bench and doctor become a job. Around them stand `announcer` and
//! `port` (what the library in a rank needs), `output`, `logs` and `input` (the ranks' streams),
//! `journal` (events for programs), `binding` (who runs where), `keeper` and `remains` (nothing
//! stays behind). `script` says the same in shell, `manifest` in Kubernetes' words, `manual` prints
//! pages, `identify` what launchers say. `hosts` has the ranks on several hosts, and `share` is one
//! host's of them; `ranks` counts them, and `gpus` the GPUs.

mod announcer;
mod arguments;
mod attempt;
mod binding;
mod clock;
mod copies;
mod directory;
mod doctor;
mod duration;
mod ending;
mod environment;
mod error;
mod exit_code;
mod gpus;
mod hosts;
mod identify;
mod input;
mod job;
mod journal;
mod keeper;
mod kill_every;
mod lines;
mod log;
mod logs;
mod mailbox;
mod manifest;
mod manual;
mod meeting;
mod memory;
mod options;
mod output;
mod port;
mod process;
mod process_heap;
mod program;
mod random;
mod rank;
mod ranks;
mod remains;
mod report;
mod script;
mod share;
mod signals;
mod stop;
mod supervisor;
mod topology;
mod unwritten;
mod variables;
mod verdict;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::CommandFactory;

use crate::arguments::{Arguments, Command};
use crate::error::Error;
use crate::hosts::Hosts;
use crate::job::{Job, Kind, Place};
use crate::manifest::{Manifest, ManifestOptions};
use crate::options::{JobOptions, RunOptions};
use crate::program::Program;
use crate::report::Report;
use crate::script::Script;
use crate::share::Share;

/// The whole program; returns the exit code of DESIGN's table.
pub fn main() -> ExitCode {
    process_heap::keep_free_memory();
    report::install_panic_hook();
    match execute() {
        Ok(()) => exit_code::DONE.into(),
        Err(error) => {
            Report::from(&error).deliver();
            error.exit_code().into()
        }
    }
}

fn execute() -> Result<(), Error> {
    let words = std::env::args_os().collect();
    let Some(arguments) = Arguments::parse_words(words)? else {
        return Ok(());
    };
    log::start()?;
    match arguments.command {
        Command::Run(options) => run(*options),
        Command::Train(options) => {
            copies::join_or_start(&options.trainer, &options.peers, &options.job()?)
        }
        Command::Bench(options) if options.bench.is_alone() => {
            copies::refuse_peers(&options.peers)?;
            copies::refuse_hosts(&options.hosts)?;
            Ok(options.bench.run_alone()?)
        }
        Command::Bench(options) => {
            let job = JobOptions::bound(options.binding, options.hosts);
            copies::join_or_start(&options.bench, &options.peers, &job)
        }
        Command::Eval(options) => Ok(allfold_trainer::eval(&options)?),
        Command::Env(options) => identify::print(options),
        Command::Doctor(options) => {
            copies::join_or_start(&options, &options.peers, &JobOptions::default())
        }
        Command::Manifest(options) => print_manifest(&options),
        Command::Secret => print_secret(),
        Command::Completions(options) => manual::print_completions(&options, &Arguments::command()),
        Command::Man(options) => manual::print_page(&options, &Arguments::command()),
        Command::Keeper => keeper::keep().map_err(Error::system("the keeper failed")),
        Command::Host => hosts::led::follow(),
        Command::Gpus => gpus::tell(),
    }
}

fn run(options: RunOptions) -> Result<(), Error> {
    let variables = variables::parse(&options.variables)?;
    let (ranks, place) = place(&options)?;
    options.output.check(ranks)?;
    if options.dry_run {
        let (command, output, job) = (&options.command, &options.output, &options.job);
        let variables = &variables;
        return print_script(&Script { ranks, command, output, options: job, variables });
    }
    let Some((name, arguments)) = options.command.split_first() else {
        return Ok(());
    };
    let program = match &place {
        Place::Hosts(_) => Program::elsewhere(&options.command),
        Place::Here | Place::Share(_) => Program::find(name, arguments)?,
    };
    let (kind, output, options) = (Kind::Program, options.output, options.job);
    Job { ranks, program, kind, options, output, variables, place }.run()
}

/// How many ranks there are, and where.
fn place(options: &RunOptions) -> Result<(usize, Place), Error> {
    let (nodes, hosts) = (&options.nodes, &options.job.hosts);
    let refuse = |problem: &str, help: &str| {
        Err(Error::Usage { problem: problem.into(), help: Some(help.into()) })
    };
    let is_spread = nodes.nnodes.is_some() || hosts.hosts.is_some() || hosts.hostfile.is_some();
    if is_spread && options.dry_run {
        return refuse(
            "--dry-run prints the script of one host, and ranks on several are asked for",
            "drop --dry-run, or ask for one host with -n alone",
        );
    }
    if nodes.nnodes.is_some() && options.job.max_restarts > 0 {
        return refuse(
            "--max-restarts needs one launcher for all hosts, and --nnodes has one on each",
            "start all from one host with --hosts, or drop --max-restarts",
        );
    }
    hosts::refuse_without(hosts, nodes.nnodes.is_some())?;
    if let (Some(_), Some(meeting)) = (nodes.nnodes, &hosts.rdzv) {
        let (ranks, share) = Share::by_hand(nodes, meeting)?;
        return Ok((ranks, Place::Share(share)));
    }
    let asked = ranks::asked(options.ranks, "-n", hosts)?;
    if let Some(hosts) = Hosts::of(hosts, asked)? {
        return Ok((hosts.ranks(), Place::Hosts(hosts)));
    }
    let ranks = asked.unwrap_or(0);
    job::check_ranks(ranks, "-n")?;
    Ok((ranks, Place::Here))
}

fn print_script(script: &Script<'_>) -> Result<(), Error> {
    let text = script.text()?;
    io::stdout().write_all(&text).map_err(Error::system("cannot print the script"))?;
    match &script.left_out()[..] {
        [] => {}
        [others @ .., last] => {
            let others = match others {
                [] => String::new(),
                others => others.join(", ") + " and ",
            };
            let options = others + last;
            log::say("warning", &format!("the script does without {options}"));
        }
    }
    Ok(())
}

fn print_manifest(options: &ManifestOptions) -> Result<(), Error> {
    let manifest = Manifest::new(options)?;
    for warning in &manifest.warnings {
        log::say("warning", warning);
    }
    let printed = io::stdout().write_all(manifest.text.as_bytes());
    printed.map_err(Error::system("cannot print the manifest"))
}

fn print_secret() -> Result<(), Error> {
    let line = allfold::Secret::random()?.to_line();
    writeln!(io::stdout(), "{}", *line).map_err(Error::system("cannot print the secret"))
}
