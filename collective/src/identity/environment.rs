//! What a process can see of its launcher: variables, and the host's name.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::sync::OnceLock;

use zeroize::Zeroize;

use super::{MAX_HOST_BYTES, invalid};
use crate::error::Result;

/// The process environment, or a recorded one in tests. An empty variable counts as unset. It may
/// hold the job's secret: it prints its names only, and wipes that one when dropped.
#[derive(Default)]
pub(crate) struct Environment {
    variables: BTreeMap<String, String>,
    /// Found when it is asked for.
    host: OnceLock<Host>,
}

/// What a host, or a pod, knows of its own name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Host {
    /// Without its domain: `trainer-2`.
    pub(crate) name: String,
    /// What follows the name in the host's own full name: `trainer.default.svc.cluster.local`.
    pub(crate) domain: Option<String>,
}

impl Drop for Environment {
    fn drop(&mut self) {
        if let Some(secret) = self.variables.get_mut("ALLFOLD_SECRET") {
            secret.zeroize();
        }
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

impl Environment {
    pub(crate) fn of_process() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            // A value that is not UTF-8 is none of allfold's.
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self::new(std::env::vars_os().filter_map(text).collect(), OnceLock::new())
    }

    fn new(mut variables: BTreeMap<String, String>, host: OnceLock<Host>) -> Self {
        if variables.contains_key(KUBERNETES) {
            variables.retain(|name, value| !is_of_service(name, value));
        }
        Self { variables, host }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.variables.remove(name);
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.variables.insert(name.into(), value.into());
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.variables.keys().map(String::as_str)
    }

    /// A whole number, if the variable is set.
    pub(crate) fn number(&self, name: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match value.trim().parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(invalid(name, value, "must be a whole number")),
        }
    }

    /// ALLFOLD_PORT, unless it leaves the choice to the system.
    pub(crate) fn port(&self) -> Result<Option<u16>> {
        const NAME: &str = "ALLFOLD_PORT";
        match self.number(NAME)?.map(u16::try_from) {
            None | Some(Ok(0)) => Ok(None),
            Some(Ok(port)) => Ok(Some(port)),
            Some(Err(_)) => {
                Err(invalid(NAME, self.get(NAME).unwrap_or_default(), "must be 0 to 65535"))
            }
        }
    }

    /// Whether this is a container of a pod.
    pub(crate) fn in_kubernetes(&self) -> bool {
        self.get(KUBERNETES).is_some()
    }

    pub(crate) fn host(&self) -> &Host {
        self.host.get_or_init(Host::this)
    }
}

/// Kubernetes tells each pod of the Services there are: one that is called `allfold` becomes
/// `ALLFOLD_PORT=tcp://10.0.0.7:29500`, `ALLFOLD_PORT_29500_TCP`, `ALLFOLD_SERVICE_HOST` and more,
/// one that is called `allfold-metrics` `ALLFOLD_METRICS_PORT`, and one that is called `master`
/// `MASTER_PORT`.
fn is_of_service(name: &str, value: &str) -> bool {
    if !["ALLFOLD_", "MASTER_"].iter().any(|prefix| name.starts_with(prefix)) {
        return false;
    }
    let is_link = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let is_one_port = name.rsplit_once("_PORT_").is_some_and(|(_, port)| {
        let (number, protocol) = port.split_once('_').unwrap_or((port, ""));
        let protocol = protocol.split('_').next().unwrap_or_default();
        number.parse::<u16>().is_ok() && ["TCP", "UDP", "SCTP"].contains(&protocol)
    });
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || is_one_port
        || (name.ends_with("_PORT") && is_link)
}

impl Host {
    /// The domain, where it is that of a Service, as a pod's is: `SERVICE.NAMESPACE.svc...`.
    pub(crate) fn service(&self) -> Option<&str> {
        self.domain.as_deref().filter(|domain| domain.split('.').nth(2) == Some("svc"))
    }

    fn this() -> Self {
        let mut hosts = String::new();
        // Without the file, or where it is no text, the name has no domain.
        let _ = std::fs::File::open(HOSTS)
            .and_then(|file| file.take(MAX_HOSTS_BYTES).read_to_string(&mut hosts));
        let name = rustix::system::uname();
        Self::new(&name.nodename().to_string_lossy(), &hosts)
    }

