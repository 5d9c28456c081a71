//! What rank 0 tells the user: a header, the progress, the result.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::time::Duration;

use allfold::{Communicator, Peer};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::arrivals::Arrivals;
use crate::data::Shape;
use crate::error::Result;
use crate::options::{Precision, Progress};
use crate::output::Output;
use crate::resume::Resumed;
use crate::settings::name;
use crate::training::{Event, Outcome, TestDone, Training};

/// Writes to standard output.
pub(crate) struct Report {
    output: Output,
    progress: Progress,
    bar: ProgressBar,
    epochs: usize,
    steps: usize,
    /// What samples are, in the plural.
    samples: &'static str,
    peers: Vec<Peer>,
}

impl Report {
    pub(crate) fn new(progress: Progress) -> Self {
        let progress = match progress {
            Progress::Auto if std::io::stdout().is_terminal() => Progress::Bar,
            Progress::Auto => Progress::Lines,
            chosen => chosen,
        };
        Self {
            output: Output::default(),
            progress,
            bar: ProgressBar::hidden(),
            epochs: 0,
            steps: 0,
            samples: "samples",
            peers: Vec::new(),
        }
    }

    /// Says what will be trained where, and starts the bar.
    pub(crate) fn header(&mut self, training: &Training) -> Result<()> {
        for line in header(training) {
            self.output.line(&line)?;
        }
        let settings = &training.settings;
        let done = training.optimizer.steps();
        if done >= settings.steps as u64 {
            let asked = &settings.asked;
            let line = format!("nothing left to train: the checkpoint is at step {done}, {asked}");
            self.output.line(&line)?;
        }
        self.steps = settings.steps;
        self.peers = training.world.peers();
        self.epochs = settings.steps.div_ceil(settings.steps_per_epoch);
        self.samples = match training.data.shape {
            Shape::Images { .. } => "images",
            Shape::Text { .. } => "characters",
        };
        if self.progress == Progress::Bar {
            // Hides itself where standard output is no terminal.
            let target = ProgressDrawTarget::stdout();
            self.bar = ProgressBar::with_draw_target(Some(self.steps as u64), target);
            self.bar.set_position(training.optimizer.steps());
            self.bar.reset_eta();
            if let Ok(style) = ProgressStyle::with_template(BAR) {
                self.bar.set_style(style);
            }
        }
        Ok(())
    }

    pub(crate) fn event(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Step(done) => {
                if self.progress == Progress::Bar {
                    self.bar.set_position(done.step as u64);
                    self.bar.set_message(format!("loss {:.4}", done.train.mean_loss()));
                }
                Ok(())
            }
            Event::Test(done) => {
                let line = match self.progress {
                    Progress::Lines | Progress::Auto | Progress::Bar if done.train.samples == 0 => {
                        of_no_steps(done)
                    }
                    Progress::Bar => for_people(done, self.epochs, self.samples),
                    Progress::None => return Ok(()),
                    Progress::Lines | Progress::Auto => for_programs(done, self.samples),
                };
                self.bar.suspend(|| self.output.line(&line))
            }
            Event::Problem(problem) => {
                self.bar.suspend(|| tracing::warn!("{problem}; {}", problem.help()));
                Ok(())
            }
        }
    }

    /// Takes the bar away and says how it ended.
    pub(crate) fn end(&mut self, outcome: &Outcome) -> Result<()> {
        self.bar.finish_and_clear();
        for line in result(outcome, self.steps, &self.peers) {
            self.output.line(&line)?;
        }
        Ok(())
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        // After an error the message must not stand on the bar's line.
        self.bar.finish_and_clear();
    }
}

