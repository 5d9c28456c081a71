//! What `allfold bench` measures: a collective, or one of the things under it.

use std::io;

use allfold::nccl::Presence;
use allfold::{Communicator, Config, Ranks};
use clap::{Args, Subcommand};

use crate::kernels::KernelOptions;
use crate::link::LinkOptions;
use crate::plot::PlotOptions;
use crate::{Error, Options, kernels, link, plot, run};

/// `allfold bench`.
#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
pub struct Command {
    #[command(subcommand)]
    part: Option<Part>,

    #[command(flatten)]
    sweep: Options,
}

/// Not a collective.
#[derive(Subcommand, Clone, Debug)]
enum Part {
    /// What a bare link carries, by cipher, packet size and streams
    Link(LinkOptions),
    /// How fast the reduction kernels are, beside memcpy (the collective is reduce_perf)
    Reduce(KernelOptions),
    /// Draw JSON reports, of allfold or nccl-tests, into one plot
    Plot(PlotOptions),
}

impl Command {
    /// Whether this process alone does it; else the ranks of a job do.
    pub fn is_alone(&self) -> bool {
        matches!(self.part, Some(Part::Reduce(_) | Part::Plot(_)))
    }

    /// Does what one process does alone.
    ///
    /// # Errors
    /// [`Error`] for bad input, and where the result cannot be printed or written.
    pub fn run_alone(&self) -> Result<(), Error> {
        match &self.part {
            Some(Part::Reduce(options)) => kernels::run(options, &mut io::stdout()),
            Some(Part::Plot(options)) => plot::run(options, &mut io::stdout()),
            None | Some(Part::Link(_)) => Ok(()),
        }
    }

    /// The number of ranks that the user gives.
    pub fn ranks(&self) -> Option<Ranks> {
        match &self.part {
            Some(Part::Link(options)) => options.ranks,
            Some(Part::Reduce(_) | Part::Plot(_)) => None,
            None => self.sweep.given_ranks().map(|(ranks, _)| ranks),
        }
    }

    /// By which option the user gives it.
    pub fn ranks_option(&self) -> &'static str {
        self.sweep.given_ranks().map_or("--ranks", |(_, option)| option)
    }

    /// The number of ranks where the user gives none and no launcher has started any; None: the
    /// usual one. `find` is as in [`check`](Self::check).
    pub fn implied_ranks(&self, find: fn() -> Presence) -> Option<usize> {
        match &self.part {
            None => self.sweep.implied_ranks(find),
            Some(_) => None,
        }
    }

    /// Finds bad input before any of the `ranks` ranks starts; `rank` is this process's where it is
    /// one of them. `find` looks for GPUs, where they are asked for.
    ///
    /// # Errors
    /// As [`Options::check`].
    pub fn check(
        &self,
        ranks: usize,
        rank: Option<usize>,
        find: fn() -> Presence,
    ) -> Result<(), Error> {
        match &self.part {
            Some(Part::Link(options)) => options.check(ranks),
            _ => self.sweep.check(ranks, rank, find),
        }
    }

    /// How a rank connects.
    ///
    /// # Errors
    /// As [`Options::configure`].
    pub fn configure(&self, config: Config) -> allfold::Result<Config> {
        match &self.part {
            Some(Part::Link(_)) => Ok(config),
            _ => self.sweep.configure(config),
        }
    }

    /// Does this rank's part and closes the world; every rank of `world` calls it, and rank 0 prints.
    ///
    /// # Errors
    /// As [`run`](crate::run).
    pub fn run(&self, world: Communicator) -> Result<(), Error> {
        match &self.part {
            Some(Part::Link(options)) => {
                link::run(options, &world, &mut io::stdout())?;
                Ok(world.close()?)
            }
            _ => run(&self.sweep, world),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        command: Command,
    }

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Line::try_parse_from(format!("bench {line}").split_whitespace()).map(|l| l.command)
    }

    #[test]
    fn a_first_word_is_a_collective_or_a_part() {
        for (line, is_alone, ranks) in [
            ("", false, None),
            ("--ranks 3", false, Some(3)),
            ("reduce_perf --ranks 3", false, Some(3)),
            ("-g 4", false, Some(4)),
            // A launcher may have started more: mpirun -np 8 all_reduce_perf -g 1.
            ("-g 1", false, None),
            ("-g 1 --ranks 3", false, Some(3)),
            ("link --ranks 4", false, Some(4)),
            ("reduce -d float", true, None),
            ("plot a.json b.json --plot c.svg", true, None),
        ] {
            let command = parse(line).unwrap();
            let ranks = ranks.map(Ranks::Number);
            assert_eq!((command.is_alone(), command.ranks()), (is_alone, ranks), "{line}");
        }
        for line in
            ["plot a.json", "plot --plot c.svg", "--ranks 2 link", "link -n 5", "-n 5 reduce"]
        {
            assert_eq!(parse(line).map(|_| ()).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn one_gpu_is_one_rank_where_nobody_says_more() {
        let implied = |line| parse(line).unwrap().implied_ranks(Presence::find);
        assert_eq!(
            (implied("-g 1"), implied("-g 1 --device cpu"), implied("")),
            (Some(1), None, None)
        );
        let option = |line| parse(line).unwrap().ranks_option();
        assert_eq!((option("-g 2"), option("--ranks 2"), option("")), ("-g", "--ranks", "--ranks"));
    }

    #[test]
    fn who_means_the_collective_is_told_its_name() {
        for line in ["reduce --ranks 4", "reduce -r 1"] {
            let error = parse(line).unwrap().run_alone().unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.help().unwrap().contains("reduce_perf"), "{error}");
        }
    }
}
