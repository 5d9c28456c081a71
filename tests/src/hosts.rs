//! Hosts of their own on one machine: network namespaces with a name, an address and a network
//! between them. Made of what Linux has (`ip`, `nft`), as root, and gone when dropped.

mod network;
pub mod ssh;

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Pid, Signal, getuid, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{Job, Process};

pub use network::{Network, Weather};

/// Some hosts in one network. Nothing of it touches the machine's own network.
pub struct Hosts {
    /// Of all names of these namespaces.
    prefix: String,
    count: usize,
    network: Option<Network>,
}

impl Hosts {
    /// `count` hosts on one switch. Where this machine cannot have them, the reason.
    ///
    /// # Errors
    /// Why there are none.
    pub fn on_a_switch(count: usize) -> Result<Self, String> {
        let hosts = Self::named(count)?;
        let switch = hosts.switch();
        hosts.make(&switch)?;
        ip(&["-n", &switch, "link", "add", "switch", "type", "bridge"])?;
        ip(&["-n", &switch, "link", "set", "switch", "up"])?;
        for host in 0..count {
            let (name, port) = (hosts.name(host), format!("port{host}"));
            hosts.make_host(host)?;
            let veth = ["type", "veth", "peer", "name", "eth0", "netns", &name];
            ip(&[&["-n", &switch, "link", "add", &port], &veth[..]].concat())?;
            ip(&["-n", &switch, "link", "set", &port, "master", "switch", "up"])?;
            let address = format!("{}/24", Self::address(host));
            ip(&["-n", &name, "addr", "add", &address, "dev", "eth0"])?;
            ip(&["-n", &name, "link", "set", "eth0", "up"])?;
            let table = "add table inet cuts; \
                         add chain inet cuts in { type filter hook input priority 0; }";
            run(Command::new("ip").args(["netns", "exec", &name, "nft", table]))?;
        }
        Ok(hosts)
    }

