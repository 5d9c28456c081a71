//! What `allfold manifest` can be told.

use clap::ValueEnum;

/// `allfold manifest`
#[derive(clap::Args, Clone, Debug)]
#[command(after_long_help = AFTERWARDS)]
pub(crate) struct ManifestOptions {
    /// Number of ranks, one a pod
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(super) replicas: usize,

    /// Image of the containers, with a tag or a digest
    #[arg(long)]
    pub(super) image: String,

    /// Name of all objects, and of the job
    #[arg(long, default_value = "trainer")]
    pub(super) name: String,

    /// Namespace of all objects [default: what kubectl has]
    #[arg(long, value_name = "NAME")]
    pub(super) namespace: Option<String>,

    /// What starts the pods
    #[arg(long, default_value = "statefulset")]
    pub(super) kind: Kind,

    /// NVIDIA GPUs of each pod
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub(super) gpu: u16,

    /// Cores of each pod, such as 4, 0.5 or 500m
    #[arg(long, value_name = "CORES", default_value = "2", allow_negative_numbers = true)]
    pub(super) cpu: String,

    /// Memory of each pod, such as 512Mi or 8Gi
    #[arg(long, value_name = "SIZE", default_value = "2Gi", allow_negative_numbers = true)]
    pub(super) memory: String,

    /// The Secret that holds the job's secret under the key `secret` [default: NAME-secret]
    #[arg(long, value_name = "NAME")]
    pub(super) secret: Option<String>,

    /// Mount this PersistentVolumeClaim at /checkpoints; with a size, such as ck:10Gi, make it, too
    #[arg(long, value_name = "NAME[:SIZE]")]
    pub(super) checkpoint_claim: Option<String>,

    /// The Secret with which the image is pulled
    #[arg(long, value_name = "NAME")]
    pub(super) image_pull_secret: Option<String>,

    /// Add a PodDisruptionBudget: no rank is evicted while the job works
    #[arg(long)]
    pub(super) pdb: bool,

    /// The program and its arguments, as in `run`
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub(super) command: Vec<String>,
}

/// Who starts the pods, and again when they end.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A StatefulSet: pods that keep their names and come back until they are deleted
    #[value(name = "statefulset")]
    StatefulSet,
    /// A Job with an index for each pod, which ends when all ranks are done
    IndexedJob,
    /// A JobSet (jobset.sigs.k8s.io), which starts all pods anew after a failure
    #[value(name = "jobset")]
    JobSet,
}

const AFTERWARDS: &str = "\
Prints to standard output, for `kubectl apply -f -`. The same options always give the same text. \
docs/kubernetes.md says what each part is for.";
