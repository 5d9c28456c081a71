//! What the user asks for.

use crate::contenders::NAMES;
use crate::hosts::Wire;

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
    pub(crate) fn parse(words: &[String]) -> Self {
        let mut options = Self {
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
        };
        let (mut mtu, mut rate) = (None, None);
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--install" => {
                    options.install = true;
                    continue;
                }
                "--help" => usage(""),
                _ => {}
            }
            let Some(value) = words.next() else { usage(word) };
            let list = || value.split(',').map(String::from).collect();
            match word.as_str() {
                "--ranks" => options.ranks = number(value),
                "--turns" => options.turns = number(value),
                "--first" => options.first = number(value),
                "--last" => options.last = number(value),
                "--budget-ms" => options.budget_ms = number(value),
                "--limit-s" => options.limit_s = number(value),
                "--bind" => match value.as_str() {
                    "none" => options.bind = false,
                    "core" => options.bind = true,
                    other => usage(other),
                },
                "--veth" => mtu = Some(number(value)),
                "--rate-mbit" => rate = Some(number(value)),
                "--only" => options.only = list(),
                "--json" => options.json = Some(value.clone()),
                "--plot" => options.plot = Some(value.clone()),
                "--from" => options.from = list(),
                other => usage(other),
            }
        }
        options.wire = mtu.map(|mtu| Wire { mtu, rate });
        if options.wire.is_some() {
            options.only.retain(|name| BETWEEN_HOSTS.contains(&name.as_str()));
            if options.only.is_empty() {
                options.only = BETWEEN_HOSTS.map(String::from).to_vec();
            }
            if options.ranks != 2 {
                usage("--veth: there are two hosts, and a rank on each");
            }
        }
        let unknown = options.only.iter().find(|only| !NAMES.contains(&only.as_str()));
        if let Some(unknown) = unknown {
            usage(unknown);
        }
        let is_size = |bytes: usize| bytes > 0 && bytes.is_multiple_of(size_of::<f32>());
        if options.ranks == 0 || options.turns == 0 || !is_size(options.first) {
            usage("--ranks, --turns and --first: at least 1, and whole elements of 4 bytes");
        }
        options
    }

    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }
}

fn number<T: std::str::FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| usage(text))
}

fn usage(word: &str) -> ! {
    let (to_err, code) =
        if word.is_empty() { (String::new(), 0) } else { (format!("error: `{word}`\n"), 2) };
    eprintln!(
        "{to_err}help: peers [--ranks N] [--turns N] [--first BYTES] [--last BYTES] [--budget-ms MS] \
         [--limit-s S] [--bind none|core] [--veth MTU [--rate-mbit N]] [--install] [--only NAME,..] [--json FILE] [--plot FILE.svg] \
         [--from FILE.json,..]; names: {}",
        NAMES.join(", ")
    );
    std::process::exit(code);
}

/// Who can be started on two hosts without a shell on each.
const BETWEEN_HOSTS: [&str; 2] = ["gloo", "allfold-quic"];