    /// From the kernel's name for the host, and the text of its /etc/hosts.
    fn new(node_name: &str, hosts: &str) -> Self {
        // With setHostnameAsFQDN a pod's node name is its full name.
        let (name, domain) = match node_name.split_once('.') {
            Some((name, domain)) => (name, Some(domain.to_string())),
            None => (node_name, None),
        };
        let domain = domain.or_else(|| {
            let mut names = hosts
                .lines()
                .filter_map(|line| line.split('#').next())
                .flat_map(|line| line.split_whitespace().skip(1));
            names.find_map(|full| Some(full.strip_prefix(name)?.strip_prefix('.')?.to_string()))
        });
        Self { name: name.into(), domain: domain.filter(|domain| !domain.is_empty()) }
    }
}

/// This host's name, for people.
pub(crate) fn host_name() -> String {
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy();
    let name: String = name.chars().filter(|c| !c.is_control()).take(MAX_HOST_BYTES).collect();
    if name.is_empty() { "unnamed host".into() } else { name }
}

impl<const N: usize> From<[(&str, &str); N]> for Environment {
    fn from(pairs: [(&str, &str); N]) -> Self {
        let variables = pairs.iter().map(|(n, v)| ((*n).to_string(), (*v).to_string())).collect();
        Self::recorded(variables, Host { name: "host".into(), domain: None })
    }
}

impl Environment {
    /// What another process saw.
    pub(crate) fn recorded(variables: BTreeMap<String, String>, host: Host) -> Self {
        Self::new(variables, OnceLock::from(host))
    }
}

/// Set in every container of a pod.
const KUBERNETES: &str = "KUBERNETES_SERVICE_HOST";
/// The kubelet writes a pod's full name there.
const HOSTS: &str = "/etc/hosts";
/// A pod's has ten lines; some hosts' have a million, against advertisements.
const MAX_HOSTS_BYTES: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_reads_its_full_name() {
        let hosts = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n\
                     10.0.0.7\ttrainer-2.trainer.default.svc.cluster.local\ttrainer-2\n";
        let host = Host::new("trainer-2", hosts);
        assert_eq!(host.name, "trainer-2");
        assert_eq!(host.domain.as_deref(), Some("trainer.default.svc.cluster.local"));
        let host = Host::new("trainer-2.trainer.default.svc.cluster.local", "");
        assert_eq!(host.name, "trainer-2");
        assert_eq!(host.domain.as_deref(), Some("trainer.default.svc.cluster.local"));
        for hosts in ["", "10.0.0.7\ttrainer-2\n", "10.0.0.8 trainer-20.x trainer-2.\n"] {
            assert_eq!(Host::new("trainer-2", hosts).domain, None, "{hosts}");
        }
    }

    #[test]
    fn what_kubernetes_says_of_services_is_no_setting() {
        let pairs = [
            ("ALLFOLD_PORT", "tcp://10.0.0.7:29500"),
            ("ALLFOLD_PORT_29500_UDP_ADDR", "10.0.0.7"),
            ("ALLFOLD_SERVICE_HOST", "10.0.0.7"),
            ("MASTER_PORT", "tcp://10.0.0.8:80"),
            ("ALLFOLD_RANK_SERVICE_HOST", "10.0.0.9"),
            ("ALLFOLD_METRICS_PORT", "tcp://10.0.0.9:9200"),
            ("ALLFOLD_METRICS_PORT_9200_TCP", "tcp://10.0.0.9:9200"),
            ("ALLFOLD_METRICS_PORT_9200_TCP_PROTO", "tcp"),
            ("ALLFOLD_METRICS_SERVICE_PORT_HTTP", "9200"),
        ];
        // These are nobody's but the user's.
        let own = [("ALLFOLD_RANK", "1"), ("ALLFOLD_EXPORT_X", "1"), ("ALLFOLD_PORT_X", "1")];
        let set = |more: (&str, &str)| {
            let all = pairs.iter().chain(&own).chain([&more]);
            let variables = all.map(|(n, v)| ((*n).to_string(), (*v).to_string())).collect();
            Environment::recorded(variables, Host::default())
        };
        let names = |environment: &Environment| environment.names().count();
        assert_eq!(names(&set((KUBERNETES, "10.0.0.1"))), own.len() + 1);
        assert_eq!(names(&set(("HOME", "/"))), pairs.len() + own.len() + 1);
        let chosen = [(KUBERNETES, "10.0.0.1"), ("ALLFOLD_PORT", "29500")];
        assert_eq!(Environment::from(chosen).get("ALLFOLD_PORT"), Some("29500"));
    }
}
