//! The GPUs of this host: counted for `-n gpu`, looked for before ranks want them, shown by
//! `allfold env`.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use allfold::nccl::{Absence, Presence, Version};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::Error;
use crate::program::own_binary;

/// How many GPUs this process and its children see; `option` asks for them.
pub(crate) fn count(option: &str) -> Result<usize, Error> {
    let (problem, help) = match found() {
        Ok(Presence { driver: Ok(_), gpus, .. }) => return Ok(gpus.len()),
        Ok(Presence { driver: Err(Absence { problem, help }), .. }) => (problem, help.clone()),
        Err(problem) => {
            (problem, format!("{ASK_NVIDIA_SMI}; a number in its place does without it"))
        }
    };
    Err(Error::Usage { problem: format!("{option} gpu: {problem}"), help: Some(help) })
}

/// What there is of GPUs, driver and NCCL, as a process of its own finds it: so a launcher has nothing
/// of CUDA in it while its ranks run, neither its threads nor its files, nor its crash where the
/// driver is broken.
pub(crate) fn find() -> Presence {
    found().clone().unwrap_or_else(|problem| {
        let absence = Absence { problem, help: ASK_NVIDIA_SMI.into() };
        Presence { driver: Err(absence.clone()), gpus: Vec::new(), nccl: Err(absence) }
    })
}

/// Looks once; an error where that itself comes to a bad end.
fn found() -> &'static Result<Presence, String> {
    static FOUND: OnceLock<Result<Presence, String>> = OnceLock::new();
    FOUND.get_or_init(look)
}

fn look() -> Result<Presence, String> {
    let mut command = Command::new(own_binary());
    command.arg(SUBCOMMAND).stdin(Stdio::null()).stderr(Stdio::inherit());
    let ended =
        command.output().map_err(|error| format!("cannot start what looks for GPUs: {error}"))?;
    let found: Found = serde_json::from_slice(&ended.stdout)
        .map_err(|_| format!("looking for GPUs ended with {}", ended.status))?;
    Ok(found.into())
}

/// The subcommand that looks.
pub(crate) fn tell() -> Result<(), Error> {
    let found = serde_json::to_string(&Found::from(Presence::find())).map_err(io::Error::other);
    found.and_then(|text| writeln!(io::stdout(), "{text}")).map_err(Error::system("cannot print"))
}

/// What there is, as `allfold env` shows it to the process that is number `local_rank` of its host.
pub(crate) fn rows(presence: &Presence, local_rank: usize) -> String {
    let row = |name: &str, value: &str, more: &str| format!("{name:<13}{value:<24} {more}\n");
    let gpus = match (&presence.driver, taken(presence, local_rank)) {
        (Ok(cuda), Some((index, name))) => {
            let more = format!("this process takes GPU {index}: {name}; CUDA {cuda}");
            row("gpus", &presence.gpus.len().to_string(), &more)
        }
        (Ok(cuda), None) => row("gpus", "none", &format!("CUDA {cuda}")),
        (Err(absence), _) => row("gpus", "none", &absence.problem),
    };
    let restricted = restriction().map(|value| format!("ALLFOLD_NCCL={value}"));
    let (value, from) = match &presence.nccl {
        Ok((version, path)) => {
            let path = path.as_ref().map(|path| path.display().to_string());
            (version.to_string(), path.unwrap_or_default())
        }
        // Where there is no GPU either, one row says enough.
        Err(_) if presence.driver.is_err() && restricted.is_none() => return gpus,
        Err(absence) => ("none".into(), absence.problem.clone()),
    };
    let more = [Some(from), restricted].into_iter().flatten().filter(|words| !words.is_empty());
    gpus + &row("nccl", &value, &more.collect::<Vec<_>>().join("; "))
}

/// The same for programs: the values of `gpus` and `nccl`.
pub(crate) fn object(presence: &Presence, local_rank: usize) -> (Value, Value) {
    let words = |absence: Option<&Absence>| match absence {
        Some(Absence { problem, help }) => (Some(problem.clone()), Some(help.clone())),
        None => (None, None),
    };
    let (problem, help) = words(presence.driver.as_ref().err());
    let gpus = json!({
        "names": presence.gpus,
        "cuda": presence.driver.as_ref().ok().map(ToString::to_string),
        "takes": taken(presence, local_rank).map(|(index, _)| index),
        "problem": problem,
        "help": help,
    });
    let (problem, help) = words(presence.nccl.as_ref().err());
    let (version, path) = presence.nccl.as_ref().ok().cloned().unzip();
    let nccl = json!({
        "version": version.map(|version| version.to_string()),
        "path": path.flatten(),
        "reach": restriction().unwrap_or_else(|| "on".into()),
        "problem": problem,
        "help": help,
    });
    (gpus, nccl)
}

