//! `completions` and `man`: what shells and man(1) read, from the command line's definition.

use std::io::{self, Write};

use clap::Command;
use clap_complete::Shell;

use crate::error::Error;
use crate::gpus;
use crate::hosts;
use crate::keeper;

/// `allfold completions`
#[derive(clap::Args, Debug)]
pub(crate) struct CompletionsOptions {
    /// The shell; for bash: allfold completions bash > ~/.local/share/bash-completion/completions/allfold
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// `allfold man`
#[derive(clap::Args, Debug)]
pub(crate) struct ManOptions {
    /// The page of this subcommand; without: the page of allfold itself
    #[arg(value_name = "SUBCOMMAND")]
    subcommand: Option<String>,
}

/// Prints the script that completes words in that shell.
pub(crate) fn print_completions(
    options: &CompletionsOptions,
    command: &Command,
) -> Result<(), Error> {
    let mut command = shown(command);
    let name = command.get_name().to_owned();
    let mut text = Vec::new();
    clap_complete::generate(options.shell, &mut command, name, &mut text);
    print(&text)
}

/// Prints a page in roff, for `man -l`.
pub(crate) fn print_page(options: &ManOptions, command: &Command) -> Result<(), Error> {
    let about = page(options.subcommand.as_deref(), command)?;
    // After `build` that is the file's name: allfold-run.
    let title = about.get_display_name().unwrap_or("allfold").to_uppercase();
    let mut text = Vec::new();
    clap_mangen::Man::new(about)
        .title(title)
        .render(&mut text)
        .map_err(Error::system("cannot write the page"))?;
    print(&text)
}

/// What the page is about.
fn page(subcommand: Option<&str>, command: &Command) -> Result<Command, Error> {
    let mut command = shown(command);
    command.build();
    let Some(name) = subcommand else {
        return Ok(command);
    };
    command.find_subcommand(name).cloned().ok_or_else(|| Error::Usage {
        problem: format!("no subcommand {name}"),
        help: Some(format!("one of {}", names(&command).join(", "))),
    })
}

fn names(command: &Command) -> Vec<&str> {
    command.get_subcommands().map(Command::get_name).filter(|name| *name != "help").collect()
}

/// The command line without what is not for users: completions show hidden subcommands too.
fn shown(command: &Command) -> Command {
    let hidden = [keeper::SUBCOMMAND, hosts::SUBCOMMAND, gpus::SUBCOMMAND];
    let subcommands =
        command.get_subcommands().filter(|part| !hidden.contains(&part.get_name())).cloned();
    let shown = Command::new("allfold")
        .bin_name("allfold")
        .disable_help_subcommand(true)
        .subcommand_required(true)
        .version(env!("CARGO_PKG_VERSION"))
        .subcommands(subcommands);
    match command.get_about() {
        Some(about) => shown.about(about.clone()),
        None => shown,
    }
}

fn print(text: &[u8]) -> Result<(), Error> {
    match io::stdout().write_all(text) {
        // `allfold man run | head`
        Err(problem) if problem.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(Error::system("cannot print")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::arguments::Arguments;

    #[test]
    fn what_is_not_for_users_is_not_shown() {
        let all = Arguments::command();
        let shown = shown(&all);
        for hidden in [keeper::SUBCOMMAND, hosts::SUBCOMMAND, gpus::SUBCOMMAND] {
            assert!(names(&all).contains(&hidden), "{hidden}");
            assert!(!names(&shown).contains(&hidden), "{hidden}");
        }
    }
}
