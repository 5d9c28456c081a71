//! A look-alike of a StatefulSet: pods made from the manifest that `allfold manifest` prints, in
//! network, UTS, IPC, mount and PID namespaces of their own, with the cluster's DNS, the kubelet's
//! files and restarts, and a folder for the claim. Nothing of it touches the machine's own network,
//! and it is gone when dropped.

mod kubelet;
mod manifest;
mod names;

use std::fmt::Write;
use std::io::{Read, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::CAP;
use crate::namespaces::{Namespaces, inside, ip, nft, run};
use kubelet::{Diary, Pod};
use manifest::Manifest;
use names::Names;

pub use kubelet::Happening;
pub use names::Unknown;

/// What a cluster is like.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// The addresses of pods.
    pub families: Families,
    /// Only pods whose container runs have a name, as if the Service had no
    /// `publishNotReadyAddresses` and the container no readiness probe. (With the probe and without
    /// `publishNotReadyAddresses` no rank could find another: they are ready when they have met.)
    pub names_ready_only: bool,
    /// What DNS says to other names.
    pub unknown: Unknown,
    /// Each pod has, beside its own, addresses that every other pod has, too, on interfaces that
    /// are called and numbered as Docker and libvirt do.
    pub duplicates: bool,
    /// Larger packets vanish between the pods, whose own interfaces allow 1,500 bytes.
    pub path_mtu: Option<u32>,
    /// After the second end of a container, 10 s in Kubernetes; then twice as much each time.
    pub back_off: Duration,
    /// Variables beside those of the manifest.
    pub environment: Vec<(String, String)>,
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            families: Families::Both,
            names_ready_only: false,
            unknown: Unknown::NoSuchName,
            duplicates: false,
            path_mtu: None,
            back_off: Duration::from_secs(1),
            environment: Vec::new(),
        }
    }
}

/// The addresses of pods. IPv4 and IPv6 alike are in DNS where there are both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// Both work.
    Both,
    /// There is no other.
    OnlyV4,
    /// There is no other.
    OnlyV6,
    /// No packet between pods arrives over IPv4.
    DeadV4,
    /// No packet between pods arrives over IPv6.
    DeadV6,
}

impl Families {
    fn has_v4(self) -> bool {
        self != Self::OnlyV6
    }

    fn has_v6(self) -> bool {
        self != Self::OnlyV4
    }
}

/// The pods of a StatefulSet, those that exist.
pub struct StatefulSet {
    pods: Vec<Option<Pod>>,
    diaries: Vec<Arc<Diary>>,
    began: Instant,
    /// How many pods have been made: each has an address of its own.
    made: u16,
    names: Arc<Names>,
    cluster: Cluster,
    manifest: Manifest,
    image: PathBuf,
    files: PathBuf,
    // At last: what runs in them has ended by then.
    namespaces: Namespaces,
}

impl StatefulSet {
    /// One of `replicas` pods, none of which exists so far, in which `program` does what
    /// `arguments` say. Where this machine cannot have it, the reason. The thread that makes it
    /// must outlive it.
    ///
    /// # Errors
    /// Why there is none.
    pub fn new(
        program: &str,
        replicas: usize,
        arguments: &[&str],
        cluster: Cluster,
    ) -> Result<Self, String> {
        let tools = ["ip", "nft", "unshare", "setpriv", "mount", "chroot", "hostname", "dnsmasq"];
        let namespaces = Namespaces::new(&tools)?;
        can_make_containers()?;
        let manifest = Manifest::print(program, replicas, arguments)?;
        let files = namespaces.folder()?;
        let domain = format!("{}.{DOMAIN}", manifest.service);
        let switch = namespaces.make_switch()?;
        let resolver = if cluster.families.has_v4() { DNS_V4.into() } else { IpAddr::V6(DNS_V6) };
        if cluster.families.has_v4() {
            ip(&["-n", &switch, "addr", "add", &format!("{DNS_V4}/24"), "dev", "switch"])?;
        }
        if cluster.families.has_v6() {
            let address = format!("{DNS_V6}/64");
            ip(&["-n", &switch, "addr", "add", &address, "dev", "switch", "nodad"])?;
        }
        let names = Names::serve(&switch, resolver, domain, cluster.unknown, &files)?;
        fill_volumes(&files, &manifest).map_err(|error| format!("{}: {error}", files.display()))?;
        Ok(Self {
            pods: (0..replicas).map(|_| None).collect(),
            diaries: (0..replicas).map(|_| Arc::default()).collect(),
            began: Instant::now(),
            made: 0,
            names: Arc::new(names),
            cluster,
            manifest,
            image: PathBuf::from(program),
            files,
            namespaces,
        })
    }