fn header(training: &Training) -> Vec<String> {
    let Training { settings, world, .. } = training;
    let peers = world.peers();
    let hosts = hosts(&peers);
    let on = match hosts.len() {
        0 | 1 => "this host".to_string(),
        many => format!("{many} hosts"),
    };
    let data = &training.data;
    let held_out = match &data.validation {
        Some(validation) => format!("{} validation, ", grouped(validation.len())),
        None => String::new(),
    };
    let precision = match settings.precision {
        Precision::F32 => "",
        Precision::F64 => " in f64",
    };
    let clip = settings.clip_norm.map(|norm| format!(", clip {norm}")).unwrap_or_default();
    let batches = match settings.accumulate {
        1 => String::new(),
        batches => format!("{batches} x "),
    };
    let mut lines = vec![
        format!(
            "allfold {} · {} on {on} · {} · {}",
            env!("CARGO_PKG_VERSION"),
            counted(world.size(), "rank"),
            world.transport(),
            world.security(),
        ),
        format!(
            "  data   {}: {} train, {held_out}{} test, {}",
            data.name,
            grouped(data.train.len()),
            grouped(data.test.len()),
            data.shape,
        ),
        format!(
            "  model  {}, {} parameters{precision} · {}, lr {}{clip} · seed {}",
            settings.model,
            grouped(training.optimizer.elements()),
            name(&settings.optimizer),
            settings.lr,
            settings.seed,
        ),
        format!(
            "  batch  {batches}{} a step, {}{} an epoch",
            grouped(settings.batch_size),
            shares(settings.batch_size, world),
            counted(settings.steps_per_epoch, "step"),
        ),
    ];
    if let Some(gpus) = training.optimizer.gpus() {
        lines.push(format!("  gpus   {gpus}"));
    }
    if training.optimizer.overlaps() {
        let buckets = grouped(training.optimizer.buckets());
        lines.push(format!("  sums   {buckets} all-reduces a step, each while backward goes on"));
    }
    lines.extend(training.resumed.as_ref().map(resumed));
    let last = hosts.len().saturating_sub(1);
    for (at, (host, pids)) in hosts.iter().enumerate() {
        let start = if at == 0 { "  pids  " } else { "        " };
        let host = if last > 0 { format!(" {host}:") } else { String::new() };
        let hint = if at == last && world.size() > 1 { "    kill -9 one and see" } else { "" };
        lines.push(format!("{start}{host}{}{hint}", few(pids)));
    }
    lines
}

/// The pids on each host, hosts in the order of their first rank.
fn hosts(peers: &[Peer]) -> Vec<(&str, Vec<u32>)> {
    let mut hosts: Vec<(&str, Vec<u32>)> = Vec::new();
    for peer in peers {
        match hosts.iter_mut().find(|(host, _)| *host == peer.host) {
            Some((_, pids)) => pids.push(peer.pid),
            None => hosts.push((&peer.host, vec![peer.pid])),
        }
    }
    hosts
}

/// The first pids, each after a space.
fn few(pids: &[u32]) -> String {
    let mut text: String = pids.iter().take(PIDS).map(|pid| format!(" {pid}")).collect();
    if pids.len() > PIDS {
        text += &format!(" and {} more", pids.len() - PIDS);
    }
    text
}

/// `25 a rank, `; nothing where there is one rank.
fn shares(batch_size: usize, world: &Communicator) -> String {
    let ranks = world.size();
    let fewest = batch_size / ranks;
    match (ranks, batch_size % ranks) {
        (1, _) => String::new(),
        (_, 0) => format!("{} a rank, ", grouped(fewest)),
        _ => format!("{} or {} a rank, ", grouped(fewest), grouped(fewest + 1)),
    }
}

/// Where a training starts that was asked to resume.
fn resumed(resumed: &Resumed) -> String {
    match &resumed.path {
        Some(path) => {
            format!("  resume step {} of {}", grouped(resumed.step as usize), path.display())
        }
        None => "  resume no checkpoint yet: starts fresh".into(),
    }
}

