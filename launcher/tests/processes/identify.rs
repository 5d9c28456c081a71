//! `allfold env`, and a job by hand.

use std::process::Command;

use crate::launched::{Scratch, finish};

/// 64 hexadecimal digits; the fingerprint of this one is 8 others.
const SECRET: &str = "5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c";

fn env(scratch: &Scratch, words: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = scratch.allfold(&[&["env"], words].concat());
    command.env("ALLFOLD_SECRET", SECRET).envs(variables.iter().copied());
    command
}

#[test]
fn env_shows_every_value_and_where_it_came_from() {
    let scratch = Scratch::new();
    let variables = [
        ("RANK", "1"),
        ("WORLD_SIZE", "4"),
        ("LOCAL_RANK", "1"),
        ("LOCAL_WORLD_SIZE", "2"),
        ("MASTER_ADDR", "h0"),
        ("MASTER_PORT", "4711"),
        ("TORCHELASTIC_RUN_ID", "seven"),
        ("SLURM_JOB_ID", "12"),
    ];
    let ended = finish(env(&scratch, &[], &variables));
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    for line in [
        "launcher     torchrun",
        "rank         1                        RANK",
        "world size   4                        WORLD_SIZE",
        "local rank   1                        LOCAL_RANK",
        "local size   2                        LOCAL_WORLD_SIZE",
        "rendezvous   h0:4711                  MASTER_ADDR, MASTER_PORT",
        "job          seven                    TORCHELASTIC_RUN_ID",
    ] {
        assert!(ended.lines.iter().any(|printed| printed == line), "{line}: {:?}", ended.lines);
    }
    for (start, end) in [
        ("secret       ", " ALLFOLD_SECRET"),
        ("ignored      Slurm: SLURM_JOB_ID=12 ", "no task of srun in it"),
    ] {
        let is_meant = |line: &&String| line.starts_with(start) && line.ends_with(end);
        assert_eq!(ended.lines.iter().filter(is_meant).count(), 1, "{start}: {:?}", ended.lines);
    }
    assert!(!ended.lines.concat().contains(&SECRET[..9]), "the secret shows: {:?}", ended.lines);
}

