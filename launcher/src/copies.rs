//! `train`, `bench` and `doctor`: part of a job where a launcher started us, else a job of our own.

use allfold::identity::Findings;
use allfold::nccl::Presence;
use allfold::{Communicator, Config, Identity, Ranks};
use allfold_trainer::Resume;

use crate::environment::RESTART;
use crate::error::Error;
use crate::gpus;
use crate::hosts::{self, Hosts};
use crate::job::{Job, Kind, Place, check_ranks};
use crate::log;
use crate::options::{HostOptions, JobOptions, OutputOptions, PeerOptions};
use crate::program::Program;
use crate::ranks;
use crate::report;
use crate::signals;

/// What `train`, `bench` and `doctor` have in common.
pub(crate) trait Collective {
    /// The ranks of a job of our own where the user does not say.
    const DEFAULT_RANKS: usize;
    /// The option that sets them.
    const RANKS_OPTION: &'static str;
    /// What a rank reads before it connects.
    type Input;

    /// What the user says.
    fn ranks(&self) -> Option<Ranks>;
    /// Where the user gives them, by which option.
    fn ranks_option(&self) -> &'static str {
        Self::RANKS_OPTION
    }
    /// The ranks of a job of our own where the user does not say.
    fn default_ranks(&self) -> usize {
        Self::DEFAULT_RANKS
    }
    /// Finds bad input before any rank starts; gives what was read for it. `rank` is this process's
    /// where it is one. `find` looks for GPUs, where they are asked for.
    fn check(
        &self,
        ranks: usize,
        rank: Option<usize>,
        find: fn() -> Presence,
    ) -> Result<Self::Input, Error>;
    /// How a rank connects, where the command line says something about it.
    fn configure(&self, config: Config) -> allfold::Result<Config> {
        Ok(config)
    }
    /// Does this rank's part, and closes the world.
    fn run(&self, input: Self::Input, world: Communicator) -> Result<(), Error>;
    /// Does it as a rank of a job that is there.
    fn take_part(&self, input: Self::Input, identity: Identity) -> Result<(), Error> {
        let config = self.configure(Config::from_env(identity)?)?;
        self.run(input, Communicator::connect(config)?)
    }
}

/// Joins the job this process is part of, or starts one with these options.
pub(crate) fn join_or_start<C: Collective>(
    collective: &C,
    peers: &PeerOptions,
    options: &JobOptions,
) -> Result<(), Error> {
    let found = Findings::from_env();
    let given = collective.ranks().map(|_| collective.ranks_option()).or(options.first_given());
    // A copy has the arguments of the one that started it, and its own identity.
    let is_copy = report::is_copy();
    let identity = match peers.are_given() && !is_copy {
        true => Some(Identity::by_hand(peers.peers.as_deref(), peers.rank)?),
        // Whoever says how many ranks to start need not hear that a pod does not.
        false if given.is_some() && !is_copy && found.is_only_surrounding() => None,
        false => found.identity()?,
    };
    match role(identity, &found, given, is_copy)? {
        Role::Member(identity) => {
            // Waiting for the other ranks can take minutes, and PID 1 has no default action.
            allfold_trainer::Stop::end_at_once().map_err(Error::from)?;
            let input = collective.check(identity.size, Some(identity.rank), Presence::find)?;
            collective.take_part(input, identity)
        }
        Role::Starter => {
            hosts::refuse_without(&options.hosts, false)?;
            let asked =
                ranks::asked(collective.ranks(), collective.ranks_option(), &options.hosts)?;
            if let Some(hosts) = Hosts::of(&options.hosts, asked)? {
                refuse_kills(options)?;
                // What the ranks read is there.
                return start(options, hosts.ranks(), Place::Hosts(hosts));
            }
            let ranks = asked.unwrap_or_else(|| collective.default_ranks());
            check_ranks(ranks, collective.ranks_option())?;
            if given.is_none() {
                for forgotten in found.forgotten() {
                    log::say("warning", &forgotten);
                }
            }
            let is_alone = ranks == 1 && options.first_given().is_none();
            // Reading the data can take minutes, too.
            if is_alone {
                allfold_trainer::Stop::end_at_once().map_err(Error::from)?;
            } else {
                signals::end_at_once().map_err(Error::system("cannot handle signals"))?;
            }
            let find = if is_alone { Presence::find } else { gpus::find };
            let input = collective.check(ranks, None, find)?;
            if is_alone {
                let world = match found.is_only_surrounding() {
                    true => Communicator::single_from_env(),
                    false => Communicator::from_env_or_single(),
                };
                return collective.run(input, world?);
            }
            // Each rank reads its own.
            drop(input);
            start(options, ranks, Place::Here)
        }
    }
}

/// Ranks of other hosts are not this launcher's to kill.
fn refuse_kills(options: &JobOptions) -> Result<(), Error> {
    match options.kill_every {
        None => Ok(()),
        Some(_) => Err(Error::Usage {
            problem: "--kill-every kills ranks of this host, and --hosts starts them on others"
                .into(),
            help: Some("drop one of the two".into()),
        }),
    }
}

/// Starts copies of this process as ranks.
fn start(options: &JobOptions, ranks: usize, place: Place) -> Result<(), Error> {
    let (program, kind) = (Program::own_copy(), Kind::Copies);
    let (options, output) = (options.clone(), OutputOptions::default());
    Job { ranks, program, kind, options, output, variables: Vec::new(), place }.run()
}

/// For what one process does alone.
pub(crate) fn refuse_hosts(hosts: &HostOptions) -> Result<(), Error> {
    match hosts.first_given() {
        None => Ok(()),
        Some(option) => Err(Error::Usage {
            problem: format!("one process does this alone, and {option} is for several"),
            help: Some(format!("drop {option}")),
        }),
    }
}

