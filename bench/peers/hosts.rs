//! Two hosts on one machine: network namespaces with a pair of virtual cards between them, as root,
//! made of what Linux has, and gone when dropped.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// Two hosts.
pub(crate) struct Hosts {
    names: [String; 2],
}

/// What is between them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wire {
    /// Bytes of an IP packet.
    pub(crate) mtu: u32,
    /// Mbit/s each way; none is as fast as memory.
    pub(crate) rate: Option<u32>,
}

impl Hosts {
    /// Where this machine cannot have them, the reason.
    pub(crate) fn new(wire: Wire) -> Result<Self, String> {
        let name = |host| format!("allfold-peers-{}-{host}", std::process::id());
        // From here on dropping it removes what there is.
        let hosts = Self { names: [name(0), name(1)] };
        let [first, second] = &hosts.names;
        for name in &hosts.names {
            run("ip", &["netns", "add", name])
                .map_err(|e| format!("network namespaces need root: {e}"))?;
            run("ip", &["-n", name, "link", "set", "lo", "up"])?;
        }
        let mtu = wire.mtu.to_string();
        let peer = ["peer", "name", "eth0", "mtu", &mtu, "netns", second];
        let link = ["-n", first, "link", "add", "eth0", "mtu", &mtu, "type", "veth"];
        run("ip", &[&link[..], &peer[..]].concat())?;
        for (host, name) in hosts.names.iter().enumerate() {
            let address = format!("{}/24", Self::address(host));
            run("ip", &["-n", name, "addr", "add", &address, "dev", "eth0"])?;
            run("ip", &["-n", name, "link", "set", "eth0", "up"])?;
            if let Some(rate) = wire.rate {
                // A burst of less than a packet as the sender hands it over would be sent in parts,
                // and 20 ms of queue is what a switch has.
                let rate = format!("{rate}mbit");
                let queue = ["burst", "64kb", "latency", "20ms"];
                let tbf = ["-n", name, "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", &rate];
                run("tc", &[&tbf[..], &queue[..]].concat())?;
            }
        }
        Ok(hosts)
    }

    pub(crate) fn address(host: usize) -> String {
        format!("10.78.0.{}", host + 1)
    }

    /// The same command on a host.
    pub(crate) fn on(&self, host: usize, command: &Command) -> Command {
        let mut moved = Command::new("ip");
        moved.args(["netns", "exec", &self.names[host % 2]]);
        moved.arg(command.get_program()).args(command.get_args());
        let given = command.get_envs();
        moved.envs(given.filter_map(|(name, value): (&OsStr, _)| Some((name, value?))));
        moved
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = run("ip", &["netns", "del", name]);
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let mut command = Command::new(program);
    // Out of a Ctrl-C's reach: what is half made is not removed.
    command.args(arguments).stdin(Stdio::null()).process_group(0);
    let ended = command.output();
    let ended = ended.map_err(|error| format!("{program}: {error}"))?;
    match ended.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&ended.stderr).trim())),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::time::Duration;

    use rustix::process::{Pid, Signal, kill_process};

    use super::*;
    use crate::processes;

    /// In a process of its own: it waits for ever on hosts that it has made.
    #[test]
    #[ignore = "what the test below interrupts"]
    fn waits_on_hosts() {
        processes::take_charge();
        let hosts = match Hosts::new(Wire { mtu: 1500, rate: None }) {
            Ok(hosts) => hosts,
            Err(reason) => return println!("\nnone {reason}"),
        };
        println!("\nhosts {}", hosts.names.join(" "));
        let mut waits = Command::new("sleep");
        waits.arg("1000000");
        let commands = vec![hosts.on(0, &waits), hosts.on(1, &waits)];
        let ended = processes::together(commands, Duration::from_secs(1_000_000));
        assert_eq!(ended.problem.as_deref(), Some("interrupted"));
    }

    #[test]
    fn a_signal_leaves_no_hosts_behind() {
        let mut waits = Command::new(std::env::current_exe().unwrap());
        waits.args(["--ignored", "--exact", "hosts::tests::waits_on_hosts", "--nocapture"]);
        let mut waits = waits.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(waits.stdout.take().unwrap()).lines().map(Result::unwrap);
        let found = lines.find(|line| line.starts_with("hosts ") || line.starts_with("none "));
        let found = found.unwrap();
        let Some(names) = found.strip_prefix("hosts ") else {
            eprintln!("skipped: a_signal_leaves_no_hosts_behind: {found}");
            waits.wait().unwrap();
            return;
        };
        let there = || {
            let listed = Command::new("ip").args(["netns", "list"]).output().unwrap();
            let listed = String::from_utf8(listed.stdout).unwrap();
            names.split(' ').filter(|name| listed.contains(name)).count()
        };
        assert_eq!(there(), 2);
        // SIGINT is ignored where the tests run in the background of a script.
        kill_process(Pid::from_child(&waits), Signal::TERM).unwrap();
        // Until its output ends, so that its threads are gone as well.
        lines.for_each(drop);
        assert!(waits.wait().unwrap().success());
        assert_eq!(there(), 0);
    }
}