    /// How many pods there should be.
    pub fn replicas(&self) -> usize {
        self.manifest.replicas
    }

    /// The folder that stands for the claim.
    pub fn claim(&self) -> PathBuf {
        self.files.join(CLAIM)
    }

    /// Where the claim is in a pod.
    pub fn claim_in_pods(&self) -> &str {
        self.manifest.claim.as_deref().unwrap_or_default()
    }

    /// All pods at once, as `podManagementPolicy: Parallel` does.
    pub fn create_all(&mut self) {
        (0..self.replicas()).for_each(|ordinal| self.create(ordinal));
    }

    /// Makes a pod, at an address that no pod had before, and starts its container.
    pub fn create(&mut self, ordinal: usize) {
        assert!(self.pods[ordinal].is_none(), "{} is there", self.manifest.pod(ordinal));
        self.made += 1;
        match self.make(ordinal, self.made) {
            Ok(pod) => self.pods[ordinal] = Some(pod),
            Err(error) => panic!("{}: {error}", self.manifest.pod(ordinal)),
        }
    }

    /// `kubectl delete pod`: its name goes, its program has SIGTERM, and after the manifest's grace
    /// SIGKILL, and its address goes.
    pub fn delete(&mut self, ordinal: usize) {
        self.remove(ordinal, self.manifest.grace);
    }

    /// `kubectl delete pod --force --grace-period=0`, or a node that is gone: no time for anything.
    pub fn delete_at_once(&mut self, ordinal: usize) {
        self.remove(ordinal, Duration::ZERO);
    }

    /// Kills a pod's program, as for want of memory: name and address stay.
    pub fn crash(&self, ordinal: usize) {
        self.pod(ordinal).signal(Signal::KILL);
    }

    /// Waits for a line that contains `text`, among those of this name's containers that came after
    /// what was waited for before.
    pub fn wait_for_line(&self, ordinal: usize, text: &str) -> String {
        let is_it = |it: &Happening| matches!(it, Happening::Line(line) if line.contains(text));
        match self.wait_for(ordinal, &format!("`{text}`"), is_it) {
            Happening::Line(line) => line,
            _ => String::new(),
        }
    }

    /// Waits for the start of a container.
    pub fn wait_for_start(&self, ordinal: usize) {
        self.wait_for(ordinal, "start", |it| *it == Happening::Started);
        // Until it is what the image has.
        let _ = self.pod(ordinal).id();
    }

    /// Waits for the end of a container; its code.
    pub fn wait_for_end(&self, ordinal: usize) -> i32 {
        match self.wait_for(ordinal, "end", |it| matches!(it, Happening::Ended(_))) {
            Happening::Ended(code) => code,
            _ => -1,
        }
    }

    /// What has happened to the containers of this name.
    pub fn happenings(&self, ordinal: usize) -> Vec<Happening> {
        self.diaries[ordinal].happenings().into_iter().map(|(_, happening)| happening).collect()
    }

    /// How many containers of this name have started.
    pub fn starts(&self, ordinal: usize) -> usize {
        self.happenings(ordinal).iter().filter(|it| **it == Happening::Started).count()
    }

    /// What all containers of this name have printed.
    pub fn lines(&self, ordinal: usize) -> Vec<String> {
        let line = |happening| match happening {
            Happening::Line(line) => Some(line),
            _ => None,
        };
        self.happenings(ordinal).into_iter().filter_map(line).collect()
    }