/// The GPU of the process that is number `local_rank` of its host.
fn taken(presence: &Presence, local_rank: usize) -> Option<(usize, &str)> {
    let index = presence.gpu_of(local_rank)?;
    Some((index, presence.gpus.get(index)?))
}

/// ALLFOLD_NCCL, where it is set.
fn restriction() -> Option<String> {
    std::env::var("ALLFOLD_NCCL").ok().filter(|value| !value.is_empty())
}

/// What the subcommand prints: a [`Presence`] in words.
#[derive(Debug, Serialize, Deserialize)]
struct Found {
    driver: Result<Numbers, Reason>,
    gpus: Vec<String>,
    nccl: Result<(Numbers, Option<PathBuf>), Reason>,
}

/// A version's.
type Numbers = [u32; 3];

/// Why something cannot be used, and what to do.
#[derive(Debug, Serialize, Deserialize)]
struct Reason {
    problem: String,
    help: String,
}

impl From<Presence> for Found {
    fn from(Presence { driver, gpus, nccl }: Presence) -> Self {
        let numbers = |version: Version| [version.major, version.minor, version.patch];
        let reason = |Absence { problem, help }| Reason { problem, help };
        Self {
            driver: driver.map(numbers).map_err(reason),
            gpus,
            nccl: nccl.map(|(version, path)| (numbers(version), path)).map_err(reason),
        }
    }
}

impl From<Found> for Presence {
    fn from(Found { driver, gpus, nccl }: Found) -> Self {
        let version = |[major, minor, patch]: Numbers| Version { major, minor, patch };
        let absence = |Reason { problem, help }| Absence { problem, help };
        Self {
            driver: driver.map(version).map_err(absence),
            gpus,
            nccl: nccl.map(|(numbers, path)| (version(numbers), path)).map_err(absence),
        }
    }
}

/// Hidden: only [`look`] starts it.
pub(crate) const SUBCOMMAND: &str = "gpus";
const ASK_NVIDIA_SMI: &str = "`nvidia-smi` says whether the driver works";

#[cfg(test)]
mod tests {
    use super::*;

    fn presence() -> Presence {
        let version = |major, minor, patch| Version { major, minor, patch };
        Presence {
            driver: Ok(version(13, 0, 0)),
            gpus: vec!["H100".into(), "H200".into()],
            nccl: Ok((version(2, 28, 9), Some("/lib/libnccl.so.2".into()))),
        }
    }

    fn absence(problem: &str) -> Absence {
        Absence { problem: problem.into(), help: "install it".into() }
    }

    #[test]
    fn what_another_process_finds_comes_over_whole() {
        let mut none = presence();
        (none.driver, none.gpus) = (Err(absence("there is no CUDA driver")), Vec::new());
        none.nccl = Err(absence("libnccl.so.2 is not found"));
        for found in [presence(), none] {
            let text = serde_json::to_string(&Found::from(found.clone())).unwrap();
            let read = Presence::from(serde_json::from_str::<Found>(&text).unwrap());
            assert_eq!((read.driver, read.gpus), (found.driver, found.gpus));
            assert_eq!(read.nccl, found.nccl);
        }
    }

    #[test]
    fn the_gpu_that_a_process_takes_is_named() {
        let lines = |local_rank| rows(&presence(), local_rank);
        let gpu =
            "gpus         2                        this process takes GPU 1: H200; CUDA 13.0\n";
        let nccl = "nccl         2.28.9                   /lib/libnccl.so.2\n";
        assert_eq!(lines(1), format!("{gpu}{nccl}"));
        assert_eq!(lines(3), lines(1));
        let (gpus, nccl) = object(&presence(), 2);
        assert_eq!((&gpus["takes"], &gpus["cuda"]), (&json!(0), &json!("13.0")));
        assert_eq!((&nccl["version"], &nccl["problem"]), (&json!("2.28.9"), &Value::Null));
    }

    #[test]
    fn without_a_gpu_one_calm_row_says_so() {
        let mut none = presence();
        (none.driver, none.gpus) = (Err(absence("there is no CUDA driver")), Vec::new());
        let row = "gpus         none                     there is no CUDA driver\n";
        let nccl = "nccl         2.28.9                   /lib/libnccl.so.2\n";
        assert_eq!(rows(&none, 0), format!("{row}{nccl}"));
        none.nccl = Err(absence("libnccl.so.2 is not found"));
        assert_eq!(rows(&none, 0), row);
        let (gpus, nccl) = object(&none, 0);
        assert_eq!((&gpus["takes"], &gpus["help"]), (&Value::Null, &json!("install it")));
        assert_eq!((&nccl["path"], &nccl["reach"]), (&Value::Null, &json!("on")));
    }
}