#[test]
fn env_as_json_has_the_same() {
    let scratch = Scratch::new();
    let variables = [("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "2")];
    let local = [("OMPI_COMM_WORLD_LOCAL_RANK", "0"), ("OMPI_COMM_WORLD_LOCAL_SIZE", "2")];
    let ended = finish(env(&scratch, &["--json"], &[variables, local].concat()));
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    let object: serde_json::Value = serde_json::from_str(&ended.lines[0]).unwrap();
    assert_eq!(object["launcher"], "Open MPI");
    assert_eq!(object["rank"]["value"], 0);
    assert_eq!(object["world_size"]["from"], "OMPI_COMM_WORLD_SIZE");
    assert_eq!(object["rendezvous"]["value"], "127.0.0.1:29500");
    assert_eq!(object["secret"]["from"], "ALLFOLD_SECRET");
    assert_eq!(object["secret"]["value"].as_str().unwrap().len(), 8);
    assert_eq!(object["error"], serde_json::Value::Null);
    assert!(!ended.lines[0].contains(&SECRET[..9]), "the secret shows: {:?}", ended.lines);
}

#[test]
fn env_of_an_incomplete_environment_says_what_to_set() {
    let scratch = Scratch::new();
    let pod = [("KUBERNETES_SERVICE_HOST", "10.96.0.1"), ("POD_NAME", "trainer-2")];
    for (variables, shown, error, help) in [
        (&[][..], "launcher     none", "no launcher says which rank", "allfold run -n 4"),
        (&pod, "rank         2 ", "ALLFOLD_WORLD_SIZE is not set", "in spec.replicas"),
        (&[("RANK", "4"), ("WORLD_SIZE", "4")], "rank         4 ", "RANK=4: must be below", ""),
    ] {
        for words in [&[][..], &["--json"]] {
            let ended = finish(env(&scratch, words, variables));
            assert_eq!(ended.status.code(), Some(2), "{}", ended.stderr);
            assert!(ended.stderr.starts_with(&format!("error: {error}")), "{}", ended.stderr);
            assert!(ended.stderr.contains(help), "{}", ended.stderr);
            let output = ended.lines.join("\n");
            match words {
                [] => assert!(output.contains(shown), "{output}"),
                _ => {
                    let object: serde_json::Value = serde_json::from_str(&output).unwrap();
                    assert!(object["error"].as_str().unwrap().starts_with(error), "{output}");
                }
            }
        }
    }
}

#[test]
fn env_makes_no_secret() {
    let scratch = Scratch::new();
    let home = scratch.path().join("home");
    std::fs::create_dir(&home).unwrap();
    let one = [("ALLFOLD_RANK", "0"), ("ALLFOLD_WORLD_SIZE", "1")];
    let mut command = env(&scratch, &[], &one);
    let ended = finish({
        command.env_remove("ALLFOLD_SECRET").env("HOME", &home);
        command
    });
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert!(ended.lines.iter().any(|line| line.contains("none yet")), "{:?}", ended.lines);
    assert_eq!(std::fs::read_dir(&home).unwrap().count(), 0, "something was made");
    let mut command =
        env(&scratch, &[], &[one[0], one[1], ("KUBERNETES_SERVICE_HOST", "10.0.0.1")]);
    command.env_remove("ALLFOLD_SECRET");
    let ended = finish(command);
    assert_eq!(ended.status.code(), Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("has no job secret"), "{}", ended.stderr);
}

#[test]
fn peers_and_rank_are_checked() {
    let scratch = Scratch::new();
    for (words, error, help) in [
        (&["--rank", "1"][..], "--peers is not given, but --rank is", "--peers a:2222,b:2222"),
        (&["--peers", "a,b"], "ALLFOLD_RANK is not set, but --peers is", "its place in --peers"),
        (&["--peers", "a,b", "--rank", "2"], "2 (--rank) must be below the world size, 2", ""),
        (&["--peers", "a,a", "--rank", "1"], "--peers=a,a: names a:29500 twice", ""),
        (
            &["--peers", "a,b", "--rank", "1", "--bind", "core"],
            "already rank 1 of 2 under --peers and --rank",
            "drop --bind",
        ),
    ] {
        for subcommand in ["train", "bench"] {
            let ended = finish(scratch.allfold(&[&[subcommand], words].concat()));
            assert_eq!(ended.status.code(), Some(2), "{}", ended.stderr);
            assert!(ended.stderr.starts_with(&format!("error: {error}")), "{}", ended.stderr);
            assert!(ended.stderr.contains(help), "{}", ended.stderr);
        }
    }
    for (words, error) in [
        (&["bench", "reduce", "--peers", "a,b"][..], "unexpected argument '--peers'"),
        (&["train", "--peers", "", "--rank", "0"], "--peers is empty"),
        (&["bench", "--peers", "", "--rank", "0"], "--peers is empty"),
    ] {
        let ended = finish(scratch.allfold(words));
        assert_eq!(ended.status.code(), Some(2), "{}", ended.stderr);
        assert!(ended.stderr.starts_with(&format!("error: {error}")), "{}", ended.stderr);
    }
}

#[test]
fn a_pod_that_does_not_say_how_many_there_are_trains_as_many_as_it_is_told() {
    let scratch = Scratch::new();
    let words = ["train", "--steps", "1", "--model", "mlp", "--hidden", "4"];
    let train = |more: &[&str], variables: &[(&str, &str)]| {
        let mut command = scratch.allfold(&[&words, more].concat());
        command.envs(variables.iter().copied());
        finish(command)
    };
    let pod = [("KUBERNETES_SERVICE_HOST", "10.96.0.1"), ("POD_NAME", "notebook-0")];
    let script = [("WORLD_SIZE", "4")];
    for variables in [&pod[..], &script] {
        for ranks in ["1", "2"] {
            let ended = train(&["-n", ranks], variables);
            assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
        }
        let ended = train(&[], variables);
        assert_eq!(ended.status.code(), Some(2), "{}", ended.stderr);
        assert!(ended.stderr.contains(" is not set"), "{}", ended.stderr);
    }
    let of_four = [pod[0], pod[1], ("ALLFOLD_WORLD_SIZE", "4"), ("ALLFOLD_RENDEZVOUS", "a")];
    let ended = train(&["-n", "2"], &of_four);
    assert_eq!(ended.status.code(), Some(2), "{}", ended.stderr);
    assert!(ended.stderr.starts_with("error: already rank 0 of 4"), "{}", ended.stderr);
}

#[test]
fn a_launcher_between_allfold_run_and_the_program_is_refused() {
    let scratch = Scratch::new();
    let within = [("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "2")];
    let allfold = env!("CARGO_BIN_EXE_allfold");
    let run = |words: &[&str], outer: &[(&str, &str)]| {
        let mut command = scratch.allfold(&[&["run", "-n", "1", "--"], words].concat());
        command.envs(outer.iter().copied());
        finish(command)
    };
    // mpirun started `allfold run`: what it says is not of this process.
    let ended = run(&[allfold, "env"], &within);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    // mpirun, which `env` stands for here, was started by it.
    let inner = ["env", "OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_SIZE=2", allfold, "env"];
    for outer in [&[][..], &[within[0], ("OMPI_COMM_WORLD_SIZE", "4")]] {
        let ended = run(&inner, outer);
        assert_eq!(ended.status.code(), Some(2), "{}", ended.stderr);
        assert!(ended.stderr.contains("is numbered twice"), "{}", ended.stderr);
    }
}

#[test]
fn a_forgotten_srun_is_told() {
    let scratch = Scratch::new();
    let train = |more: &[&str]| {
        let words = ["train", "--steps", "1", "--model", "mlp", "--hidden", "4"];
        let mut command = scratch.allfold(&[&words, more].concat());
        command.env("SLURM_JOB_ID", "12").env("SLURM_NTASKS", "4").env("SLURM_PROCID", "0");
        finish(command)
    };
    let ended = train(&[]);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("start the program as `srun PROGRAM`"), "{}", ended.stderr);
    let ended = train(&["-n", "2"]);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert!(!ended.stderr.contains("srun"), "{}", ended.stderr);
}
