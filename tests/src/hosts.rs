//! Hosts of their own on one machine: network namespaces with a name, an address and a network
//! between them. Made of what Linux has (`ip`, `nft`), as root, and gone when dropped.

mod network;
pub mod ssh;

use std::net::IpAddr;
use std::process::{Command, Stdio};

use rustix::process::{Signal, kill_process};

use crate::namespaces::{Namespaces, etc, first_child, inside, ip, nft};
use crate::{Job, Process};

pub use network::{Network, Weather};

/// Some hosts in one network. Nothing of it touches the machine's own network.
pub struct Hosts {
    count: usize,
    // Before the namespaces: its devices keep them alive.
    network: Option<Network>,
    namespaces: Namespaces,
}

impl Hosts {
    /// `count` hosts on one switch. Where this machine cannot have them, the reason.
    ///
    /// # Errors
    /// Why there are none.
    pub fn on_a_switch(count: usize) -> Result<Self, String> {
        let hosts = Self::named(count)?;
        let switch = hosts.namespaces.make_switch()?;
        for host in 0..count {
            let (name, port) = (hosts.name(host), format!("port{host}"));
            hosts.make_host(host)?;
            hosts.namespaces.plug(host, &port)?;
            ip(&["-n", &switch, "link", "set", &port, "up"])?;
            let address = format!("{}/24", Self::address(host));
            ip(&["-n", &name, "addr", "add", &address, "dev", "eth0"])?;
            ip(&["-n", &name, "link", "set", "eth0", "up"])?;
            let table = "add table inet cuts; \
                         add chain inet cuts in { type filter hook input priority 0; }";
            nft(&name, table)?;
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
            .map(|host| inside(&hosts.name(host), || network::device(Self::address(host))))
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
        self.moved(host, &[], command)
    }

    fn moved(&self, host: usize, more: &[&str], command: &Command) -> Command {
        let mut moved = Command::new("ip");
        moved.args(["netns", "exec", &self.name(host)]);
        // Of its own are also its processes: nobody can watch them from another host.
        moved.args(["unshare", "--uts", "--pid", "--fork", "--kill-child"]).args(more);
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
        let program = first_child(process.id());
        if let Err(error) = program
            .and_then(|program| kill_process(program, signal).map_err(|error| error.to_string()))
        {
            panic!("{error}");
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
        if let Err(error) = nft(&self.name(host), words) {
            panic!("{error}");
        }
    }

    fn named(count: usize) -> Result<Self, String> {
        let namespaces = Namespaces::new(&["ip", "nft", "unshare"])?;
        Ok(Self { count, network: None, namespaces })
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
        self.namespaces.make(host)?;
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

    fn name(&self, host: usize) -> String {
        self.namespaces.name(host)
    }
}

/// `host-2`: what a host calls itself, and the others call it.
pub fn host_name(host: usize) -> String {
    format!("host-{host}")
}
