//! Who am I: one detector per launcher, one order of precedence.

mod explicit;
mod torchrun;

use std::collections::BTreeMap;
use std::fmt;

use zeroize::Zeroize;

use crate::error::{ErrorKind, Result};

/// Who this process is, as its launcher's environment tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Rank, 0 to size - 1.
    pub rank: usize,
    /// World size.
    pub size: usize,
    /// Rank among the ranks of this host.
    pub local_rank: usize,
    /// The number of ranks of this host.
    pub local_size: usize,
    /// The launcher in words, such as `allfold run` or `torchrun`.
    pub launcher: String,
    /// Where the launcher says rank 0 is, as `host:port`.
    pub rendezvous: Option<String>,
    /// An id that the launcher gives to all ranks of the job alike.
    pub job: Option<String>,
}

impl Identity {
    /// Reads the environment; None where no launcher's variables are set.
    ///
    /// # Errors
    /// [`ErrorKind::Setting`] where variables are missing, malformed or contradict each other.
    pub fn from_env() -> Result<Option<Self>> {
        Self::detect(&Environment::of_process())
    }

    /// The first detector that recognises its launcher decides.
    pub(crate) fn detect(environment: &Environment) -> Result<Option<Self>> {
        for detect in PRECEDENCE {
            if let Some(identity) = detect(environment)? {
                return Ok(Some(identity));
            }
        }
        Ok(None)
    }

    /// For explicit configuration: `rank` of `size`, alone on its host as far as it knows.
    pub(crate) fn explicit(rank: usize, size: usize) -> Self {
        Self {
            rank,
            size,
            local_rank: 0,
            local_size: 1,
            launcher: "the program itself".into(),
            rendezvous: None,
            job: None,
        }
    }
}

/// Explicit settings first, then the launchers that number processes.
const PRECEDENCE: [Detector; 2] = [explicit::detect, torchrun::detect];

/// Recognises one launcher: None if it did not start this process.
type Detector = fn(&Environment) -> Result<Option<Identity>>;

/// The process environment, or a recorded one in tests. An empty variable counts as unset. It may
/// hold the job's secret: it prints its names only, and wipes that one when dropped.
#[derive(Default)]
pub(crate) struct Environment(BTreeMap<String, String>);

