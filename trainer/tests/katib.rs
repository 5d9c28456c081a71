//! What Katib's StdOut collector reads, and the Experiment of docs/katib.md.

#![allow(clippy::unwrap_used, reason = "a test says by a panic that it failed")]

mod python;
mod skipped;

use std::io::Write;
use std::process::{Command, Stdio};

use allfold::{Communicator, Ranks};
use allfold_trainer::Options;
use clap::Parser;
use python::python_has;

#[derive(Parser)]
struct Program {
    #[command(flatten)]
    options: Options,
}

#[test]
fn progress_is_name_and_value() {
    let lines = progress();
    assert_eq!(lines.len(), 2, "one line an epoch: {lines:?}");
    for line in lines {
        let names: Vec<&str> = line
            .split(' ')
            .map(|word| {
                let (name, value) = word.split_once('=').unwrap();
                let is_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
                assert!(name.chars().all(is_name), "{word}");
                // Digits and one point: neither `1,438` nor `95 %` nor `NaN`.
                let is_number = |letter: char| letter.is_ascii_digit() || letter == '.';
                assert!(value.chars().all(is_number) && value.parse::<f64>().is_ok(), "{word}");
                name
            })
            .collect();
        for name in ["test_accuracy", "train_accuracy", "loss"] {
            assert!(names.contains(&name), "{name} in {line}");
        }
    }
}

#[test]
fn katib_finds_the_metrics_of_the_experiment() {
    if !python_has("katib_finds_the_metrics_of_the_experiment", &["yaml"]) {
        return;
    }
    let lines = progress();
    let program = r"
import re, sys, yaml
objective = yaml.safe_load(open(sys.argv[1]))['spec']['objective']
metrics = [objective['objectiveMetricName'], *objective['additionalMetricNames']]
assert {it['name'] for it in objective['metricStrategies']} == set(metrics)
for line in sys.stdin:
    if any(metric in line for metric in metrics):
        for name, value, *_ in re.findall(sys.argv[2], line):
            if name in metrics:
                print(f'{name}={value}')
";
    let input = format!("allfold 0.1.0 - 1 rank\n{}\ntest accuracy 90 %\n", lines.join("\n"));
    let found = python(program, &[&experiment(), DEFAULT_FILTER], &input);
    let metrics = ["loss", "train_accuracy", "test_accuracy"];
    let expected: Vec<&str> = lines
        .iter()
        .flat_map(|line| line.split(' '))
        .filter(|word| metrics.contains(&word.split_once('=').unwrap().0))
        .collect();
    assert_eq!(expected.len(), 6, "{lines:?}");
    assert_eq!(found.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn the_command_of_the_experiment_is_one_of_train() {
    if !python_has("the_command_of_the_experiment_is_one_of_train", &["yaml"]) {
        return;
    }
    let program = r"
import re, sys, yaml
spec = yaml.safe_load(open(sys.argv[1]))['spec']
template = spec['trialTemplate']
spaces = {it['name']: it['feasibleSpace'] for it in spec['parameters']}
names = {it['name']: it['reference'] for it in template['trialParameters']}
pod = template['trialSpec']['spec']['template']['spec']
[container] = pod['containers']
assert container['name'] == template['primaryContainerName']
command = ' '.join(container['command'])
used = re.findall(r'\$\{trialParameters\.(\w+)\}', command)
assert sorted(used) == sorted(names), (used, names)
assert sorted(names.values()) == sorted(spaces), (names, spaces)
for end in (0, -1):
    ends = {it: (s['list'] if 'list' in s else [s['min'], s['max']])[end] for it, s in spaces.items()}
    print(re.sub(r'\$\{trialParameters\.(\w+)\}', lambda it: ends[names[it[1]]], command))
";
    let commands = python(program, &[&experiment()], "");
    assert_eq!(commands.lines().count(), 2);
    for command in commands.lines() {
        let words = command.strip_prefix("allfold ").unwrap().split(' ');
        let options = Program::parse_from(words).options;
        let Some(Ranks::Number(ranks)) = options.ranks else { panic!("{command}") };
        options.check(ranks).unwrap();
    }
}

/// The lines that a training prints, as Katib gets them.
fn progress() -> Vec<String> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "child_that_trains", "--nocapture"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    text.lines().filter(|line| line.contains("test_accuracy=")).map(str::to_string).collect()
}

#[test]
#[ignore = "run by other tests, for what it prints"]
fn child_that_trains() {
    let words = ["train", "--model", "mlp", "--epochs", "2", "--progress", "lines"];
    let options = Program::parse_from(words).options;
    // The test runner's own line has no end yet.
    println!();
    let data = options.check(1).unwrap();
    allfold_trainer::run(&options, data, Communicator::single()).unwrap();
}

/// A file with the Experiment of the page.
fn experiment() -> String {
    let (_, yaml) = include_str!("../../docs/katib.md").split_once("```yaml\n").unwrap();
    let (yaml, _) = yaml.split_once("```").unwrap();
    let name = format!("experiment-{:?}.yaml", std::thread::current().id());
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, yaml).unwrap();
    path.to_str().unwrap().into()
}

fn python(program: &str, arguments: &[&str], input: &str) -> String {
    let mut child = Command::new("python3")
        .args(["-c", program])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "python3 says why above");
    String::from_utf8(output.stdout).unwrap()
}

/// `DefaultFilter` of Katib's pkg/metricscollector/v1beta1/common/const.go.
const DEFAULT_FILTER: &str = r"([\w|-]+)\s*=\s*([+-]?\d*(\.\d+)?([Ee][+-]?\d+)?)";

#[test]
fn the_page_shows_the_expression() {
    assert!(include_str!("../../docs/katib.md").contains(DEFAULT_FILTER));
}
