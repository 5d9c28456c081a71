//! Every setting: its builder method, environment variable, default and unit.

mod interfaces;
mod nccl;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::identity::{Environment, Identity, invalid};
use crate::metrics::address::Address;
use crate::plan::Algorithm;
use crate::plan::costs::{Choice, CostTable};
use crate::report;
use crate::trust::Credentials;
use crate::trust::own::OwnCertificates;
use crate::trust::secret::Secrets;

pub(crate) use crate::world::Limits;
pub(crate) use interfaces::Interfaces;
pub(crate) use nccl::{NcclSettings, Reach};

/// How a rank connects. Each setting has an environment variable, `ALLFOLD_` and its name.
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) identity: Identity,
    pub(crate) rendezvous: HostPort,
    pub(crate) job: String,
    /// None: those that the environment names when the rank connects.
    pub(crate) credentials: Option<Credentials>,
    /// This rank's first port; 0 lets the system choose.
    pub(crate) port: u16,
    /// None: all that are up.
    pub(crate) interfaces: Option<Interfaces>,
    pub(crate) connect_timeout: Duration,
    pub(crate) heartbeat: Duration,
    /// None: silence is never death.
    pub(crate) dead_after: Option<Duration>,
    pub(crate) limits: Limits,
    /// That of all-reduces; None: the one that is predicted to be fastest.
    pub(crate) algorithm: Option<Algorithm>,
    pub(crate) sharing: Sharing,
    /// 1 to `MAX_LANES`.
    pub(crate) lanes: u16,
    pub(crate) nccl: Reach,
    /// Where metrics are served, the local rank not yet counted in.
    pub(crate) metrics: Option<Address>,
    /// The socket of `allfold run`.
    pub(crate) launcher: Option<PathBuf>,
}

/// Whether ranks of one host meet in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    Never,
    /// Where they find each other's memory.
    Where,
    /// Anything else is an error.
    Everywhere,
}

