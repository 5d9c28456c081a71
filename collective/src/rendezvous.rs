//! How the ranks find each other: rank 0 collects addresses and hands out the world, in two phases.
//!
//! Prepare (the world table) -> everybody connects to the ranks it will watch and acknowledges ->
//! commit. A loss before the commit sends rank 0 back to waiting, with a new epoch.
//!
//! What to do is decided in `gathering` (rank 0) and `attending` (the others), which are pure;
//! `gather` and `attend` have the connections and the timers.

mod addresses;
mod attend;
mod attending;
mod challenges;
mod control_thread;
mod diagnosis;
mod doorkeeper;
mod gather;
mod gathering;
#[cfg(test)]
mod knocking;
mod neighbours;
mod resolver;
mod roster;
mod search;
#[cfg(test)]
mod simulated;
mod sockets;
mod table;
#[cfg(test)]
mod waiting;
mod watching;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::config::{self, Config, Limits, Sharing};
use crate::control::ControlHandle;
use crate::control::launched::{Ending, Launched, Obituary};
use crate::control::processes;
use crate::cores;
use crate::departure;
use crate::error::{EXIT_TRY_AGAIN, Error, ErrorKind, Result};
#[cfg(feature = "faults")]
use crate::faults;
use crate::host_memory::HostMemory;
use crate::identity::{Environment, Ignored, host_name};
use crate::lanes::Lanes;
use crate::link::Links;
use crate::link::quic::{LaneAddress, LaneId, QuicLinks, routes};
use crate::plan::costs::{Choice, CostTable};
use crate::report;
use crate::statistics::Counters;
use crate::trust::Credentials;
use crate::trust::certificates::{LeafHash, Membership};
use crate::trust::hello::{Again, Greeted, Hello, Purpose};
use crate::trust::secret::fill_random;
use crate::verdict::Loss;
use crate::world::{Peer, World};

pub(crate) use attend::Dialled;
use control_thread::Me;
pub use doorkeeper::Doorkeeper;
pub(crate) use neighbours::Mapped;
use neighbours::{neighbours, share_memory, why_apart};
use sockets::{Listen, local_port, port_of, rendezvous_socket};
pub(crate) use table::Entry;
use table::scope_of;
pub(crate) use watching::{ALL_WATCH_ALL, watched};

/// What a communicator is made of.
pub(crate) struct Joined {
    pub(crate) world: Arc<World>,
    pub(crate) lanes: Lanes,
    /// What it shares with the other ranks of its host.
    pub(crate) memory: Option<Arc<HostMemory>>,
    /// Where the other ranks find this one.
    pub(crate) address: IpAddr,
    pub(crate) transport: String,
    pub(crate) security: String,
}

/// The outcome of a rendezvous.
pub(crate) struct Meeting {
    pub(crate) epoch: u64,
    pub(crate) table: Vec<Entry>,
    /// Where this rank reached others, or saw them come from.
    pub(crate) found: BTreeMap<u32, SocketAddr>,
    /// By which all ranks choose their plans.
    pub(crate) costs: CostTable,
    /// By rank: whether it and all others of its home have mapped each other's memory.
    pub(crate) shares: Vec<bool>,
    pub(crate) mapped: Mapped,
}

impl Meeting {
    /// The ways to a rank's port, the best first; rank 0 sees itself where the others do.
    fn ways(&self, entry: &Entry, port: u16) -> Vec<SocketAddr> {
        // The others are on the cable by which rank 0 was met; rank 0 has met them all itself.
        let scope = scope_of(self.found.get(&0).copied());
        entry.ways(self.found.get(&entry.rank).copied(), port, scope)
    }
}

/// What is known of a peer that has knocked and waits to be answered.
struct Knock {
    /// Names its connection.
    link: usize,
    from: SocketAddr,
    hello: Hello,
    leaf: LeafHash,
}

impl Knock {
    fn of(greeted: &Greeted) -> Self {
        Self {
            link: greeted.connection.stable_id(),
            from: routes::plain(greeted.connection.remote_address()),
            hello: greeted.hello.clone(),
            leaf: greeted.leaf,
        }
    }
}

