//! `manifest`, and the files that say the same: for kustomize, for containers.

use std::fs;
use std::io::Write;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::launched::{Ended, Scratch, finish, is_here};

fn manifest(words: &[&str]) -> Ended {
    finish(Scratch::new().allfold(&[&["manifest"], words].concat()))
}

/// What is printed, as it stands.
fn printed(words: &[&str]) -> String {
    let output = Scratch::new().allfold(&[&["manifest"], words].concat()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{words:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The words of the command in the base's comment.
fn base_words() -> Vec<&'static str> {
    let line = BASE.lines().find_map(|line| line.strip_prefix("#   allfold manifest ")).unwrap();
    line.split(' ').collect()
}

/// Files that show all there is to print, and the words that print them.
fn goldens() -> Vec<(&'static str, Vec<&'static str>)> {
    vec![
        ("kubernetes/base/trainer.yaml", base_words()),
        ("tests/manifests/stateful-set-all.yaml", [ALL, TRAIN, &["--when-done=wait"]].concat()),
        (
            "tests/manifests/indexed-job.yaml",
            [&["--kind", "indexed-job", "--replicas", "2", "--image", IMAGE, "--"], SHELL].concat(),
        ),
        ("tests/manifests/indexed-job-all.yaml", [&["--kind", "indexed-job"], ALL, TRAIN].concat()),
        (
            "tests/manifests/job-set.yaml",
            [&["--kind", "jobset", "--replicas", "2", "--image", IMAGE, "--"], SHELL].concat(),
        ),
        ("tests/manifests/job-set-all.yaml", [&["--kind", "jobset"], ALL, TRAIN].concat()),
    ]
}

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

#[test]
fn the_text_is_the_one_on_file() {
    for (name, words) in goldens() {
        let (text, path) = (printed(&words), path(name));
        if std::env::var_os("ALLFOLD_WRITE_MANIFESTS").is_some() {
            fs::write(&path, &text).unwrap();
        }
        let on_file = fs::read_to_string(&path).unwrap();
        assert_eq!(text, on_file, "{name}: ALLFOLD_WRITE_MANIFESTS=1 writes the files anew");
    }
}

#[test]
fn the_page_shows_it() {
    let (_, page) = PAGE.split_once("allfold manifest --replicas").unwrap();
    let (command, _) = page.split_once(" > ").unwrap();
    let command = format!("--replicas{}", command.replace('\\', ""));
    assert_eq!(command.split_whitespace().collect::<Vec<_>>(), base_words());
    let help = manifest(&["--help"]).lines.join(" ");
    let options = help.split_whitespace().filter(|word| word.starts_with("--"));
    for option in options.filter(|option| *option != "--help") {
        assert!(PAGE.contains(&format!("`{option}")), "{option}");
    }
}

#[test]
fn each_passes_strict_schemas() {
    let test = "each_passes_strict_schemas";
    let Some(python) = python(test, &["yaml", "kubernetes_validate"]) else { return };
    let files: Vec<PathBuf> = goldens().iter().map(|(name, _)| path(name)).collect();
    let schema = path("tests/manifests/jobset.schema.json");
    let lines = python.run("schema.py", &[&[schema], &files[..]].concat());
    // PersistentVolumeClaim, Service, NetworkPolicy, PodDisruptionBudget and one that starts pods.
    assert_eq!(lines.lines().count(), 2 * (4 + 5 + 3 + 5 + 2 + 4), "{lines}");
    for kind in ["StatefulSet", "Job", "JobSet", "PodDisruptionBudget", "PersistentVolumeClaim"] {
        assert!(lines.lines().any(|line| line.ends_with(&format!(" {kind}"))), "{kind}: {lines}");
    }
}

#[test]
fn a_field_that_there_is_not_is_found() {
    let test = "a_field_that_there_is_not_is_found";
    let Some(python) = python(test, &["yaml", "kubernetes_validate"]) else { return };
    let scratch = Scratch::new();
    let schema = path("tests/manifests/jobset.schema.json");
    for (name, right, wrong) in [
        ("kubernetes/base/trainer.yaml", "readinessProbe:", "readynessProbe:"),
        ("kubernetes/base/trainer.yaml", "defaultMode: 256", "defaultMode: \"0400\""),
        ("tests/manifests/job-set.yaml", "maxRestarts: 10", "maxRestart: 10"),
        ("tests/manifests/job-set.yaml", "completions: 2", "completion: 2"),
    ] {
        let text = fs::read_to_string(path(name)).unwrap();
        assert!(text.contains(right), "{right}");
        let file = scratch.path().join("wrong.yaml");
        fs::write(&file, text.replace(right, wrong)).unwrap();
        let output = python.output("schema.py", &[schema.clone(), file]);
        assert_eq!(output.status.code(), Some(1), "{wrong}");
    }
}

#[test]
fn the_objects_belong_together() {
    let Some(python) = python("the_objects_belong_together", &["yaml"]) else { return };
    for (name, words) in goldens() {
        let command = python.run("relations.py", &[path(name)]);
        let command: Vec<String> = serde_json::from_str(&command).unwrap();
        let place = words.iter().position(|word| *word == "--").unwrap();
        let expected: Vec<String> =
            words[place + 1..].iter().map(|word| word.replace("$(", "$$(")).collect();
        assert_eq!(command, expected, "{name}");
    }
}

#[test]
fn kustomize_makes_what_the_options_make() {
    let test = "kustomize_makes_what_the_options_make";
    let Some(python) = python(test, &["yaml"]) else { return };
    if !is_here("kubectl") {
        return skip(test, "kubectl is missing");
    }
    let scratch = Scratch::new();
    for (folder, options) in [
        ("base", vec![]),
        (
            "overlays/cpu",
            documented(include_str!("../../kubernetes/overlays/cpu/kustomization.yaml")),
        ),
        (
            "overlays/gpu",
            documented(include_str!("../../kubernetes/overlays/gpu/kustomization.yaml")),
        ),
    ] {
        let mut kubectl = Command::new("kubectl");
        kubectl.arg("kustomize").arg(path("kubernetes").join(folder));
        let output = kubectl.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let built = scratch.path().join("built.yaml");
        fs::write(&built, output.stdout).unwrap();
        let printed_by_us = scratch.path().join("printed.yaml");
        fs::write(&printed_by_us, printed(&[&options[..], &base_words()].concat())).unwrap();
        python.run("equal.py", &[built, printed_by_us]);
    }
}

/// The options in the first line of an overlay.
fn documented(text: &'static str) -> Vec<&'static str> {
    text.lines().next().unwrap().strip_prefix("# As with ").unwrap().split(' ').collect()
}

#[test]
fn what_a_pod_gets_is_understood() {
    let scratch = Scratch::new();
    let secret = scratch.path().join("secret");
    fs::write(&secret, finish(scratch.allfold(&["secret"])).lines.join("\n")).unwrap();
    let text = printed(&["--replicas", "1", "--image", IMAGE, "--", "allfold", "bench"]);
    let mut allfold = scratch.allfold(&["bench", "-b", "8", "-e", "8", "-n", "1"]);
    let mut names = Vec::new();
    for (line, next) in text.lines().zip(text.lines().skip(1)) {
        let Some(name) = line.trim().strip_prefix("- name: ALLFOLD_") else { continue };
        let value = next.trim().strip_prefix("value: ").map(|value| value.trim_matches('"'));
        let value = match (name, value) {
            // By the label.
            ("RANK", None) => "0",
            ("SECRET_FILE", Some(_)) => secret.to_str().unwrap(),
            // Any port of this host: others may be in use.
            ("METRICS", Some(":9200")) => ":0",
            ("PORT", Some("29500")) => "0",
            (_, value) => value.unwrap(),
        };
        allfold.env(format!("ALLFOLD_{name}"), value);
        names.push(name);
    }
    assert_eq!(names, ["RANK", "WORLD_SIZE", "SECRET_FILE", "PORT", "METRICS"]);
    // What the pod's own name says; a port that was free a moment ago.
    let rendezvous = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    allfold.env("ALLFOLD_RENDEZVOUS", rendezvous.to_string());
    allfold.env("KUBERNETES_SERVICE_HOST", "10.96.0.1");
    let ended = finish(allfold);
    assert_eq!((ended.code(), ended.stderr.as_str()), (Some(0), ""), "{:?}", ended.lines);
}

#[test]
fn bad_input_is_two_lines_and_no_manifest() {
    let secret = "0123456789abcdef".repeat(4);
    let with = |words: &[&'static str]| {
        let rest = ["--replicas", "4", "--image", IMAGE, "--", "prog"];
        words.iter().copied().chain(rest).map(String::from).collect::<Vec<_>>()
    };
    let mut with_secret = with(&["--secret"]);
    with_secret.insert(1, secret.clone());
    let mut in_command = with(&[]);
    in_command.push(format!("ALLFOLD_SECRET={secret}"));
    let plain = |words: &[&str]| words.iter().copied().map(String::from).collect::<Vec<_>>();
    for (words, error) in [
        (
            plain(&["--replicas", "0", "--image", IMAGE, "prog"]),
            "--replicas 0: a job has 1 to 65536 ranks",
        ),
        (
            plain(&["--replicas", "-1", "--image", IMAGE, "prog"]),
            "invalid value '-1' for '--replicas <N>': must not be negative",
        ),
        (
            plain(&["--replicas", "4", "--image", IMAGE]),
            "the following required arguments were not provided: <CMD>...",
        ),
        (
            plain(&["--replicas", "4", "prog"]),
            "the following required arguments were not provided: --image <IMAGE>",
        ),
        (
            with(&["--name", "My_Trainer"]),
            "--name My_Trainer: must be lower-case letters, digits and dashes, a letter first, no \
             dash last, at most 43 characters",
        ),
        (
            with(&["--namespace", "a.b"]),
            "--namespace a.b: must be lower-case letters, digits and dashes, no dash first or \
             last, at most 63 characters",
        ),
        (
            with(&["--kind", "deployment"]),
            "invalid value 'deployment' for '--kind <KIND>' [possible values: statefulset, \
             indexed-job, jobset]",
        ),
        (with(&["--memory", "8"]), "--memory 8: must be a size with its unit such as 512Mi or 8Gi"),
        (with(&["--cpu", "0"]), "--cpu 0: must be a number of cores such as 4, 0.5 or 500m"),
        (
            with(&["--checkpoint-claim", "ck:big"]),
            "--checkpoint-claim NAME: big: must be a size with its unit such as 512Mi or 8Gi",
        ),
        (with(&["--gpu", "-1"]), "invalid value '-1' for '--gpu <N>': -1 is not in 0..=65535"),
        (with_secret, "--secret looks like a secret itself, which no manifest may hold"),
        (
            in_command,
            "word 2 of the command holds what looks like a job's secret, which no manifest may \
             hold",
        ),
        (
            plain(&["--replicas", "4", "--image", IMAGE, "allfold", "train", "-n", "4"]),
            "the command starts ranks of its own (-n 4), and each pod is one",
        ),
        (
            plain(&["--replicas", "4", "--image", IMAGE, "allfold", "train", "--frob"]),
            "the command: unexpected argument '--frob' found",
        ),
    ] {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let ended = manifest(&words);
        assert_eq!((ended.code(), ended.error()), (Some(2), error), "{words:?}");
        let lines: Vec<&str> = ended.stderr.lines().collect();
        assert!(matches!(lines[..], [_, help] if help.starts_with("help: ")), "{lines:?}");
        assert!(!ended.stderr.contains(&secret), "{lines:?}");
        assert!(ended.lines.is_empty(), "{words:?}");
    }
}

#[test]
fn what_is_likely_forgotten_is_said() {
    let train = ["allfold", "train", "--when-done", "exit"];
    let ended = manifest(&[&["--replicas", "2", "--image", "allfold"][..], &train].concat());
    assert_eq!(ended.code(), Some(0));
    assert_eq!(
        ended.stderr,
        "allfold: the command: a StatefulSet starts again what ends: drop --when-done exit\n\
         allfold: --image allfold: a tag other than latest keeps all ranks at one version\n"
    );
    assert!(ended.lines.iter().any(|line| line == "kind: StatefulSet"));
}

#[test]
fn gpus_that_would_be_idle_are_told() {
    let options = ["--replicas", "2", "--image", IMAGE, "--gpu", "3", "--"];
    let of = |command: &[&str]| manifest(&[&options, command].concat());
    let ended = of(&["allfold", "bench", "--device", "gpu"]);
    assert_eq!(ended.code(), Some(0));
    assert_eq!(
        ended.stderr,
        "allfold: --gpu 3: each pod is one rank, which takes one GPU, and 2 would be idle: give \
         --gpu 1 and 3 times the --replicas\n"
    );
    let own = of(&["python3", "train.py"]);
    assert_eq!((own.code(), own.stderr.as_str()), (Some(0), ""));
    for ended in [ended, own] {
        assert!(
            ended.lines.iter().any(|line| line.trim() == "sizeLimit: 3Gi"),
            "{:?}",
            ended.lines
        );
    }
}

#[test]
fn the_containers_belong_together() {
    let Some(python) = python("the_containers_belong_together", &["yaml"]) else { return };
    let command = python.run("compose.py", &[path("container/compose.yaml")]);
    let words: Vec<&str> = command.lines().collect();
    assert_eq!(words[0], "train");
    let help = finish(Scratch::new().allfold(&["train", "--help"])).lines.join("\n");
    for option in words.iter().filter(|word| word.starts_with("--")) {
        assert!(help.contains(option), "{option}");
    }
    // The command line itself takes them, with their values.
    let words = [
        &["--kind=jobset", "--replicas=4", "--image=x:1", "--checkpoint-claim=ck"][..],
        &["--", "allfold"],
        &words,
    ]
    .concat();
    printed(&words);
}

#[test]
fn the_image_is_built_as_the_workspace_is() {
    let workspace = include_str!("../../../Cargo.toml");
    let version = |key: &str| {
        let line = workspace.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap().trim_matches([' ', '=', '"']).to_owned()
    };
    let dockerfile = include_str!("../../container/Dockerfile");
    let build = format!("FROM rust:{}-bookworm AS build", version("rust-version"));
    let image = format!("allfold:{}", version("version"));
    for line in [build.as_str(), "USER 65532:65532", r#"ENTRYPOINT ["allfold"]"#] {
        assert!(dockerfile.lines().any(|l| l == line), "{line}");
    }
    for text in [dockerfile, include_str!("../../container/compose.yaml"), BASE] {
        assert!(text.contains(&image), "{image}: {text}");
    }
}

/// Programs in Python that read what was written here.
struct Python;

/// Python, if it has these modules.
fn python(test: &str, modules: &[&str]) -> Option<Python> {
    let missing = modules.iter().find(|module| {
        let import = Command::new("python3").args(["-c", &format!("import {module}")]).output();
        !import.is_ok_and(|output| output.status.success())
    });
    match missing {
        None => Some(Python),
        Some(module) => {
            skip(test, &format!("python3 has no module {module}"));
            None
        }
    }
}

impl Python {
    /// What the program prints, after it has found nothing wrong.
    fn run(&self, program: &str, files: &[PathBuf]) -> String {
        let output = self.output(program, files);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn output(&self, program: &str, files: &[PathBuf]) -> Output {
        let mut python = Command::new("python3");
        python.arg(path("tests/manifests").join(program)).args(files).output().unwrap()
    }
}

/// The test runner hides what `eprintln!` writes.
fn skip(test: &str, reason: &str) {
    let _ = writeln!(std::io::stderr().lock(), "skipped: {test}: {reason}");
}

const BASE: &str = include_str!("../../kubernetes/base/kustomization.yaml");
const PAGE: &str = include_str!("../../../docs/kubernetes.md");
const IMAGE: &str = "registry.example/allfold:0.1.0";
/// Every option but the kind.
const ALL: &[&str] = &[
    "--replicas",
    "4",
    "--image",
    IMAGE,
    "--name",
    "digits",
    "--namespace",
    "ml",
    "--gpu",
    "1",
    "--cpu",
    "8",
    "--memory",
    "16Gi",
    "--secret",
    "digits.key",
    "--checkpoint-claim",
    "shared:50Gi",
    "--image-pull-secret",
    "registry",
    "--pdb",
    "--",
];
const TRAIN: &[&str] = &["allfold", "train", "--checkpoint", "/checkpoints/digits", "--resume"];
/// What YAML and Kubernetes would each read in their own way.
const SHELL: &[&str] = &["sh", "-c", "echo \"$ALLFOLD_RANK\" $(date)\nexec prog: # yes", "on", "7"];
