//! Whether a model fits into this host's memory, asked before any of it is taken.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{DType, Device, Result as Candle, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

use crate::data;
use crate::error::{Error, Result};
use crate::model::widths;
use crate::report::grouped;
use crate::settings::{Settings, name};

/// Compares what one rank takes at least with what this process may use; a system that does not
/// tell passes.
///
/// # Errors
/// [`Error::Option`] of `--hidden`.
pub(crate) fn check(settings: &Settings, shape: &data::Shape) -> Result<()> {
    match available() {
        Some(available) => compare(settings, shape, available),
        None => Ok(()),
    }
}

fn compare(settings: &Settings, shape: &data::Shape, available: u64) -> Result<()> {
    let parameters = count(settings, shape)?;
    // Themselves, their gradients, and what the optimiser remembers of each.
    let copies = 2 + settings.optimizer.states().len();
    let element = settings.dtype().size_in_bytes();
    let needed = parameters.saturating_mul((copies * element) as u64);
    if needed <= available {
        return Ok(());
    }
    Err(Error::Option {
        option: "--hidden",
        value: widths(&settings.hidden),
        problem: format!(
            "{} parameters take {} on each rank, with gradients and the state of {}, and this \
             process may use {}",
            grouped(parameters as usize),
            binary(needed),
            name(&settings.optimizer),
            binary(available)
        ),
        help: "give smaller widths".into(),
    })
}

/// The parameters of a model that is not made.
fn count(settings: &Settings, shape: &data::Shape) -> Result<u64> {
    let counted = Arc::new(AtomicU64::new(0));
    let backend: Box<dyn SimpleBackend> = Box::new(Counting(counted.clone()));
    let vars = VarBuilder::from_backend(backend, settings.dtype(), Device::Cpu);
    settings.model.build(&settings.hidden, shape, vars)?;
    Ok(counted.load(Ordering::Relaxed))
}

/// Gives tensors of any shape that take the memory of one number.
struct Counting(Arc<AtomicU64>);

impl SimpleBackend for Counting {
    fn get(&self, shape: Shape, _: &str, _: Init, dtype: DType, device: &Device) -> Candle<Tensor> {
        let elements = shape.dims().iter().fold(1u64, |all, &one| all.saturating_mul(one as u64));
        self.0.fetch_add(elements, Ordering::Relaxed);
        Tensor::zeros((), dtype, device)?.broadcast_as(shape)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Candle<Tensor> {
        candle_core::bail!("parameter {name} has no shape")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

/// Bytes that this process may take at most: what the host has left, or its control group's limit.
fn available() -> Option<u64> {
    let read = |path: &Path| fs::read_to_string(path).ok();
    let of_host = read(Path::new("/proc/meminfo")).as_deref().and_then(left);
    let of_group = read(Path::new("/proc/self/cgroup"))
        .as_deref()
        .and_then(|groups| limit(groups, |path| read(&Path::new(GROUPS).join(path))));
    of_host.into_iter().chain(of_group).min()
}

/// From the text of `/proc/meminfo`.
fn left(text: &str) -> Option<u64> {
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    };
    Some(of("MemAvailable:")?.saturating_add(of("SwapFree:").unwrap_or(0)))
}

/// The lowest limit of the group that `/proc/self/cgroup` names and those around it; what it has
/// taken does not count, since the kernel gives some of that back.
fn limit(groups: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let groups = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        match (parts.next()?, parts.next()?) {
            ("", path) => Some(("", "memory.max", path)),
            ("memory", path) => Some(("memory", "memory.limit_in_bytes", path)),
            _ => None,
        }
    });
    let limits = groups.flat_map(|(root, file, path)| {
        let path = Path::new(path.trim_start_matches('/'));
        // Within a container the path may be that of the host, and the root is the container's.
        path.ancestors().map(|path| Path::new(root).join(path).join(file)).collect::<Vec<_>>()
    });
    limits.filter_map(|path| read(&path)?.trim().parse().ok()).min()
}

