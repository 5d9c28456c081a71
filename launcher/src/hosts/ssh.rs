//! How a launcher is started on another host, and what ssh's words mean when it is not.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::process::{Command, ExitStatus};

use crate::error::Error;
use crate::exit_code;
use crate::script::quoted;

use super::SUBCOMMAND;
use super::list::Host;

/// `allfold host` there, by ssh.
pub(crate) fn command(ssh: &str, host: &Host, path: &str) -> Command {
    let mut words = ssh.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or(DEFAULT));
    // The user's options come first, and so before these: ssh takes the first of each.
    command.args(words).args(OPTIONS).arg("--").arg(&host.destination);
    let words = [b"exec ", &quoted(path)[..], b" ", SUBCOMMAND.as_bytes()].concat();
    command.arg(OsString::from_vec(words));
    command
}

/// Why there is no launcher on the host, by what ssh has said last and how it ended; `place` is
/// where the host's name stands.
pub(crate) fn why(
    host: &Host,
    path: &str,
    place: &str,
    said: &[String],
    status: Option<ExitStatus>,
) -> Error {
    let name = &host.destination;
    let find = |marks: &[&str]| {
        said.iter().rev().find(|line| marks.iter().any(|mark| line.contains(mark)))
    };
    // Not what a host's banner says of connections.
    let find_own = |marks: &[&str]| find(marks).filter(|line| is_sshs(line));
    let code = status.and_then(|status| status.code());
    let usage = |problem: String, help: String| Error::Job {
        message: problem,
        help: Some(help),
        code: exit_code::USAGE,
    };
    let try_again = |problem: String, help: String| Error::Job {
        message: problem,
        help: Some(help),
        code: exit_code::TRY_AGAIN,
    };
    if let Some(line) = find_own(&["Could not resolve hostname"]) {
        let problem = line.rsplit_once(": ").map_or("", |(_, reason)| reason);
        if problem.starts_with("Temporary failure") {
            return try_again(
                format!("the name {name} cannot be resolved now: {problem}"),
                format!("see whether a name server answers: `getent hosts {name}`"),
            );
        }
        return usage(
            format!("unknown host {name}: {problem}"),
            format!(
                "correct it in {place}, or make it known: /etc/hosts, or HostName in ~/.ssh/config"
            ),
        );
    }
    if let Some(line) = find(&["Permission denied ("]) {
        let asks = ["password", "keyboard-interactive"].iter().any(|way| line.contains(way));
        let what = if asks { "asks for a password" } else { "does not let this user in" };
        return usage(
            format!("ssh to {name} {what}: {line}"),
            format!(
                "give it a key: `ssh-copy-id {name}`; with a passphrase `ssh-add`, until `ssh -o \
                 BatchMode=yes {name} true` works; another user: USER@{name} in {place}"
            ),
        );
    }
    if find(&["Host key verification failed"]).is_some() {
        return usage(
            format!("ssh to {name} does not know its host key, or knows another one"),
            format!("look at it and accept it once: `ssh {name} true`"),
        );
    }
    if find_own(&["Connection refused"]).is_some() {
        return try_again(
            format!("{name} refuses ssh's connection: the host is up, and no sshd listens there"),
            format!("start sshd on {name}, or give its port: --ssh \"ssh -p PORT\""),
        );
    }
    let unreachable = ["timed out", "No route to host", "Network is unreachable"];
    if let Some(line) = find_own(&unreachable) {
        return try_again(
            format!("{name} does not answer ssh: {line}"),
            format!("see whether {name} is up and whether a firewall keeps TCP port 22 closed"),
        );
    }
    if let Some(line) = find_own(&["kex_exchange_identification: "]) {
        return try_again(
            format!("{name} takes ssh's connection and ends it at once: {line}"),
            format!(
                "see whether sshd listens at that port of {name}, and whether it has too many at \
                 once: MaxStartups in its sshd_config"
            ),
        );
    }
    let there = format!("install it there, or say where it is: --remote-path {path}");
    match code {
        Some(NOT_FOUND) => return usage(format!("allfold is not at {path} on {name}"), there),
        Some(NOT_EXECUTABLE) => {
            return usage(format!("{path} on {name} cannot be executed"), there);
        }
        _ => {}
    }
    if find(&["unrecognized subcommand", "unrecognised subcommand"]).is_some() {
        return usage(format!("{path} on {name} is another version of allfold"), there);
    }
    let reason = reason(said).map_or_else(|| ended(status), ToOwned::to_owned);
    let message = format!("no launcher on {name}: {reason}");
    let help = format!("see whether `ssh -o BatchMode=yes {name} {path} --version` works");
    match code {
        // Of allfold there, which knows whether it would fail again.
        Some(code @ 1..=254) if is_error(said) => {
            Error::Job { message, help: Some(help), code: u8::try_from(code).unwrap_or(u8::MAX) }
        }
        _ => try_again(message, help),
    }
}