/// Where rank 0 answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPort {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Config {
    /// `rank` of `size`, meeting at `rendezvous` (`host:port`); everything else from the
    /// environment or its default. Secret and certificates are only looked for when the rank
    /// connects, if [`secret`](Self::secret) or [`certificates`](Self::certificates) gave none.
    ///
    /// # Errors
    /// [`ErrorKind::Setting`] where a setting cannot be used.
    pub fn new(rank: usize, size: usize, rendezvous: &str) -> Result<Self> {
        if rank >= size {
            let problem = format!("must be below the world size, {size}; ranks count from 0");
            return Err(invalid("rank", &rank.to_string(), &problem));
        }
        let mut identity = Identity::explicit(rank, size);
        identity.rendezvous = Some(rendezvous.to_string());
        Self::read(identity, &Environment::of_process())
    }

    /// All settings from the environment, for a process of this identity.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn from_env(identity: Identity) -> Result<Self> {
        Self::read(identity, &Environment::of_process())
    }

    /// The job's name: ranks of different jobs refuse each other. Default: `default`.
    pub fn job(mut self, job: &str) -> Self {
        self.job = job.to_string();
        self
    }

    /// The job's secret, one line as `allfold secret` prints it.
    ///
    /// # Errors
    /// [`ErrorKind::Secret`] if it is not 64 hexadecimal digits.
    pub fn secret(mut self, line: &str) -> Result<Self> {
        let secrets = Secrets::from_lines(line, "the secret given to Config")?;
        self.credentials = Some(Credentials::Secrets(secrets));
        Ok(self)
    }

    /// Certificates of a cluster's own authority in place of a secret, as PEM files: this rank's
    /// certificate with those between it and the authority behind it, its private key, and the
    /// authorities that are accepted. The certificate names the rank: among its subject alternative
    /// names is `URI:allfold://JOB/RANK`, or the DNS form that the error of one without it shows.
    ///
    /// # Errors
    /// [`ErrorKind::Setting`] where a file cannot be read. What the certificate is for is checked
    /// when the rank connects.
    pub fn certificates(
        mut self,
        certificate: impl AsRef<Path>,
        key: impl AsRef<Path>,
        authorities: impl AsRef<Path>,
    ) -> Result<Self> {
        let files = [certificate.as_ref(), key.as_ref(), authorities.as_ref()];
        let own = OwnCertificates::read(files.map(Path::to_path_buf))?;
        self.credentials = Some(Credentials::Certificates(Arc::new(own)));
        Ok(self)
    }

    /// How long to wait for all ranks. Default: 60 s, in Kubernetes 15 min.
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        // Beyond a week the clock would overflow before the patience ends.
        self.connect_timeout = limit.min(Duration::from_millis(MAX_DURATION_MS as u64));
        self
    }

    /// How long a call may be waited for before it is an error; one that was started, from `wait`,
    /// `.await`, drop or `close` on. Default: no limit.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.limits.timeout = Some(limit);
        self
    }

    /// How long a call waits before a warning names the ranks that are late; where all ranks wait
    /// as long for each other in vain, it is a [deadlock](ErrorKind::Deadlock). Default: 10 s.
    pub fn late_after(mut self, wait: Duration) -> Self {
        self.limits.late_after = wait;
        self
    }

    /// The algorithm of all-reduces: `ring`, `tree`, `recursive-doubling` or `halving-doubling`; `auto` is the one that is predicted to be fastest. Equal on all ranks.
    ///
    /// # Errors
    /// [`ErrorKind::Setting`] for another name.
    pub fn algorithm(mut self, name: &str) -> Result<Self> {
        self.algorithm = parse_algorithm(name)?;
        Ok(self)
    }

    /// What carries the data: `auto` is memory that all ranks of a communicator share where they do,
    /// and QUIC elsewhere; `quic` is QUIC always; with `shared-memory` it is an error if not all
    /// ranks share memory. Default: `auto`.
    ///
    /// # Errors
    /// [`ErrorKind::Setting`] for another name.
    pub fn transport(mut self, name: &str) -> Result<Self> {
        self.sharing = parse_sharing(name)?;
        Ok(self)
    }

    /// How many lanes move the data of a rank between hosts, 1 to 8: each has a thread, a UDP socket and
    /// a link to every peer of its own, and large calls are cut into a stripe for each. Equal on
    /// all ranks. Default: 1.
    ///
    /// # Errors
    /// [`ErrorKind::Setting`] for another number.
    pub fn lanes(mut self, lanes: usize) -> Result<Self> {
        self.lanes = check_lanes(lanes as u64)?;
        Ok(self)
    }

    /// Between which ranks NCCL may move data, for programs that call [`nccl`](crate::nccl): `on`,
    /// `same-host` (between hosts its data is not encrypted), or `off`. Default: `on`.
    ///
    /// # Errors
    /// [`ErrorKind::Setting`] for another word.
    pub fn nccl(mut self, reach: &str) -> Result<Self> {
        self.nccl = Reach::parse(reach)?;
        Ok(self)
    }

    /// Where this rank serves its metrics and probes over plain HTTP: `:9200` (all addresses),
    /// `127.0.0.1:9200`, `[::1]:9200`, port 0 for any free one; `off`. With several ranks on one
    /// host each listens on the port plus its local rank. Default: off.
    ///
    /// # Errors
    /// [`ErrorKind::Setting`] for what is no address.
    pub fn metrics(mut self, address: &str) -> Result<Self> {
        self.metrics = Address::parse(address)?;
        Ok(self)
    }

    /// By which of this host's interfaces the other ranks find this one: names, addresses or blocks
    /// of them, `eth0`, `eth0,ib0`, `10.0.0.0/8`; all but those after a `^`. Default: all that are up.
    ///
    /// # Errors
    /// [`ErrorKind::Setting`] for what names none. Whether this host has one is seen when the rank
    /// connects.
    pub fn interface(mut self, names: &str) -> Result<Self> {
        self.interfaces = Some(Interfaces::parse(names)?);
        Ok(self)
    }

    /// This rank's number.
    pub fn rank(&self) -> usize {
        self.identity.rank
    }

    /// How long this rank waits for all ranks.
    pub fn patience(&self) -> Duration {
        self.connect_timeout
    }

    /// The world size.
    pub fn size(&self) -> usize {
        self.identity.size
    }

    pub(crate) fn local_rank(&self) -> usize {
        self.identity.local_rank
    }

    pub(crate) fn local_size(&self) -> usize {
        self.identity.local_size
    }

    /// What communicators need to know for NCCL.
    pub(crate) fn nccl_settings(&self) -> NcclSettings {
        let (reach, patience) = (self.nccl, self.connect_timeout);
        NcclSettings { reach, patience, local_rank: self.local_rank() }
    }

    /// The settings that must be equal on all ranks, as they are shown when they are not.
    pub(crate) fn job_wide(&self) -> Vec<(String, String)> {
        // Without rounding: they are compared as they stand here.
        let exact = |limit| humantime::format_duration(limit).to_string();
        let dead_after = self.dead_after.map_or("off".into(), exact);
        let algorithm = self.algorithm.map_or("auto".into(), |algorithm| algorithm.to_string());
        vec![
            ("ALLFOLD_WORLD_SIZE".into(), self.size().to_string()),
            ("ALLFOLD_HEARTBEAT".into(), exact(self.heartbeat)),
            ("ALLFOLD_DEAD_AFTER".into(), dead_after),
            ("ALLFOLD_ALGORITHM".into(), algorithm),
            (LANES.into(), self.lanes.to_string()),
        ]
    }

    fn read(identity: Identity, environment: &Environment) -> Result<Self> {
        // First of all, as what follows may have something to say.
        report::Format::read(environment)?;
        warn_of_unknown(environment);
        let in_kubernetes = environment.in_kubernetes();
        let default_port = default_port(environment)?;
        let rendezvous = match &identity.rendezvous {
            Some(rendezvous) => HostPort::parse(rendezvous, default_port)?,
            // A world of one needs none.
            None if identity.size == 1 => HostPort { host: "127.0.0.1".into(), port: 0 },
            None => {
                return Err(ErrorKind::Setting {
                    name: "ALLFOLD_RENDEZVOUS".into(),
                    value: None,
                    problem: "is not set, and MASTER_ADDR is not either".into(),
                    help: Some("set it on every rank to rank 0's address, host:port".into()),
                }
                .into());
            }
        };
        let heartbeat = duration(environment, "ALLFOLD_HEARTBEAT", HEARTBEAT)?;
        let dead_after = match environment.get("ALLFOLD_DEAD_AFTER") {
            Some("off") => None,
            _ => Some(duration(environment, "ALLFOLD_DEAD_AFTER", DEAD_AFTER)?),
        };
        if dead_after.is_some_and(|limit| limit < heartbeat * 2) {
            return Err(ErrorKind::Setting {
                name: "ALLFOLD_DEAD_AFTER".into(),
                value: environment.get("ALLFOLD_DEAD_AFTER").map(str::to_string),
                problem: "must be at least twice ALLFOLD_HEARTBEAT".into(),
                help: None,
            }
            .into());
        }
        let patient = if in_kubernetes { CONNECT_TIMEOUT_KUBERNETES } else { CONNECT_TIMEOUT };
        Ok(Self {
            rendezvous,
            job: environment
                .get("ALLFOLD_JOB")
                .map(str::to_string)
                .or_else(|| identity.job.clone())
                .unwrap_or_else(|| "default".into()),
            credentials: None,
            port: environment.port()?.unwrap_or(0),
            interfaces: environment.get("ALLFOLD_INTERFACE").map(Interfaces::parse).transpose()?,
            connect_timeout: duration(environment, "ALLFOLD_CONNECT_TIMEOUT", patient)?,
            heartbeat,
            dead_after,
            limits: Limits::read(environment)?,
            algorithm: algorithm(environment)?,
            sharing: sharing(environment)?,
            lanes: lanes(environment)?,
            nccl: Reach::read(environment)?,
            metrics: metrics(environment)?,
            // The launcher's socket belongs to the rank that the launcher numbered.
            launcher: environment
                .get("ALLFOLD_LAUNCHER")
                .filter(|_| identity.is_of_run())
                .map(PathBuf::from),
            identity,
        })
    }
}

