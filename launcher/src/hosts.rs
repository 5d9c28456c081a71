//! Ranks on several hosts, over ssh: the launcher here leads, and starts one launcher on each host.
//!
//! Reading order: `list` says which hosts; `ssh` calls one, `call` is the line to it, `words` what
//! is said there; `leading` is the launcher here, `led` the one on a host, which is an ordinary
//! attempt of its share of the ranks.

mod call;
pub(crate) mod leading;
pub(crate) mod led;
mod list;
mod ssh;
pub(crate) mod words;

pub(crate) use call::News;

use std::ops::Range;

use rustix::system::uname;

use crate::error::Error;
use crate::meeting::Meeting;
use crate::options::HostOptions;
use crate::program::own_binary;
use crate::share::MAX_WORLD;
use list::Host;

/// The hosts of a job, and how to reach them.
pub(crate) struct Hosts {
    places: Vec<Place>,
    /// Where rank 0 listens; port 0 is any.
    listen: Meeting,
    ssh: String,
    /// Where allfold is on them.
    path: String,
    /// The option that names them.
    source: String,
}

/// One host, and the ranks it gets.
struct Place {
    host: Host,
    ranks: Range<usize>,
    /// It is this one: no ssh is needed.
    is_here: bool,
}

impl Hosts {
    /// What the options say; None where they name no hosts.
    pub(crate) fn of(options: &HostOptions, ranks: Option<usize>) -> Result<Option<Self>, Error> {
        let (source, all) = match (&options.hosts, &options.hostfile) {
            (Some(text), _) => ("--hosts".to_owned(), list::parse(text)?),
            (None, Some(path)) => (path.display().to_string(), list::read(path)?),
            (None, None) => return Ok(None),
        };
        let own = uname().nodename().to_string_lossy().into_owned();
        let is_here = |host: &Host| host.user().is_none() && is_own_name(host.name(), &own);
        let places = deal(merged(all, is_here), ranks, &source, is_here)?;
        let listen = match &options.rdzv {
            Some(meeting) => meeting.clone(),
            None => Meeting { host: first_name(&places, &source)?, port: 0 },
        };
        let own_path = || own_binary().display().to_string();
        let path = options.remote_path.clone().unwrap_or_else(own_path);
        let ssh = options.ssh.clone().unwrap_or_else(|| ssh::DEFAULT.into());
        Ok(Some(Self { places, listen, ssh, path, source }))
    }

    /// The world size.
    pub(crate) fn ranks(&self) -> usize {
        self.places.last().map_or(0, |place| place.ranks.end)
    }

    /// The most ranks that one host has.
    pub(crate) fn most(&self) -> usize {
        self.places.iter().map(|place| place.ranks.len()).max().unwrap_or(0)
    }
}

/// Refuses what only means something beside hosts.
pub(crate) fn refuse_without(options: &HostOptions, has_nodes: bool) -> Result<(), Error> {
    let has_hosts = options.hosts.is_some() || options.hostfile.is_some();
    let needs_hosts = options.first_given().filter(|_| !has_hosts);
    match needs_hosts.filter(|option| !(has_nodes && *option == "--rdzv")) {
        None => Ok(()),
        Some(option) => Err(Error::Usage {
            problem: match has_nodes {
                true => {
                    format!("{option} is for ranks on several hosts by --hosts, and none are given")
                }
                false => format!("{option} is for ranks on several hosts, and none are given"),
            },
            help: Some(match option {
                "--rdzv" => "add --hosts, or --nnodes, --node-rank and --nproc-per-node".into(),
                _ => format!("add --hosts h0:2,h1:2 or --hostfile FILE, or drop {option}"),
            }),
        }),
    }
}

/// Gives each host its ranks, in order; hosts beyond the last rank get none.
fn deal(
    hosts: Vec<Host>,
    ranks: Option<usize>,
    source: &str,
    is_here: impl Fn(&Host) -> bool,
) -> Result<Vec<Place>, Error> {
    let slots: usize = hosts.iter().map(|host| host.slots).sum();
    let ranks = ranks.unwrap_or(slots);
    if ranks == 0 || ranks > MAX_WORLD {
        return Err(Error::Usage {
            problem: format!("{ranks} ranks: a job has 1 to {MAX_WORLD}"),
            help: Some("say how many with -n N".into()),
        });
    }
    if ranks > slots {
        let slots = if slots == 1 { "1 slot".into() } else { format!("{slots} slots") };
        return Err(Error::Usage {
            problem: format!("{ranks} ranks, but the hosts of {source} have only {slots}"),
            help: Some(format!(
                "ask for fewer ranks, or raise the slots in {source}: a host's number of ranks, as \
                 in h0:{}",
                ranks.div_ceil(hosts.len().max(1))
            )),
        });
    }
    let mut first = 0;
    let mut places = Vec::new();
    for host in hosts {
        let end = ranks.min(first + host.slots);
        if first < end {
            let is_here = is_here(&host);
            places.push(Place { host, ranks: first..end, is_here });
        }
        first = end;
    }
    Ok(places)
}

