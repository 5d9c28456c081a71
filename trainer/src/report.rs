//! What rank 0 tells the user: a header, the progress, the result.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::time::Duration;

use allfold::{Communicator, Peer};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::error::Result;
use crate::options::{Precision, Progress, name};
use crate::output::Output;
use crate::training::{EpochDone, Event, Outcome, Training};

/// Writes to standard output.
pub(crate) struct Report {
    output: Output,
    progress: Progress,
    bar: ProgressBar,
    epochs: usize,
}

impl Report {
    pub(crate) fn new(progress: Progress) -> Self {
        let progress = match progress {
            Progress::Auto if std::io::stdout().is_terminal() => Progress::Bar,
            Progress::Auto => Progress::Lines,
            chosen => chosen,
        };
        Self { output: Output::default(), progress, bar: ProgressBar::hidden(), epochs: 0 }
    }

    /// Says what will be trained where, and starts the bar.
    pub(crate) fn header(&mut self, training: &Training) -> Result<()> {
        for line in header(training) {
            self.output.line(&line)?;
        }
        let steps = training.settings.steps;
        self.epochs = steps.div_ceil(training.steps_per_epoch());
        if self.progress == Progress::Bar {
            // Hides itself where standard output is no terminal.
            let target = ProgressDrawTarget::stdout();
            self.bar = ProgressBar::with_draw_target(Some(steps as u64), target);
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
            Event::Epoch(done) => {
                let line = match self.progress {
                    Progress::Bar => for_people(done, self.epochs),
                    Progress::None => return Ok(()),
                    Progress::Lines | Progress::Auto => for_programs(done),
                };
                self.bar.suspend(|| self.output.line(&line))
            }
        }
    }

    /// Takes the bar away and says how it ended.
    pub(crate) fn end(&mut self, outcome: &Outcome) -> Result<()> {
        self.bar.finish_and_clear();
        for line in result(outcome) {
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
    let [train, test] = [&training.split.train, &training.split.test].map(|part| part.len());
    let precision = match settings.precision {
        Precision::F32 => "",
        Precision::F64 => " in f64",
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
            "  data   digits (embedded): {} train, {} test, 8x8",
            grouped(train),
            grouped(test)
        ),
        format!(
            "  model  {}, {} parameters{precision} · {}, lr {} · seed {}",
            settings.model,
            grouped(training.optimizer.elements()),
            name(&settings.optimizer),
            settings.lr,
            settings.seed,
        ),
        format!(
            "  batch  {} a step, {}{} an epoch",
            grouped(settings.batch_size),
            shares(settings.batch_size, world),
            counted(training.steps_per_epoch(), "step"),
        ),
    ];
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

fn for_people(done: &EpochDone, epochs: usize) -> String {
    format!(
        "epoch {:>3}/{epochs}  loss {:.4}  train {} %  test {} %  {} images/s  all-reduce {:>2.0} %",
        done.epoch,
        done.train.mean_loss(),
        percent(done.train.accuracy()),
        percent(done.test.accuracy()),
        grouped(done.images_per_second as usize),
        done.all_reduce_share * 100.0,
    )
}

fn for_programs(done: &EpochDone) -> String {
    format!(
        "epoch={} step={} loss={:.4} train_accuracy={:.4} test_accuracy={:.4} \
         images_per_second={:.0} all_reduce_share={:.3}",
        done.epoch,
        done.step,
        done.train.mean_loss(),
        done.train.accuracy(),
        done.test.accuracy(),
        done.images_per_second,
        done.all_reduce_share,
    )
}

fn result(outcome: &Outcome) -> Vec<String> {
    let Outcome { test, ranks, .. } = outcome;
    let epochs =
        outcome.epochs.map(|epochs| format!("{}, ", counted(epochs, "epoch"))).unwrap_or_default();
    let parameters = match ranks {
        1 => "parameters of 1 rank".to_string(),
        _ => format!("parameters identical on all {} ranks", grouped(*ranks)),
    };
    vec![
        format!(
            "test accuracy {} % ({} of {}), {epochs}{}, {}",
            percent(test.accuracy()),
            grouped(test.correct),
            grouped(test.samples),
            counted(outcome.steps, "step"),
            seconds(outcome.time),
        ),
        format!("{parameters}, digest {}", outcome.digest),
        next(std::env::args_os().next()),
    ]
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
fn counted(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {what}{plural}", grouped(number))
}

/// Digits in groups of three: `13,706`.
fn grouped(number: usize) -> String {
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

fn percent(part: f64) -> String {
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
    use crate::options::Options;
    use crate::tally::Tally;

    fn done() -> EpochDone {
        let tally = |correct| Tally { samples: 1438, loss: 301.98, correct };
        EpochDone {
            epoch: 3,
            step: 45,
            train: tally(1352),
            test: tally(1338),
            images_per_second: 15_800.4,
            all_reduce_share: 0.11,
        }
    }

    #[test]
    fn an_epoch_for_programs_and_for_people() {
        assert_eq!(
            for_programs(&done()),
            "epoch=3 step=45 loss=0.2100 train_accuracy=0.9402 test_accuracy=0.9305 \
             images_per_second=15800 all_reduce_share=0.110"
        );
        assert_eq!(
            for_people(&done(), 20),
            "epoch   3/20  loss 0.2100  train 94.0 %  test 93.0 %  15,800 images/s  all-reduce 11 %"
        );
    }

    #[test]
    fn the_header_says_what_is_trained() {
        let world = Communicator::single();
        let training = Training::new(&Options::default(), &world).unwrap();
        let lines = header(&training);
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
    }

    #[test]
    fn pids_stand_beside_their_hosts() {
        let peer =
            |rank: usize, host: &str| Peer { rank, host: host.into(), pid: 100 + rank as u32 };
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
    fn numbers_are_grouped() {
        let texts = [0, 999, 1000, 13_706, 1_234_567].map(grouped);
        assert_eq!(texts, ["0", "999", "1,000", "13,706", "1,234,567"]);
    }
}
