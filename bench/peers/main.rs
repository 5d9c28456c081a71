//! All-reduces of allfold beside those of Open MPI, MPICH and Gloo, in turns, on one ladder of sizes:
//!
//! ```console
//! $ cargo run --release -p allfold-bench --example peers -- --ranks 2 --turns 5 --plot peers.svg
//! ```
//!
//! Who is missing is reported, or installed by the distribution's packages with `--install`.
//! Everybody adds up f32 in place, in warm buffers, by the rules of `bench/src/ladder.rs`, and checks
//! the result; a call's time is that of its slowest rank. Each turn begins with another contender;
//! times are medians over turns of the median call. The probe is what the memory of this host allows (`allfold::probe::SharedSum`).
//!
//! Launchers differ in where they put ranks, so that none of them does: either nobody is bound, or,
//! with `--bind core`, every rank binds itself before it has threads. A contender that takes longer
//! than `--limit-s` is stopped with all its processes, and what it has measured until then counts.
//! `--veth 1500` puts two ranks on hosts of their own, network namespaces with virtual cards of this
//! MTU between them, and `--rate-mbit 1000` makes that as slow as a real one (as root).
//! `--from a.json,b.json` shows earlier runs together.

// A benchmark ends by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod contenders;
mod environment;
mod hosts;
mod ladder;
mod options;
mod processes;
mod report;
mod tables;

use std::process::ExitCode;

use allfold_bench::turns;
use contenders::{Contender, Turn};
use hosts::Hosts;
use options::Options;
use report::Report;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [word, how] = &words[..]
        && word == "rank"
    {
        ladder::run(how);
        return ExitCode::SUCCESS;
    }
    let options = match Options::parse(&words) {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("{}", options::usage());
            return ExitCode::SUCCESS;
        }
        Err(problem) => {
            eprintln!("error: {problem}\nhelp: {}", options::usage());
            return ExitCode::from(2);
        }
    };
    let mut wrong = 0;
    let report = match options.from.is_empty() {
        true => measure(&options, &mut wrong),
        false => read(&options.from),
    };
    if let Some(code) = processes::interrupted() {
        eprintln!("error: interrupted");
        return ExitCode::from(code);
    }
    print!("{}", tables::print(&report));
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report).expect("numbers and words");
        std::fs::write(path, text + "\n").expect("the report");
    }
    if let Some(path) = &options.plot {
        std::fs::write(path, report.picture().expect("a picture")).expect("the picture");
    }
    if wrong > 0 {
        eprintln!("error: {wrong} elements were wrong");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn measure(options: &Options, wrong: &mut u64) -> Report {
    processes::take_charge();
    let (mut contenders, mut problems) = (Vec::new(), Vec::new());
    for name in contenders::NAMES.into_iter().filter(|name| options.wants(name)) {
        match Contender::find(name, options.install) {
            Ok(contender) => contenders.push(contender),
            Err(reason) => problems.push(format!("missing: {name}: {reason}")),
        }
    }
    let hosts = match options.wire.map(Hosts::new).transpose() {
        Ok(hosts) => hosts,
        Err(reason) => {
            problems.push(format!("skipped: {reason}"));
            contenders.clear();
            None
        }
    };
    let names: Vec<&str> = contenders.iter().map(|contender| contender.name).collect();
    let mut report = Report::new(options, environment::describe(options, &names));
    'turns: for turn in 0..options.turns {
        for contender in turns::order(&contenders, turn) {
            let (name, turn) = (contender.name, turn + 1);
            eprintln!("turn {turn} of {}: {name}", options.turns);
            let Turn { rows, problem } = contender.run(options, hosts.as_ref());
            if processes::interrupted().is_some() {
                break 'turns;
            }
            for row in rows {
                if row.wrong > 0 {
                    problems.push(format!("{name}: {} wrong at {} bytes", row.wrong, row.bytes));
                    *wrong += row.wrong;
                }
                report.add(name, &row);
            }
            problems.extend(problem.map(|problem| format!("{name}, turn {turn}: {problem}")));
        }
    }
    problems.iter().for_each(|problem| eprintln!("{problem}"));
    report.problems = problems;
    if let Some(environment) = report.environments.first_mut() {
        environment.insert("load average at the end".into(), environment::load());
    }
    report
}

fn read(paths: &[String]) -> Report {
    let reports = paths.iter().map(|path| {
        let text = std::fs::read_to_string(path).expect("an earlier report");
        serde_json::from_str::<Report>(&text).expect("a report of this program")
    });
    reports
        .reduce(|mut all, next| {
            all.join(next).expect("runs of as many ranks");
            all
        })
        .unwrap_or_default()
}