fn for_people(done: &TestDone, epochs: usize, samples: &str) -> String {
    let hidden = match done.all_reduce_hidden {
        Some(hidden) => format!(", {:.0} % hidden", hidden * 100.0),
        None => String::new(),
    };
    format!(
        "epoch {:>3}/{epochs}  loss {:.4}  train {} %  {} {} %  {} {samples}/s  all-reduce {:>2.0} %{hidden}",
        done.epoch,
        done.train.mean_loss(),
        percent(done.train.accuracy()),
        tested(done),
        percent(done.test.accuracy()),
        grouped(done.samples_per_second as usize),
        done.all_reduce_share * 100.0,
    )
}

fn for_programs(done: &TestDone, samples: &str) -> String {
    let hidden = match done.all_reduce_hidden {
        Some(hidden) => format!(" all_reduce_hidden={hidden:.3}"),
        None => String::new(),
    };
    let tested = tested(done);
    format!(
        "epoch={} step={} loss={:.4} train_accuracy={:.4} {tested}_loss={:.4} \
         {tested}_accuracy={:.4} {samples}_per_second={:.0} all_reduce_share={:.3}{hidden}",
        done.epoch,
        done.step,
        done.train.mean_loss(),
        done.train.accuracy(),
        done.test.mean_loss(),
        done.test.accuracy(),
        done.samples_per_second,
        done.all_reduce_share,
    )
}

/// Where nothing was left to train.
fn of_no_steps(done: &TestDone) -> String {
    let (tested, step) = (tested(done), done.step);
    let (loss, accuracy) = (done.test.mean_loss(), done.test.accuracy());
    format!("step={step} {tested}_loss={loss:.4} {tested}_accuracy={accuracy:.4}")
}

/// Which samples a test was of.
pub(crate) fn tested(done: &TestDone) -> &'static str {
    if done.is_validation { "validation" } else { "test" }
}

fn result(outcome: &Outcome, steps: usize, peers: &[Peer]) -> Vec<String> {
    let Outcome { ranks, .. } = outcome;
    let epochs =
        outcome.epochs.map(|epochs| format!("{}, ", counted(epochs, "epoch"))).unwrap_or_default();
    let time = seconds(outcome.time);
    let mut lines = vec![match &outcome.test {
        Some(test) => format!(
            "test accuracy {} % ({} of {}), loss {:.4}, {epochs}{}, {time}",
            percent(test.accuracy()),
            grouped(test.correct),
            grouped(test.samples),
            test.mean_loss(),
            counted(outcome.steps, "step"),
        ),
        None => format!(
            "stopped by SIGTERM after step {} of {}, {time}",
            grouped(outcome.steps),
            grouped(steps)
        ),
    }];
    if let Some(path) = &outcome.saved {
        lines.push(format!("checkpoint {}", path.display()));
    }
    let parameters = match ranks {
        1 => "parameters of 1 rank".to_string(),
        _ => format!("parameters identical on all {} ranks", grouped(*ranks)),
    };
    lines.push(format!("{parameters}, digest {}", outcome.digest));
    lines.extend(slowest(&outcome.arrivals, peers));
    if outcome.test.is_some() {
        lines.push(next(std::env::args_os().next()));
    }
    lines
}

/// Who came last, or that nobody stands out.
fn slowest(arrivals: &Arrivals, peers: &[Peer]) -> Option<String> {
    let last = arrivals.last()?;
    let in_ms = |wait: Duration| match wait.as_secs_f64() * 1000.0 {
        ms if ms < 1.0 => format!("{ms:.2} ms"),
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms => format!("{} ms", grouped(ms.round() as usize)),
    };
    let Some(rank) = arrivals.slowest() else {
        let wait = in_ms(arrivals.ranks[last].p50);
        return Some(format!("nobody stands out: every rank came within {wait} in the median"));
    };
    let host = match (peers.get(rank), hosts(peers).len()) {
        (Some(peer), 2..) => format!(" ({})", peer.host),
        _ => String::new(),
    };
    let others = arrivals.ranks.iter().enumerate().filter(|(other, _)| *other != rank);
    let others = others.map(|(_, arrival)| arrival.p50).max().unwrap_or_default();
    let slow = arrivals.ranks[rank];
    Some(format!(
        "slowest to arrive: rank {rank}{host}, {} a step in the median (p99 {}), others {} at most",
        in_ms(slow.p50),
        in_ms(slow.p99),
        in_ms(others),
    ))
}

