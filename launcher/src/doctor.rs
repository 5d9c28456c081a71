//! `allfold doctor`: how well the ranks of a job reach each other, and what mends it.
//!
//! Every rank measures itself and its pairs (`schedule`, `pair`, `host`), all tell each other what
//! they have found (`facts`), each comes to the same judgement (`judgement`, whose words are in
//! `finding`), and rank 0 prints it (`page`); `gpus` has all of that for GPUs.

mod facts;
mod finding;
mod gpus;
mod host;
mod judgement;
mod page;
mod pair;
mod schedule;

use std::io::{self, Write};
use std::time::Duration;

use allfold::nccl::Presence;
use allfold::{Communicator, Config, Identity, Peer, Ranks};
use rustix::termios::isatty;
use serde::Serialize;

use crate::copies::Collective;
use crate::error::Error;
use crate::options::PeerOptions;
use facts::{Facts, LinkFacts, Part};
use finding::{Cell, Color, Finding, Row};

/// `allfold doctor`
#[derive(clap::Args, Debug)]
#[command(after_long_help = EXIT_CODES)]
pub(crate) struct DoctorOptions {
    /// Number of ranks on this host; auto: one for each core, gpu: one for each GPU [outside a
    /// launcher: 2]
    #[arg(short = 'n', long = "ranks", value_name = "N|auto|gpu", allow_negative_numbers = true)]
    ranks: Option<Ranks>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    /// How long is measured, once the ranks have met; rank 0's counts
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = allfold::parse_duration)]
    #[arg(allow_negative_numbers = true)]
    timeout: Duration,

    #[command(flatten)]
    pub(crate) peers: PeerOptions,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    /// Whether no cell is red; None where the ranks have not met, or one was lost before all had
    /// told what they know.
    healthy: Option<bool>,
    #[serde(flatten)]
    facts: &'a Facts,
    findings: &'a [Finding],
    error: Option<String>,
    help: Option<String>,
}

impl Collective for DoctorOptions {
    /// One rank would reach nobody.
    const DEFAULT_RANKS: usize = 2;
    const RANKS_OPTION: &'static str = "-n";
    type Input = ();

    fn ranks(&self) -> Option<Ranks> {
        self.ranks
    }

    fn check(&self, _: usize, _: Option<usize>, _: fn() -> Presence) -> Result<(), Error> {
        match (SHORTEST..=LONGEST).contains(&self.timeout) {
            true => Ok(()),
            false => Err(Error::Usage {
                problem: format!("--timeout {:?}: it takes 100 ms to 1 minute", self.timeout),
                help: Some("leave it out for 3s".into()),
            }),
        }
    }

    fn run(&self, (): (), world: Communicator) -> Result<(), Error> {
        let leads = world.rank() == 0;
        let facts = self.examine(&world).inspect_err(|error| {
            if leads {
                self.tell(&Facts::of_one(&world, host::of_rank(&world)), error);
            }
        })?;
        // What is known is told, whatever happens to the others now.
        let closed = world.close();
        let findings = judgement::judge(&facts);
        let reds = finding::reds(&findings);
        let word = |(about, cells): &(Row, Vec<Cell>)| {
            format!("{} of {}", about.name(), finding::list_cells(cells, facts.ranks.len()))
        };
        let reds: Vec<String> = reds.iter().map(word).collect();
        if leads {
            self.print(&facts, &findings, closed.as_ref().err())?;
        }
        closed?;
        match reds.is_empty() {
            true => Ok(()),
            false => Err(Error::Unhealthy { reds }),
        }
    }

    /// Each rank that cannot meet the others tells what it knows.
    fn take_part(&self, input: (), identity: Identity) -> Result<(), Error> {
        let config = Config::from_env(identity.clone());
        let world = config.and_then(|config| Communicator::connect(self.configure(config)?));
        let world = world.inspect_err(|error| {
            let ranks = vec![host::of_stranger(&identity)];
            self.tell(&Facts { ranks, ..Facts::default() }, error);
        })?;
        self.run(input, world)
    }
}

impl DoctorOptions {
    /// Measures; every rank of `world` makes the call, and has everybody's facts.
    fn examine(&self, world: &Communicator) -> Result<Facts, allfold::Error> {
        let mut millis = [self.timeout.as_millis() as u64];
        world.broadcast(&mut millis, 0)?;
        let time = Duration::from_millis(millis[0]).clamp(SHORTEST, LONGEST);
        let links = measure(world, time)?;
        // Last, with all packets that were dropped meanwhile.
        let rank = host::of_rank(world);
        let mut facts = Facts::gather(world, &Part { rank, links })?;
        for _ in 0..MORE_LOOKS {
            // All ranks suspect the same.
            let suspects = judgement::suspects(&facts);
            if suspects.is_empty() {
                break;
            }
            let links = measure_network(world, time, &|pair| suspects.contains(pair))?;
            let rank = host::of_rank(world);
            let again = Facts::gather(world, &Part { rank, links })?;
            facts.look_again(&again.links);
        }
        Ok(facts)
    }

    fn tell(&self, facts: &Facts, error: &allfold::Error) {
        let findings = judgement::judge(facts);
        // The error itself is what counts.
        let _ = self.print(facts, &findings, Some(error));
    }