/// The name at which the others find the first host.
fn first_name(places: &[Place], source: &str) -> Result<String, Error> {
    let first = places.first().map(|place| place.host.name()).unwrap_or_default();
    let meeting = Meeting { host: first.into(), port: 0 };
    let is_loopback = |place: &Place| name_of(&place.host).loopback().is_some();
    let other = places.iter().find(|place| !place.is_here && !is_loopback(place));
    match other.filter(|_| meeting.loopback().is_some()) {
        None => Ok(meeting.host),
        Some(other) => Err(Error::Usage {
            problem: format!(
                "ranks meet at the first host, and {first} is another one on {}",
                other.host.name()
            ),
            help: Some(format!(
                "name this host in {source} as the others do, or give --rdzv HOST:PORT"
            )),
        }),
    }
}

/// This host under several names has one launcher, which alone knows all of its ranks.
fn merged(hosts: Vec<Host>, is_here: impl Fn(&Host) -> bool) -> Vec<Host> {
    let mut merged: Vec<Host> = Vec::new();
    for host in hosts {
        match merged.iter_mut().find(|other| is_here(other) && is_here(&host)) {
            Some(same) => same.slots += host.slots,
            None => merged.push(host),
        }
    }
    merged
}

fn name_of(host: &Host) -> Meeting {
    Meeting { host: host.name().into(), port: 0 }
}

/// Whether a name is this host's own, which calls itself `own`.
fn is_own_name(name: &str, own: &str) -> bool {
    let meeting = Meeting { host: name.into(), port: 0 };
    let short = own.split('.').next().unwrap_or(own);
    let is = |other: &str| !other.is_empty() && name.eq_ignore_ascii_case(other);
    meeting.loopback().is_some() || is(own) || is(short)
}

/// The hidden subcommand that the launcher on a host is.
pub(crate) const SUBCOMMAND: &str = "host";

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(text: &str, ranks: Option<usize>) -> Result<Hosts, Error> {
        let options = HostOptions { hosts: Some(text.into()), ..HostOptions::default() };
        Hosts::of(&options, ranks).map(Option::unwrap)
    }

    #[test]
    fn ranks_fill_the_hosts_in_order() {
        let dealt = |ranks| {
            let hosts = hosts("h0:2,h1:3,h2:1", ranks).unwrap();
            hosts.places.iter().map(|place| place.ranks.clone()).collect::<Vec<_>>()
        };
        assert_eq!(dealt(None), [0..2, 2..5, 5..6]);
        assert_eq!(dealt(Some(3)), [0..2, 2..3]);
        assert_eq!(dealt(Some(1)).last(), Some(&(0..1)));
        assert_eq!(hosts("h0:2,h1:3", None).unwrap().most(), 3);
    }

    #[test]
    fn more_ranks_than_slots_names_both() {
        let error = hosts("h0:2,h1:2", Some(6)).err().unwrap();
        assert_eq!(error.to_string(), "6 ranks, but the hosts of --hosts have only 4 slots");
        assert!(error.help().unwrap().ends_with("as in h0:3"));
        assert_eq!(error.exit_code(), 2);
        assert!(hosts("h0:2", Some(0)).is_err());
    }

    #[test]
    fn a_loopback_name_is_no_place_for_others_to_meet() {
        let error = hosts("localhost:2,h1:2", None).err().unwrap();
        assert_eq!(
            error.to_string(),
            "ranks meet at the first host, and localhost is another one on h1"
        );
        assert_eq!(hosts("localhost:2", None).unwrap().listen.host, "localhost");
        assert_eq!(hosts("me@h0:2,h1:2", None).unwrap().listen.host, "h0");
        let rdzv = Some("h7:1".parse().unwrap());
        let both = Some("localhost:2,h1:2".into());
        let options = HostOptions { hosts: both, rdzv, ..HostOptions::default() };
        assert_eq!(Hosts::of(&options, None).unwrap().unwrap().listen.to_string(), "h7:1");
    }

    #[test]
    fn this_host_is_known_by_its_names() {
        for name in ["localhost", "127.0.0.1", "h0", "h0.example.org"] {
            assert!(is_own_name(name, "h0.example.org"), "{name}");
        }
        for name in ["h1", "h0.example.com", "h0.example", ""] {
            assert!(!is_own_name(name, "h0.example.org"), "{name}");
        }
    }

    #[test]
    fn another_user_of_this_host_is_reached_by_ssh() {
        let places = |text: &str| {
            let hosts = hosts(text, None).unwrap();
            let place = |place: &Place| (place.host.destination.clone(), place.is_here);
            hosts.places.iter().map(place).collect::<Vec<_>>()
        };
        assert_eq!(places("localhost:2"), [("localhost".into(), true)]);
        assert_eq!(places("bob@localhost:2"), [("bob@localhost".into(), false)]);
    }

    #[test]
    fn this_host_under_several_names_is_one() {
        let hosts = hosts("localhost:2,127.0.0.1,LOCALHOST:3", None).unwrap();
        let [place] = &hosts.places[..] else { panic!("{}", hosts.places.len()) };
        assert_eq!((place.host.destination.as_str(), place.host.slots), ("localhost", 6));
    }

    #[test]
    fn an_option_without_hosts_is_refused() {
        let ssh = HostOptions { ssh: Some("x".into()), ..HostOptions::default() };
        assert!(refuse_without(&ssh, true).is_err());
        let rdzv = HostOptions { rdzv: Some("h0:1".parse().unwrap()), ..HostOptions::default() };
        assert!(refuse_without(&rdzv, false).is_err());
        assert!(refuse_without(&rdzv, true).is_ok());
        assert!(refuse_without(&HostOptions::default(), false).is_ok());
    }
}
