//! How many ranks were asked for: `auto` and `gpu` count what this host has.

use std::thread::available_parallelism;

use allfold::Ranks;

use crate::error::Error;
use crate::gpus;
use crate::options::HostOptions;

/// In figures, where a number was asked for by `option`; what is to be counted on other hosts is
/// refused.
pub(crate) fn asked(
    ranks: Option<Ranks>,
    option: &str,
    hosts: &HostOptions,
) -> Result<Option<usize>, Error> {
    let is_elsewhere = hosts.hosts.is_some() || hosts.hostfile.is_some();
    match ranks {
        Some(Ranks::Auto) if is_elsewhere => Err(elsewhere(option, Ranks::Auto, "cores")),
        Some(Ranks::Gpu) if is_elsewhere => Err(elsewhere(option, Ranks::Gpu, "GPUs")),
        ranks => ranks.map(|ranks| number(ranks, option)).transpose(),
    }
}

/// In figures, on this host.
pub(crate) fn number(ranks: Ranks, option: &str) -> Result<usize, Error> {
    match ranks {
        Ranks::Number(ranks) => Ok(ranks),
        // The standard library counts what the affinity mask and the cgroup's quota leave.
        Ranks::Auto => Ok(available_parallelism().map_or(1, usize::from)),
        Ranks::Gpu => gpus::count(option),
    }
}

fn elsewhere(option: &str, ranks: Ranks, what: &str) -> Error {
    Error::Usage {
        problem: format!(
            "{option} {ranks} counts the {what} of this host, and the ranks are on others"
        ),
        help: Some(format!(
            "drop it: there are as many ranks as slots; give each host as many as it has {what}, as \
             in --hosts h0:8,h1:8"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_other_hosts_is_not_counted_here() {
        let here = HostOptions::default();
        let there = HostOptions { hosts: Some("h0:2".into()), ..HostOptions::default() };
        assert_eq!(asked(Some(Ranks::Number(3)), "-n", &there).unwrap(), Some(3));
        assert_eq!(asked(None, "-n", &here).unwrap(), None);
        assert!(asked(Some(Ranks::Auto), "-n", &here).unwrap() >= Some(1));
        let refused = |ranks| asked(Some(ranks), "-n", &there).unwrap_err();
        for (ranks, problem) in [
            (Ranks::Auto, "-n auto counts the cores of this host, and the ranks are on others"),
            (Ranks::Gpu, "-n gpu counts the GPUs of this host, and the ranks are on others"),
        ] {
            assert_eq!(
                (refused(ranks).to_string().as_str(), refused(ranks).exit_code()),
                (problem, 2)
            );
        }
    }
}
