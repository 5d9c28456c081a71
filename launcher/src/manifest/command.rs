//! The container's command: what in it cannot work in a pod, and what is likely forgotten.

use std::path::Path;

use allfold_trainer::WhenDone;

use super::names;
use super::options::{Kind, ManifestOptions};
use crate::arguments::{Arguments, Command};
use crate::copies::Collective as _;
use crate::error::Error;
use crate::options::PeerOptions;

/// Finds what cannot work; returns warnings.
pub(super) fn check(manifest: &ManifestOptions, claim: bool) -> Result<Vec<String>, Error> {
    let ManifestOptions { command: words, kind, gpu, .. } = manifest;
    let kind = *kind;
    refuse_secrets(words)?;
    let is_ours = words.first().and_then(|word| Path::new(word).file_name()?.to_str());
    if is_ours != Some("allfold") {
        return Ok(Vec::new());
    }
    let options = match Arguments::parse_other(words)? {
        None => return Ok(Vec::new()),
        Some(arguments) => arguments.command,
    };
    match &options {
        Command::Run(options) => {
            let ranks = match options.ranks {
                Some(ranks) => format!("run -n {ranks}"),
                None => "run on several hosts".into(),
            };
            Err(own_ranks(&ranks, "give the program itself as the command"))
        }
        Command::Train(options) => {
            let trainer = &options.trainer;
            refuse_peers(&options.peers)?;
            let ranks = trainer.ranks.map(|ranks| format!("-n {ranks}"));
            if let Some(given) = ranks.or(options.job()?.first_given().map(Into::into)) {
                return Err(own_ranks(&given, &format!("drop {given}")));
            }
            Ok(idle(*gpu).into_iter().chain(forgotten(trainer, kind, claim)).collect())
        }
        Command::Bench(options) => {
            refuse_peers(&options.peers)?;
            let ranks = options.bench.ranks();
            let ranks = ranks.map(|ranks| format!("{} {ranks}", options.bench.ranks_option()));
            match ranks.or(options.hosts.first_given().map(Into::into)) {
                Some(given) => Err(own_ranks(&given, &format!("drop {given}"))),
                None => Ok(idle(*gpu).into_iter().collect()),
            }
        }
        Command::Doctor(options) => {
            refuse_peers(&options.peers)?;
            if let Some(ranks) = options.ranks() {
                return Err(own_ranks(&format!("-n {ranks}"), &format!("drop -n {ranks}")));
            }
            let comes_back = kind == Kind::StatefulSet;
            Ok(comes_back.then(|| ENDS.into()).into_iter().collect())
        }
        _ => Ok(Vec::new()),
    }
}

fn own_ranks(given: &str, help: &str) -> Error {
    Error::Usage {
        problem: format!("the command starts ranks of its own ({given}), and each pod is one"),
        help: Some(format!("{help}; --replicas is the number of ranks")),
    }
}

fn refuse_peers(peers: &PeerOptions) -> Result<(), Error> {
    match peers.are_given() {
        false => Ok(()),
        true => Err(Error::Usage {
            problem: "the command is the same in all pods, and --peers and --rank are for one rank"
                .into(),
            help: Some("drop --peers and --rank: a pod knows its rank".into()),
        }),
    }
}

/// A pod is one rank, and a rank takes one GPU.
fn idle(gpus: u16) -> Option<String> {
    let idle = gpus.checked_sub(1).filter(|&idle| idle > 0)?;
    Some(format!(
        "--gpu {gpus}: each pod is one rank, which takes one GPU, and {idle} would be idle: give --gpu 1 \
         and {gpus} times the --replicas"
    ))
}

/// What a training in pods wants, beside what is the default there.
fn forgotten(options: &allfold_trainer::Options, kind: Kind, claim: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut warn = |condition: bool, text: &str| {
        if condition {
            warnings.push(format!("the command: {text}"));
        }
    };
    warn(
        kind == Kind::StatefulSet && options.when_done == Some(WhenDone::Exit),
        "a StatefulSet starts again what ends: drop --when-done exit",
    );
    warn(
        kind != Kind::StatefulSet && options.when_done == Some(WhenDone::Wait),
        "a Job is complete when its ranks end: drop --when-done wait",
    );
    warn(
        options.checkpoint.is_some() && options.resume.is_none(),
        "pods are started again, and a folder with checkpoints is refused then: add --resume",
    );
    match (&options.checkpoint, claim) {
        (None, true) => {
            warn(true, "nothing is written to the claim: add --checkpoint /checkpoints --resume");
        }
        (Some(folder), _) => warn(
            !(claim && folder.starts_with(super::CLAIM_PATH)),
            "the checkpoints go with the pod: add --checkpoint-claim NAME before the command, and \
             write them to /checkpoints",
        ),
        (None, false) => {}
    }
    warnings
}

