//! What happens to whom, when, and how the job was started.

use std::fmt;
use std::str::FromStr;

use allfold::simulation::Random;

/// One case. Its text, such as `kill/ring-middle/2/4/plain`, replays it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Case {
    /// What happens.
    pub what: What,
    /// At which moment.
    pub when: When,
    /// To which rank.
    pub victim: usize,
    /// Of how many.
    pub ranks: usize,
    /// How the job was started.
    pub launch: Launch,
}

/// What a rank does to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// SIGKILL.
    Kill,
    /// SIGSTOP; it is continued when the others have ended.
    Stop,
    /// SIGTERM, which a program without a handler dies of. `train` takes it for a wish to stop.
    Terminate,
    /// The program's own thread panics, and unwinds through the communicator.
    Panic,
    /// `exit(0)` without closing.
    Exit,
    /// `abort()`.
    Abort,
    /// All between it and its neighbour is lost.
    CutPair,
    /// All that its neighbour sends to it is lost.
    CutOneWay,
    /// All that it sends and receives is lost.
    CutAll,
}

/// The moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum When {
    /// Before it listens or dials.
    BeforeConnect,
    /// Rank 0 knows it; not all have come.
    Gathering,
    /// It is ready for the world that rank 0 proposed; nothing is committed.
    Prepared,
    /// Between two calls.
    Idle,
    /// In a call, by this algorithm, at this step.
    Step(Algorithm, At),
    /// In an all-reduce of a bucket, while `allfold train` is in a backward pass.
    Backward,
}

/// By which algorithm all-reduces are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Algorithm {
    /// `ring`
    Ring,
    /// `tree`
    Tree,
    /// In memory that the ranks share.
    Memory,
    /// `ring`, of three lanes at once.
    Lanes,
}

/// Which of the steps of the rank's plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum At {
    /// Step 0.
    First,
    /// The one in the middle.
    Middle,
    /// The last one.
    Last,
}

/// How the job is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Launch {
    /// By plain environment: nobody watches the processes but the ranks themselves.
    Plain,
    /// By `allfold run`.
    Run,
}

impl Case {
    /// The matrix: everything that can happen, at every moment, to rank 0, a middle rank and the
    /// last of four, and some of it in larger worlds, where not all ranks watch all.
    pub fn matrix(launch: Launch) -> Vec<Self> {
        let mut cases = Vec::new();
        for what in What::ALL {
            for when in When::all() {
                for victim in [0, RANKS / 2, RANKS - 1] {
                    cases.push(Self { what, when, victim, ranks: RANKS, launch });
                }
            }
        }
        for ranks in LARGER {
            for what in [What::Kill, What::Stop, What::Panic, What::CutPair, What::CutAll] {
                for when in [When::Idle, When::Step(Algorithm::Ring, At::Middle)] {
                    cases.push(Self { what, when, victim: ranks / 2, ranks, launch });
                }
            }
        }
        cases
    }

    /// About `count` cases of the matrix, drawn from a seed, so that everything that can happen is
    /// among them.
    pub fn sample(launch: Launch, count: usize, seed: u64) -> Vec<Self> {
        let mut random = Random::new(seed);
        let all = Self::matrix(launch);
        let each = count.div_ceil(What::ALL.len());
        let mut cases = Vec::new();
        for what in What::ALL {
            let mut left: Vec<Self> =
                all.iter().filter(|case| case.what == what).copied().collect();
            for _ in 0..each.min(left.len()) {
                cases.push(left.swap_remove(random.below(left.len() as u64) as usize));
            }
        }
        cases
    }

    /// Whether it happens before rank 0 has committed the world.
    pub fn is_before_the_world(&self) -> bool {
        matches!(self.when, When::BeforeConnect | When::Gathering | When::Prepared)
    }

    /// Whether the rank's process ends by it.
    pub fn ends_the_process(&self) -> bool {
        use What::*;
        match self.what {
            Kill | Panic | Exit | Abort => true,
            Terminate => self.when != When::Backward,
            Stop | CutPair | CutOneWay | CutAll => false,
        }
    }

    /// The other end where a link is cut. Before the world table is there, only rank 0 is known.
    pub fn neighbour(&self) -> usize {
        match self.when {
            When::BeforeConnect | When::Gathering if self.victim != 0 => 0,
            _ => (self.victim + 1) % self.ranks,
        }
    }

    /// The settings that have calls done so.
    pub fn settings(&self) -> &'static [(&'static str, &'static str)] {
        match self.when {
            When::Step(Algorithm::Ring, _) => &[("ALLFOLD_ALGORITHM", "ring")],
            When::Step(Algorithm::Tree, _) => &[("ALLFOLD_ALGORITHM", "tree")],
            When::Step(Algorithm::Memory, _) => &[("ALLFOLD_TRANSPORT", "shared-memory")],
            When::Step(Algorithm::Lanes, _) => {
                &[("ALLFOLD_ALGORITHM", "ring"), ("ALLFOLD_LANES", "3")]
            }
            _ => &[],
        }
    }

    /// Elements of the calls.
    pub fn elements(&self) -> usize {
        match self.when {
            When::Step(Algorithm::Lanes, _) => STRIPED,
            _ => ELEMENTS,
        }
    }

    /// The rank that does not connect before it has happened: not all have come then.
    pub fn held_back(&self) -> Option<usize> {
        let last = self.ranks - 1;
        let other = if self.victim == last { last - 1 } else { last };
        (self.when == When::Gathering).then_some(other)
    }
}