/// Which of these lines says why: an error of allfold's has a line of help behind it.
pub(crate) fn reason(said: &[String]) -> Option<&str> {
    let mut latest = said.iter().rev().map(String::as_str);
    let error = latest.clone().find_map(|line| line.strip_prefix(ERROR));
    error.or_else(|| latest.find(|line| !line.starts_with(LEARNT)))
}

fn is_error(said: &[String]) -> bool {
    said.iter().any(|line| line.starts_with(ERROR))
}

/// Whether it is ssh that says so.
fn is_sshs(line: &str) -> bool {
    let marks = ["ssh: ", "kex_exchange_identification: ", "Connection timed out during banner"];
    marks.iter().any(|mark| line.starts_with(mark))
}

/// An error for a version that differs.
pub(crate) fn other_version(host: &Host, path: &str, version: &str) -> Error {
    let (name, own) = (&host.destination, env!("CARGO_PKG_VERSION"));
    Error::Job {
        message: format!("{path} on {name} is allfold {version}, this is {own}"),
        help: Some(format!("install {own} there, or say where it is: --remote-path PATH")),
        code: exit_code::USAGE,
    }
}

/// How ssh itself ended, in words.
pub(crate) fn ended(status: Option<ExitStatus>) -> String {
    match status.map(|status| (status.code(), status)) {
        Some((Some(code), _)) => format!("ssh ended with code {code}"),
        Some((None, status)) => format!("ssh: {status}"),
        None => "ssh is gone".into(),
    }
}