    /// Everything, with the seconds since the set was made, for a test that fails.
    pub fn story(&self) -> String {
        let pods = self.diaries.iter().enumerate();
        let mut all: Vec<_> = pods
            .flat_map(|(pod, diary)| diary.happenings().into_iter().map(move |it| (pod, it)))
            .collect();
        all.sort_by_key(|(_, (at, _))| *at);
        let mut story = String::new();
        for (pod, (at, happening)) in all {
            let since = at.duration_since(self.began).as_secs_f64();
            let _ = match happening {
                Happening::Line(line) => writeln!(story, "{since:8.3} {pod}  {line}"),
                other => writeln!(story, "{since:8.3} {pod}  ----- {other:?}"),
            };
        }
        story
    }

    /// What the kubelet's readiness probe finds: HTTP's status, or none where nobody answers.
    pub fn readiness(&self, ordinal: usize) -> Option<u16> {
        let probe = &self.manifest.probe;
        let ask = || {
            let own = match self.cluster.families.has_v4() {
                true => Ipv4Addr::LOCALHOST.into(),
                false => IpAddr::V6(Ipv6Addr::LOCALHOST),
            };
            let at = SocketAddr::new(own, probe.port);
            let mut stream = TcpStream::connect(at).map_err(|error| error.to_string())?;
            let mut answer = String::new();
            write!(stream, "GET {} HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n", probe.path)
                .and_then(|()| stream.set_read_timeout(Some(CAP)))
                .and_then(|()| stream.read_to_string(&mut answer))
                .map_err(|error| error.to_string())?;
            answer.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or(answer)
        };
        inside(&self.namespaces.name(ordinal), ask).ok()
    }