impl What {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Kill,
        Self::Stop,
        Self::Terminate,
        Self::Panic,
        Self::Exit,
        Self::Abort,
        Self::CutPair,
        Self::CutOneWay,
        Self::CutAll,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Terminate => "terminate",
            Self::Panic => "panic",
            Self::Exit => "exit",
            Self::Abort => "abort",
            Self::CutPair => "cut-pair",
            Self::CutOneWay => "cut-one-way",
            Self::CutAll => "cut-all",
        }
    }

    /// For a table.
    pub fn words(self) -> &'static str {
        match self {
            Self::Kill => "SIGKILL",
            Self::Stop => "SIGSTOP",
            Self::Terminate => "SIGTERM",
            Self::Panic => "panic",
            Self::Exit => "exit 0 without close",
            Self::Abort => "abort()",
            Self::CutPair => "one link cut",
            Self::CutOneWay => "one link cut one way",
            Self::CutAll => "cut from all",
        }
    }
}

impl When {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        let steps = [Algorithm::Ring, Algorithm::Tree, Algorithm::Memory]
            .into_iter()
            .flat_map(|a| [At::First, At::Middle, At::Last].map(|at| Self::Step(a, at)));
        [Self::BeforeConnect, Self::Gathering, Self::Prepared, Self::Idle]
            .into_iter()
            .chain(steps)
            .chain([Self::Step(Algorithm::Lanes, At::Middle), Self::Backward])
    }

    fn name(self) -> String {
        match self {
            Self::BeforeConnect => "before-connect".into(),
            Self::Gathering => "gathering".into(),
            Self::Prepared => "prepared".into(),
            Self::Idle => "idle".into(),
            Self::Step(Algorithm::Lanes, at) => format!("lanes-{}", at.name()),
            Self::Step(algorithm, at) => format!("{}-{}", algorithm.name(), at.name()),
            Self::Backward => "backward".into(),
        }
    }
}

impl Algorithm {
    /// As a step has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ring | Self::Lanes => "ring",
            Self::Tree => "tree",
            Self::Memory => "shared-memory",
        }
    }
}

impl At {
    /// The step of a plan of `count` steps.
    pub fn index(self, count: usize) -> usize {
        match self {
            Self::First => 0,
            Self::Middle => count / 2,
            Self::Last => count.saturating_sub(1),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Middle => "middle",
            Self::Last => "last",
        }
    }
}

impl fmt::Display for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::Run => "run",
        })
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, when, victim, ranks, launch } = self;
        write!(f, "{}/{}/{victim}/{ranks}/{launch}", what.name(), when.name())
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a case, such as kill/ring-middle/2/4/plain");
        let parts: Vec<&str> = text.split('/').collect();
        let [what, when, victim, ranks, launch] = parts[..] else { return Err(wrong()) };
        let case = Self {
            what: What::ALL.into_iter().find(|w| w.name() == what).ok_or_else(wrong)?,
            when: When::all().find(|w| w.name() == when).ok_or_else(wrong)?,
            victim: victim.parse().map_err(|_| wrong())?,
            ranks: ranks.parse().map_err(|_| wrong())?,
            launch: match launch {
                "plain" => Launch::Plain,
                "run" => Launch::Run,
                _ => return Err(wrong()),
            },
        };
        // Somebody must be left who is neither the victim nor held back.
        if case.ranks < 3 || case.victim >= case.ranks { Err(wrong()) } else { Ok(case) }
    }
}

/// Two chunks' worth of segments on four ranks.
const ELEMENTS: usize = 40_000;
/// Of four bytes: three stripes of the least that a stripe has.
const STRIPED: usize = 3 << 17;
/// All watch all.
const RANKS: usize = 4;
/// The smallest world in which not all watch all, and one that is no power of two plus one.
const LARGER: [usize; 2] = [9, 12];

#[cfg(test)]
mod tests {
    // A test fails by panicking.
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_text_of_a_case_replays_it() {
        for case in Case::matrix(Launch::Plain).into_iter().chain(Case::matrix(Launch::Run)) {
            assert_eq!(case.to_string().parse::<Case>().unwrap(), case);
        }
        for wrong in ["", "kill", "kill/idle/4/4/plain", "kill/idle/0/4/ssh", "hug/idle/0/4/run"] {
            assert!(wrong.parse::<Case>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_sample_has_everything_that_can_happen() {
        for seed in 0..50 {
            let cases = Case::sample(Launch::Plain, 18, seed);
            assert_eq!(cases.len(), 18);
            for what in What::ALL {
                assert_eq!(cases.iter().filter(|case| case.what == what).count(), 2);
            }
            assert_eq!(cases, Case::sample(Launch::Plain, 18, seed));
        }
    }

    #[test]
    fn whoever_is_held_back_is_not_needed_for_the_fault() {
        for case in Case::matrix(Launch::Plain) {
            assert_ne!(case.held_back(), Some(case.victim));
            assert_ne!(case.held_back(), Some(0));
            assert_ne!(case.neighbour(), case.victim);
        }
    }
}
