//! What `allfold manifest` prints, as far as a kubelet and a DNS server act on it.

use std::collections::BTreeMap;
use std::time::Duration;

use yaml_rust2::{Yaml, YamlLoader};

use crate::clean_command;

/// A StatefulSet and its Service.
#[derive(Clone, Debug)]
pub(super) struct Manifest {
    /// The StatefulSet's; the pods are called after it.
    pub(super) name: String,
    /// The headless Service's.
    pub(super) service: String,
    pub(super) replicas: usize,
    /// A pod has a name before it is ready.
    pub(super) publishes_all: bool,
    /// Between SIGTERM and SIGKILL.
    pub(super) grace: Duration,
    /// The user and the group of the program, and the group of its volumes.
    pub(super) user: u32,
    pub(super) command: Vec<String>,
    environment: BTreeMap<String, Value>,
    /// Where the Secret is mounted, and what mode its files have for `user`'s group.
    pub(super) secret: String,
    pub(super) secret_mode: u32,
    /// Where the claim is mounted.
    pub(super) claim: Option<String>,
    /// Of the readiness probe.
    pub(super) probe: Probe,
}

/// An HTTP GET by the kubelet.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    pub(super) path: String,
    pub(super) port: u16,
}

#[derive(Clone, Debug)]
enum Value {
    Text(String),
    /// The pod's number, from its label.
    Ordinal,
}

impl Manifest {
    /// Of so many ranks that do what `arguments` say, as `program manifest` prints it.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn print(
        program: &str,
        replicas: usize,
        arguments: &[&str],
    ) -> Result<Self, String> {
        let mut command = clean_command(program);
        command.args(["manifest", "--replicas", &replicas.to_string(), "--image", "allfold:test"]);
        command.args(["--checkpoint-claim", "checkpoints", "--", "allfold"]).args(arguments);
        let printed = command.output().map_err(|error| format!("{command:?}: {error}"))?;
        if !printed.status.success() {
            return Err(format!("{command:?}: {}", String::from_utf8_lossy(&printed.stderr)));
        }
        let text = String::from_utf8_lossy(&printed.stdout);
        let documents = YamlLoader::load_from_str(&text).map_err(|error| error.to_string())?;
        Self::read(&documents).ok_or_else(|| format!("not as expected: {text}"))
    }

    fn read(documents: &[Yaml]) -> Option<Self> {
        let of_kind = |kind| documents.iter().find(|it| it["kind"].as_str() == Some(kind));
        let (set, service) = (of_kind("StatefulSet")?, of_kind("Service")?);
        // Without it a name would have an address of its own, which leads to any pod.
        service["spec"]["clusterIP"].as_str().filter(|ip| *ip == "None")?;
        let pod = &set["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        let mount_of = |name| {
            let of_name = |mount: &&Yaml| mount["name"].as_str() == Some(name);
            text(&container["volumeMounts"].as_vec()?.iter().find(of_name)?["mountPath"])
        };
        let probe = &container["readinessProbe"]["httpGet"];
        let of_probe = |port: &&Yaml| port["name"] == probe["port"];
        let port = container["ports"].as_vec()?.iter().find(of_probe)?["containerPort"].as_i64()?;
        Some(Self {
            name: text(&set["metadata"]["name"])?,
            service: text(&set["spec"]["serviceName"])
                .filter(|name| service["metadata"]["name"].as_str() == Some(name))?,
            replicas: usize::try_from(set["spec"]["replicas"].as_i64()?).ok()?,
            publishes_all: service["spec"]["publishNotReadyAddresses"].as_bool().unwrap_or(false),
            grace: Duration::from_secs(
                u64::try_from(pod["terminationGracePeriodSeconds"].as_i64()?).ok()?,
            ),
            user: u32::try_from(pod["securityContext"]["runAsUser"].as_i64()?).ok()?,
            command: container["command"].as_vec()?.iter().map(text).collect::<Option<_>>()?,
            environment: container["env"].as_vec()?.iter().map(variable).collect::<Option<_>>()?,
            secret: mount_of("secret")?,
            // With fsGroup the kubelet lets the group read what the owner may.
            secret_mode: pod["volumes"]
                .as_vec()?
                .iter()
                .find_map(|volume| volume["secret"]["defaultMode"].as_i64())
                .and_then(|mode| u32::try_from(mode).ok())
                .map(|mode| mode | (mode & 0o700) >> 3)?,
            claim: mount_of("checkpoints"),
            probe: Probe { path: text(&probe["path"])?, port: u16::try_from(port).ok()? },
        })
    }

    /// `trainer-2`.
    pub(super) fn pod(&self, ordinal: usize) -> String {
        format!("{}-{ordinal}", self.name)
    }

    /// What the manifest sets in the container of this pod.
    pub(super) fn environment(&self, ordinal: usize) -> impl Iterator<Item = (&str, String)> {
        self.environment.iter().map(move |(name, value)| {
            let value = match value {
                Value::Text(text) => text.clone(),
                Value::Ordinal => ordinal.to_string(),
            };
            (name.as_str(), value)
        })
    }
}

fn text(yaml: &Yaml) -> Option<String> {
    yaml.as_str().map(Into::into)
}

fn variable(entry: &Yaml) -> Option<(String, Value)> {
    let value = match text(&entry["value"]) {
        Some(text) => Value::Text(text),
        None => match entry["valueFrom"]["fieldRef"]["fieldPath"].as_str()? {
            "metadata.labels['apps.kubernetes.io/pod-index']" => Value::Ordinal,
            _ => return None,
        },
    };
    Some((text(&entry["name"])?, value))
}
