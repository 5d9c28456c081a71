//! `allfold manifest`: what starts a job in Kubernetes. launcher/kubernetes holds the same for
//! kustomize.

mod command;
mod names;
mod options;
mod scalar;
mod template;

use self::options::Kind;
pub(crate) use self::options::ManifestOptions;
use self::scalar::scalar;
use self::template::fill;
use crate::error::Error;

/// The text of a manifest, and what is likely forgotten in it.
pub(crate) struct Manifest {
    pub(crate) text: String,
    pub(crate) warnings: Vec<String>,
}

impl Manifest {
    /// Finds bad input before anything is printed.
    pub(crate) fn new(options: &ManifestOptions) -> Result<Self, Error> {
        check_ranks(options.replicas)?;
        names::check_name("--name", &options.name)?;
        names::check_image("--image", &options.image)?;
        if let Some(namespace) = &options.namespace {
            names::check_label("--namespace", namespace)?;
        }
        if let Some(secret) = &options.secret {
            names::check_subdomain("--secret", secret)?;
        }
        if let Some(secret) = &options.image_pull_secret {
            names::check_subdomain("--image-pull-secret", secret)?;
        }
        names::check_cores("--cpu", &options.cpu)?;
        names::check_size("--memory", &options.memory)?;
        let claim = options.checkpoint_claim.as_deref().map(Claim::parse).transpose()?;
        let mut warnings = command::check(options, claim.is_some())?;
        if names::is_movable(&options.image) {
            let image = &options.image;
            warnings.push(format!(
                "--image {image}: a tag other than latest keeps all ranks at one version"
            ));
        }
        Ok(Self { text: Parts { options, claim }.text(), warnings })
    }
}

fn check_ranks(ranks: usize) -> Result<(), Error> {
    match (1..=MAX_RANKS).contains(&ranks) {
        true => Ok(()),
        false => Err(Error::Usage {
            problem: format!("--replicas {ranks}: a job has 1 to {MAX_RANKS} ranks"),
            help: Some("say how many with --replicas N".into()),
        }),
    }
}

/// Where checkpoints go.
struct Claim<'a> {
    name: &'a str,
    /// Of a claim that is to be made.
    size: Option<&'a str>,
}

impl<'a> Claim<'a> {
    fn parse(text: &'a str) -> Result<Self, Error> {
        let (name, size) = match text.split_once(':') {
            Some((name, size)) => (name, Some(size)),
            None => (text, None),
        };
        names::check_subdomain("--checkpoint-claim", name)?;
        if let Some(size) = size {
            names::check_size("--checkpoint-claim NAME:", size)?;
        }
        Ok(Self { name, size })
    }
}

/// What the text is made of, from the outside inwards.
struct Parts<'a> {
    options: &'a ManifestOptions,
    claim: Option<Claim<'a>>,
}

