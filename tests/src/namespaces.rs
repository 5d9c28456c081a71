//! Network namespaces, made of what Linux has, as root; nothing stays behind, also of a test that
//! was killed.

use std::fmt::Display;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Pid, Signal, getuid, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Some network namespaces; all of them are gone when dropped.
pub(crate) struct Namespaces {
    /// Of all their names.
    prefix: String,
}

impl Namespaces {
    /// None so far. Where this machine cannot have them, or lacks one of the programs `tools`, the
    /// reason.
    pub(crate) fn new(tools: &[&str]) -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !getuid().is_root() {
            return Err("needs root, for network namespaces".into());
        }
        for tool in tools {
            run(Command::new(tool).arg("--version"))
                .or_else(|_| run(Command::new(tool).arg("-V")))
                .map_err(|_| format!("needs the program `{tool}`"))?;
        }
        sweep();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Self { prefix: format!("{PREFIX}{}-{number}-", std::process::id()) })
    }

    /// What the namespace of `which` is called.
    pub(crate) fn name(&self, which: impl Display) -> String {
        format!("{}{which}", self.prefix)
    }

    /// Makes one, with its loopback up; its name.
    pub(crate) fn make(&self, which: impl Display) -> Result<String, String> {
        let name = self.name(which);
        ip(&["netns", "add", &name]).map_err(|error| format!("no network namespaces: {error}"))?;
        ip(&["-n", &name, "link", "set", "lo", "up"])?;
        Ok(name)
    }

    /// One with a bridge of the same name, to which others can be plugged.
    pub(crate) fn make_switch(&self) -> Result<String, String> {
        let switch = self.make(SWITCH)?;
        // Without an address of its own it takes that of a port, another one when ports come and
        // go, and who talks to it loses it for half a minute.
        let bridge = ["address", "02:00:00:00:00:01", "type", "bridge"];
        ip(&[&["-n", &switch, "link", "add", SWITCH], &bridge[..]].concat())?;
        ip(&["-n", &switch, "link", "set", SWITCH, "up"])?;
        Ok(switch)
    }

    /// A cable from `which`'s eth0 to the switch, where it ends in `port`; neither end is up.
    pub(crate) fn plug(&self, which: impl Display, port: &str) -> Result<(), String> {
        let (switch, name) = (self.name(SWITCH), self.name(which));
        let veth = ["type", "veth", "peer", "name", "eth0", "netns", &name];
        ip(&[&["-n", &switch, "link", "add", port], &veth[..]].concat())?;
        ip(&["-n", &switch, "link", "set", port, "master", SWITCH])
    }

    /// An empty folder that goes with them.
    pub(crate) fn folder(&self) -> Result<PathBuf, String> {
        let path = folder(&self.name("files"));
        std::fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(path)
    }

    /// Ends what runs in one, and removes it.
    pub(crate) fn remove(&self, which: impl Display) {
        remove(&self.name(which));
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        let of_these = |name: &String| name.starts_with(&self.prefix);
        names().into_iter().filter(of_these).for_each(|name| remove(&name));
    }
}

/// Where `ip netns exec` finds what it puts in the place of files of /etc.
pub(crate) fn etc(name: &str) -> PathBuf {
    Path::new("/etc/netns").join(name)
}

/// Does it on a thread within a network namespace.
pub(crate) fn inside<R: Send>(
    name: &str,
    act: impl FnOnce() -> Result<R, String> + Send,
) -> Result<R, String> {
    let namespace = Path::new(NAMESPACES).join(name);
    let enter = || {
        let file = File::open(&namespace).map_err(|error| error.to_string())?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|error| format!("cannot enter {}: {error}", namespace.display()))?;
        act()
    };
    std::thread::scope(|scope| scope.spawn(enter).join())
        .unwrap_or_else(|_| Err("panicked within a namespace".into()))
}

/// The first child of a process: what waits for it has started.
pub(crate) fn first_child(id: u32) -> Result<Pid, String> {
    let path = format!("/proc/{id}/task/{id}/children");
    let children = std::fs::read_to_string(&path).unwrap_or_default();
    let first = children.split_whitespace().next().and_then(|id| id.parse().ok());
    first.and_then(Pid::from_raw).ok_or_else(|| format!("{path}: {children:?}"))
}

pub(crate) fn ip(arguments: &[&str]) -> Result<(), String> {
    run(Command::new("ip").args(arguments))
}

/// `nft` with these words, within a namespace.
pub(crate) fn nft(name: &str, words: &str) -> Result<(), String> {
    run(Command::new("ip").args(["netns", "exec", name, "nft", words]))
}

pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    let ended = command.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    match ended.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&ended.stderr);
            Err(format!("{command:?}: {}", said.lines().next().unwrap_or("failed")))
        }
    }
}

/// Removes what test processes have left that were killed.
fn sweep() {
    let is_gone = |name: &String| {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        let owner = owner.filter(|owner| owner.parse::<u32>().is_ok());
        owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists())
    };
    names().into_iter().filter(is_gone).for_each(|name| remove(&name));
}

/// Of all network namespaces there are, and of the folders that go with ours.
fn names() -> Vec<String> {
    let folders = [PathBuf::from(NAMESPACES), std::env::temp_dir()];
    let entries = folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok());
    entries
        .flat_map(|entries| entries.flatten())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn folder(name: &str) -> PathBuf {
    std::env::temp_dir().join(name)
}

fn remove(name: &str) {
    // Nothing is left to be done where one of these fails; the next run sweeps.
    kill_all(name);
    let _ = ip(&["netns", "del", name]);
    let _ = std::fs::remove_dir_all(etc(name));
    let _ = std::fs::remove_dir_all(folder(name));
}

/// Kills what runs in a namespace; what is started meanwhile may be left out.
pub(crate) fn kill_all(name: &str) {
    let pids = Command::new("ip").args(["netns", "pids", name]).stdin(Stdio::null()).output();
    let pids = pids.map(|ended| String::from_utf8_lossy(&ended.stdout).into_owned());
    for pid in pids.unwrap_or_default().split_whitespace() {
        if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Of the names of namespaces; then comes the id of the process that made it.
const PREFIX: &str = "allfold-";
/// Where `ip` keeps them.
const NAMESPACES: &str = "/run/netns";
/// The namespace of the switch, and the bridge in it.
pub(crate) const SWITCH: &str = "switch";