/// Meets the other ranks and makes this one's part of the world.
pub(crate) fn join(mut config: Config, counters: &Arc<Counters>) -> Result<Joined> {
    let rank = config.rank() as u32;
    #[cfg(feature = "faults")]
    faults::happens(|_| faults::Moment::BeforeConnect { rank: rank as usize });
    // The secret is wiped as soon as there are certificates.
    let credentials = match config.credentials.take() {
        Some(given) => given,
        None => Credentials::from_environment(&Environment::of_process(), &config.identity)?,
    };
    let membership = Arc::new(Membership::new(&credentials, &config.job, rank)?);
    drop(credentials);
    let security = membership.security();
    report::info(&format!(
        "rank {rank} of {} as {} says; job {}, {security}; meeting at {}",
        config.size(),
        config.identity.launcher,
        config.job,
        config.rendezvous,
    ));
    for Ignored { launcher, reason, .. } in &config.identity.ignored {
        report::info(&format!("ignored: {launcher}: {reason}"));
    }
    let limits = Limits { dead_after: config.dead_after, ..config.limits };
    let (forced, lanes) = (config.algorithm, config.lanes);
    let mut launched = connect_launcher(&config);
    let here = addresses::of_this_host();
    let listen = Listen::new(&config, &here)?;
    // On a loopback address nobody needs another one.
    let setting = config.interfaces.as_ref().filter(|_| listen.is_everywhere());
    let chosen = addresses::chosen(&here, setting)?;
    let has_chosen = setting.is_some();
    if let Some(warning) = listen.warning(&config) {
        report::warn(&warning);
    }
    let told = listen.told(&config, &chosen);
    sockets::check_ports(&config)?;
    let lane_socket = |lane| listen.bind(port_of(&config, 1 + lane)?, has_chosen, &told);
    let lane_sockets: Vec<UdpSocket> = (0..lanes).map(lane_socket).collect::<Result<_>>()?;
    let lane_ports = lane_sockets.iter().map(local_port).collect::<Result<_>>()?;
    let (socket, turn) = if rank == 0 {
        rendezvous_socket(&config, launched.as_mut(), listen)?
    } else {
        // Packets to rank 0 leave by the way that leads there, whatever is chosen for data.
        (listen.bind_rendezvous(port_of(&config, 0)?)?, None)
    };
    let sharing = config.sharing;
    let memory = match (sharing != Sharing::Never).then(share_memory).transpose() {
        Err(error) if sharing == Sharing::Everywhere => {
            let problem = format!("this rank cannot make memory to share: {error}");
            return Err(config::cannot_share(problem));
        }
        Err(error) => {
            report::info(&format!("no shared memory: {error}"));
            None
        }
        Ok(memory) => memory,
    };
    let hello = Hello {
        version: env!("CARGO_PKG_VERSION").into(),
        rank,
        incarnation: incarnation()?,
        host: host_name(),
        pid: std::process::id(),
        habitat: processes::habitat(),
        purpose: Purpose::Join {
            settings: config.job_wide(),
            addresses: told,
            chosen: has_chosen,
            control_port: local_port(&socket)?,
            lane_ports,
            door: memory.as_ref().map(|(_, doorway)| doorway.door()),
        },
    };
    let (arena, doorway) = memory.unzip();
    let door = arena.clone().zip(doorway);
    let me = Me { hello: hello.clone() };
    let place = (socket, turn, door);
    let (control, meeting) =
        control_thread::start(config, counters, membership.clone(), place, launched, me)?;
    let peers: Vec<Peer> = meeting
        .table
        .iter()
        .map(|entry| {
            let known = Peer::new(entry.rank as usize, &entry.host, entry.pid);
            let ways: Vec<_> = meeting.ways(entry, 0).iter().map(SocketAddr::ip).collect();
            let shares = meeting.shares.get(entry.rank as usize) == Some(&true);
            let home = entry.door.filter(|_| shares).map(|door| door.home);
            Peer { address: ways.first().copied(), ways, habitat: entry.habitat, home, ..known }
        })
        .collect();
    #[cfg(feature = "faults")]
    faults::meet_table(&meeting.table, &meeting.found);
    // Both sides have checked that there is a port for each lane.
    let of_lane = |lane: u16| -> Vec<LaneAddress> {
        let at = |entry: &Entry| {
            let port = entry.lane_ports.get(usize::from(lane)).copied()?;
            Some(LaneAddress { addresses: meeting.ways(entry, port), leaf: entry.leaf })
        };
        meeting.table.iter().filter_map(at).collect()
    };
    let lane_addresses: Vec<_> = (0..lanes).map(of_lane).collect();
    let neighbours = neighbours(&meeting.table, rank).len();
    let shares = neighbours > 0 && meeting.shares.get(rank as usize) == Some(&true);
    let meets_all = shares && neighbours + 1 == peers.len();
    if sharing == Sharing::Everywhere && !meets_all {
        return Err(config::cannot_share(why_apart(&meeting, rank)));
    }
    let memory = arena.filter(|_| shares);
    let others = meeting.mapped.arenas;
    let memory = memory
        .map(|own| Arc::new(HostMemory::new(rank, own, others, cores::suffice(rank, &peers, 1))));
    let several = if lanes > 1 { format!(", {lanes} lanes") } else { String::new() };
    let address_of = |rank: u32| peers.get(rank as usize).and_then(|peer| peer.address);
    let address = address_of(rank).unwrap_or(Ipv4Addr::LOCALHOST.into());
    let is_loopback = |peer: &Peer| peer.address.is_none_or(|ip| ip.is_loopback());
    let transport = match peers.iter().all(is_loopback) {
        _ if meets_all => "shared memory".into(),
        true => format!("quic on {}{several}", address_of(0).unwrap_or(address)),
        false if shares => format!("shared memory within hosts, quic between them{several}"),
        false => format!("quic between hosts{several}"),
    };
    let choice = Choice { costs: meeting.costs, forced, lanes };
    let epoch = meeting.epoch;
    let world = Arc::new(World::new(rank, epoch, peers, limits, choice, counters.clone()));
    let counters = counters.clone();
    // Links of data open at first use, which may be long after now.
    let met = Arc::new(membership.after_meeting(SystemTime::now()));
    let links = lane_sockets.into_iter().zip(lane_addresses).zip(0..);
    let links = links.map(|((socket, addresses), lane)| {
        let (met, hello, counters) = (met.clone(), hello.clone(), counters.clone());
        let id = LaneId { epoch, lane, lanes };
        move || QuicLinks::new(socket, met, hello, id, addresses, counters).map(Links::Quic)
    });
    let lanes = Lanes::start(&world, links)?;
    world.attach(lanes.inboxes().clone(), ControlHandle::Network(control));
    departure::announce(&world);
    // Only now, so that the first verdict already finds lane and control.
    if let Some(control) = world.control() {
        control.serve(world.clone());
    }
    Ok(Joined { world, lanes, memory, address, transport, security })
}

