//! What the programs say of GPUs, driver and NCCL: on a machine without any, with the real NCCL and
//! no driver, and with look-alikes of both (tests/gpu).

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use allfold_tests::gpu::FakeGpus;
use allfold_tests::{Ended, Process, clean_command, machine_lock, skipped};
use serde_json::Value;

const ALLFOLD: &str = env!("CARGO_BIN_EXE_allfold-under-test");

/// With these libraries before the machine's own.
fn started(words: &[&str], libraries: Option<&Path>) -> Command {
    let mut command = clean_command(ALLFOLD);
    command.args(words).env_remove("CUDA_VISIBLE_DEVICES").env_remove("ALLFOLD_NCCL");
    if let Some(folder) = libraries {
        command.env("LD_LIBRARY_PATH", folder);
    }
    command
}

fn run(command: &mut Command) -> Ended {
    Process::start(command).wait()
}

/// The one JSON object of `allfold env --json`; without a launcher its exit code is 2, as ever.
fn environment(command: &mut Command) -> Value {
    let ended = run(command);
    assert_eq!(ended.code(), 2, "{ended:#?}");
    serde_json::from_str(&ended.output().join("\n")).unwrap()
}

/// Whether the loader of this machine finds a driver, and so may find a GPU.
fn has_driver() -> bool {
    let look = ["-c", "import ctypes; ctypes.CDLL('libcuda.so.1')"];
    let is_loaded = Path::new("/proc/driver/nvidia/version").exists();
    is_loaded || Command::new("python3").args(look).output().is_ok_and(|e| e.status.success())
}

/// Where NVIDIA's wheel has put NCCL.
fn wheel() -> Option<PathBuf> {
    let look = "import nvidia.nccl; print(list(nvidia.nccl.__path__)[0])";
    let ended = Command::new("python3").args(["-c", look]).output().ok()?;
    let folder = String::from_utf8(ended.stdout).ok().filter(|_| ended.status.success())?;
    Some(Path::new(folder.trim()).join("lib")).filter(|path| path.join("libnccl.so.2").exists())
}

#[test]
fn with_the_real_nccl_and_no_driver_the_version_is_read_and_the_reason_given() {
    let test = "with_the_real_nccl_and_no_driver_the_version_is_read_and_the_reason_given";
    if has_driver() {
        return skipped(test, "this machine has a CUDA driver");
    }
    let Some(folder) = wheel() else {
        return skipped(test, "python3 has no module nvidia.nccl (pip install nvidia-nccl-cu12)");
    };
    let found = environment(&mut started(&["env", "--json"], Some(&folder)));
    let nccl = &found["nccl"];
    assert!(nccl["version"].as_str().is_some_and(|version| version.starts_with("2.")), "{found:#}");
    let path = Path::new(nccl["path"].as_str().unwrap());
    assert_eq!(path.file_name().unwrap(), "libnccl.so.2");
    assert_eq!((&nccl["problem"], &nccl["reach"]), (&Value::Null, &"on".into()));
    let gpus = &found["gpus"];
    let problem = gpus["problem"].as_str().unwrap();
    assert!(problem.starts_with("there is no CUDA driver: libcuda.so.1"), "{problem}");
    assert!(gpus["help"].as_str().unwrap().contains("install NVIDIA's driver"), "{gpus:#}");
    assert_eq!((&gpus["takes"], gpus["names"].as_array().unwrap().len()), (&Value::Null, 0));
}

#[test]
fn without_a_driver_no_rank_is_started_and_nothing_else_is_different() {
    let test = "without_a_driver_no_rank_is_started_and_nothing_else_is_different";
    if has_driver() {
        return skipped(test, "this machine has a CUDA driver");
    }
    let _one_at_a_time = machine_lock();
    for words in [
        &["run", "-n", "gpu", "echo", "started"][..],
        &["run", "--nnodes=1", "--node-rank=0", "--nproc-per-node=gpu", "--rdzv=h0:1", "echo"],
        &["train", "-n", "gpu"],
        &["bench", "--ranks", "gpu"],
        &["doctor", "-n", "gpu"],
    ] {
        let ended = run(&mut started(words, None));
        assert_eq!((ended.code(), ended.output().len()), (2, 0), "{ended:#?}");
        let [error, help] = &ended.errors()[..] else { panic!("{ended:#?}") };
        assert!(error.starts_with("error: -"), "{ended:#?}");
        assert!(error.contains(" gpu: there is no CUDA driver: libcuda.so.1"), "{ended:#?}");
        assert!(help.starts_with("help: install NVIDIA's driver on the host"), "{ended:#?}");
    }
    let ended = run(&mut started(&["env"], None));
    let rows = ended.output().iter().filter(|line| line.starts_with("gpus         none")).count();
    assert_eq!(rows, 1, "{ended:#?}");
    let ended = run(&mut started(&["doctor", "-n", "2", "--json"], None));
    assert_eq!(ended.code(), 0, "{ended:#?}");
    let found: Value = serde_json::from_str(&ended.output().join("\n")).unwrap();
    assert_eq!(found["ranks"][1]["gpus"]["names"].as_array().unwrap().len(), 0, "{found:#}");
    assert!(found["ranks"][1]["gpus"]["problem"].is_string(), "{found:#}");
}