/// The port of an address that is given without one.
pub(crate) fn default_port(environment: &Environment) -> Result<u16> {
    Ok(environment.port()?.unwrap_or(DEFAULT_PORT))
}

/// Not all ranks share memory, though the setting wants it.
pub(crate) fn cannot_share(problem: String) -> Error {
    let help = "leave ALLFOLD_TRANSPORT out, and ranks that share no memory use QUIC";
    Error::from(ErrorKind::Setting {
        name: TRANSPORT.into(),
        value: Some(MUST_SHARE.into()),
        problem,
        help: Some(help.into()),
    })
}

/// The choice of plans in a world without a rendezvous.
pub(crate) fn choice_from_env() -> Result<Choice> {
    let environment = Environment::of_process();
    let forced = algorithm(&environment)?;
    Ok(Choice { costs: CostTable::default(), forced, lanes: lanes(&environment)? })
}

/// How a world without a rendezvous uses NCCL.
#[cfg(feature = "nccl")]
pub(crate) fn nccl_from_env(local_rank: usize) -> Result<NcclSettings> {
    let environment = Environment::of_process();
    let patience = duration(&environment, "ALLFOLD_CONNECT_TIMEOUT", CONNECT_TIMEOUT)?;
    Ok(NcclSettings { reach: Reach::read(&environment)?, patience, local_rank })
}

