//! What the figures were taken on.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use crate::options::Options;

/// Words by name; `contenders` are those that take part.
pub(crate) fn describe(options: &Options, contenders: &[&str]) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            found.insert(name.into(), value);
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    add("cores", Some(cores.to_string()));
    add("processor", after("/proc/cpuinfo", "model name"));
    add("memory", after("/proc/meminfo", "MemTotal"));
    add("kernel", read("/proc/sys/kernel/osrelease"));
    add("load average at the start", read("/proc/loadavg"));
    add("huge pages", read("/sys/kernel/mm/transparent_hugepage/enabled"));
    add("huge pages of shared memory", read("/sys/kernel/mm/transparent_hugepage/shmem_enabled"));
    add("largest receive buffer of a socket", read("/proc/sys/net/core/rmem_max"));
    let placed = match options.bind {
        true => "rank r to the core r modulo their number, for everybody, all threads of a rank",
        false => "by the system, for everybody: no rank is bound",
    };
    add("ranks are placed", Some(placed.into()));
    let rule = format!(
        "of each size {} ms in each of {} turns, at least {} calls and at most {}, or fewer of \
         large sizes; a contender may take {} s a turn",
        options.budget_ms,
        options.turns,
        allfold_bench::ladder::LEAST_CALLS,
        allfold_bench::ladder::MOST_CALLS,
        options.limit_s
    );
    add("timed calls", Some(rule));
    add("allfold", Some(env!("CARGO_PKG_VERSION").into()));
    if contenders.iter().any(|name| name.starts_with("open-mpi")) {
        add("Open MPI", line_with(&["mpirun.openmpi", "--version"], "Open MPI"));
    }
    if contenders.contains(&"mpich") {
        add("MPICH", line_with(&["mpirun.mpich", "--version"], "Version:"));
    }
    if contenders.contains(&"gloo") {
        add("Gloo", line_with(&["dpkg-query", "-W", "libgloo-dev"], "libgloo-dev"));
    }
    found
}

/// The load now.
pub(crate) fn load() -> String {
    read("/proc/loadavg").unwrap_or_default()
}

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().into())
}

/// The first value of `name: value` in a file.
fn after(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().into())
}

fn line_with(command: &[&str], word: &str) -> Option<String> {
    let (program, arguments) = command.split_first()?;
    let ended = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8_lossy(&ended.stdout).into_owned();
    let line = text.lines().find(|line| line.contains(word))?;
    Some(line.split_whitespace().collect::<Vec<_>>().join(" "))
}
