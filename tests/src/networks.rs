//! Bad networks between hosts: what a job meets on its way, and what must come of it.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::hosts::{Hosts, Weather};
use crate::{Ended, Process, machine_lock};

/// One kind of bad network.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// In words.
    pub name: &'static str,
    /// The weather while the ranks meet, and until all have made their first call.
    before: Weather,
    then: Then,
    must: Must,
}

#[derive(Clone, Copy, Debug)]
enum Then {
    /// It stays so.
    Same,
    /// From then on it is this weather everywhere.
    Everywhere(Weather),
    /// From then on it is this weather between hosts 1 and 2.
    Between(Weather),
    /// Nothing passes anywhere for so long.
    Outage(Duration),
}

/// What must come of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Must {
    /// Every call's sum is right, and the job ends well.
    BeRight,
    /// Every rank names the link between ranks 1 and 2.
    NameTheLink,
    /// Every rank says that it is itself cut off.
    BeCutOff,
}

/// What came of it.
#[derive(Debug)]
pub struct Run {
    /// From when the weather was there until the last rank had ended, or, where all goes well, had
    /// made its calls.
    pub took: Duration,
    /// Calls that were right.
    pub calls: usize,
    /// What was not as it must be.
    pub problem: Option<String>,
}

/// All that are tested.
pub fn cases() -> Vec<Case> {
    let fine = Weather::default();
    let steady = |name, before| Case { name, before, then: Then::Same, must: Must::BeRight };
    let down = Weather { is_down: true, ..fine };
    let narrow = Weather { largest: Some(NARROW), ..fine };
    vec![
        steady("nothing", fine),
        steady("1 % lost", Weather { loss: 0.01, ..fine }),
        steady("5 % lost", Weather { loss: 0.05, ..fine }),
        steady("5 % overtaken", Weather { reorder: 0.05, hold: Duration::from_millis(5), ..fine }),
        steady("5 % twice", Weather { duplicate: 0.05, ..fine }),
        steady("1 % with a wrong bit", Weather { corrupt: 0.01, ..fine }),
        steady(
            "50 ms, 10 ms more or less",
            Weather { delay: Duration::from_millis(50), jitter: Duration::from_millis(10), ..fine },
        ),
        steady("20 Mbit/s", Weather { rate: Some(20_000_000), ..fine }),
        steady("nothing above 1,300 bytes", narrow),
        Case {
            name: "later nothing above 1,300 bytes",
            before: fine,
            then: Then::Everywhere(narrow),
            must: Must::BeRight,
        },
        // Heartbeats and acknowledgements are smaller and still come.
        Case {
            name: "later nothing above 1,000 bytes between two",
            before: fine,
            then: Then::Between(Weather { largest: Some(TOO_NARROW), ..fine }),
            must: Must::NameTheLink,
        },
        Case {
            name: "everything lost for 1 s",
            before: fine,
            then: Then::Outage(Duration::from_secs(1)),
            must: Must::BeRight,
        },
        Case {
            name: "everything lost",
            before: fine,
            then: Then::Everywhere(down),
            must: Must::BeCutOff,
        },
        Case {
            name: "everything lost between two",
            before: fine,
            then: Then::Between(down),
            must: Must::NameTheLink,
        },
    ]
}

impl Case {
    /// One run of a job of three hosts, with the packets' fate by `seed`; `program` starts a
    /// rank under test.
    ///
    /// # Errors
    /// Why this machine cannot have hosts of its own.
    pub fn run(&self, seed: u64, program: &[String]) -> Result<Run, String> {
        let Some((program, first)) = program.split_first() else { return Err("no program".into()) };
        let hosts = Hosts::far_apart(HOSTS, seed)?;
        let Some(network) = hosts.network() else { return Err("no network".into()) };
        network.set(self.before);
        let over = Over::new();
        let path = over.0.to_string_lossy();
        let job = hosts.job();
        let mut began = Instant::now();
        let first = first.iter().map(String::as_str);
        let words: Vec<&str> = first.chain(["until", &path]).collect();
        let mut ranks: Vec<Process> =
            (0..HOSTS).map(|rank| hosts.start(&job, rank, program, &words)).collect();
        ranks.iter_mut().for_each(|rank| drop(rank.wait_for_line("started")));
        match self.then {
            Then::Same => {}
            Then::Everywhere(weather) => network.set(weather),
            Then::Between(weather) => network.set_between(1, 2, weather),
            Then::Outage(length) => {
                network.set(Weather { is_down: true, ..self.before });
                std::thread::sleep(length);
                network.set(self.before);
            }
        }
        if !matches!(self.then, Then::Same) {
            began = Instant::now();
        }
        if self.must == Must::BeRight {
            // The weather lasts so long.
            std::thread::sleep(LASTS);
            over.now();
        }
        let ended: Vec<Ended> = ranks.into_iter().map(Process::wait).collect();
        let took = began.elapsed();
        Ok(Run { took, calls: calls(&ended), problem: self.problem(&ended) })
    }