    fn print(
        &self,
        facts: &Facts,
        findings: &[Finding],
        error: Option<&allfold::Error>,
    ) -> Result<(), Error> {
        let has_red = || findings.iter().any(|finding| finding.color == Color::Red);
        let text = match self.json {
            true => {
                let document = Document {
                    healthy: facts.are_whole().then(|| !has_red()),
                    facts,
                    findings,
                    error: error.map(ToString::to_string),
                    help: error.and_then(allfold::Error::help),
                };
                serde_json::to_string(&document).map_err(io::Error::other).map(|text| text + "\n")
            }
            false => Ok(page::page(facts, findings, is_colored())),
        };
        let printed = text.and_then(|text| io::stdout().write_all(text.as_bytes()));
        match printed {
            Err(problem) if problem.kind() != io::ErrorKind::BrokenPipe => {
                Err(Error::system("cannot print")(problem))
            }
            _ => Ok(()),
        }
    }
}

/// This rank's links, each measured with the rank at its other end.
fn measure(world: &Communicator, time: Duration) -> Result<Vec<LinkFacts>, allfold::Error> {
    let (rank, peers) = (world.rank(), world.peers());
    let mut links = Vec::new();
    // By rank: the lowest with which it shares memory.
    let homes: Vec<usize> = peers.iter().map(|peer| home(&peers, peer)).collect();
    let own = homes.get(rank).copied().unwrap_or(rank);
    let neighbours = world.split(Some(own as u32), rank as u32)?;
    let shares = neighbours.as_ref().is_some_and(|n| n.size() > 1 && n.shares_memory());
    let mut sharing = vec![0u8; world.size()];
    world.all_gather(&[u8::from(shares)], &mut sharing)?;
    let shares_with = |a: usize, b: usize| {
        let both = [a, b].map(|rank| sharing.get(rank) == Some(&1));
        both == [true, true] && homes.get(a) == homes.get(b)
    };
    let rounds = schedule::rounds(world.size());
    for round in &rounds {
        let is_here = |(a, b): &&(usize, usize)| homes.get(*a) == Some(&own) && shares_with(*a, *b);
        let here: Vec<(usize, usize)> = round.iter().filter(is_here).copied().collect();
        let Some(neighbours) = neighbours.as_ref().filter(|_| !here.is_empty()) else { continue };
        let place = here.iter().position(|(a, b)| [*a, *b].contains(&rank));
        let pair = neighbours.split(place.map(|place| place as u32), rank as u32)?;
        if let Some((pair, (low, high))) = pair.zip(place.and_then(|place| here.get(place))) {
            let other = if rank == *low { *high } else { *low };
            links.push(pair::over_memory(&pair, (rank, other))?);
            pair.close()?;
        }
    }
    if let Some(neighbours) = neighbours {
        neighbours.close()?;
    }
    world.barrier()?;
    links.extend(measure_network(world, time, &|(a, b)| !shares_with(*a, *b))?);
    Ok(links)
}

/// This rank's links among these pairs, over the network; every rank names the same pairs.
fn measure_network(
    world: &Communicator,
    time: Duration,
    is_far: &dyn Fn(&(usize, usize)) -> bool,
) -> Result<Vec<LinkFacts>, allfold::Error> {
    let rank = world.rank();
    let mut links = Vec::new();
    let rounds = schedule::rounds(world.size());
    let busy = rounds.iter().filter(|round| round.iter().any(is_far)).count();
    let share = time * NETWORK_PERCENT / 100;
    let limit = (share / busy.max(1) as u32).min(time / LEAST_PAIRS);
    for round in &rounds {
        let own = round.iter().filter(|pair| is_far(pair)).find_map(|(a, b)| match rank {
            _ if rank == *a => Some(*b),
            _ if rank == *b => Some(*a),
            _ => None,
        });
        if let Some(peer) = own {
            links.push(pair::over_network(world, peer, limit)?);
        }
    }
    Ok(links)
}

fn home(peers: &[Peer], peer: &Peer) -> usize {
    let shares = |other: &&Peer| peer.shares_memory_with(other);
    peers.iter().find(shares).map_or(peer.rank, |first| first.rank)
}

/// For a person, at a terminal, who has not said no (<https://no-color.org>).
fn is_colored() -> bool {
    let is_refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    isatty(io::stdout()) && !is_refused
}

const EXIT_CODES: &str = "\
Exit codes: 0 when no cell is red, 1 when one is; where the ranks cannot meet, that of the error. \
docs/doctor.md says what each row means.";
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(60);
/// The rest is for links to open, for shared memory and for telling each other.
const NETWORK_PERCENT: u32 = 70;
/// A pair has no more than it would have among so many rounds: 300 ms by default, within which a
/// network of 10 ms and 10 Gbit/s shows its speed.
const LEAST_PAIRS: u32 = 10;
/// One that is red at three looks is not so because a rank was not awake.
const MORE_LOOKS: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ranks_have_the_same_facts() {
        for (size, links) in [(2, 2), (5, 20), (17, 34)] {
            let options = DoctorOptions {
                ranks: None,
                json: false,
                timeout: SHORTEST,
                peers: PeerOptions::default(),
            };
            let ranks = Communicator::in_memory(size).unwrap();
            let found: Vec<Facts> = std::thread::scope(|scope| {
                let examine = |world: Communicator| {
                    let options = &options;
                    scope.spawn(move || {
                        let facts = options.examine(&world).unwrap();
                        world.close().unwrap();
                        facts
                    })
                };
                let ranks: Vec<_> = ranks.into_iter().map(examine).collect();
                ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
            });
            let first = serde_json::to_value(&found[0]).unwrap();
            assert!(found.iter().all(|facts| serde_json::to_value(facts).unwrap() == first));
            assert_eq!((found[0].ranks.len(), found[0].links.len()), (size, links));
            assert!(found[0].links.iter().all(|link| link.bytes_per_second > 0.0));
        }
    }
}