/// Bytes in words, such as `1.5 GiB`.
fn binary(bytes: u64) -> String {
    match bytes as f64 / MIB {
        mebibytes if mebibytes < 1024.0 => format!("{mebibytes:.1} MiB"),
        mebibytes => format!("{:.1} GiB", mebibytes / 1024.0),
    }
}

/// Where control groups are mounted.
const GROUPS: &str = "/sys/fs/cgroup";
const MIB: f64 = (1 << 20) as f64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Data;
    use crate::options::{OptimizerKind, Options};
    use crate::parameters::by_name;
    use candle_nn::VarMap;

    fn settings(model: &str, hidden: &[usize], optimizer: OptimizerKind) -> (Settings, Data) {
        let options =
            Options { model: model.into(), hidden: hidden.into(), optimizer, ..Options::default() };
        let data = options.open().unwrap();
        (Settings::new(&options, 1, &data).unwrap(), data)
    }

    #[test]
    fn every_parameter_is_counted() {
        for model in ["mlp", "cnn", "lm"] {
            let (settings, data) = settings(model, &[], OptimizerKind::Sgd);
            let map = VarMap::new();
            let vars = VarBuilder::from_varmap(&map, settings.dtype(), &Device::Cpu);
            settings.model.build(&settings.hidden, &data.shape, vars).unwrap();
            let made: usize = by_name(&map).iter().map(|(_, var)| var.elem_count()).sum();
            assert_eq!(count(&settings, &data.shape).unwrap(), made as u64, "{model}");
        }
    }

    #[test]
    fn what_does_not_fit_is_said_with_its_size() {
        let (wide, data) = settings("mlp", &[65536, 65536], OptimizerKind::Adamw);
        let error = compare(&wide, &data.shape, 8 << 30).unwrap_err();
        assert_eq!(
            error.to_string(),
            "--hidden 65536,65536: 4,299,948,042 parameters take 64.1 GiB on each rank, with \
             gradients and the state of adamw, and this process may use 8.0 GiB"
        );
        assert_eq!((error.exit_code(), error.help().is_some()), (2, true));
        // 650 + 110 parameters of 4 bytes, 4 times: themselves, gradients and two states.
        for (optimizer, copies) in [(OptimizerKind::Adamw, 4), (OptimizerKind::Sgd, 3)] {
            let (narrow, data) = settings("mlp", &[10], optimizer);
            let needed = count(&narrow, &data.shape).unwrap() * 4 * copies;
            assert!(compare(&narrow, &data.shape, needed).is_ok());
            assert!(compare(&narrow, &data.shape, needed - 1).is_err());
        }
    }

    #[test]
    fn what_the_host_has_left() {
        let text = "MemTotal: 200 kB\nMemAvailable:   100 kB\nSwapFree:  20 kB\n";
        assert_eq!(left(text), Some(120 << 10));
        assert_eq!(left("MemAvailable:   100 kB\n"), Some(100 << 10));
        assert_eq!(left("MemTotal: 200 kB\n"), None);
    }

    #[test]
    fn the_lowest_limit_around_counts() {
        let files = |pairs: &'static [(&str, &str)]| {
            move |path: &Path| {
                let found = pairs.iter().find(|(name, _)| Path::new(name) == path);
                found.map(|(_, text)| text.to_string())
            }
        };
        let pod = files(&[
            ("a/b/memory.max", "max\n"),
            ("a/memory.max", "4096\n"),
            ("memory.max", "max"),
        ]);
        assert_eq!(limit("0::/a/b\n", pod), Some(4096));
        assert_eq!(limit("0::/\n", files(&[("memory.max", "8192\n")])), Some(8192));
        assert_eq!(limit("0::/host/path\n", files(&[("memory.max", "8192\n")])), Some(8192));
        let old = "5:cpu,cpuacct:/x\n3:memory:/x\n";
        assert_eq!(limit(old, files(&[("memory/x/memory.limit_in_bytes", "7\n")])), Some(7));
        assert_eq!(limit("0::/\n", files(&[])), None);
    }
}