    /// How long all ranks may take to have their error.
    fn limit(&self) -> Option<Duration> {
        match (self.must, self.then) {
            (Must::BeRight, _) => None,
            (_, Then::Between(Weather { is_down: false, .. })) => Some(LIMIT_OF_DOUBT),
            _ => Some(LIMIT),
        }
    }

    fn problem(&self, ended: &[Ended]) -> Option<String> {
        let fails = |ended: &Ended, words: &[&str]| {
            ended.code() == 75 && words.iter().all(|word| error(ended).contains(word))
        };
        let is_right = |(rank, ended): (usize, &Ended)| match self.must {
            Must::BeRight => ended.code() == 0 && calls(std::slice::from_ref(ended)) > 0,
            Must::BeCutOff => fails(ended, &[&format!("rank {rank} (host-{rank}"), "is cut off"]),
            Must::NameTheLink => {
                fails(ended, &["link between", "rank 1 (host-1", "rank 2 (host-2"])
            }
        };
        let wrong = ended.iter().enumerate().position(|rank| !is_right(rank))?;
        let Ended { lines, .. } = &ended[wrong];
        Some(format!("rank {wrong} ended with {}: {lines:?}", ended[wrong].code()))
    }
}

/// Runs every case so often, with the seeds from `seed` on, and prints a table. Returns whether all
/// was as it must be.
///
/// # Errors
/// Why this machine cannot have hosts of its own, or why nothing can be printed.
pub fn table(
    runs: u64,
    seed: u64,
    program: &[String],
    out: &mut dyn Write,
) -> Result<bool, String> {
    let mut lines =
        |line: String| writeln!(out, "{line}").map_err(|error: io::Error| error.to_string());
    lines("| network | must | runs | as it must | calls | p50 | p99 | max |".into())?;
    lines("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |".into())?;
    let mut problems = Vec::new();
    for case in cases() {
        let mut times = Vec::new();
        let (mut good, mut calls) = (0, 0);
        for seed in seed..seed + runs {
            let _one_at_a_time = machine_lock();
            let mut run = case.run(seed, program)?;
            if case.limit().is_some_and(|limit| run.took > limit) && run.problem.is_none() {
                run.problem = Some(format!("it took {:.1} s", run.took.as_secs_f64()));
            }
            match run.problem {
                None => good += 1,
                Some(problem) => problems.push(format!("{}, seed {seed}: {problem}", case.name)),
            }
            calls += run.calls;
            times.push(run.took);
        }
        times.sort_unstable();
        let at = |percent: usize| {
            let place = (times.len() * percent).div_ceil(100).max(1) - 1;
            let time = times.get(place).copied().unwrap_or_default();
            format!("{:.1} s", time.as_secs_f64())
        };
        let must = match case.must {
            Must::BeRight => "right sums",
            Must::BeCutOff => "each: cut off",
            Must::NameTheLink => "that link",
        };
        let name = case.name;
        let (p50, p99, max) = (at(50), at(99), at(100));
        lines(format!("| {name} | {must} | {runs} | {good} | {calls} | {p50} | {p99} | {max} |"))?;
    }
    problems.iter().try_for_each(|problem| lines(format!("\nnot as it must be: {problem}")))?;
    Ok(problems.is_empty())
}

fn error(ended: &Ended) -> &str {
    ended.errors().into_iter().find(|line| line.starts_with("error: ")).unwrap_or_default()
}

/// Of the rank that says so; all make the same number.
fn calls(ended: &[Ended]) -> usize {
    let lines = ended.iter().flat_map(Ended::output);
    lines.filter_map(|line| line.strip_suffix(" calls")?.parse().ok()).max().unwrap_or(0)
}

/// The file that says that a job may end.
struct Over(PathBuf);

impl Over {
    fn new() -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("allfold-over-{}-{number}", std::process::id());
        Self(Path::new(&std::env::temp_dir()).join(name))
    }

    fn now(&self) {
        if let Err(error) = std::fs::write(&self.0, "") {
            panic!("{}: {error}", self.0.display());
        }
    }
}

impl Drop for Over {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A ring with a link that is not one's own.
const HOSTS: usize = 3;
/// IP packets, as in some tunnels: what QUIC sends at first passes, what it finds out does not.
const NARROW: usize = 1300;
/// The promise.
const LIMIT: Duration = Duration::from_secs(3);
/// Nobody is silent there: a link on which small packets pass and large ones do not is given twice
/// the time, as lost packets are sent again, smaller, before anything is said of it.
const LIMIT_OF_DOUBT: Duration = Duration::from_secs(6);
/// QUIC needs 1,228 (RFC 9000, section 14).
const TOO_NARROW: usize = 1000;
/// Many round trips of the slowest network.
const LASTS: Duration = Duration::from_secs(1);
