//! What the user asks for.

use crate::contenders::NAMES;
use crate::hosts::Wire;

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) ranks: usize,
    pub(crate) turns: usize,
    pub(crate) first: usize,
    pub(crate) last: usize,
    /// Of the timed calls of a size.
    pub(crate) budget_ms: f64,
    /// Of one contender in one turn.
    pub(crate) limit_s: f64,
    /// Each rank on a core of its own, as far as there are cores; else the system places them.
    pub(crate) bind: bool,
    /// Two ranks on two hosts with this between them.
    pub(crate) wire: Option<Wire>,
    pub(crate) install: bool,
    pub(crate) only: Vec<String>,
    pub(crate) json: Option<String>,
    pub(crate) plot: Option<String>,
    /// Reports of earlier runs, shown together in place of a run.
    pub(crate) from: Vec<String>,
}

impl Options {
    /// Nothing where only help is wanted.
    ///
    /// # Errors
    /// What has no meaning, in words.
    pub(crate) fn parse(words: &[String]) -> Result<Option<Self>, String> {
        let mut options = Self::default();
        let (mut mtu, mut rate) = (None, None);
        let mut given = Vec::new();
        let mut words = words.iter().map(String::as_str);
        while let Some(word) = words.next() {
            given.push(word);
            match word {
                "--install" => {
                    options.install = true;
                    continue;
                }
                "--help" | "-h" => return Ok(None),
                _ if !VALUED.contains(&word) => return Err(format!("there is no {word}")),
                _ => {}
            }
            let value = words.next().ok_or(format!("{word} wants a value"))?;
            let list = || value.split(',').map(String::from).collect();
            match word {
                "--ranks" => options.ranks = number(word, value)?,
                "--turns" => options.turns = number(word, value)?,
                "--first" => options.first = number(word, value)?,
                "--last" => options.last = number(word, value)?,
                "--budget-ms" => options.budget_ms = number(word, value)?,
                "--limit-s" => options.limit_s = number(word, value)?,
                "--bind" => match value {
                    "none" => options.bind = false,
                    "core" => options.bind = true,
                    other => return Err(format!("--bind {other}: there are none and core")),
                },
                "--veth" => mtu = Some(number(word, value)?),
                "--rate-mbit" => rate = Some(number(word, value)?),
                "--only" => options.only = list(),
                "--json" => options.json = Some(value.into()),
                "--plot" => options.plot = Some(value.into()),
                _ => options.from = list(),
            }
        }
        if !options.from.is_empty() {
            let idle = given.into_iter().find(|word| !WITH_FROM.contains(word));
            return match idle {
                Some(word) => Err(format!("{word} with --from, which shows earlier runs")),
                None => Ok(Some(options)),
            };
        }
        options.wire = match (mtu, rate) {
            (Some(mtu), rate) => Some(Wire { mtu, rate }),
            (None, Some(_)) => return Err("--rate-mbit without --veth: there is no link".into()),
            (None, None) => None,
        };
        options.check()?;
        if options.wire.is_some() && options.only.is_empty() {
            options.only = BETWEEN_HOSTS.map(String::from).to_vec();
        }
        Ok(Some(options))
    }

    fn check(&self) -> Result<(), String> {
        let Self { ranks, turns, first, last, .. } = *self;
        if let Some(unknown) = self.only.iter().find(|only| !NAMES.contains(&only.as_str())) {
            return Err(format!("--only {unknown}: nobody is called that"));
        }
        if let Some(Wire { mtu, rate }) = self.wire {
            let stays = self.only.iter().find(|name| !BETWEEN_HOSTS.contains(&name.as_str()));
            if let Some(name) = stays {
                let able = BETWEEN_HOSTS.join(" and ");
                return Err(format!("--only {name} with --veth: {able} run between hosts"));
            }
            if ranks != 2 {
                return Err(format!(
                    "--ranks {ranks} with --veth: there are two hosts, a rank on each"
                ));
            }
            if !(LEAST_MTU..=MOST_MTU).contains(&mtu) {
                return Err(format!("--veth {mtu}: an MTU is from {LEAST_MTU} to {MOST_MTU}"));
            }
            if rate == Some(0) {
                return Err("--rate-mbit 0: nothing would arrive".into());
            }
        }
        for (name, number) in [("--ranks", ranks), ("--turns", turns), ("--first", first)] {
            if number == 0 {
                return Err(format!("{name} 0: at least 1"));
            }
        }
        if !first.is_multiple_of(size_of::<f32>()) {
            return Err(format!("--first {first}: elements have 4 bytes"));
        }
        if last < first {
            return Err(format!("--last {last} is below --first {first}: there is no size"));
        }
        let times = [("--budget-ms", self.budget_ms), ("--limit-s", self.limit_s)];
        match times.into_iter().find(|(_, time)| !(*time > 0.0 && *time < LONGEST)) {
            Some((name, time)) => Err(format!("{name} {time}: a time above 0, below {LONGEST}")),
            None => Ok(()),
        }
    }

    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ranks: 2,
            turns: 5,
            first: 4,
            last: 64 << 20,
            budget_ms: 200.0,
            limit_s: 60.0,
            bind: false,
            wire: None,
            install: false,
            only: Vec::new(),
            json: None,
            plot: None,
            from: Vec::new(),
        }
    }
}

