//! Certificates of a cluster's own authority, made as docs/security.md says, in place of a secret.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use allfold_tests::{Folder, Job, Process, machine_lock, skipped};

const RANK: &str = env!("CARGO_BIN_EXE_rank-under-test");

#[test]
fn certificates_made_as_the_documentation_says_let_their_ranks_meet() {
    let _one_at_a_time = machine_lock();
    let Some(folder) = issue("certificates_made_as_the_documentation_says") else { return };
    let job = Job::new(2);
    let start = |rank, with: &dyn Fn(&mut Command)| {
        let mut command = job.rank(rank, RANK, &["calls", "2"]);
        own(&mut command, &folder, "{rank}");
        command.env_remove("ALLFOLD_SECRET").env("ALLFOLD_JOB", "train-7");
        with(&mut command);
        Process::start(&mut command)
    };
    let zero = start(0, &|_| {});
    // Each is refused by itself or by rank 0, which goes on waiting for the right one.
    let refuse = |with: &dyn Fn(&mut Command), words: &[&str]| {
        start(1, with).wait().assert_error(2, words);
    };
    refuse(
        &|command| own(command, &folder, "0"),
        &["cert-0.pem: is not for rank 1 of job train-7", "URI:allfold://train-7/1", "DNS:r1."],
    );
    refuse(
        &|command| _ = command.env("ALLFOLD_JOB", "train-8"),
        &["is not for rank 1 of job train-8", "it has allfold://train-7/1"],
    );
    refuse(
        &|command| _ = command.env_remove("ALLFOLD_TLS_KEY"),
        &["ALLFOLD_TLS_KEY is not set, but ALLFOLD_TLS_CERT and ALLFOLD_TLS_CA are"],
    );
    refuse(
        &|command| _ = command.env("ALLFOLD_TLS_KEY", folder.path().join("key-0.pem")),
        &["ALLFOLD_TLS_KEY is the key of another certificate"],
    );
    refuse(
        &|command| _ = command.env("ALLFOLD_TLS_KEY", folder.path().join("ca.pem")),
        &["ALLFOLD_TLS_KEY=", "ca.pem: holds no private key"],
    );
    refuse(
        &|command| _ = command.env("ALLFOLD_TLS_CA", folder.path().join("nothing.pem")),
        &["ALLFOLD_TLS_CA=", "nothing.pem: No such file"],
    );
    refuse(
        &|command| {
            for name in ["ALLFOLD_TLS_CERT", "ALLFOLD_TLS_KEY", "ALLFOLD_TLS_CA"] {
                command.env_remove(name);
            }
            command.env("ALLFOLD_SECRET", &job.secret);
        },
        &["rank 0 has certificates of its own (ALLFOLD_TLS_CERT), this rank a secret"],
    );
    let one = start(1, &|_| {});
    assert_eq!(one.wait().code(), 0);
    let ended = zero.wait();
    assert_eq!(ended.code(), 0, "{ended:#?}");
    let warned = ended.errors().join("\n");
    assert!(warned.contains("refused a process at 127.0.0.1:"), "{ended:#?}");
    assert!(warned.contains("it has a secret and no certificates"), "{ended:#?}");
}

/// Points a rank to its certificate.
fn own(command: &mut Command, folder: &Folder, rank: &str) {
    let file = |name: String| folder.path().join(name);
    command
        .env("ALLFOLD_TLS_CERT", file(format!("cert-{rank}.pem")))
        .env("ALLFOLD_TLS_KEY", file(format!("key-{rank}.pem")))
        .env("ALLFOLD_TLS_CA", file("ca.pem".into()));
}

/// Runs the commands of the documentation in a folder.
fn issue(test: &str) -> Option<Folder> {
    if Command::new("openssl").arg("version").output().is_err() {
        skipped(test, "there is no openssl here");
        return None;
    }
    let folder = Folder::new("certificates");
    let (_, rest) = DOCUMENTATION.split_once("```sh\n").unwrap();
    let (commands, _) = rest.split_once("\n```\n").unwrap();
    let mut shell = Command::new("sh");
    let ended = Process::start(shell.args(["-euc", commands]).current_dir(folder.path())).wait();
    assert_eq!(ended.code(), 0, "{ended:#?}");
    Some(folder)
}

const DOCUMENTATION: &str = include_str!("../../docs/security.md");