/// Where a world of one without a launcher serves its metrics.
pub(crate) fn metrics_from_env() -> Result<Option<Address>> {
    metrics(&Environment::of_process())
}

fn metrics(environment: &Environment) -> Result<Option<Address>> {
    environment.get("ALLFOLD_METRICS").map_or(Ok(None), Address::parse)
}

fn sharing(environment: &Environment) -> Result<Sharing> {
    environment.get(TRANSPORT).map_or(Ok(Sharing::Where), parse_sharing)
}

fn parse_sharing(name: &str) -> Result<Sharing> {
    match name {
        "auto" => Ok(Sharing::Where),
        "quic" => Ok(Sharing::Never),
        MUST_SHARE => Ok(Sharing::Everywhere),
        other => Err(invalid(TRANSPORT, other, "must be auto, quic or shared-memory")),
    }
}

fn lanes(environment: &Environment) -> Result<u16> {
    environment.number(LANES)?.map_or(Ok(DEFAULT_LANES), |lanes| check_lanes(lanes as u64))
}

/// A number of lanes that a rank may have.
pub(crate) fn check_lanes(lanes: u64) -> Result<u16> {
    match u16::try_from(lanes) {
        Ok(lanes @ 1..=MAX_LANES) => Ok(lanes),
        _ => Err(invalid(LANES, &lanes.to_string(), &format!("must be 1 to {MAX_LANES}"))),
    }
}

fn algorithm(environment: &Environment) -> Result<Option<Algorithm>> {
    match environment.get("ALLFOLD_ALGORITHM") {
        None => Ok(None),
        Some(name) => parse_algorithm(name),
    }
}

pub(crate) fn parse_algorithm(name: &str) -> Result<Option<Algorithm>> {
    if name == "auto" {
        return Ok(None);
    }
    name.parse().map(Some).map_err(|_| {
        let names = "must be auto, ring, tree, recursive-doubling or halving-doubling";
        invalid("ALLFOLD_ALGORITHM", name, names)
    })
}

impl Limits {
    pub(crate) fn from_env() -> Result<Self> {
        Self::read(&Environment::of_process())
    }

    fn read(environment: &Environment) -> Result<Self> {
        let timeout = match environment.get("ALLFOLD_TIMEOUT") {
            None | Some("off") => None,
            Some(_) => Some(duration(environment, "ALLFOLD_TIMEOUT", Duration::ZERO)?),
        };
        let late_after = duration(environment, "ALLFOLD_LATE_AFTER", LATE_AFTER)?;
        Ok(Self { late_after, timeout, dead_after: None })
    }
}

impl HostPort {
    /// The address, where it is one and no name.
    pub(crate) fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// As [`read`](Self::read), for a rendezvous.
    pub(crate) fn parse(text: &str, default_port: u16) -> Result<Self> {
        Self::read(text, default_port).map_err(|problem| {
            let help = "it comes from ALLFOLD_RENDEZVOUS, else MASTER_ADDR and MASTER_PORT";
            Error::from(ErrorKind::Setting {
                name: "rendezvous".into(),
                value: Some(text.into()),
                problem: problem.into(),
                help: Some(help.into()),
            })
        })
    }

    /// `host`, `host:port`, `address:port` or `[address]:port`.
    pub(crate) fn read(text: &str, default_port: u16) -> Result<Self, &'static str> {
        let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, "")) => (address, None),
            Some((address, rest)) => (address, rest.strip_prefix(':')),
            None => match text.rsplit_once(':') {
                Some((host, _)) if host.contains(':') => {
                    return Err("an IPv6 address stands in brackets: [address]:port");
                }
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        if host.is_empty() {
            return Err("names no host; give host:port");
        }
        let port = match port.map(str::parse) {
            None => default_port,
            Some(Ok(port)) if port > 0 => port,
            Some(_) => return Err("the port must be 1 to 65535"),
        };
        Ok(Self { host: host.into(), port })
    }
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// `90`, `90s`, `500ms`, `2m`.
fn duration(environment: &Environment, name: &str, default: Duration) -> Result<Duration> {
    let Some(text) = environment.get(name) else {
        return Ok(default);
    };
    match parse_duration(text) {
        Ok(duration) if duration >= SHORTEST => Ok(duration),
        Ok(_) => Err(invalid(name, text, "must be a duration of at least 1ms")),
        Err(problem) => Err(invalid(name, text, problem)),
    }
}