impl Parts<'_> {
    fn text(&self) -> String {
        let kind = self.options.kind;
        let mut objects = Vec::new();
        if self.claim.as_ref().is_some_and(|claim| claim.size.is_some()) {
            objects.push(CLAIM);
        }
        if kind != Kind::JobSet {
            objects.push(SERVICE);
        }
        objects.push(NETWORK_POLICY);
        if self.options.pdb {
            objects.push(DISRUPTION_BUDGET);
        }
        objects.push(match kind {
            Kind::StatefulSet => STATEFUL_SET,
            Kind::IndexedJob => INDEXED_JOB,
            Kind::JobSet => JOB_SET,
        });
        let objects: Vec<String> = objects.iter().map(|object| self.fill(object)).collect();
        self.heading() + &objects.join("---\n")
    }

    /// How to make the Secret.
    fn heading(&self) -> String {
        let namespace = match &self.options.namespace {
            Some(namespace) => format!("--namespace {namespace} "),
            None => String::new(),
        };
        let secret = self.secret();
        format!(
            "# Before anything else, once; the secret is never in this file:\n\
             #   allfold secret | kubectl {namespace}create secret generic {secret} \
             --from-file=secret=/dev/stdin\n"
        )
    }

    fn secret(&self) -> String {
        let default = || format!("{}-secret", self.options.name);
        self.options.secret.clone().unwrap_or_else(default)
    }

    fn fill(&self, object: &str) -> String {
        let options = self.options;
        let namespace = options.namespace.as_deref();
        let namespace = namespace.map(|name| format!("namespace: {}", scalar(name)));
        let claim = self.claim.as_ref();
        let values: [(&str, &str); 12] = [
            ("@NAME@", &scalar(&options.name)),
            ("@NAMESPACE@", &namespace.unwrap_or_default()),
            ("@RANKS@", &options.replicas.to_string()),
            ("@RESTARTS@", &RESTARTS.to_string()),
            ("@JOB_NAME@", JOB_NAME),
            ("@CLAIM@", &claim.map(|claim| scalar(claim.name)).unwrap_or_default()),
            ("@SIZE@", claim.and_then(|claim| claim.size).unwrap_or_default()),
            ("@FIRST_PORT@", FIRST_PORT),
            ("@LAST_PORT@", LAST_PORT),
            ("@METRICS_PORT@", METRICS_PORT),
            ("@NCCL_PORTS@", if options.gpu > 0 { NCCL_PORTS } else { "" }),
            // Each is part of one kind of object only.
            ("@POD@", &self.pod()),
        ];
        let job = fill(JOB, &[&values[..], &[("@BACKOFF@", &self.backoff())]].concat());
        fill(object, &[&values[..], &[("@JOB@", &job)]].concat())
    }

    fn backoff(&self) -> String {
        let ranks = self.options.replicas;
        match self.options.kind {
            Kind::JobSet => {
                "# The first failure is one of the JobSet, which starts all ranks anew.\n\
                 backoffLimit: 0"
                    .into()
            }
            _ => format!(
                "# A lost rank takes the others down (75), and each counts.\n\
                 backoffLimit: {}",
                RESTARTS * ranks
            ),
        }
    }

    /// The pod's template: the same for all kinds but for who says which rank it is, and who
    /// starts it again.
    fn pod(&self) -> String {
        let options = self.options;
        let pull_secrets = options.image_pull_secret.as_deref().map(scalar);
        let gpus = (options.gpu > 0).then(|| format!("nvidia.com/gpu: {}", options.gpu));
        let (mount, volume) = match &self.claim {
            None => Default::default(),
            Some(claim) => (
                format!("- name: checkpoints\n  mountPath: {CLAIM_PATH}"),
                format!(
                    "- name: checkpoints\n  persistentVolumeClaim:\n    claimName: {}",
                    scalar(claim.name)
                ),
            ),
        };
        let shared_memory = match options.gpu {
            0 => Default::default(),
            gpus => (SHARED_MEMORY_MOUNT, format!("{SHARED_MEMORY}{gpus}Gi")),
        };
        let values: [(&str, &str); 20] = [
            ("@NAME@", &scalar(&options.name)),
            ("@SUBDOMAIN@", &self.subdomain()),
            ("@RESTART@", self.restart()),
            (
                "@PULL_SECRETS@",
                &pull_secrets
                    .map(|name| format!("imagePullSecrets:\n  - name: {name}"))
                    .unwrap_or_default(),
            ),
            ("@TOLERATIONS@", if options.gpu > 0 { TOLERATIONS } else { "" }),
            ("@IMAGE@", &scalar(&options.image)),
            ("@COMMAND@", &scalar::words(&options.command)),
            ("@RANK@", self.rank()),
            ("@RANKS@", &options.replicas.to_string()),
            ("@CPU@", &scalar(&options.cpu)),
            ("@MEMORY@", &options.memory),
            ("@GPU@", &gpus.unwrap_or_default()),
            ("@SECRET@", &scalar(&self.secret())),
            ("@CLAIM_MOUNT@", &mount),
            ("@CLAIM_VOLUME@", &volume),
            ("@SHARED_MEMORY_MOUNT@", shared_memory.0),
            ("@SHARED_MEMORY_VOLUME@", &shared_memory.1),
            ("@FIRST_PORT@", FIRST_PORT),
            ("@METRICS_PORT@", METRICS_PORT),
            ("@LAST_PORT@", LAST_PORT),
        ];
        fill(POD, &values)
    }

    /// JobSet names its own.
    fn subdomain(&self) -> String {
        match self.options.kind {
            Kind::IndexedJob => {
                format!("# The Service's name.\nsubdomain: {}", scalar(&self.options.name))
            }
            Kind::StatefulSet | Kind::JobSet => String::new(),
        }
    }

    fn restart(&self) -> &'static str {
        match self.options.kind {
            Kind::StatefulSet => "restartPolicy: Always",
            Kind::IndexedJob | Kind::JobSet => "restartPolicy: Never",
        }
    }

    fn rank(&self) -> &'static str {
        match self.options.kind {
            Kind::StatefulSet => RANK_FROM_LABEL,
            Kind::IndexedJob | Kind::JobSet => {
                "# The rank is JOB_COMPLETION_INDEX, which Kubernetes sets."
            }
        }
    }
}