/// Where to go from here, in words that work in the user's shell: after `cargo run` the program is
/// not on PATH.
fn next(started_as: Option<OsString>) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-".contains(letter);
    let program = started_as
        .and_then(|path| path.into_string().ok())
        .filter(|path| path.len() <= PROGRAM_LENGTH && path.chars().all(is_plain))
        .filter(|path| path.ends_with("/allfold"))
        .unwrap_or_else(|| "allfold".into());
    format!(
        "next: {program} bench all-reduce --ranks 4 · {program} train -n 4 --model mlp · \
         {program} run -n 4 PROGRAM with a loop of your own"
    )
}

/// `1 rank`, `1,438 ranks`.
pub(crate) fn counted(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {what}{plural}", grouped(number))
}

/// Digits in groups of three: `13,706`.
pub(crate) fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub(crate) fn percent(part: f64) -> String {
    format!("{:.1}", part * 100.0)
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// A longer path, three times in one line, is harder to read than to find.
const PROGRAM_LENGTH: usize = 32;
/// The bar's line.
const BAR: &str = "{bar:40} {pos}/{len} steps  {msg}  {eta} left";
/// Pids shown of each host.
const PIDS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arrivals::Arrival;
    use crate::options::Options;
    use crate::tally::Tally;

    fn done() -> TestDone {
        let tally = |correct| Tally { samples: 1438, loss: 301.98, correct };
        TestDone {
            epoch: 3,
            step: 45,
            train: tally(1352),
            test: tally(1338),
            is_validation: false,
            samples_per_second: 15_800.4,
            all_reduce_share: 0.11,
            all_reduce_hidden: None,
        }
    }

    #[test]
    fn a_test_for_programs_and_for_people() {
        assert_eq!(
            for_programs(&done(), "images"),
            "epoch=3 step=45 loss=0.2100 train_accuracy=0.9402 test_loss=0.2100 \
             test_accuracy=0.9305 images_per_second=15800 all_reduce_share=0.110"
        );
        assert_eq!(
            for_people(&done(), 20, "images"),
            "epoch   3/20  loss 0.2100  train 94.0 %  test 93.0 %  15,800 images/s  all-reduce 11 %"
        );
        let hidden = TestDone { is_validation: true, all_reduce_hidden: Some(0.614), ..done() };
        let line = for_programs(&hidden, "characters");
        assert!(line.contains(" validation_accuracy=0.9305 characters_per_second="), "{line}");
        assert!(line.ends_with(" all_reduce_share=0.110 all_reduce_hidden=0.614"), "{line}");
        let line = for_people(&hidden, 20, "images");
        assert!(line.ends_with("all-reduce 11 %, 61 % hidden"), "{line}");
    }

    #[test]
    fn the_header_says_what_is_trained() {
        let world = Communicator::single();
        let lines_of = |options: &Options| header(&Training::new(options, &world).unwrap());
        let lines = lines_of(&Options::default());
        let version = env!("CARGO_PKG_VERSION");
        let start = format!("allfold {version} · 1 rank on this host · ");
        assert!(lines[0].starts_with(&start), "{}", lines[0]);
        assert_eq!(
            lines[1..],
            [
                "  data   digits (embedded): 1,438 train, 359 test, 8x8".to_string(),
                "  model  cnn, 13,706 parameters · adamw, lr 0.01 · seed 1".to_string(),
                "  batch  100 a step, 15 steps an epoch".to_string(),
                format!("  pids   {}", std::process::id()),
            ]
        );
        let options =
            Options { validation: 200, accumulate: 4, clip_norm: Some(1.5), ..Options::default() };
        assert_eq!(
            lines_of(&options)[1..4],
            [
                "  data   digits (embedded): 1,238 train, 200 validation, 359 test, 8x8",
                "  model  cnn, 13,706 parameters · adamw, lr 0.01, clip 1.5 · seed 1",
                "  batch  4 x 100 a step, 4 steps an epoch",
            ]
        );
    }

    #[test]
    fn the_header_says_where_it_resumes() {
        let found = Resumed {
            path: Some("a/b".into()),
            step: 1200,
            skipped: Vec::new(),
            changes: Vec::new(),
            counts_epochs: true,
        };
        assert_eq!(resumed(&found), "  resume step 1,200 of a/b");
        let nothing = Resumed { path: None, ..found };
        assert_eq!(resumed(&nothing), "  resume no checkpoint yet: starts fresh");
    }

    #[test]
    fn pids_stand_beside_their_hosts() {
        let peer = |rank: usize, host: &str| Peer::new(rank, host, 100 + rank as u32);
        let peers: Vec<Peer> =
            (0..20).map(|rank| peer(rank, if rank < 18 { "a" } else { "b" })).collect();
        let hosts = hosts(&peers);
        assert_eq!(hosts[1], ("b", vec![118, 119]));
        let text = few(&hosts[0].1);
        assert!(text.starts_with(" 100 101 "));
        assert!(text.ends_with(" 115 and 2 more"), "{text}");
    }

    #[test]
    fn the_next_commands_can_be_typed() {
        for (started_as, program) in [
            ("allfold", "allfold"),
            ("target/release/allfold", "target/release/allfold"),
            ("./allfold", "./allfold"),
            ("my dir/allfold", "allfold"),
            ("/home/somebody/projects/allfold/target/release/allfold", "allfold"),
        ] {
            let line = next(Some(started_as.into()));
            assert!(line.starts_with(&format!("next: {program} bench ")), "{line}");
            assert!(line.contains(&format!(" · {program} train ")), "{line}");
        }
        assert!(next(None).starts_with("next: allfold bench "));
    }

    #[test]
    fn the_slowest_rank_is_named() {
        let peer = |rank: usize, host: &str| Peer::new(rank, host, 7);
        let line = |us: &[u64], hosts: &[&str]| {
            let arrival = |&us: &u64| {
                let (p50, p99) = (Duration::from_micros(us), Duration::from_micros(us * 2));
                Arrival { p50, p99 }
            };
            let (ranks, step) = (us.iter().map(arrival).collect(), Duration::from_millis(1));
            let peers: Vec<Peer> =
                hosts.iter().enumerate().map(|(rank, host)| peer(rank, host)).collect();
            slowest(&Arrivals { ranks, step }, &peers)
        };
        assert_eq!(
            line(&[100, 90, 310], &["a", "a", "a"]).unwrap(),
            "slowest to arrive: rank 2, 0.31 ms a step in the median (p99 0.62 ms), others 0.10 ms \
             at most"
        );
        assert_eq!(
            line(&[2100, 41_200], &["a", "node-1"]).unwrap(),
            "slowest to arrive: rank 1 (node-1), 41 ms a step in the median (p99 82 ms), others \
             2.1 ms at most"
        );
        assert_eq!(
            line(&[100, 130], &["a", "a"]).unwrap(),
            "nobody stands out: every rank came within 0.13 ms in the median"
        );
        assert_eq!(line(&[0], &["a"]), None);
    }

    #[test]
    fn numbers_are_grouped() {
        let texts = [0, 999, 1000, 13_706, 1_234_567].map(grouped);
        assert_eq!(texts, ["0", "999", "1,000", "13,706", "1,234,567"]);
    }
}
