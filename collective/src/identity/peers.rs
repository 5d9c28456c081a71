//! A list of all ranks' addresses, as `--peers` and TF_CONFIG have it: rank 0 first.

use std::collections::BTreeSet;

use super::claim::{Claim, Found, Local};
use super::{Environment, by_hand, invalid};
use crate::config::{HostPort, default_port};
use crate::error::Result;

pub(super) struct Peers(Vec<HostPort>);

impl Peers {
    /// `a:2222,b:2222`; `name` is where it stands.
    pub(super) fn parse(environment: &Environment, name: &str, text: &str) -> Result<Self> {
        let list = text.trim().trim_end_matches(',').split(',').map(str::trim);
        Self::of(list, default_port(environment)?).map_err(|problem| invalid(name, text, &problem))
    }

    /// An error says what is wrong with the list.
    pub(super) fn of<'a>(
        list: impl Iterator<Item = &'a str>,
        default_port: u16,
    ) -> Result<Self, String> {
        let mut seen = BTreeSet::new();
        let mut peers = Vec::new();
        for text in list {
            let peer = HostPort::read(text, default_port).map_err(|problem| {
                format!("has the entry `{}`: {problem}", text.escape_default())
            })?;
            if !seen.insert(peer.to_string()) {
                return Err(format!("names {peer} twice"));
            }
            peers.push(peer);
        }
        Ok(Self(peers))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Who this rank is by the list, which stands in `name`.
    pub(super) fn claim(&self, rank: Found<usize>, name: &str) -> Result<Claim> {
        let number = rank.value;
        let size = Found::new(self.len(), name);
        let mut claim = Claim::new(rank, Ok(size), by_hand::RENDEZVOUS);
        if let Some(first) = self.0.first() {
            claim.rendezvous = Ok(Found::new(first.to_string(), format!("{name}, first entry")));
        }
        claim.port = self.0.get(number).map(|own| own.port);
        claim.local = self.0.get(number).map(|own| {
            let is_here = |peer: &&HostPort| peer.host == own.host;
            Local {
                rank: Found::new(self.0[..number].iter().filter(is_here).count(), name),
                size: Found::new(self.0.iter().filter(is_here).count(), name),
            }
        });
        Ok(claim)
    }

    pub(super) fn first(&self) -> Option<&HostPort> {
        self.0.first()
    }
}