    /// How long the program has run on a processor so far.
    pub fn processor_time(&self, ordinal: usize) -> Duration {
        let program = self.pod(ordinal).id().map_or(0, |pid| pid.as_raw_pid());
        let text = std::fs::read_to_string(format!("/proc/{program}/stat")).unwrap_or_default();
        // After the name, which may contain anything: fields 14 and 15, in ticks.
        let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields);
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.filter_map(|field| field.parse::<u64>().ok()).sum();
        Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
    }

    fn wait_for(
        &self,
        ordinal: usize,
        what: &str,
        is_it: impl FnMut(&Happening) -> bool,
    ) -> Happening {
        self.diaries[ordinal].wait_for(LIMIT, is_it).unwrap_or_else(|()| {
            panic!("{}: no {what}, but\n{}", self.manifest.pod(ordinal), self.story())
        })
    }

    fn pod(&self, ordinal: usize) -> &Pod {
        match &self.pods[ordinal] {
            Some(pod) => pod,
            None => panic!("{} is not there", self.manifest.pod(ordinal)),
        }
    }

    fn remove(&mut self, ordinal: usize, grace: Duration) {
        let Some(pod) = self.pods[ordinal].take() else { return };
        self.names.withdraw(&self.manifest.pod(ordinal));
        pod.end(grace);
        self.namespaces.remove(ordinal);
    }

    fn make(&self, ordinal: usize, number: u16) -> Result<Pod, String> {
        let addresses = self.addresses(number);
        self.make_network(ordinal, number, &addresses)?;
        let files = self.make_files(ordinal, &addresses).map_err(|error| error.to_string())?;
        let (name, names) = (self.manifest.pod(ordinal), self.names.clone());
        let ready_only = self.cluster.names_ready_only || !self.manifest.publishes_all;
        if !ready_only {
            names.publish(&name, &addresses);
        }
        let sign = move |runs| match (ready_only, runs) {
            (false, _) => {}
            (true, true) => names.publish(&name, &addresses),
            (true, false) => names.withdraw(&name),
        };
        let program = Path::new(&self.manifest.command[0]).file_name().unwrap_or_default();
        let program = program.to_string_lossy().into_owned();
        let command = self.container(ordinal, number, &files);
        let diary = self.diaries[ordinal].clone();
        Ok(Pod::start(diary, program, command, self.cluster.back_off, sign))
    }

    fn addresses(&self, number: u16) -> Vec<IpAddr> {
        let families = self.cluster.families;
        let [.., third, fourth] = (FIRST_POD + u32::from(number)).to_be_bytes();
        let v4 = Ipv4Addr::new(10, 244, third, fourth).into();
        let v6 = Ipv6Addr::from_bits(DNS_V6.to_bits() + u128::from(FIRST_POD) + u128::from(number));
        let v4 = families.has_v4().then_some(v4);
        v4.into_iter().chain(families.has_v6().then_some(v6.into())).collect()
    }

    fn make_network(
        &self,
        ordinal: usize,
        number: u16,
        addresses: &[IpAddr],
    ) -> Result<(), String> {
        let name = self.namespaces.make(ordinal)?;
        let (switch, port) = (self.namespaces.name("switch"), format!("pod{number}"));
        self.namespaces.plug(ordinal, &port)?;
        for address in addresses {
            let length = if address.is_ipv4() { 24 } else { 64 };
            let address = format!("{address}/{length}");
            let add = ["-n", &name, "addr", "add", &address, "dev", "eth0"];
            // What is unique by its making need not be asked for.
            ip(&[&add[..], if length == 64 { &["nodad"] } else { &[] }].concat())?;
        }
        if let Some(mtu) = self.cluster.path_mtu {
            ip(&["-n", &switch, "link", "set", &port, "mtu", &mtu.to_string()])?;
            // Else packets that the kernel has not cut yet pass as one, of whatever size.
            ip(&["-n", &name, "link", "set", "eth0", "gso_max_segs", "1"])?;
        }
        ip(&["-n", &switch, "link", "set", &port, "up"])?;
        ip(&["-n", &name, "link", "set", "eth0", "up"])?;
        let dead = match self.cluster.families {
            Families::DeadV4 => Some(format!("ip saddr 10.244.0.0/16 ip saddr != {DNS_V4}")),
            Families::DeadV6 => Some(format!("ip6 saddr fd00:244::/64 ip6 saddr != {DNS_V6}")),
            Families::Both | Families::OnlyV4 | Families::OnlyV6 => None,
        };
        if let Some(dead) = dead {
            let chain = format!(
                "table inet dead {{ chain in {{ type filter hook input priority 0; \
                 iif != lo meta l4proto {{ tcp, udp, icmp }} {dead} drop; }}; }}"
            );
            nft(&name, &chain)?;
        }
        if self.cluster.duplicates {
            for (bridge, addresses) in DUPLICATES {
                let end = format!("{bridge}c");
                ip(&["-n", &name, "link", "add", bridge, "type", "bridge"])?;
                for address in addresses {
                    let add = ["-n", &name, "addr", "add", address, "dev", bridge];
                    ip(&[&add[..], if address.contains(':') { &["nodad"] } else { &[] }].concat())?;
                }
                // Up, as with a container at it.
                let veth = ["type", "veth", "peer", "name", &end];
                let port = format!("{bridge}p");
                ip(&[&["-n", &name, "link", "add", &port], &veth[..]].concat())?;
                ip(&["-n", &name, "link", "set", &port, "master", bridge, "up"])?;
                ip(&["-n", &name, "link", "set", &end, "up"])?;
                ip(&["-n", &name, "link", "set", bridge, "up"])?;
            }
        }
        Ok(())
    }

    /// The files that the kubelet puts into the container's /etc.
    fn make_files(&self, ordinal: usize, addresses: &[IpAddr]) -> std::io::Result<PathBuf> {
        let files = self.files.join(ordinal.to_string());
        std::fs::create_dir_all(files.join("root"))?;
        let (name, service) = (self.manifest.pod(ordinal), &self.manifest.service);
        let mut hosts = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n");
        for address in addresses {
            let _ = writeln!(hosts, "{address}\t{name}.{service}.{DOMAIN}\t{name}");
        }
        std::fs::write(files.join("hosts"), hosts)?;
        let resolver = match self.cluster.families.has_v4() {
            true => DNS_V4.to_string(),
            false => DNS_V6.to_string(),
        };
        let resolv = format!(
            "nameserver {resolver}\nsearch {DOMAIN} svc.cluster.local cluster.local\n\
             options ndots:5\n"
        );
        std::fs::write(files.join("resolv.conf"), resolv)?;
        Ok(files)
    }

    fn container(&self, ordinal: usize, number: u16, files: &Path) -> Command {
        let name = self.manifest.pod(ordinal);
        let mut command = isolated(&self.namespaces.name(ordinal));
        command.args(["sh", "-c", SHIM, "shim", CONTAINER, &format!("container-{number}")]);
        command.arg(files).arg(&self.image).args([&name, &self.manifest.user.to_string()]);
        command.args([&self.manifest.secret, self.claim_in_pods()]).args(&self.manifest.command);
        command.env_clear().env("PATH", "/image:/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/");
        command.env("HOSTNAME", &name).env("KUBERNETES_SERVICE_HOST", "10.96.0.1");
        command.env("KUBERNETES_SERVICE_PORT", "443").env("RUST_BACKTRACE", "1");
        command.envs(self.manifest.environment(ordinal));
        command.envs(self.cluster.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}

impl Drop for StatefulSet {
    fn drop(&mut self) {
        // All at once, as nobody waits for anybody any more.
        let pods: Vec<Pod> = self.pods.iter_mut().filter_map(Option::take).collect();
        std::thread::scope(|scope| {
            for pod in pods {
                scope.spawn(move || drop(pod));
            }
        });
    }
}

/// A command in the namespaces of a container; it ends with the thread that starts it.
fn isolated(namespace: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "ip", "netns", "exec", namespace]);
    command.args(["unshare", "--uts", "--ipc", "--pid", "--mount"]);
    command
}