pub(crate) fn usage() -> String {
    format!(
        "peers [--ranks N] [--turns N] [--first BYTES] [--last BYTES] [--budget-ms MS] [--limit-s S] \
         [--bind none|core] [--veth MTU [--rate-mbit N]] [--install] [--only NAME,..] [--json FILE] \
         [--plot FILE.svg] or [--from FILE.json,..]; names: {}",
        NAMES.join(", ")
    )
}

fn number<T: std::str::FromStr>(word: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{word} {text}: that is no such number"))
}

/// Options with a word behind them.
const VALUED: [&str; 13] = [
    "--ranks",
    "--turns",
    "--first",
    "--last",
    "--budget-ms",
    "--limit-s",
    "--bind",
    "--veth",
    "--rate-mbit",
    "--only",
    "--json",
    "--plot",
    "--from",
];
/// What can be done with earlier runs.
const WITH_FROM: [&str; 3] = ["--from", "--json", "--plot"];
/// Who can be started on two hosts without a shell on each.
const BETWEEN_HOSTS: [&str; 2] = ["gloo", "allfold-quic"];
/// QUIC's least, with the headers of IPv4 and UDP.
const LEAST_MTU: u32 = 1_228;
/// Linux's for a virtual card.
const MOST_MTU: u32 = 65_535;
/// Eleven days in seconds: a slip of the finger.
const LONGEST: f64 = 1e6;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<Options>, String> {
        let words: Vec<String> = line.split_whitespace().map(String::from).collect();
        Options::parse(&words)
    }

    fn parsed(line: &str) -> Options {
        parse(line).unwrap().unwrap()
    }

    #[test]
    fn what_would_be_ignored_is_refused() {
        for (line, word) in [
            ("--veth 1500 --only open-mpi", "open-mpi"),
            ("--veth 1500 --only gloo,mpich", "mpich"),
            ("--veth 1500 --ranks 4", "--ranks 4"),
            ("--rate-mbit 1000", "--veth"),
            ("--rate-mbit 1000 --only gloo", "--veth"),
            ("--from a.json --turns 3", "--turns"),
            ("--from a.json --only gloo", "--only"),
            ("--from a.json --install", "--install"),
        ] {
            let problem = parse(line).unwrap_err();
            assert!(problem.contains(word), "{line}: {problem}");
        }
    }

    #[test]
    fn what_has_no_meaning_is_refused() {
        for line in [
            "--turns 0",
            "--ranks 0",
            "--ranks -1",
            "--first 0",
            "--first 6",
            "--first 64 --last 32",
            "--only nobody",
            "--bind socket",
            "--budget-ms 0",
            "--budget-ms nan",
            "--limit-s inf",
            "--veth 500",
            "--veth 1500 --rate-mbit 0",
            "--json",
            "--fast",
            "fast",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn what_is_asked_for_is_taken() {
        let options = parsed("--veth 1500 --rate-mbit 1000");
        let wire = options.wire.unwrap();
        assert_eq!((wire.mtu, wire.rate), (1500, Some(1000)));
        assert!(options.wants("gloo") && options.wants("allfold-quic"));
        assert!(!options.wants("open-mpi-tcp"));
        assert_eq!(parsed("--veth 9000 --only gloo").only, ["gloo"]);
        assert!(parsed("--only mpich").wants("mpich") && parsed("").wants("mpich"));
        assert_eq!(parsed("--from a,b --json c").from, ["a", "b"]);
        assert!(parse("--turns 2 --help").unwrap().is_none());
    }
}
