//! Real sshd on hosts of their own: with keys of their own, known to a client whose configuration
//! is below one folder; gone when dropped.

use std::process::{Command, Stdio};

use super::{Hosts, host_name};
use crate::{Folder, Process};

/// Some hosts that can be reached by ssh.
pub struct Ssh {
    folder: Folder,
    /// By host; None where none was started.
    daemons: Vec<Option<Process>>,
}

/// Whom an sshd lets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lets {
    /// Who has the client's key.
    Keys,
    /// Who knows a password.
    Passwords,
}

impl Ssh {
    /// Starts an sshd on the first hosts, one for each of `lets`. Where this machine cannot have
    /// it, the reason.
    ///
    /// # Errors
    /// Why there is none.
    pub fn start(hosts: &Hosts, lets: &[Lets]) -> Result<Self, String> {
        for tool in [SSHD, "/usr/bin/ssh", "/usr/bin/ssh-keygen"] {
            if !std::path::Path::new(tool).exists() {
                return Err(format!("needs the program `{tool}`"));
            }
        }
        // sshd insists on it, empty.
        std::fs::create_dir_all("/run/sshd").map_err(|error| format!("/run/sshd: {error}"))?;
        let folder = Folder::new("ssh");
        let at = |name: &str| folder.path().join(name).display().to_string();
        let make_key = |name: &str| {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", &at(name)]);
            let made = keygen.stdin(Stdio::null()).status().map_err(|error| error.to_string())?;
            if !made.success() {
                return Err(format!("ssh-keygen: {made}"));
            }
            let public = std::fs::read_to_string(at(&format!("{name}.pub")));
            public.map_err(|error| error.to_string())
        };
        folder.write("authorized", &make_key("identity")?, 0o600);
        folder.write("nobody", "", 0o600);
        let mut known = String::new();
        let mut daemons = Vec::new();
        for (host, lets) in lets.iter().enumerate() {
            let key = format!("host-key-{host}");
            known.push_str(&format!("{} {}", host_name(host), make_key(&key)?));
            let (passwords, authorized) = match lets {
                Lets::Keys => ("no", "authorized"),
                Lets::Passwords => ("yes", "nobody"),
            };
            let configuration = format!(
                "ListenAddress {}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
                 PasswordAuthentication {passwords}\nKbdInteractiveAuthentication no\n\
                 PermitRootLogin yes\nPidFile none\n",
                Hosts::address(host),
                at(&key),
                at(authorized),
            );
            let configuration = folder.write(&format!("sshd-{host}"), &configuration, 0o600);
            let mut sshd = Command::new(SSHD);
            sshd.args(["-D", "-e", "-f", &configuration]);
            let mut daemon = Process::start(&mut hosts.machine(host, &sshd));
            daemon.wait_for_line("Server listening");
            daemons.push(Some(daemon));
        }
        folder.write("known", &known, 0o600);
        let configuration = format!(
            "Host *\n  User root\n  IdentityFile {}\n  IdentitiesOnly yes\n  UserKnownHostsFile {}\n  \
             GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n",
            at("identity"),
            at("known"),
        );
        folder.write("config", &configuration, 0o600);
        Ok(Self { folder, daemons })
    }

    /// How the client is called, for `--ssh`.
    pub fn client(&self) -> String {
        format!("ssh -F {}/config", self.folder.path().display())
    }

    /// The host goes down, with all that runs there.
    pub fn power_off(&mut self, host: usize) {
        if let Some(daemon) = self.daemons.get_mut(host) {
            *daemon = None;
        }
    }
}

impl Hosts {
    /// As [`on`](Self::on), with a /proc of its own: for what looks after processes.
    pub fn machine(&self, host: usize, command: &Command) -> Command {
        let mut moved = self.moved(host, &["--mount-proc"], command);
        if let Some(directory) = command.get_current_dir() {
            moved.current_dir(directory);
        }
        moved
    }
}

const SSHD: &str = "/usr/sbin/sshd";