/// A duration as settings and options are written: `90`, `90s`, `500ms`, `2m`; up to a week.
///
/// # Errors
/// What is expected.
pub fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    let (digits, unit) =
        text.split_at(text.find(|c: char| c.is_alphabetic()).unwrap_or(text.len()));
    let milliseconds = match unit {
        "" | "s" => 1000.0,
        "ms" => 1.0,
        "m" => 60_000.0,
        _ => f64::NAN,
    } * digits.trim().parse::<f64>().unwrap_or(f64::NAN);
    if (0.0..=MAX_DURATION_MS).contains(&milliseconds) {
        Ok(Duration::from_secs_f64(milliseconds / 1000.0))
    } else {
        Err("must be a duration such as 90, 90s, 500ms or 2m")
    }
}

/// Whether this version has a setting in a variable of that name, such as `ALLFOLD_RANK`.
pub fn is_setting(name: &str) -> bool {
    name.strip_prefix("ALLFOLD_").is_some_and(|name| NAMES.contains(&name))
}

fn warn_of_unknown(environment: &Environment) {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        for name in environment.names().filter(|name| name.starts_with("ALLFOLD_")) {
            if is_setting(name) {
                continue;
            }
            let nearest = NAMES.iter().min_by_key(|known| distance(&name[8..], known));
            let nearest =
                nearest.map_or(String::new(), |n| format!("; the nearest is ALLFOLD_{n}"));
            report::warn(&format!("{name} is set, but this version has no such setting{nearest}"));
        }
    });
}

