//! Who takes part: how each is found, built and run.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::ladder::LAST;

/// All of them, in the order of the table.
pub(crate) const NAMES: [&str; 7] =
    ["open-mpi", "open-mpi-tcp", "mpich", "gloo", "allfold", "allfold-slices", "allfold-quic"];

/// One that is there.
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    program: PathBuf,
}

/// Its median call of one size.
pub(crate) struct Row {
    pub(crate) bytes: usize,
    pub(crate) median_us: f64,
    pub(crate) wrong: u64,
}

impl Contender {
    /// Finds or installs it, and builds its program.
    pub(crate) fn find(name: &'static str) -> Result<Self, String> {
        let program = match name {
            "open-mpi" | "open-mpi-tcp" => {
                have("mpicc.openmpi", &["libopenmpi-dev", "openmpi-bin"])?;
                build("mpicc.openmpi", "mpi.c", "open-mpi", &[])?
            }
            "mpich" => {
                have("mpicc.mpich", &["libmpich-dev", "mpich"])?;
                build("mpicc.mpich", "mpi.c", "mpich", &[])?
            }
            "gloo" => {
                have("c++", &["g++"])?;
                if !Path::new("/usr/include/gloo/allreduce.h").exists() {
                    install(&["libgloo-dev"])?;
                }
                build("c++", "gloo.cc", "gloo", &["-std=c++17", "-lgloo", "-pthread"])?
            }
            _ => std::env::current_exe().map_err(|error| error.to_string())?,
        };
        Ok(Self { name, program })
    }

    /// One run of the ladder up to this size.
    pub(crate) fn run(&self, ranks: usize, last: usize) -> Result<Vec<Row>, String> {
        let text = match self.name {
            "gloo" => self.gloo(ranks, last)?,
            name if name.starts_with("allfold") => self.allfold(ranks, last)?,
            _ => self.mpi(ranks, last)?,
        };
        let row = |line: &str| {
            let words: Vec<&str> = line.strip_prefix("row ")?.split(' ').collect();
            let [bytes, _, median, _, _, wrong] = words[..] else { return None };
            Some(Row {
                bytes: bytes.parse().ok()?,
                median_us: median.parse().ok()?,
                wrong: wrong.parse().ok()?,
            })
        };
        let rows: Vec<Row> = text.lines().filter_map(row).collect();
        if rows.is_empty() { Err(format!("it printed no row: {text}")) } else { Ok(rows) }
    }

    fn mpi(&self, ranks: usize, last: usize) -> Result<String, String> {
        let is_mpich = self.name == "mpich";
        let mut command = Command::new(if is_mpich { "mpirun.mpich" } else { "mpirun.openmpi" });
        if !is_mpich {
            // As root, and with more ranks than cores, it wants to be asked twice.
            command.args(["--allow-run-as-root", "--oversubscribe"]);
        }
        if self.name == "open-mpi-tcp" {
            command.args(["--mca", "pml", "ob1", "--mca", "btl", "tcp,self"]);
        }
        command.args(["-n", &ranks.to_string()]).arg(&self.program).arg(last.to_string());
        output(&mut command)
    }

    fn gloo(&self, ranks: usize, last: usize) -> Result<String, String> {
        let folder = std::env::temp_dir().join(format!("allfold-peers-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).map_err(|error| error.to_string())?;
        let start = |rank: usize| {
            let mut command = Command::new(&self.program);
            command.arg(rank.to_string()).arg(ranks.to_string()).arg(&folder).arg(last.to_string());
            command
        };
        let text = together((0..ranks).map(start));
        let _ = std::fs::remove_dir_all(&folder);
        text
    }

    fn allfold(&self, ranks: usize, last: usize) -> Result<String, String> {
        let port = std::net::UdpSocket::bind("127.0.0.1:0")
            .and_then(|socket| socket.local_addr())
            .map_err(|error| error.to_string())?;
        let secret = allfold::Secret::random().map_err(|error| error.to_string())?;
        let line = secret.to_line();
        let (how, transport) = match self.name {
            "allfold" => ("alloc", "auto"),
            "allfold-slices" => ("slices", "auto"),
            _ => ("slices", "quic"),
        };
        let start = |rank: usize| {
            let mut command = Command::new(&self.program);
            command.args(["rank", how]);
            command.env("ALLFOLD_RANK", rank.to_string());
            command.env("ALLFOLD_WORLD_SIZE", ranks.to_string());
            command.env("ALLFOLD_RENDEZVOUS", port.to_string());
            command.env("ALLFOLD_TRANSPORT", transport);
            command.env("ALLFOLD_SECRET", line.as_str());
            command.env(LAST, last.to_string());
            command
        };
        together((0..ranks).map(start))
    }
}

/// Starts the ranks, waits for all, and returns what rank 0 printed.
fn together(commands: impl Iterator<Item = Command>) -> Result<String, String> {
    let children: Result<Vec<_>, _> =
        commands.map(|mut command| command.stdout(Stdio::piped()).spawn()).collect();
    let children = children.map_err(|error| error.to_string())?;
    let mut first = None;
    for child in children {
        let ended = child.wait_with_output().map_err(|error| error.to_string())?;
        if !ended.status.success() {
            return Err(ended.status.to_string());
        }
        first.get_or_insert_with(|| String::from_utf8_lossy(&ended.stdout).into_owned());
    }
    first.ok_or_else(|| "no rank".into())
}

fn output(command: &mut Command) -> Result<String, String> {
    let ended =
        command.stderr(Stdio::inherit()).output().map_err(|e| format!("{command:?}: {e}"))?;
    match ended.status.success() {
        true => Ok(String::from_utf8_lossy(&ended.stdout).into_owned()),
        false => Err(ended.status.to_string()),
    }
}

/// Makes sure that there is a program, from these packages.
fn have(program: &str, packages: &[&str]) -> Result<(), String> {
    let there = || Command::new(program).arg("--version").output().is_ok();
    if there() {
        return Ok(());
    }
    install(packages)?;
    if there() { Ok(()) } else { Err(format!("no {program}, though {packages:?} are installed")) }
}

fn install(packages: &[&str]) -> Result<(), String> {
    let names = packages.join(" ");
    let mut command = Command::new("apt-get");
    command.args(["install", "-y", "-qq", "--no-install-recommends"]).args(packages);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    match command.output() {
        Ok(ended) if ended.status.success() => Ok(()),
        Ok(_) => Err(format!("`apt-get install {names}` failed: run it as root")),
        Err(_) => Err(format!("install the equivalent of {names}")),
    }
}

/// Compiles one of our programs.
fn build(compiler: &str, source: &str, name: &str, libraries: &[&str]) -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let program = own.with_file_name(format!("peer-{name}"));
    let mut command = Command::new(compiler);
    command.arg("-O3").arg("-o").arg(&program).arg(folder.join("peers").join(source));
    command.args(libraries).arg("-lm");
    let ended = command.output().map_err(|error| format!("{compiler}: {error}"))?;
    match ended.status.success() {
        true => Ok(program),
        false => Err(format!("{compiler}: {}", String::from_utf8_lossy(&ended.stderr))),
    }
}
