//! Every setting: its builder method, environment variable, default and unit.

mod durations;
mod host_port;
mod interfaces;
mod lanes;
mod names;
mod nccl;
mod sharing;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::error::{ErrorKind, Result};
use crate::identity::{Environment, Identity, invalid};
use crate::metrics::address::Address;
use crate::plan::Algorithm;
use crate::plan::costs::{Choice, CostTable};
use crate::report;
use crate::trust::Credentials;
use crate::trust::own::OwnCertificates;
use crate::trust::secret::Secrets;

pub(crate) use crate::world::Limits;
pub use durations::parse_duration;
use durations::{MAX_DURATION_MS, duration};
pub(crate) use host_port::{DEFAULT_PORT, HostPort, default_port};
pub(crate) use interfaces::Interfaces;
use lanes::LANES;
pub(crate) use lanes::check_lanes;
pub use names::is_setting;
use names::warn_of_unknown;
pub(crate) use nccl::{NcclSettings, Reach};
pub(crate) use sharing::{Sharing, cannot_share};

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
        self.sharing = Sharing::parse(name)?;
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
            sharing: Sharing::read(environment)?,
            lanes: lanes::read(environment)?,
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

/// The choice of plans in a world without a rendezvous.
pub(crate) fn choice_from_env() -> Result<Choice> {
    let environment = Environment::of_process();
    let forced = algorithm(&environment)?;
    Ok(Choice { costs: CostTable::default(), forced, lanes: lanes::read(&environment)? })
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