/// For what one process does alone.
pub(crate) fn refuse_peers(peers: &PeerOptions) -> Result<(), Error> {
    match peers.are_given() {
        false => Ok(()),
        true => Err(Error::Usage {
            problem: "one process does this alone, and --peers and --rank make it one of several"
                .into(),
            help: Some("drop --peers and --rank".into()),
        }),
    }
}

#[derive(Debug)]
enum Role {
    /// A rank of a job that is there.
    Member(Identity),
    /// The one who starts the job.
    Starter,
}

/// What this process is, by its environment and by an option that was given and that only a
/// starter can heed.
fn role(
    identity: Option<Identity>,
    found: &Findings,
    given: Option<&'static str>,
    is_copy: bool,
) -> Result<Role, Error> {
    match (identity, given) {
        // Starting copies here would never end.
        (None, _) if is_copy => Err(found.no_environment().into()),
        (None, _) => Ok(Role::Starter),
        // `srun -n 1`, `mpirun -n 1` or a pod of its own, in which the user asks for more.
        (Some(identity), Some(_)) if !is_copy && identity.size == 1 && !identity.is_of_run() => {
            Ok(Role::Starter)
        }
        // A copy has the arguments of the one that started it, these included.
        (Some(identity), Some(option)) if !is_copy => Err(Error::AlreadyLaunched {
            rank: identity.rank,
            size: identity.size,
            launcher: identity.launcher,
            option,
        }),
        (Some(identity), _) => Ok(Role::Member(identity)),
    }
}

impl Collective for allfold_trainer::Options {
    const DEFAULT_RANKS: usize = 1;
    const RANKS_OPTION: &'static str = "-n";
    type Input = allfold_trainer::Data;

    fn ranks(&self) -> Option<Ranks> {
        self.ranks
    }
    fn check(
        &self,
        ranks: usize,
        rank: Option<usize>,
        find: fn() -> Presence,
    ) -> Result<Self::Input, Error> {
        let data = self.check_with(ranks, find)?;
        if rank.is_none() {
            self.check_start()?;
        }
        Ok(data)
    }
    fn configure(&self, config: Config) -> allfold::Result<Config> {
        Self::configure(self, config)
    }
    fn run(&self, data: Self::Input, world: Communicator) -> Result<(), Error> {
        Ok(allfold_trainer::run(self, data, world)?)
    }
    fn take_part(&self, data: Self::Input, identity: Identity) -> Result<(), Error> {
        let config = self.configure(Config::from_env(identity.clone())?)?;
        let options = &mut self.clone();
        if report::is_copy() && is_restarted() && options.checkpoint.is_some() {
            // Its own checkpoints: the folder had none when the job began, or was to be gone on from.
            options.resume.get_or_insert(Resume::Auto);
        }
        Ok(allfold_trainer::take_part(options, data, &identity, config, &report::note_done)?)
    }
}

/// Whether the launcher has started these ranks before.
fn is_restarted() -> bool {
    std::env::var_os(RESTART).is_some_and(|number| number != "0")
}

impl Collective for allfold_bench::Command {
    /// One rank would measure nothing.
    const DEFAULT_RANKS: usize = 2;
    /// -n is nccl-tests' number of iterations.
    const RANKS_OPTION: &'static str = "--ranks";
    type Input = ();

    fn ranks(&self) -> Option<Ranks> {
        Self::ranks(self)
    }
    fn ranks_option(&self) -> &'static str {
        Self::ranks_option(self)
    }
    fn default_ranks(&self) -> usize {
        self.implied_ranks(gpus::find).unwrap_or(Self::DEFAULT_RANKS)
    }
    fn check(
        &self,
        ranks: usize,
        rank: Option<usize>,
        find: fn() -> Presence,
    ) -> Result<(), Error> {
        Ok(Self::check(self, ranks, rank, find)?)
    }
    fn configure(&self, config: Config) -> allfold::Result<Config> {
        Self::configure(self, config)
    }
    fn run(&self, (): (), world: Communicator) -> Result<(), Error> {
        Ok(Self::run(self, world)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            rank: 2,
            size: 4,
            local_rank: 2,
            local_size: 4,
            launcher: "allfold run".into(),
            rendezvous: None,
            job: None,
            port: None,
            ignored: Vec::new(),
        }
    }

    fn role(
        identity: Option<Identity>,
        given: Option<&'static str>,
        is_copy: bool,
    ) -> Result<Role, Error> {
        super::role(identity, &Findings::default(), given, is_copy)
    }

    #[test]
    fn a_launched_process_takes_no_number_of_ranks() {
        let error = role(Some(identity()), Some("-n"), false).unwrap_err();
        assert_eq!(error.to_string(), "already rank 2 of 4 under allfold run");
        assert_eq!(error.exit_code(), 2);
        assert_eq!(error.help().unwrap(), "drop -n");
    }

    #[test]
    fn member_or_starter() {
        let member = |role| matches!(role, Role::Member(Identity { rank: 2, size: 4, .. }));
        assert!(member(role(Some(identity()), None, false).unwrap()));
        assert!(member(role(Some(identity()), Some("-n"), true).unwrap()));
        for given in [None, Some("-n")] {
            assert!(matches!(role(None, given, false).unwrap(), Role::Starter));
        }
        assert!(role(None, Some("-n"), true).is_err());
        let launcher = "Slurm".to_string();
        let alone =
            || Some(Identity { rank: 0, size: 1, launcher: launcher.clone(), ..identity() });
        assert!(matches!(role(alone(), Some("-n"), false).unwrap(), Role::Starter));
        assert!(matches!(role(alone(), None, false).unwrap(), Role::Member(_)));
    }
}