impl Drop for Environment {
    fn drop(&mut self) {
        if let Some(secret) = self.0.get_mut("ALLFOLD_SECRET") {
            secret.zeroize();
        }
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

impl Environment {
    pub(crate) fn of_process() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            // A value that is not UTF-8 is none of allfold's.
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self(std::env::vars_os().filter_map(text).collect())
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// A whole number, if the variable is set.
    pub(crate) fn number(&self, name: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match value.trim().parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(invalid(name, value, "must be a whole number")),
        }
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Environment {
    fn from(pairs: [(&str, &str); N]) -> Self {
        Self(pairs.iter().map(|(n, v)| ((*n).to_string(), (*v).to_string())).collect())
    }
}

/// Rank and size from the variables of these names, checked against each other.
fn rank_and_size(environment: &Environment, rank: &str, size: &str) -> Result<(usize, usize)> {
    let missing = |name: &str, other: &str| ErrorKind::Setting {
        name: name.into(),
        value: None,
        problem: match environment.get(other) {
            Some(_) => format!("is not set, but {other} is"),
            None => "is not set, but other variables of a launcher are".into(),
        },
        help: Some(format!("set {rank} and {size} on every rank")),
    };
    let rank_number = environment.number(rank)?.ok_or_else(|| missing(rank, size))?;
    let size_number = environment.number(size)?.ok_or_else(|| missing(size, rank))?;
    check_size(size, size_number)?;
    if rank_number >= size_number {
        let problem =
            format!("must be below the world size, {size_number} ({size}); ranks count from 0");
        return Err(invalid(rank, &rank_number.to_string(), &problem));
    }
    Ok((rank_number, size_number))
}

/// Local rank and local size, where they are given and make sense.
fn local(
    environment: &Environment,
    (rank, size): (&str, &str),
    world: usize,
) -> Result<(usize, usize)> {
    let given = environment.number(size)?;
    let local_rank = environment.number(rank)?.unwrap_or(0);
    if let Some(local_size) = given.filter(|size| *size == 0 || *size > world) {
        return Err(invalid(size, &local_size.to_string(), &format!("must be 1 to {world}")));
    }
    // A local rank alone is common; then the local size is only known to be larger.
    let limit = given.unwrap_or(world);
    if local_rank >= limit {
        let (of, shown) = if given.is_some() { (size, limit) } else { ("the world size", world) };
        let problem = format!("must be below {of}, {shown}");
        return Err(invalid(rank, &local_rank.to_string(), &problem));
    }
    Ok((local_rank, given.unwrap_or(local_rank + 1)))
}

fn check_size(name: &str, size: usize) -> Result<()> {
    if size == 0 || size > MAX_WORLD_SIZE {
        let problem = format!("must be 1 to {MAX_WORLD_SIZE}");
        return Err(invalid(name, &size.to_string(), &problem));
    }
    Ok(())
}

pub(crate) fn invalid(name: &str, value: &str, problem: &str) -> crate::Error {
    ErrorKind::Setting {
        name: name.into(),
        value: Some(value.into()),
        problem: problem.into(),
        help: None,
    }
    .into()
}

/// This host's name, for people.
pub(crate) fn host_name() -> String {
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy();
    let name: String = name.chars().filter(|c| !c.is_control()).take(MAX_HOST_BYTES).collect();
    if name.is_empty() { "unnamed host".into() } else { name }
}

/// What the world table and the wire are sized for.
pub(crate) const MAX_WORLD_SIZE: usize = 65_536;
/// A DNS name is no longer.
const MAX_HOST_BYTES: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;

    fn detect<const N: usize>(pairs: [(&str, &str); N]) -> Result<Option<Identity>> {
        Identity::detect(&Environment::from(pairs))
    }

    #[test]
    fn nothing_set_is_no_identity() {
        assert_eq!(detect([]).unwrap(), None);
        assert_eq!(detect([("ALLFOLD_RANK", ""), ("HOME", "/")]).unwrap(), None);
    }

    #[test]
    fn torchrun_is_read() {
        let identity = detect([
            ("RANK", "1"),
            ("WORLD_SIZE", "4"),
            ("LOCAL_RANK", "1"),
            ("LOCAL_WORLD_SIZE", "2"),
            ("MASTER_ADDR", "10.0.0.7"),
            ("MASTER_PORT", "4711"),
            ("TORCHELASTIC_RUN_ID", "none"),
        ])
        .unwrap()
        .unwrap();
        assert_eq!((identity.rank, identity.size), (1, 4));
        assert_eq!((identity.local_rank, identity.local_size), (1, 2));
        assert_eq!(identity.rendezvous.as_deref(), Some("10.0.0.7:4711"));
        assert_eq!(identity.job, None, "torchrun's `none` is no job id");
        assert_eq!(identity.launcher, "torchrun");
    }

    #[test]
    fn explicit_settings_come_before_torchrun() {
        let identity = detect([
            ("RANK", "1"),
            ("WORLD_SIZE", "4"),
            ("ALLFOLD_RANK", "2"),
            ("ALLFOLD_WORLD_SIZE", "3"),
            ("ALLFOLD_RENDEZVOUS", "[::1]:29500"),
        ])
        .unwrap()
        .unwrap();
        assert_eq!((identity.rank, identity.size), (2, 3));
        assert_eq!(identity.rendezvous.as_deref(), Some("[::1]:29500"));
    }

    #[test]
    fn wrong_numbers_name_the_variable() {
        let error = detect([("ALLFOLD_RANK", "4"), ("ALLFOLD_WORLD_SIZE", "4")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "ALLFOLD_RANK=4: must be below the world size, 4 (ALLFOLD_WORLD_SIZE); ranks count from 0"
        );
        assert_eq!(error.exit_code(), 2);
        let error = detect([("ALLFOLD_RANK", "x"), ("ALLFOLD_WORLD_SIZE", "4")]).unwrap_err();
        assert_eq!(error.to_string(), "ALLFOLD_RANK=x: must be a whole number");
        for (set, missing) in
            [("ALLFOLD_WORLD_SIZE", "ALLFOLD_RANK"), ("WORLD_SIZE", "RANK"), ("RANK", "WORLD_SIZE")]
        {
            let error = detect([(set, "1")]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{missing} is not set")), "{error}");
        }
        assert!(detect([("ALLFOLD_RENDEZVOUS", "a:1")]).is_err(), "half an environment passed");
        let huge = ("LOCAL_RANK", "18446744073709551615");
        let error = detect([("RANK", "0"), ("WORLD_SIZE", "2"), huge]).unwrap_err();
        assert!(error.to_string().ends_with("must be below the world size, 2"), "{error}");
        let error = detect([("ALLFOLD_RANK", "1")]).unwrap_err();
        assert_eq!(error.to_string(), "ALLFOLD_WORLD_SIZE is not set, but ALLFOLD_RANK is");
    }
}