#[test]
fn there_is_a_rank_for_each_gpu_that_is_seen() {
    let _one_at_a_time = machine_lock();
    let fakes = FakeGpus::new();
    let ranks = |words: &[&str], visible: Option<&str>| {
        let mut command = started(words, None);
        fakes.lend(&mut command);
        command.env("FAKE_CUDA_DEVICES", "3").env("ALLFOLD_SECRET", "5c".repeat(32));
        command.envs(visible.map(|visible| ("CUDA_VISIBLE_DEVICES", visible)));
        run(&mut command)
    };
    let echo = ["sh", "-c", "echo of $WORLD_SIZE"];
    let ended = ranks(&[&["run", "-n", "gpu"], &echo[..]].concat(), None);
    assert_eq!(ended.code(), 0, "{ended:#?}");
    let mut lines = ended.output();
    lines.sort_unstable();
    assert_eq!(lines, ["[0] of 3", "[1] of 3", "[2] of 3"]);
    let node = ["--nnodes=1", "--node-rank=0", "--nproc-per-node=gpu", "--rdzv=localhost:29517"];
    let ended = ranks(&[&["run"], &node[..], &echo].concat(), Some("0,2"));
    assert_eq!((ended.code(), ended.output().len()), (0, 2), "{ended:#?}");
    let ended = ranks(&[&["run", "-n", "gpu"], &echo[..]].concat(), Some("-1"));
    assert_eq!((ended.code(), ended.output().len()), (2, 0), "{ended:#?}");
    let error = "error: -n gpu: CUDA_VISIBLE_DEVICES=-1 shows no GPU";
    assert_eq!(ended.errors().first(), Some(&error), "{ended:#?}");
}

#[test]
fn a_driver_that_does_not_start_is_told() {
    let mut command = started(&["run", "-n", "gpu", "true"], None);
    FakeGpus::new().lend(&mut command);
    let ended = run(command.env("FAKE_CUDA_INIT", "803"));
    assert_eq!(ended.code(), 2, "{ended:#?}");
    let [error, help] = &ended.errors()[..] else { panic!("{ended:#?}") };
    assert!(error.starts_with("error: -n gpu: the CUDA driver (13.0) does not start"), "{error}");
    assert!(help.contains("restart the host"), "{help}");
}

#[test]
fn a_driver_that_crashes_takes_no_launcher_along() {
    let fakes = FakeGpus::new();
    for (words, error) in [
        (&["run", "-n", "gpu", "true"][..], "error: -n gpu: looking for GPUs ended with signal: 6"),
        (&["bench", "-g", "2"], "error: looking for GPUs ended with signal: 6"),
    ] {
        let mut command = started(words, None);
        fakes.lend(&mut command);
        let ended = run(command.env("FAKE_CUDA_CRASH", "1"));
        assert_eq!((ended.code(), ended.output().len()), (2, 0), "{ended:#?}");
        let [said, help] = &ended.errors()[..] else { panic!("{ended:#?}") };
        assert!(said.starts_with(error), "{ended:#?}");
        assert!(help.starts_with("help: `nvidia-smi` says whether"), "{ended:#?}");
    }
}

#[test]
fn env_shows_the_gpu_that_a_rank_takes() {
    let fakes = FakeGpus::new();
    let mut command = started(&["env", "--json"], None);
    fakes.lend(&mut command);
    command.env("FAKE_CUDA_DEVICES", "3").env("ALLFOLD_NCCL", "same-host");
    let found = environment(&mut command);
    assert_eq!(found["gpus"]["names"].as_array().unwrap().len(), 3, "{found:#}");
    assert_eq!((&found["gpus"]["takes"], &found["gpus"]["cuda"]), (&0.into(), &"13.0".into()));
    assert_eq!(found["nccl"]["version"], "2.28.9", "{found:#}");
    assert_eq!(found["nccl"]["reach"], "same-host", "{found:#}");
    assert_eq!(Path::new(found["nccl"]["path"].as_str().unwrap()).parent(), Some(fakes.folder()));

    let mut command = started(&["env"], None);
    fakes.lend(&mut command);
    command.env("FAKE_CUDA_DEVICES", "3").envs([
        ("ALLFOLD_RANK", "4"),
        ("ALLFOLD_WORLD_SIZE", "8"),
        ("ALLFOLD_LOCAL_RANK", "1"),
        ("ALLFOLD_LOCAL_WORLD_SIZE", "3"),
        ("ALLFOLD_RENDEZVOUS", "h0"),
    ]);
    let ended = run(&mut command);
    let is_meant = |line: &&&str| line.contains("this process takes GPU 1: ");
    assert_eq!(ended.output().iter().filter(is_meant).count(), 1, "{ended:#?}");
}

#[test]
fn the_doctor_shows_each_ranks_gpu_and_another_nccl_is_red() {
    let _one_at_a_time = machine_lock();
    let fakes = FakeGpus::new();
    let doctor = |other: &str| {
        let script = format!("[ $RANK = 1 ] && export {other}; exec {ALLFOLD} doctor --json");
        let words = ["run", "-n", "gpu", "--prefix", "never", "sh", "-c", &script];
        let mut command = started(&words, None);
        fakes.lend(&mut command);
        let ended = run(command.env("FAKE_CUDA_DEVICES", "2"));
        let found: Value = serde_json::from_str(&ended.output().join("\n")).unwrap();
        (ended.code(), found)
    };
    let (code, found) = doctor("NOTHING=1");
    assert_eq!((code, &found["healthy"]), (0, &true.into()), "{found:#}");
    for (rank, facts) in found["ranks"].as_array().unwrap().iter().enumerate() {
        assert_eq!(
            (&facts["gpus"]["takes"], &facts["gpus"]["nccl"]),
            (&rank.into(), &"2.28.9".into())
        );
    }
    let (code, found) = doctor("FAKE_NCCL_VERSION=22703");
    let findings = found["findings"].as_array().unwrap();
    let finding = findings.iter().find(|finding| finding["about"] == "nccl").unwrap();
    assert_eq!((code, &finding["color"]), (1, &"red".into()), "{found:#}");
    let problem = "NCCL 2.27.3, rank 0 has NCCL 2.28.9: they do not connect";
    assert_eq!(finding["problem"], problem, "{found:#}");
}