pub(crate) const DEFAULT: &str = "ssh";
/// Nobody can answer a question, a host that is gone is noticed, and nothing else uses the
/// connection: one that is shared would heed none of these, and not be ours to end.
const OPTIONS: [&str; 16] = [
    "-T",
    "-x",
    "-o",
    "BatchMode=yes",
    "-o",
    "ConnectTimeout=10",
    "-o",
    "ServerAliveInterval=5",
    "-o",
    "ServerAliveCountMax=3",
    "-o",
    "ClearAllForwardings=yes",
    "-o",
    "ControlMaster=no",
    "-o",
    "ControlPath=none",
];
/// How errors of allfold begin.
const ERROR: &str = "error: ";
/// What ssh says whenever it learns a host's key.
const LEARNT: &str = "Warning: Permanently added ";
/// Of a shell that finds no such program.
const NOT_FOUND: i32 = 127;
/// Of a shell that must not start it.
const NOT_EXECUTABLE: i32 = 126;

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn said(lines: &[&str], code: i32) -> (String, u8, String) {
        let host = Host { destination: "h1".into(), slots: 2 };
        let lines: Vec<String> = lines.iter().map(|line| (*line).into()).collect();
        let status = Some(ExitStatus::from_raw(code << 8));
        let error = why(&host, "/opt/allfold", "--hosts", &lines, status);
        (error.to_string(), error.exit_code(), error.help().unwrap())
    }

    #[test]
    fn each_of_sshs_words_says_what_to_change() {
        for (line, code, problem, exit, help) in [
            (
                "ssh: Could not resolve hostname h1: Name or service not known",
                255,
                "unknown host h1: Name or service not known",
                2,
                "correct it in --hosts",
            ),
            (
                "me@h1: Permission denied (publickey,password).",
                255,
                "ssh to h1 asks for a password: me@h1: Permission denied (publickey,password).",
                2,
                "ssh-copy-id h1",
            ),
            (
                "me@h1: Permission denied (publickey).",
                255,
                "ssh to h1 does not let this user in: me@h1: Permission denied (publickey).",
                2,
                "ssh-copy-id h1",
            ),
            (
                "Host key verification failed.",
                255,
                "ssh to h1 does not know its host key, or knows another one",
                2,
                "`ssh h1 true`",
            ),
            (
                "ssh: connect to host h1 port 22: Connection refused",
                255,
                "h1 refuses ssh's connection: the host is up, and no sshd listens there",
                75,
                "--ssh \"ssh -p PORT\"",
            ),
            (
                "ssh: connect to host h1 port 22: Connection timed out",
                255,
                "h1 does not answer ssh: ssh: connect to host h1 port 22: Connection timed out",
                75,
                "firewall",
            ),
            (
                "bash: line 1: /opt/allfold: No such file or directory",
                127,
                "allfold is not at /opt/allfold on h1",
                2,
                "--remote-path",
            ),
            (
                "bash: line 1: /opt/allfold: Permission denied",
                126,
                "/opt/allfold on h1 cannot be executed",
                2,
                "--remote-path",
            ),
            (
                "error: unrecognized subcommand 'host'",
                2,
                "/opt/allfold on h1 is another version of allfold",
                2,
                "--remote-path",
            ),
            (
                "ssh: Could not resolve hostname h1: Temporary failure in name resolution",
                255,
                "the name h1 cannot be resolved now: Temporary failure in name resolution",
                75,
                "getent hosts h1",
            ),
            (
                "Connection timed out during banner exchange",
                255,
                "h1 does not answer ssh: Connection timed out during banner exchange",
                75,
                "firewall",
            ),
            (
                "kex_exchange_identification: Connection closed by remote host",
                255,
                "h1 takes ssh's connection and ends it at once: kex_exchange_identification: \
                 Connection closed by remote host",
                75,
                "MaxStartups",
            ),
            (
                "error: ALLFOLD_LOG=x: not a level",
                2,
                "no launcher on h1: ALLFOLD_LOG=x: not a level",
                2,
                "--version",
            ),
            ("kex_exchange: reset", 255, "no launcher on h1: kex_exchange: reset", 75, "BatchMode"),
        ] {
            let (message, exit_code, text) = said(&["Warning: noise", line], code);
            assert_eq!((message.as_str(), exit_code), (problem, exit), "{line}");
            assert!(text.contains(help), "{text}");
        }
        assert_eq!(said(&[], 1).0, "no launcher on h1: ssh ended with code 1");
        let lines = ["Welcome", "error: no such thing", "help: make it", "Bye"];
        assert_eq!(said(&lines, 1), ("no launcher on h1: no such thing".into(), 1, said(&[], 1).2));
        let learnt = "Warning: Permanently added 'h1' to the list of known hosts.";
        assert_eq!(said(&["no room", learnt], 1).0, "no launcher on h1: no room");
    }

    #[test]
    fn the_users_words_come_first_and_no_path_is_two_words() {
        let host = Host { destination: "me@h1".into(), slots: 1 };
        let command = command("ssh -F some/file", &host, "/my dir/it's");
        let words: Vec<&str> = command.get_args().map(|word| word.to_str().unwrap()).collect();
        assert_eq!(words[..2], ["-F", "some/file"]);
        let end = words.len() - 3;
        assert_eq!(words[end..], ["--", "me@h1", r"exec '/my dir/it'\''s' host"]);
    }
}
