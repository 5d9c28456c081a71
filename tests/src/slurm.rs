//! A real Slurm on this machine, of one node: munged, slurmctld and slurmd with a configuration,
//! ports, a key and a socket of their own, all below one folder; gone when dropped.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::getuid;
use rustix::system::uname;

use crate::{Folder, Process, clean_command};

/// It runs, and takes jobs.
pub struct Slurm {
    // In the order in which they end.
    _slurmd: Process,
    _controller: Process,
    _munged: Process,
    folder: Folder,
}

impl Slurm {
    /// Starts one. Where this machine cannot have it, the reason.
    ///
    /// # Errors
    /// Why there is none.
    pub fn start() -> Result<Self, String> {
        if !getuid().is_root() {
            return Err("needs root, for slurmd".into());
        }
        for tool in ["munged", "slurmctld", "slurmd", "srun"] {
            let version = if tool == "munged" { "--version" } else { "-V" };
            Command::new(daemon(tool))
                .arg(version)
                .stdin(Stdio::null())
                .output()
                .map_err(|_| format!("needs the program `{tool}`"))?;
        }
        let folder = Folder::new("slurm");
        let at = |name: &str| folder.path().join(name).display().to_string();
        folder.write("munge.key", &"0123456789abcdef".repeat(8), 0o400);
        let mut munged = Command::new(daemon("munged"));
        munged.args(["--foreground", "--force", "--num-threads", "2"]);
        for (option, name) in [
            ("--key-file", "munge.key"),
            ("--socket", "munge.socket"),
            ("--pid-file", "munge.pid"),
            ("--log-file", "munge.log"),
            ("--seed-file", "munge.seed"),
        ] {
            munged.args([option, &at(name)]);
        }
        let munged = Process::start(&mut munged);
        let configuration = configuration(folder.path());
        let conf = folder.write("slurm.conf", &configuration, 0o644);
        // Nothing of the machine's own, nor of cgroups.
        folder.write("cgroup.conf", "CgroupPlugin=autodetect\n", 0o644);
        for name in ["state", "spool"] {
            std::fs::create_dir(folder.path().join(name)).map_err(|error| error.to_string())?;
        }
        let start = |name: &str, more: &[&str]| {
            let mut command = clean_command(&daemon(name));
            Process::start(command.args(["-D", "-f", &conf]).args(more).env("SLURM_CONF", &conf))
        };
        let mut controller = start("slurmctld", &["-i", "-v"]);
        controller.wait_for_line("Running as primary controller");
        let slurmd = start("slurmd", &["-N", NODE]);
        Ok(Self { _slurmd: slurmd, _controller: controller, _munged: munged, folder })
    }

    /// `srun` with these words; it waits for the node.
    pub fn srun(&self, words: &[&str]) -> Command {
        let mut command = clean_command("srun");
        command.args(words).env("SLURM_CONF", self.folder.path().join("slurm.conf"));
        command
    }
}

fn configuration(folder: &Path) -> String {
    let folder = folder.display();
    let host = uname().nodename().to_string_lossy().into_owned();
    let host = host.split('.').next().unwrap_or_default();
    let [controller, node] = [(); 2].map(|()| free_port());
    format!(
        "ClusterName=allfold-tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
MpiDefault=none
ReturnToService=2
SlurmctldPort={controller}
SlurmdParameters=config_overrides
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdSpoolDir={folder}/spool
StateSaveLocation={folder}/state
NodeName={NODE} NodeHostname={host} NodeAddr=127.0.0.1 Port={node} CPUs=4 RealMemory=100
PartitionName=all Nodes=ALL Default=YES State=UP
"
    )
}

fn free_port() -> u16 {
    let bound = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    match bound {
        Ok(address) => address.port(),
        Err(error) => panic!("no free port: {error}"),
    }
}

/// Daemons are not on everybody's PATH.
fn daemon(name: &str) -> String {
    let path = format!("/usr/sbin/{name}");
    if Path::new(&path).exists() { path } else { name.into() }
}

const NODE: &str = "n0";
