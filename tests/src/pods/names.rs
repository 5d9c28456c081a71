//! The cluster's DNS: names of pods, as long as they have one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use rustix::process::Signal;

use crate::Process;

/// What the server answers to a name that is of no pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unknown {
    /// NXDOMAIN: there is no such name.
    #[default]
    NoSuchName,
    /// An error, as of a server that cannot tell just now: the C library says EAI_AGAIN.
    Failure,
}

/// dnsmasq; it ends when dropped.
pub(super) struct Names {
    /// What follows a pod's name.
    domain: String,
    file: PathBuf,
    server: Mutex<Server>,
}

struct Server {
    process: Process,
    /// By the pods' names.
    addresses: BTreeMap<String, Vec<IpAddr>>,
}

impl Names {
    /// A server at this address in a network namespace; `domain` is that of a headless Service.
    /// The thread that starts it must outlive it.
    pub(super) fn serve(
        namespace: &str,
        at: IpAddr,
        domain: String,
        unknown: Unknown,
        folder: &Path,
    ) -> Result<Self, String> {
        let file = folder.join("names");
        std::fs::write(&file, "").map_err(|error| format!("{}: {error}", file.display()))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "ip", "netns", "exec", namespace, "dnsmasq"]);
        command.args(["--keep-in-foreground", "--log-facility=-", "--conf-file=/dev/null"]);
        // Another user or group would outlive us: it loses the signal that is sent then.
        command.args(["--user=root", "--group=root", "--pid-file="]);
        command.args(["--no-resolv", "--no-hosts"]);
        command.args(["--bind-interfaces", &format!("--listen-address={at}")]);
        command.arg(format!("--addn-hosts={}", file.display()));
        // As CoreDNS in Kubernetes.
        command.args(["--local-ttl=5", "--neg-ttl=5"]);
        if unknown == Unknown::NoSuchName {
            command.arg("--address=/#/");
        }
        let mut process = Process::start(&mut command);
        process.wait_for_line_within(READ, crate::CAP)?;
        let server = Mutex::new(Server { process, addresses: BTreeMap::new() });
        Ok(Self { domain, file, server })
    }

    /// From now on this pod has a name that leads to these addresses.
    pub(super) fn publish(&self, pod: &str, addresses: &[IpAddr]) {
        self.change(|names| names.insert(pod.into(), addresses.into()));
    }

    /// From now on it has none.
    pub(super) fn withdraw(&self, pod: &str) {
        self.change(|names| names.remove(pod));
    }

    /// Returns when the server knows.
    fn change<R>(&self, change: impl FnOnce(&mut BTreeMap<String, Vec<IpAddr>>) -> R) {
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        let before = server.addresses.clone();
        change(&mut server.addresses);
        if server.addresses == before {
            return;
        }
        let domain = &self.domain;
        let lines: String = server
            .addresses
            .iter()
            .flat_map(|(pod, addresses)| addresses.iter().map(move |address| (pod, address)))
            .map(|(pod, address)| format!("{address} {pod}.{domain} {domain}\n"))
            .collect();
        if let Err(error) = std::fs::write(&self.file, lines) {
            panic!("{}: {error}", self.file.display());
        }
        server.process.signal(Signal::HUP);
        server.process.wait_for_line(READ);
    }
}

/// What dnsmasq says when it has read the file, first and after each SIGHUP: `read FILE - 8 names`,
/// or `addresses` in older versions.
const READ: &str = " read /";