/// Edit distance (Wagner and Fischer 1974).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// All settings, without `ALLFOLD_`.
const NAMES: [&str; 32] = [
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "RENDEZVOUS",
    "PEERS",
    "ORDINAL_START",
    "JOB_INDEX",
    "PODS_PER_JOB",
    "JOB",
    "SECRET",
    "SECRET_FILE",
    "TLS_CERT",
    "TLS_KEY",
    "TLS_CA",
    "PORT",
    "INTERFACE",
    "CONNECT_TIMEOUT",
    "TIMEOUT",
    "HEARTBEAT",
    "DEAD_AFTER",
    "LATE_AFTER",
    "ALGORITHM",
    "TRANSPORT",
    "LANES",
    "NCCL",
    "METRICS",
    "LOG",
    "LOG_FORMAT",
    "LAUNCHER",
    "WITHIN",
    "RESTART",
];
const LANES: &str = "ALLFOLD_LANES";
/// As many as a 100 Gbit/s card takes at what one core seals and opens; each costs a thread, a
/// socket and its buffers.
pub(crate) const MAX_LANES: u16 = 8;
/// Measured: docs/benchmarks.md.
const DEFAULT_LANES: u16 = 1;
const TRANSPORT: &str = "ALLFOLD_TRANSPORT";
const MUST_SHARE: &str = "shared-memory";
/// PyTorch's default too, so that firewalls that let it through fit.
pub(crate) const DEFAULT_PORT: u16 = 29_500;
/// A process that starts under a launcher is there in seconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
/// A pod's restart back-off reaches five minutes.
const CONNECT_TIMEOUT_KUBERNETES: Duration = Duration::from_secs(15 * 60);
/// Four are lost before silence counts as death.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// With 0.3 s of asking others below the promised 3 s; a busy host is rarely silent so long.
const DEAD_AFTER: Duration = Duration::from_secs(2);
/// Longer than a step of most trainings, shorter than a person's patience.
const LATE_AFTER: Duration = Duration::from_secs(10);
/// A week: beyond it a typing error is likelier than a wish.
const MAX_DURATION_MS: f64 = 7.0 * 24.0 * 3600.0 * 1000.0;
/// Shorter ones are slips of the finger: no clock here ticks faster.
const SHORTEST: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_in_all_forms() {
        let parse =
            |text| HostPort::parse(text, 4711).map(|a| (a.host, a.port)).map_err(|e| e.to_string());
        assert_eq!(parse("node-0"), Ok(("node-0".into(), 4711)));
        assert_eq!(parse("10.0.0.1:29500"), Ok(("10.0.0.1".into(), 29500)));
        assert_eq!(parse("[fe80::1]:4711"), Ok(("fe80::1".into(), 4711)));
        assert_eq!(parse("[fe80::1]"), Ok(("fe80::1".into(), 4711)));
        assert!(parse("fe80::1").unwrap_err().contains("brackets"));
        assert!(parse("node-0:port").unwrap_err().contains("1 to 65535"));
        assert!(parse("node-0:0").unwrap_err().contains("1 to 65535"));
        assert!(parse(":4711").unwrap_err().contains("names no host"));
    }

    #[test]
    fn a_rendezvous_without_a_port_has_that_of_the_settings() {
        let port = |setting: &str| {
            let identity =
                Identity { rendezvous: Some("node-0".into()), ..Identity::explicit(0, 2) };
            let environment = Environment::from([("ALLFOLD_PORT", setting)]);
            Config::read(identity, &environment).unwrap().rendezvous.port
        };
        assert_eq!(["", "0", "4711"].map(port), [29_500, 29_500, 4_711]);
    }

    #[test]
    fn durations_have_units() {
        let read = |text| {
            duration(&Environment::from([("ALLFOLD_TIMEOUT", text)]), "ALLFOLD_TIMEOUT", HEARTBEAT)
        };
        assert_eq!(read("90").unwrap(), Duration::from_secs(90));
        assert_eq!(read("1.5s").unwrap(), Duration::from_millis(1500));
        assert_eq!(read("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(read("2m").unwrap(), Duration::from_secs(120));
        for wrong in ["x", "-1", "5h", "1e99", "NaN"] {
            let error = read(wrong).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("ALLFOLD_TIMEOUT={wrong}: must be a duration")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_secret_from_the_program_needs_none_in_the_environment() {
        let folder = std::env::temp_dir().join(format!("allfold-config-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let home = ("HOME", folder.to_str().unwrap());
        let missing = ("ALLFOLD_SECRET_FILE", "/no/such/file");
        for more in [home, ("KUBERNETES_SERVICE_HOST", "10.0.0.1"), missing] {
            let mut identity = Identity::explicit(1, 2);
            identity.rendezvous = Some("node-0:29500".into());
            let config = Config::read(identity, &Environment::from([home, more])).unwrap();
            let given = config.secret(&"ab".repeat(32)).unwrap().credentials;
            assert!(matches!(given, Some(Credentials::Secrets(_))), "{more:?}");
        }
        // And none is made: the folder is empty.
        std::fs::remove_dir(&folder).unwrap();
    }

    #[test]
    fn settings_that_differ_by_less_than_is_shown_differ() {
        let dead_after = |text| {
            let rendezvous = Some("node-0".into());
            let identity = Identity { rendezvous, ..Identity::explicit(0, 2) };
            let secret = "5c".repeat(32);
            let environment =
                Environment::from([("ALLFOLD_SECRET", &*secret), ("ALLFOLD_DEAD_AFTER", text)]);
            let settings = Config::read(identity, &environment).unwrap().job_wide();
            settings.into_iter().find(|(name, _)| name == "ALLFOLD_DEAD_AFTER").unwrap().1
        };
        assert_eq!([dead_after("2"), dead_after("2.04s")], ["2s", "2s 40ms"]);
        assert_eq!(dead_after("off"), "off");
    }

    #[test]
    fn lanes_have_a_limit() {
        let read = |text| lanes(&Environment::from([(LANES, text)])).map_err(|e| e.to_string());
        assert_eq!(
            [read("1"), read("8"), lanes(&Environment::from([])).map_err(|e| e.to_string())],
            [Ok(1), Ok(8), Ok(DEFAULT_LANES)]
        );
        for wrong in ["0", "9", "65537"] {
            let error = read(wrong).unwrap_err();
            assert!(
                error.starts_with(&format!("ALLFOLD_LANES={wrong}: must be 1 to 8")),
                "{error}"
            );
        }
        assert!(read("two").unwrap_err().contains("must be a whole number"));
    }

    #[test]
    fn the_nearest_name_is_found() {
        let nearest = NAMES.iter().min_by_key(|known| distance("RENDEVOUS", known));
        assert_eq!(nearest, Some(&"RENDEZVOUS"));
    }
}