fn refuse_secrets(words: &[String]) -> Result<(), Error> {
    let holds = |word: &String| word.contains("ALLFOLD_SECRET=") || names::is_secret(word);
    match words.iter().position(holds) {
        None => Ok(()),
        Some(place) => Err(Error::Usage {
            problem: format!(
                "word {} of the command holds what looks like a job's secret, which no manifest \
                 may hold",
                place + 1
            ),
            help: Some("drop it: each pod reads the Secret, as ALLFOLD_SECRET_FILE".into()),
        }),
    }
}

const ENDS: &str = "the command: a StatefulSet starts again what ends, and the ranks would examine \
                    each other for ever: add --kind indexed-job";

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: ManifestOptions,
    }

    fn checked(line: &str, kind: Kind, claim: bool) -> Result<Vec<String>, String> {
        checked_with_gpus(0, line, kind, claim)
    }

    fn checked_with_gpus(
        gpu: u16,
        line: &str,
        kind: Kind,
        claim: bool,
    ) -> Result<Vec<String>, String> {
        let own = ["manifest", "--replicas", "2", "--image", "allfold:0.1.0", "--"];
        let Line { options } = Line::parse_from(own.into_iter().chain(line.split(' ')));
        check(&ManifestOptions { kind, gpu, ..options }, claim).map_err(|error| error.to_string())
    }

    #[test]
    fn gpus_that_no_rank_takes_are_told() {
        let told = |gpu, line: &str| checked_with_gpus(gpu, line, Kind::JobSet, false).unwrap();
        for line in ["allfold train --device gpu", "allfold bench --device gpu"] {
            assert_eq!(told(1, line), [""; 0], "{line}");
            let warning = "--gpu 8: each pod is one rank, which takes one GPU, and 7 would be idle: \
                           give --gpu 1 and 8 times the --replicas";
            assert_eq!(told(8, line), [warning], "{line}");
        }
        // A program of one's own may use them all.
        assert_eq!(told(8, "python3 train.py"), [""; 0]);
    }

    #[test]
    fn a_command_that_starts_ranks_is_refused() {
        for (line, given) in [
            ("allfold train -n 4", "-n 4"),
            ("/usr/bin/allfold train --ranks=4", "-n 4"),
            ("allfold train --max-restarts 3", "--max-restarts"),
            ("allfold bench --ranks 2", "--ranks 2"),
            ("allfold run -n 2 prog", "run -n 2"),
            ("allfold doctor -n 2", "-n 2"),
        ] {
            let problem =
                format!("the command starts ranks of its own ({given}), and each pod is one");
            assert_eq!(checked(line, Kind::IndexedJob, false), Err(problem), "{line}");
        }
        let by_hand = checked("allfold train --peers a:1,b:1 --rank 0", Kind::JobSet, false);
        assert!(by_hand.unwrap_err().contains("--peers and --rank are for one rank"));
        let frob = checked("allfold train --frob", Kind::IndexedJob, false);
        assert_eq!(frob, Err("the command: unexpected argument '--frob' found".into()));
    }

    #[test]
    fn what_is_likely_forgotten() {
        let count = |line: &str, kind, claim| checked(line, kind, claim).unwrap().len();
        let whole = "allfold train --checkpoint /checkpoints --resume";
        assert_eq!(count(whole, Kind::StatefulSet, true), 0);
        let and = |option: &str| format!("{whole} {option}");
        assert_eq!(count(&and("--when-done=wait"), Kind::StatefulSet, true), 0);
        assert_eq!(count(&and("--when-done exit"), Kind::StatefulSet, true), 1);
        assert_eq!(count(whole, Kind::StatefulSet, false), 1);
        assert_eq!(count(&whole.replace("/check", "/other/check"), Kind::StatefulSet, true), 1);
        assert_eq!(count(&whole.replace(" --resume", ""), Kind::StatefulSet, true), 1);
        assert_eq!(count("allfold train", Kind::StatefulSet, false), 0);
        assert_eq!(count("allfold train", Kind::StatefulSet, true), 1);
        assert_eq!(count("allfold train", Kind::JobSet, false), 0);
        assert_eq!(count(whole, Kind::JobSet, true), 0);
        assert_eq!(count(&and("--when-done wait"), Kind::JobSet, true), 1);
        for line in ["python3 train.py -n 4", "allfold train --help", "allfold bench"] {
            assert_eq!(count(line, Kind::StatefulSet, false), 0, "{line}");
        }
        let doctor = checked("allfold doctor --json", Kind::StatefulSet, false).unwrap();
        assert!(doctor[0].ends_with("add --kind indexed-job"), "{doctor:?}");
        assert_eq!(count("allfold doctor --json", Kind::IndexedJob, false), 0);
    }

    #[test]
    fn a_secret_is_refused_and_not_shown() {
        let secret = "0123456789abcdef".repeat(4);
        for line in [format!("env ALLFOLD_SECRET={secret} prog"), format!("prog {secret}")] {
            let error = checked(&line, Kind::StatefulSet, false).unwrap_err();
            assert!(error.starts_with("word 2 of the command"), "{error}");
            assert!(!error.contains(&secret), "{error}");
        }
    }
}
