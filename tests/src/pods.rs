//! A look-alike of a StatefulSet: pods made from the manifest that `allfold manifest` prints, in
//! network, UTS, IPC, mount and PID namespaces of their own, with the cluster's DNS, the kubelet's
//! files and restarts, and a folder for the claim. Nothing of it touches the machine's own network,
//! and it is gone when dropped.

mod container;
mod kubelet;
mod manifest;
mod names;
mod network;

use std::fmt::Write;
use std::io::{Read, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::CAP;
use crate::namespaces::{Namespaces, inside};
use container::Container;
use kubelet::{Diary, Pod};
use manifest::Manifest;
use names::Names;
use network::Network;

pub use kubelet::Happening;
pub use names::Unknown;
pub use network::Families;

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
    /// are called as those of Docker, libvirt and virtual machines.
    pub duplicates: bool,
    /// Larger packets vanish between the pods, whose own interfaces allow 1,500 bytes.
    pub path_mtu: Option<u32>,
    /// After the second end of a container, 10 s in Kubernetes; then twice as much each time.
    pub back_off: Duration,
    /// The Service that the StatefulSet names; without it a pod has no full name.
    pub has_service: bool,
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
            has_service: true,
            environment: Vec::new(),
        }
    }
}

/// The pods of a StatefulSet, those that exist.
pub struct StatefulSet {
    pods: Vec<Option<Pod>>,
    diaries: Vec<Arc<Diary>>,
    began: Instant,
    names: Arc<Names>,
    cluster: Cluster,
    manifest: Manifest,
    image: PathBuf,
    files: PathBuf,
    // At last: what runs in it has ended by then.
    network: Network,
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
        container::can_be_made()?;
        let manifest = Manifest::print(program, replicas, arguments)?;
        let files = namespaces.folder()?;
        let domain = format!("{}.{DOMAIN}", manifest.service);
        let network = Network::new(namespaces, cluster.clone(), replicas)?;
        let (switch, resolver) = (network.switch(), network.resolver());
        let names = Names::serve(&switch, resolver, domain, cluster.unknown, &files)?;
        container::fill_volumes(&manifest, &files)
            .map_err(|error| format!("{}: {error}", files.display()))?;
        Ok(Self {
            pods: (0..replicas).map(|_| None).collect(),
            diaries: (0..replicas).map(|_| Arc::default()).collect(),
            began: Instant::now(),
            names: Arc::new(names),
            cluster,
            manifest,
            image: PathBuf::from(program),
            files,
            network,
        })
    }

    /// How many pods there should be.
    pub fn replicas(&self) -> usize {
        self.manifest.replicas
    }

    /// All pods at once, as `podManagementPolicy: Parallel` does.
    pub fn create_all(&mut self) {
        (0..self.replicas()).for_each(|ordinal| self.create(ordinal));
    }

    /// Makes a pod, at an address that no pod had before, and starts its container.
    pub fn create(&mut self, ordinal: usize) {
        assert!(self.pods[ordinal].is_none(), "{} is there", self.manifest.pod(ordinal));
        match self.make(ordinal) {
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

    /// Puts another secret into the Secret: containers that start from now on read it.
    ///
    /// # Errors
    /// Why not.
    pub fn change_secret(&self) -> std::io::Result<()> {
        container::write_secret(&self.manifest, &self.files)
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
            let own = match self.network.resolver().is_ipv4() {
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
        inside(&self.network.name(ordinal), ask).ok()
    }

    /// Whether a datagram of so many bytes, of IPv4 or IPv6, arrives at another pod, where a small
    /// one does that follows it, of the same family or the other.
    ///
    /// # Errors
    /// What does not work here.
    pub fn arrives(
        &self,
        between: (usize, usize),
        is_v6: bool,
        bytes: usize,
        witness_is_v6: bool,
    ) -> Result<bool, String> {
        self.network.arrives(between, is_v6, bytes, witness_is_v6)
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
        self.network.unplug(ordinal);
    }

    fn make(&mut self, ordinal: usize) -> Result<Pod, String> {
        let addresses = self.network.plug(ordinal)?.to_vec();
        let container = Container {
            manifest: &self.manifest,
            ordinal,
            namespace: self.network.name(ordinal),
            image: &self.image,
            has_service: self.cluster.has_service,
            files: self.files.join(ordinal.to_string()),
        };
        container
            .write_files(&addresses, self.network.resolver())
            .map_err(|error| format!("{}: {error}", container.files.display()))?;
        let (name, names) = (self.manifest.pod(ordinal), self.names.clone());
        let ready_only = self.cluster.names_ready_only || !self.manifest.publishes_all;
        let is_named = self.cluster.has_service;
        if is_named && !ready_only {
            names.publish(&name, &addresses);
        }
        let sign = move |runs| match (is_named && ready_only, runs) {
            (false, _) => {}
            (true, true) => names.publish(&name, &addresses),
            (true, false) => names.withdraw(&name),
        };
        let program = Path::new(&self.manifest.command[0]).file_name().unwrap_or_default();
        let program = program.to_string_lossy().into_owned();
        let mut command = container.command();
        command.envs(self.cluster.environment.iter().map(|(name, value)| (name, value)));
        let diary = self.diaries[ordinal].clone();
        let namespace = self.network.name(ordinal);
        Ok(Pod::start(diary, program, namespace, command, self.cluster.back_off, sign))
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

/// The cluster's, of the namespace `default`.
const DOMAIN: &str = "default.svc.cluster.local";
/// No test waits longer for anything that happens in a pod: a back-off may come in between.
const LIMIT: Duration = Duration::from_secs(120);
