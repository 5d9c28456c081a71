//! The GPUs of this host: counted for `-n gpu`, shown by `allfold env`.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use allfold::nccl::{Absence, Presence};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::Error;
use crate::program::own_binary;

/// How many GPUs this process and its children see; `option` asks for them.
///
/// A process of its own looks, so that a launcher has nothing of CUDA in it while its ranks run:
/// neither its threads nor its files, nor its crash where the driver is broken.
pub(crate) fn count(option: &str) -> Result<usize, Error> {
    let refuse = |problem: String, help: &str| {
        Err(Error::Usage { problem: format!("{option} gpu: {problem}"), help: Some(help.into()) })
    };
    let mut command = Command::new(own_binary());
    command.arg(SUBCOMMAND).stdin(Stdio::null()).stderr(Stdio::inherit());
    let ended = command.output().map_err(Error::system("cannot start what looks for GPUs"))?;
    match serde_json::from_slice(&ended.stdout) {
        Ok(Count::Gpus(gpus)) => Ok(gpus),
        Ok(Count::None { problem, help }) => refuse(problem, &help),
        Err(_) => refuse(
            format!("looking for GPUs ended with {}", ended.status),
            "`nvidia-smi` says whether the driver works; a number in its place does without it",
        ),
    }
}

/// The subcommand that looks.
pub(crate) fn tell() -> Result<(), Error> {
    let presence = Presence::find();
    let count = match presence.driver {
        Ok(_) => Count::Gpus(presence.gpus.len()),
        Err(Absence { problem, help }) => Count::None { problem, help },
    };
    let text = serde_json::to_string(&count).map_err(io::Error::other);
    text.and_then(|text| writeln!(io::stdout(), "{text}")).map_err(Error::system("cannot print"))
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

/// What the subcommand prints.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Count {
    Gpus(usize),
    None { problem: String, help: String },
}

/// Hidden: only [`count`] starts it.
pub(crate) const SUBCOMMAND: &str = "gpus";

#[cfg(test)]
mod tests {
    use super::*;

    fn presence() -> Presence {
        let version = |major, minor, patch| allfold::nccl::Version { major, minor, patch };
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
