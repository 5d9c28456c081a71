//! `ALLFOLD_RANK` with `ALLFOLD_WORLD_SIZE` or `ALLFOLD_PEERS`: set by a script, a manifest, or by
//! hand on each host.

use super::choice::Reading;
use super::claim::{self, Claim, Found, Local, master, not_set, unset};
use super::peers::Peers;
use super::{Environment, pods, run};
use crate::error::Result;

/// Outside Kubernetes it comes first.
pub(super) fn read(environment: &Environment) -> Result<Reading> {
    match environment.in_kubernetes() {
        true => Ok(Reading::Absent),
        false => read_anywhere(environment),
    }
}

/// A pod's environment is the same for all processes in it: a launcher among them knows better.
pub(super) fn read_in_pod(environment: &Environment) -> Result<Reading> {
    // Such a number may be a pod's ordinal.
    if !environment.in_kubernetes() || pods::is_numbered(environment) {
        return Ok(Reading::Absent);
    }
    read_anywhere(environment)
}

fn read_anywhere(environment: &Environment) -> Result<Reading> {
    if environment.get(RANK).is_none() || run::is_there(environment) {
        return Ok(Reading::Absent);
    }
    Ok(claim(environment, (RANK, PEERS))?.into())
}

/// Who this is by variables, or options, of these names.
pub(super) fn claim(environment: &Environment, (rank, peers): (&str, &str)) -> Result<Claim> {
    let list =
        environment.get(PEERS).map(|text| Peers::parse(environment, peers, text)).transpose()?;
    let Some(number) = environment.number(RANK)? else {
        let start = format!("set {rank} on every rank to its place in {peers}, 0 being the first");
        return Err(unset(rank, format!("is not set, but {peers} is"), start));
    };
    let number = Found::new(number, rank);
    let size = environment.number(SIZE)?.map(|size| Found::new(size, SIZE));
    let mut claim = match &list {
        Some(list) => {
            let claim = list.claim(number, peers)?;
            if let Some(size) = size.filter(|size| Some(size.value) != claim.known_size()) {
                let problem = format!("must be {}, as {peers} has that many", list.len());
                return Err(super::invalid(SIZE, &size.value.to_string(), &problem));
            }
            claim
        }
        None => {
            let missing = || match environment.in_kubernetes() {
                true => pods::no_size("its controller has", pods::REPLICAS),
                false => not_set(environment, SIZE, RANK, (RANK, SIZE)),
            };
            let mut claim = Claim::new(number, size.ok_or_else(missing), RENDEZVOUS);
            if let Some(master) = master(environment) {
                claim.rendezvous = Ok(master);
            }
            claim
        }
    };
    claim.local = local(environment)?.or(claim.local);
    Ok(claim)
}

/// The place on its host that a rank was told.
pub(super) fn local(environment: &Environment) -> Result<Option<Local>> {
    claim::local(environment, "ALLFOLD_LOCAL_RANK", "ALLFOLD_LOCAL_WORLD_SIZE")
}

/// Where nobody says who this is: half an environment must not train alone in silence, unless it
/// says that there is one rank.
pub(super) fn halves(environment: &Environment) -> Result<Option<Claim>> {
    let Some(set) =
        [PEERS, SIZE, "ALLFOLD_RENDEZVOUS"].into_iter().find(|n| environment.get(n).is_some())
    else {
        return Ok(None);
    };
    if set == SIZE && environment.number(SIZE)? == Some(1) {
        let size = Found::new(1, SIZE);
        return Ok(Some(Claim::new(Found::new(0, ONE), Ok(size), RENDEZVOUS)));
    }
    if environment.in_kubernetes() {
        let help = "add to the container's env: {name: ALLFOLD_RANK, valueFrom: {fieldRef: \
                    {fieldPath: \"metadata.labels['apps.kubernetes.io/pod-index']\"}}}";
        return Err(unset(RANK, format!("is not set, but {set} is"), help));
    }
    let second = if set == PEERS { PEERS } else { SIZE };
    Err(not_set(environment, RANK, set, (RANK, second)))
}

pub(super) const RENDEZVOUS: &str = "set it on every rank to rank 0's address, host:port";
pub(super) const ONE: &str = "ALLFOLD_WORLD_SIZE=1";
pub(super) const RANK: &str = "ALLFOLD_RANK";
pub(super) const SIZE: &str = "ALLFOLD_WORLD_SIZE";
pub(super) const PEERS: &str = "ALLFOLD_PEERS";
