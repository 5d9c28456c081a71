//! Two ranks that train together, against two trainings of one rank at the same time that know
//! nothing of each other: what is lost to communication.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use allfold_bench::turns::{self, median};

use crate::processes::together;
use crate::{Problem, Row, Target};

/// One model.
struct Model {
    name: &'static str,
    hidden: &'static str,
    /// Samples a rank and step.
    batch: usize,
    steps: usize,
    least: f64,
}

/// The two ways in which as many ranks train.
#[derive(Clone, Copy)]
enum Way {
    Together,
    Apart,
}

pub(crate) fn measure(turns: usize) -> Result<Vec<Row>, Problem> {
    let program = program().map_err(Problem::Skipped)?;
    if !Path::new(DATA).exists() {
        let reason = format!("there is no {DATA}: a data set of 28x28 images in MNIST's format");
        return Err(Problem::Skipped(reason));
    }
    let mut rows = Vec::new();
    for model in MODELS {
        let (mut together, mut apart) = (Vec::new(), Vec::new());
        for turn in 0..turns {
            for way in turns::order(&[Way::Together, Way::Apart], turn) {
                let command = |ranks| model.command(&program, ranks);
                let (speeds, what, commands) = match way {
                    Way::Together => (&mut together, "2 ranks", vec![command(2)]),
                    Way::Apart => (&mut apart, "two trainings", vec![command(1), command(1)]),
                };
                let problem = |problem| format!("{}, {what}: {problem}", model.name);
                speeds.push(speed(commands).map_err(problem)?);
            }
        }
        let ratios = together.iter().zip(&apart).map(|(one, other)| one / other * 100.0).collect();
        let name = model.name;
        for (what, speeds) in [("2 ranks", together), ("two trainings of 1 rank", apart)] {
            rows.push(Row {
                what: format!("trainer: {name}, one thread each, {what}"),
                unit: "images/s",
                measured: median(speeds),
                target: Target::None,
            });
        }
        rows.push(Row {
            what: format!("trainer: {name}, 2 ranks of two trainings at the same time"),
            unit: "%",
            measured: median(ratios),
            target: Target::AtLeast(model.least),
        });
    }
    Ok(rows)
}

impl Model {
    fn command(&self, program: &Path, ranks: usize) -> Command {
        let mut command = Command::new(program);
        let (ranks_word, batch) = (ranks.to_string(), (self.batch * ranks).to_string());
        let steps = self.steps.to_string();
        command.args(["train", "--data", DATA, "--model", "mlp", "--hidden", self.hidden]);
        command.args([
            "--optimizer",
            "sgd",
            "--momentum",
            "0",
            "--lr",
            "0.01",
            "--progress",
            "lines",
        ]);
        command.args(["--batch-size", &batch, "--steps", &steps, "--eval-every", &steps]);
        command.args(["-n", &ranks_word]).env("RAYON_NUM_THREADS", "1");
        command
    }
}

/// Images a second of all the programs together, which run at the same time.
fn speed(commands: Vec<Command>) -> Result<f64, String> {
    let mut files = Vec::new();
    let started = commands.into_iter().enumerate().map(|(place, command)| {
        let file =
            std::env::temp_dir().join(format!("allfold-train-{}-{place}", std::process::id()));
        // Only the first one's output comes back: each writes into a file.
        let mut shell = Command::new("sh");
        shell.args(["-c", "out=$1; shift; exec \"$@\" > \"$out\"", "sh"]).arg(&file);
        shell.arg(command.get_program()).args(command.get_args());
        shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        files.push(file);
        shell
    });
    let ended = together(started.collect(), LIMIT);
    let texts = files.iter().map(|file| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let _ = std::fs::remove_file(file);
        text
    });
    // All files go.
    let texts: Vec<String> = texts.collect();
    match ended.problem {
        // What it says of it stands on stderr.
        Some(problem) => Err(format!("a training of {} failed: {problem}", texts.len())),
        None => texts.iter().map(|text| images_per_second(text)).sum(),
    }
}

/// What a training says of itself.
fn images_per_second(text: &str) -> Result<f64, String> {
    let word = text.split_whitespace().find_map(|word| word.strip_prefix("images_per_second="));
    let speed = word.and_then(|number| number.parse().ok());
    speed.ok_or_else(|| format!("a training ended well and printed no images_per_second: {text:?}"))
}

/// The binary, which lies beside the folder of the examples.
fn program() -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let found = own.ancestors().nth(2).map(|folder| folder.join("allfold"));
    found
        .filter(|program| program.exists())
        .ok_or_else(|| "build it: `cargo build --release -p allfold-launcher`".into())
}

const MODELS: [Model; 2] = [
    Model {
        name: "mlp 784-4x1024-10, batch 128 a rank",
        hidden: "1024,1024,1024,1024",
        batch: 128,
        steps: 30,
        least: 95.0,
    },
    Model {
        name: "mlp 784-100-10, batch 50 a rank",
        hidden: "100",
        batch: 50,
        steps: 1000,
        least: 80.0,
    },
];
const DATA: &str = "/usr/share/datasets/fashion-mnist";
/// They take seconds.
const LIMIT: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_training_without_a_speed_says_what_it_printed() {
        assert_eq!(images_per_second("step=30 images_per_second=2155.5 loss=1"), Ok(2155.5));
        for text in ["", "images_per_second=fast", "step=3 images=7"] {
            let problem = images_per_second(text).unwrap_err();
            assert!(problem.contains(&format!("{text:?}")), "{problem}");
        }
    }
}