/// Tries what a container needs beside its network.
fn can_make_containers() -> Result<(), String> {
    let mut command = Command::new("unshare");
    command.args(["--uts", "--ipc", "--pid", "--mount", "--fork", "sh", "-ec"]);
    command.arg(
        "hostname pod; mount --make-rprivate /; mount -t tmpfs pod /mnt; mount -t proc pod /proc",
    );
    run(&mut command).map_err(|error| format!("no containers can be made here: {error}"))
}

/// The Secret and the claim.
fn fill_volumes(files: &Path, manifest: &Manifest) -> std::io::Result<()> {
    let secret =
        allfold::Secret::random().map_err(|error| std::io::Error::other(error.to_string()))?;
    let (folder, group) = (files.join(SECRET), Some(manifest.user));
    std::fs::create_dir(&folder)?;
    let file = folder.join("secret");
    std::fs::write(&file, secret.to_line().as_bytes())?;
    std::fs::set_permissions(&file, PermissionsExt::from_mode(manifest.secret_mode))?;
    chown(&file, None, group)?;
    let claim = files.join(CLAIM);
    std::fs::create_dir(&claim)?;
    chown(&claim, None, group)?;
    // As the kubelet makes it for fsGroup.
    std::fs::set_permissions(&claim, PermissionsExt::from_mode(0o2775))
}

/// Waits for a container's first process, and ends as it does, which `unshare --fork` does not after
/// SIGKILL (util-linux 2.38).
const SHIM: &str = "setpriv --pdeathsig KILL -- sh -c \"$@\" & wait $!";
/// What a container does before it becomes the program.
const CONTAINER: &str = include_str!("pods/container.sh");
/// The cluster's, of the namespace `default`.
const DOMAIN: &str = "default.svc.cluster.local";
/// Where its DNS is.
const DNS_V4: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 2);
const DNS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 2);
/// So many addresses are not of pods.
const FIRST_POD: u32 = 9;
/// Folders, as the container's first process knows them.
const SECRET: &str = "secret";
const CLAIM: &str = "claim";
/// What many hosts have alike.
const DUPLICATES: [(&str, &[&str]); 2] =
    [("docker0", &["172.17.0.1/16", "fd17::1/64"]), ("virbr0", &["192.168.122.1/24"])];
/// No test waits longer for anything that happens in a pod: a back-off may come in between.
const LIMIT: Duration = Duration::from_secs(120);
