//! `allfold env`: which rank this process is, which variables say so, what is missing, and which GPU
//! it would take.

use std::io::{self, Write};

use allfold::identity::{Findings, Found, Ignored};
use allfold::nccl::Presence;
use serde_json::{Value, json};

use crate::error::Error;
use crate::gpus;
use crate::options::EnvOptions;

/// Prints what launchers say, and fails where that makes no rank.
pub(crate) fn print(options: EnvOptions) -> Result<(), Error> {
    let found = Findings::from_env();
    let secret = found.credentials();
    let problem = match (found.identity(), &secret) {
        (Err(error), _) => Some(error),
        (Ok(None), _) => Some(found.no_environment()),
        (Ok(Some(_)), Err(error)) => Some(error.clone()),
        (Ok(Some(_)), Ok(_)) => None,
    };
    let text = match options.json {
        true => format!("{}\n", object(&found, secret.as_ref().ok(), problem.as_ref())),
        false => table(&found, secret.as_ref().ok()),
    };
    io::stdout().write_all(text.as_bytes()).map_err(Error::system("cannot print"))?;
    problem.map_or(Ok(()), |error| Err(error.into()))
}

/// A line for each value; the secret's fingerprint and the GPUs stand before those who are ignored.
fn table(found: &Findings, secret: Option<&Found<String>>) -> String {
    let text = found.to_string();
    let end = text.find("\nignored ").map_or(text.len(), |at| at + 1);
    let (values, ignored) = text.split_at(end);
    let line = match secret {
        Some(Found { value, from }) => format!("{:<13}{value:<24} {from}\n", "secret"),
        None => format!("{:<13}missing\n", "secret"),
    };
    let gpus = gpus::rows(&Presence::find(), local_rank(found));
    format!("{values}{line}{gpus}{ignored}")
}

fn object(
    found: &Findings,
    secret: Option<&Found<String>>,
    problem: Option<&allfold::Error>,
) -> Value {
    let ignored: Vec<Value> = found
        .ignored
        .iter()
        .map(|Ignored { launcher, reason, help }| {
            json!({ "launcher": launcher, "reason": reason, "help": help })
        })
        .collect();
    let (gpus, nccl) = gpus::object(&Presence::find(), local_rank(found));
    let default = Found { value: "default".into(), from: "no launcher names it".into() };
    let job = found.job.as_ref().or(found.rank.is_some().then_some(&default));
    json!({
        "launcher": found.launcher,
        "rank": value(found.rank.as_ref()),
        "world_size": value(found.size.as_ref()),
        "local_rank": value(found.local_rank.as_ref()),
        "local_world_size": value(found.local_size.as_ref()),
        "rendezvous": value(found.rendezvous.as_ref()),
        "job": value(job),
        "secret": value(secret),
        "gpus": gpus,
        "nccl": nccl,
        "ignored": ignored,
        "error": problem.map(ToString::to_string),
        "help": problem.and_then(allfold::Error::help),
    })
}

/// Of a process that no launcher has numbered, 0.
fn local_rank(found: &Findings) -> usize {
    found.local_rank.as_ref().map_or(0, |found| found.value)
}

fn value<T: serde::Serialize>(found: Option<&Found<T>>) -> Value {
    found.map_or(Value::Null, |Found { value, from }| json!({ "value": value, "from": from }))
}
