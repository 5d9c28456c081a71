//! Two ranks that train together, against two trainings of one rank at the same time that know
//! nothing of each other: what is lost to communication.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::processes::together;
use crate::{Row, Target, median};

/// One model.
struct Model {
    name: &'static str,
    hidden: &'static str,
    /// Samples a rank and step.
    batch: usize,
    steps: usize,
    least: f64,
}

pub(crate) fn measure(turns: usize) -> Result<Vec<Row>, String> {
    let program = program()?;
    if !Path::new(DATA).exists() {
        return Err(format!("there is no {DATA}: a data set of 28x28 images in MNIST's format"));
    }
    let mut rows = Vec::new();
    for model in MODELS {
        let (mut together, mut apart) = (Vec::new(), Vec::new());
        for _ in 0..turns {
            together.push(speed(vec![model.command(&program, 2)])?);
            let both = || model.command(&program, 1);
            apart.push(speed(vec![both(), both()])?);
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
    let mut sum = 0.0;
    for file in &files {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let _ = std::fs::remove_file(file);
        let word = text.split_whitespace().find_map(|word| word.strip_prefix("images_per_second="));
        let speed: Option<f64> = word.and_then(|number| number.parse().ok());
        sum += speed.ok_or_else(|| format!("a training without a speed: {text}"))?;
    }
    ended.problem.map_or(Ok(sum), Err)
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
const LIMIT: Duration = Duration::from_secs(120);
