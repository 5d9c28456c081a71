//! What one host has to do, as it is told.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use super::super::words::{Task, Wanted};
use super::super::{Hosts, Place};
use crate::attempt::Attempt;
use crate::environment::OWN_NAMES;
use crate::job::Kind;
use crate::variables::Variable;

pub(super) fn task(attempt: &Attempt<'_>, hosts: &Hosts, place: &Place) -> Task {
    let job = attempt.job;
    let words = job.program.os_words();
    let program = match job.kind {
        Kind::Program => Wanted::Program(words),
        Kind::Copies => Wanted::Copies(words),
    };
    let only_rank = match attempt.logs.is_empty() {
        true => job.output.only_rank.clone(),
        false => Vec::new(),
    };
    Task {
        job: attempt.name.into(),
        restart: attempt.restart,
        world: job.ranks,
        first: place.ranks.start,
        ranks: place.ranks.len(),
        listen: (place.ranks.start == 0).then(|| hosts.listen.clone()),
        directory: std::env::current_dir().map_or_else(|_| "/".into(), Into::into),
        program,
        variables: variables(&job.variables, std::env::vars_os()),
        bind: job.options.binding.bind,
        grace: job.options.grace,
        only_rank,
    }
}

/// The user's variables, and allfold's own settings: a login on another host has none of those that
/// are set here.
fn variables(
    given: &[Variable],
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> Vec<Variable> {
    let is_setting = |name: &OsString| {
        name.as_bytes().starts_with(b"ALLFOLD_") && !OWN_NAMES.iter().any(|own| name == *own)
    };
    let settings = environment.filter(|(name, _)| is_setting(name));
    settings.chain(given.iter().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_go_along_and_secrets_do_not() {
        let pair = |name: &str, value: &str| (OsString::from(name), OsString::from(value));
        let here = [
            pair("ALLFOLD_TRANSPORT", "quic"),
            pair("ALLFOLD_SECRET", "no"),
            pair("ALLFOLD_JOB", "no"),
            pair("HOME", "no"),
        ];
        let sent = variables(&[pair("A", "b")], here.into_iter());
        assert_eq!(sent, [pair("ALLFOLD_TRANSPORT", "quic"), pair("A", "b")]);
    }
}