/// The line to `allfold run`, if it started this process.
fn connect_launcher(config: &Config) -> Option<Launched> {
    let path = config.launcher.as_deref()?;
    match Launched::connect(path, config.rank() as u32) {
        Ok(line) => Some(line),
        Err(error) => {
            let path = path.display();
            report::warn(&format!("no line to the launcher: ALLFOLD_LAUNCHER={path}: {error}"));
            None
        }
    }
}

/// The error if the launcher saw a rank end before the ranks had met.
pub(crate) fn ended_early(obituary: &Obituary) -> Option<Error> {
    let how = match obituary.ending {
        Ending::Exit(0) => "exited before the ranks had met".into(),
        // It gave up for what another rank did, and that one's end, or word, comes too.
        Ending::Exit(code) if code == i32::from(EXIT_TRY_AGAIN) => return None,
        ending => format!("{} before the ranks had met", ending.describe()),
    };
    let at = format!("this host, pid {}", obituary.pid);
    let help = Loss::Ended(obituary.ending).help(obituary.rank, "this host");
    Some(ErrorKind::RankLost { rank: obituary.rank as usize, at, how, call: None, help }.into())
}

pub(crate) fn refused(reason: String, again: Again) -> Error {
    if again == Again::Over {
        return ErrorKind::Done { reason }.into();
    }
    let help = "start the same version on every host, by the same image or the same installation";
    let help = reason.contains(RUNS).then(|| help.to_string());
    ErrorKind::Refused { reason, retryable: again != Again::Never, help }.into()
}

fn incarnation() -> Result<u128> {
    let mut bytes = [0; 16];
    fill_random(&mut bytes)?;
    Ok(u128::from_le_bytes(bytes))
}

/// How often a waiting rank says what it waits for.
pub(crate) const SAY_EVERY: Duration = Duration::from_secs(10);
/// A rank that starts with the others finds rank 0 within a few of these.
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(25);
/// And one that starts early does not flood a name server.
pub(crate) const LAST_PAUSE: Duration = Duration::from_secs(1);
/// What a refusal says between a rank and its version.
const RUNS: &str = " runs allfold ";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_after_a_goodbye_that_others_heard_is_no_death() {
        use std::io::Write;
        use std::os::unix::net::UnixListener;
        const SIZE: usize = 12;
        let place = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let secret = crate::Secret::random().unwrap().to_line();
        let path = std::env::temp_dir().join(format!("allfold-obituary-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let launcher = UnixListener::bind(&path).unwrap();
        let lines = std::thread::spawn(move || -> Vec<_> {
            (0..SIZE - 1).map(|_| launcher.accept().unwrap().0).collect()
        });
        let connect = &|rank| {
            let config = Config::new(rank, SIZE, &place.to_string()).unwrap();
            let mut config = config.secret(&secret).unwrap();
            config.launcher = (rank != 0).then(|| path.clone());
            crate::Communicator::connect(config).unwrap()
        };
        let mut world: Vec<_> = std::thread::scope(|scope| {
            let ranks: Vec<_> = (0..SIZE).map(|rank| scope.spawn(move || connect(rank))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        let lines = lines.join().unwrap();
        let _ = std::fs::remove_file(&path);
        world.remove(1).close().unwrap();
        for mut line in &lines {
            // Rank 1's own line has ended.
            let _ = line.write_all(b"lost 1 pid 41 exit 0\n");
        }
        std::thread::sleep(Duration::from_millis(600));
        std::thread::scope(|scope| {
            let close = |rank: crate::Communicator| rank.close().map_err(|e| e.to_string());
            let ends: Vec<_> =
                world.into_iter().map(|rank| scope.spawn(move || close(rank))).collect();
            for end in ends {
                assert_eq!(end.join().unwrap(), Ok(()));
            }
        });
    }
}