const POD: &str = include_str!("manifest/pod.yaml");
const STATEFUL_SET: &str = include_str!("manifest/stateful-set.yaml");
const JOB: &str = include_str!("manifest/job.yaml");
const INDEXED_JOB: &str = include_str!("manifest/indexed-job.yaml");
const JOB_SET: &str = include_str!("manifest/job-set.yaml");
const SERVICE: &str = include_str!("manifest/service.yaml");
const NETWORK_POLICY: &str = include_str!("manifest/network-policy.yaml");
const CLAIM: &str = include_str!("manifest/claim.yaml");
const DISRUPTION_BUDGET: &str = include_str!("manifest/disruption-budget.yaml");

/// Before Kubernetes 1.28 there is no such label; the variable is empty then, and the pod's name
/// says the same.
const RANK_FROM_LABEL: &str = "\
- name: ALLFOLD_RANK
  valueFrom:
    fieldRef:
      fieldPath: metadata.labels['apps.kubernetes.io/pod-index']";
/// Hosts with GPUs are often kept free of other pods by this taint.
const TOLERATIONS: &str = "\
tolerations:
  - key: nvidia.com/gpu
    operator: Exists
    effect: NoSchedule";
const SHARED_MEMORY_MOUNT: &str = "\
- name: shared-memory
  mountPath: /dev/shm";
/// A container has 64 MB of it. NCCL keeps there what goes to other pods, also of a single GPU, and what
/// goes between GPUs of one pod without a way of their own. The limit is a GiB a GPU: what is full is an
/// error of NCCL's, where the container's memory would be used up instead.
const SHARED_MEMORY: &str = "\
# NCCL's buffers; what is in use counts as the container's memory.
- name: shared-memory
  emptyDir:
    medium: Memory
    sizeLimit: ";
/// All of TCP's.
const NCCL_PORTS: &str = "\
# NCCL listens on ports of its own choice.
- protocol: TCP";
/// Of the one Job in a JobSet; names.rs counts on its length.
const JOB_NAME: &str = "ranks";
const CLAIM_PATH: &str = "/checkpoints";
/// The library's default for the rendezvous, so that it need not be named.
const FIRST_PORT: &str = "29500";
/// A port for each of up to eight lanes.
const LAST_PORT: &str = "29508";
/// The one in docs/monitoring.
const METRICS_PORT: &str = "9200";
/// A job that loses a host a day goes on for more than a week; a program that always fails has
/// ended by the next day.
const RESTARTS: usize = 10;
/// What the library takes.
const MAX_RANKS: usize = 65_536;
