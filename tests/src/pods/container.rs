//! A container: the image, its volumes, the files of the kubelet, and the command that is all of
//! that.

use std::fmt::Write;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::DOMAIN;
use super::manifest::Manifest;
use crate::namespaces::run;

/// What is known of a container before it starts.
pub(super) struct Container<'a> {
    pub(super) manifest: &'a Manifest,
    pub(super) ordinal: usize,
    /// The pod's network.
    pub(super) namespace: String,
    /// The program that the image has as `allfold`.
    pub(super) image: &'a Path,
    /// Whether the pod has a full name.
    pub(super) has_service: bool,
    /// A folder for it, beside the volumes.
    pub(super) files: PathBuf,
}

impl Container<'_> {
    /// The files that the kubelet puts into the container's /etc.
    pub(super) fn write_files(&self, addresses: &[IpAddr], resolver: IpAddr) -> io::Result<()> {
        std::fs::create_dir_all(self.files.join("root"))?;
        let (name, service) = (self.name(), &self.manifest.service);
        let mut hosts = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n");
        for address in addresses {
            let _ = match self.has_service {
                true => writeln!(hosts, "{address}\t{name}.{service}.{DOMAIN}\t{name}"),
                false => writeln!(hosts, "{address}\t{name}"),
            };
        }
        std::fs::write(self.files.join("hosts"), hosts)?;
        let resolv = format!(
            "nameserver {resolver}\nsearch {DOMAIN} svc.cluster.local cluster.local\n\
             options ndots:5\n"
        );
        std::fs::write(self.files.join("resolv.conf"), resolv)
    }

    /// It, in all namespaces but the network's of its own. It ends with the thread that starts it.
    pub(super) fn command(&self) -> Command {
        let name = self.name();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "ip", "netns", "exec", &self.namespace]);
        command.args(["unshare", "--uts", "--ipc", "--pid", "--mount"]);
        command.args(["sh", "-c", SHIM, "shim", BEGINNING, "container"]);
        command.arg(&self.files).arg(self.image).args([&name, &self.manifest.user.to_string()]);
        command.arg(&self.manifest.secret);
        command.arg(self.manifest.claim.as_deref().unwrap_or_default());
        command.args(&self.manifest.command);
        command.env_clear().env("PATH", "/image:/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/");
        command.env("HOSTNAME", &name).env("KUBERNETES_SERVICE_HOST", "10.96.0.1");
        command.env("KUBERNETES_SERVICE_PORT", "443").env("RUST_BACKTRACE", "1");
        command.envs(self.manifest.environment(self.ordinal));
        command
    }

    fn name(&self) -> String {
        self.manifest.pod(self.ordinal)
    }
}

/// Tries what a container needs beside its network.
pub(super) fn can_be_made() -> Result<(), String> {
    let mut command = Command::new("unshare");
    command.args(["--uts", "--ipc", "--pid", "--mount", "--fork", "sh", "-ec"]);
    command.arg(
        "hostname pod; mount --make-rprivate /; mount -t tmpfs pod /mnt; mount -t proc pod /proc",
    );
    run(&mut command).map_err(|error| format!("no containers can be made here: {error}"))
}

/// The Secret and the claim.
pub(super) fn fill_volumes(manifest: &Manifest, files: &Path) -> io::Result<()> {
    std::fs::create_dir(files.join(SECRET))?;
    write_secret(manifest, files)?;
    let claim = files.join(CLAIM);
    std::fs::create_dir(&claim)?;
    chown(&claim, None, Some(manifest.user))?;
    // As the kubelet makes it for fsGroup.
    std::fs::set_permissions(&claim, PermissionsExt::from_mode(0o2775))
}

/// A fresh secret in the place of what was there.
pub(super) fn write_secret(manifest: &Manifest, files: &Path) -> io::Result<()> {
    let secret = allfold::Secret::random().map_err(|error| io::Error::other(error.to_string()))?;
    let file = files.join(SECRET).join("secret");
    std::fs::write(&file, secret.to_line().as_bytes())?;
    std::fs::set_permissions(&file, PermissionsExt::from_mode(manifest.secret_mode))?;
    chown(&file, None, Some(manifest.user))
}

/// Waits for a container's first process, and ends as it does, which `unshare --fork` does not after
/// SIGKILL (util-linux 2.38).
const SHIM: &str = "setpriv --pdeathsig KILL -- sh -c \"$@\" & wait $!";
/// What a container does before it becomes the program.
const BEGINNING: &str = include_str!("container.sh");
/// Folders, as the container's first process knows them.
const SECRET: &str = "secret";
const CLAIM: &str = "claim";