    /// `count` hosts that are far from each other: what a packet meets on its way, the test says.
    ///
    /// # Errors
    /// Why there are none.
    pub fn far_apart(count: usize, seed: u64) -> Result<Self, String> {
        let mut hosts = Self::named(count)?;
        (0..count).try_for_each(|host| hosts.make_host(host))?;
        let devices: Result<Vec<_>, String> = (0..count)
            .map(|host| {
                let path = Path::new("/run/netns").join(hosts.name(host));
                inside(&path, || network::device(Self::address(host)))
            })
            .collect();
        hosts.network = Some(Network::start(devices?, seed)?);
        Ok(hosts)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Where `host` is.
    pub fn address(host: usize) -> std::net::Ipv4Addr {
        std::net::Ipv4Addr::new(10, 77, 0, 1 + host as u8)
    }

    /// The network between hosts that are far apart.
    pub fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    /// A job with one rank on each host, which meets at the first one's name.
    pub fn job(&self) -> Job {
        let mut job = Job::new(self.count);
        job.rendezvous = format!("{}:29500", host_name(0));
        job
    }

    /// Starts `rank` of a job on its host.
    pub fn start(&self, job: &Job, rank: usize, program: &str, arguments: &[&str]) -> Process {
        Process::start(&mut self.on(rank, &job.rank(rank, program, arguments)))
    }

    /// The same command on `host`, where it is process 1; it ends with what it was started as.
    pub fn on(&self, host: usize, command: &Command) -> Command {
        let mut moved = Command::new("ip");
        moved.args(["netns", "exec", &self.name(host)]);
        // Of its own are also its processes: nobody can watch them from another host.
        moved.args(["unshare", "--uts", "--pid", "--fork", "--kill-child"]);
        moved.args(["sh", "-c", "hostname \"$1\"; shift; exec \"$@\"", "sh"]);
        moved.arg(host_name(host)).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => moved.env(name, value),
                None => moved.env_remove(name),
            };
        }
        moved
    }

    /// Sends a signal to a program that was started on a host.
    pub fn signal(&self, process: &Process, signal: Signal) {
        let id = process.id();
        let path = format!("/proc/{id}/task/{id}/children");
        let children = std::fs::read_to_string(&path).unwrap_or_default();
        let program = children.split_whitespace().next().and_then(|id| id.parse().ok());
        match program.and_then(Pid::from_raw).map(|program| kill_process(program, signal)) {
            Some(Ok(())) => {}
            other => panic!("{path}: {children:?}: {other:?}"),
        }
    }

    /// From now on nothing of what `from` sends arrives at `to`; neither of them sees a link go
    /// down. Only on a switch.
    pub fn cut_one_way(&self, from: usize, to: usize) {
        self.drop_at(to, &format!("ip saddr {}", Self::address(from)));
    }

    /// Cuts both ways.
    pub fn cut(&self, a: usize, b: usize) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    /// Cuts `host` off from all others.
    pub fn cut_off(&self, host: usize) {
        (0..self.count).filter(|other| *other != host).for_each(|other| self.cut(host, other));
    }

    /// Runs a program of the system on `host`; what it printed.
    ///
    /// # Errors
    /// What it said instead.
    pub fn run(&self, host: usize, words: &[&str]) -> Result<String, String> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(host)]).args(words);
        let ended = command.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
        match ended.status.success() {
            true => Ok(String::from_utf8_lossy(&ended.stdout).into_owned()),
            false => Err(format!("{words:?}: {}", String::from_utf8_lossy(&ended.stderr))),
        }
    }

    /// From now on `host` knows these names, and no others; also for programs that run there.
    ///
    /// # Errors
    /// Why not.
    pub fn name_on(&self, host: usize, names: &[(IpAddr, &str)]) -> Result<(), String> {
        let lines = names.iter().map(|(ip, name)| format!("{ip} {name}\n"));
        let text = "127.0.0.1 localhost\n".to_owned() + &lines.collect::<String>();
        // In place: the file is mounted where the programs see it.
        let file = etc(&self.name(host)).join("hosts");
        std::fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()))
    }

    /// What of what arrives at `host` is dropped, besides: an expression of nftables.
    pub fn drop_there(&self, host: usize, which: &str) {
        self.drop_at(host, which);
    }

    /// Nothing that is sent to this UDP port of `host` arrives.
    pub fn close_port(&self, host: usize, port: u16) {
        self.drop_at(host, &format!("udp dport {port}"));
    }

    /// Everything arrives again.
    pub fn heal(&self) {
        for host in 0..self.count {
            self.nft(host, "flush chain inet cuts in");
        }
    }

    fn drop_at(&self, host: usize, which: &str) {
        self.nft(host, &format!("add rule inet cuts in {which} drop"));
    }

    fn nft(&self, host: usize, words: &str) {
        let name = self.name(host);
        if let Err(error) = run(Command::new("ip").args(["netns", "exec", &name, "nft", words])) {
            panic!("{error}");
        }
    }

    fn named(count: usize) -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !getuid().is_root() {
            return Err("needs root, for network namespaces".into());
        }
        for tool in ["ip", "nft", "unshare"] {
            run(Command::new(tool).arg("--version"))
                .or_else(|_| run(Command::new(tool).arg("-V")))
                .map_err(|_| format!("needs the program `{tool}`"))?;
        }
        sweep();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{PREFIX}{}-{number}-", std::process::id());
        Ok(Self { prefix, count, network: None })
    }

    /// Every host's own name leads to a loopback address there, as Debian installs it.
    ///
    /// # Errors
    /// Why not.
    pub fn name_themselves_only(&self) -> Result<(), String> {
        let own = IpAddr::from([127, 0, 1, 1]);
        (0..self.count).try_for_each(|host| self.write_names(host, own))
    }

    fn make_host(&self, host: usize) -> Result<(), String> {
        self.make(&self.name(host))?;
        self.write_names(host, Self::address(host).into())
    }

    /// What `host` knows of all names, its own among them.
    fn write_names(&self, host: usize, own: IpAddr) -> Result<(), String> {
        // `ip netns exec` puts it in the place of /etc/hosts.
        let etc = etc(&self.name(host));
        let address = |other| if other == host { own } else { Self::address(other).into() };
        let lines: Vec<String> = (0..self.count)
            .map(|other| format!("{} {}\n", address(other), host_name(other)))
            .collect();
        std::fs::create_dir_all(&etc)
            .and_then(|()| {
                std::fs::write(
                    etc.join("hosts"),
                    "127.0.0.1 localhost\n".to_owned() + &lines.concat(),
                )
            })
            .map_err(|error| format!("{}: {error}", etc.display()))
    }

    fn make(&self, name: &str) -> Result<(), String> {
        ip(&["netns", "add", name]).map_err(|error| format!("no network namespaces: {error}"))?;
        ip(&["-n", name, "link", "set", "lo", "up"])
    }

    fn name(&self, host: usize) -> String {
        format!("{}{host}", self.prefix)
    }

    fn switch(&self) -> String {
        format!("{}switch", self.prefix)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        // The devices first: they keep the namespaces alive.
        self.network = None;
        for name in (0..self.count).map(|host| self.name(host)).chain([self.switch()]) {
            remove(&name);
        }
    }
}

/// `host-2`: what a host calls itself, and the others call it.
pub fn host_name(host: usize) -> String {
    format!("host-{host}")
}

/// Removes what test processes have left that were killed.
fn sweep() {
    let Ok(names) = std::fs::read_dir("/run/netns") else { return };
    for name in names.flatten() {
        let name = name.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        let is_gone = |owner: &str| !Path::new("/proc").join(owner).exists();
        if owner.is_some_and(is_gone) {
            remove(&name);
        }
    }
}

fn remove(name: &str) {
    // Nothing is left to be done where it fails; the next run sweeps.
    let _ = ip(&["netns", "del", name]);
    let _ = std::fs::remove_dir_all(etc(name));
}

fn etc(name: &str) -> PathBuf {
    Path::new("/etc/netns").join(name)
}

/// Does it on a thread within a network namespace.
fn inside<R: Send>(
    namespace: &Path,
    act: impl FnOnce() -> Result<R, String> + Send,
) -> Result<R, String> {
    let enter = || {
        let file = File::open(namespace).map_err(|error| error.to_string())?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|error| format!("cannot enter {}: {error}", namespace.display()))?;
        act()
    };
    std::thread::scope(|scope| scope.spawn(enter).join())
        .unwrap_or_else(|_| Err("panicked within a namespace".into()))
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    run(Command::new("ip").args(arguments))
}

fn run(command: &mut Command) -> Result<(), String> {
    let ended = command.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    match ended.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&ended.stderr);
            Err(format!("{command:?}: {}", said.lines().next().unwrap_or("failed")))
        }
    }
}

/// Of the names of namespaces; then comes the id of the process that made it.
const PREFIX: &str = "allfold-";
