//! `--hosts` and `--hostfile`: hosts, and how many ranks each takes.

use std::path::Path;

use crate::error::{Error, MAX_RANKS, reason};
use crate::meeting::split_host;

/// A host, as ssh is told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    /// `h0`, `me@h0`, an address; no brackets.
    pub(crate) destination: String,
    /// How many ranks it takes.
    pub(crate) slots: usize,
}

impl Host {
    /// Its name without the user's.
    pub(crate) fn name(&self) -> &str {
        self.destination.rsplit_once('@').map_or(&self.destination, |(_, name)| name)
    }

    /// The user there, where it is said.
    pub(crate) fn user(&self) -> Option<&str> {
        self.destination.rsplit_once('@').map(|(user, _)| user)
    }
}

/// `h0:2,h1:2`; a host without a number takes one rank.
pub(crate) fn parse(text: &str) -> Result<Vec<Host>, Error> {
    let refuse = |entry: &str, problem: &str| Error::Usage {
        problem: format!("--hosts {text}: `{entry}`: {problem}"),
        help: Some("give hosts and their slots: --hosts h0:2,h1:2".into()),
    };
    let mut hosts = Vec::new();
    for entry in text.split(',').map(str::trim) {
        let (host, slots) = split(entry).map_err(|problem| refuse(entry, problem))?;
        let slots = slots.map_or(Ok(1), number).map_err(|problem| refuse(entry, problem))?;
        add(&mut hosts, &host, slots).map_err(|problem| refuse(entry, problem))?;
    }
    Ok(hosts)
}

/// Reads Open MPI's `host slots=N` and MPICH's `host:N`, a line each; `#` begins a comment.
pub(crate) fn read(path: &Path) -> Result<Vec<Host>, Error> {
    let text = std::fs::read_to_string(path).map_err(|problem| Error::Usage {
        problem: format!("--hostfile {}: {}", path.display(), reason(&problem)),
        help: Some("give a file with lines such as `h0 slots=2` or `h0:2`".into()),
    })?;
    from_lines(&text, path)
}

fn from_lines(text: &str, path: &Path) -> Result<Vec<Host>, Error> {
    let mut hosts = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let entry = line.split('#').next().unwrap_or_default().trim();
        if entry.is_empty() {
            continue;
        }
        line_of(entry).and_then(|(host, slots)| add(&mut hosts, &host, slots)).map_err(
            |problem| Error::Usage {
                problem: format!("{}:{number}: `{entry}`: {problem}", path.display()),
                help: Some("a line is `h0 slots=2` or `h0:2`".into()),
            },
        )?;
    }
    match hosts.is_empty() {
        false => Ok(hosts),
        true => Err(Error::Usage {
            problem: format!("--hostfile {}: there is no host in it", path.display()),
            help: Some("add lines such as `h0 slots=2` or `h0:2`".into()),
        }),
    }
}

/// A destination without brackets, and what stands behind its last colon.
fn split(text: &str) -> Result<(String, Option<&str>), &'static str> {
    let (user, text) =
        text.rsplit_once('@').map_or((None, text), |(user, text)| (Some(user), text));
    let (host, behind) = split_host(text)?;
    match user {
        Some("") => Err("names no user before the @"),
        Some(user) => Ok((format!("{user}@{host}"), behind)),
        None => Ok((host.into(), behind)),
    }
}

fn line_of(entry: &str) -> Result<(String, usize), &'static str> {
    let mut words = entry.split_whitespace();
    let (host, behind) = split(words.next().unwrap_or_default())?;
    let mut slots = behind.map(number).transpose()?;
    for word in words {
        match word.split_once('=') {
            Some(("slots", value)) if slots.is_none() => slots = Some(number(value)?),
            // It only limits how many more than slots there may be.
            Some(("max_slots" | "max-slots", value)) => drop(number(value)?),
            _ => return Err("has a word that is not understood"),
        }
    }
    Ok((host, slots.unwrap_or(1)))
}

fn number(text: &str) -> Result<usize, &'static str> {
    match text.parse() {
        Ok(slots) if (1..=MAX_RANKS).contains(&slots) => Ok(slots),
        _ => Err("the number of slots must be 1 to 4096"),
    }
}

/// A host that is named again has more slots.
fn add(hosts: &mut Vec<Host>, destination: &str, slots: usize) -> Result<(), &'static str> {
    // ssh would take it for an option, and a shell for who knows what.
    let is_name = |c: char| c.is_ascii_alphanumeric() || "._-:@%".contains(c);
    if destination.starts_with('-') || !destination.chars().all(is_name) {
        return Err("is no name of a host");
    }
    match hosts.iter_mut().find(|host| host.destination == destination) {
        Some(host) => {
            host.slots += slots;
            if host.slots > MAX_RANKS { Err("has more than 4096 slots") } else { Ok(()) }
        }
        None => {
            hosts.push(Host { destination: destination.into(), slots });
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(destination: &str, slots: usize) -> Host {
        Host { destination: destination.into(), slots }
    }

    #[test]
    fn a_list_and_both_kinds_of_files() {
        let both = [host("h0", 2), host("h1", 2)];
        assert_eq!(parse("h0:2,h1:2").unwrap(), both);
        assert_eq!(parse("h0, h1:2,h0").unwrap(), both);
        assert_eq!(parse("[fd00::1]:3,me@h1").unwrap(), [host("fd00::1", 3), host("me@h1", 1)]);
        let with_user = [host("me@fd00::1", 2), host("me@h1", 1)];
        assert_eq!(parse("me@[fd00::1]:2,me@h1").unwrap(), with_user);
        let path = Path::new("hosts");
        assert_eq!(from_lines("me@[fd00::1] slots=2\nme@h1", path).unwrap(), with_user);
        let text = "# ours\n\nh0 slots=2 # big\n  h1 slots=2 max_slots=4\r\n";
        assert_eq!(from_lines(text, path).unwrap(), both);
        assert_eq!(from_lines("h0:2\nh1\nh1\n", path).unwrap(), both);
        assert_eq!(host("me@h1", 1).name(), "h1");
    }

    #[test]
    fn what_is_wrong_is_shown_with_its_place() {
        for (text, problem) in [
            ("h0:2,", "--hosts h0:2,: ``: names no host"),
            ("h0:0", "--hosts h0:0: `h0:0`: the number of slots must be 1 to 4096"),
            ("h0:x", "--hosts h0:x: `h0:x`: the number of slots must be 1 to 4096"),
            ("-oX=y", "--hosts -oX=y: `-oX=y`: is no name of a host"),
            ("h0;rm", "--hosts h0;rm: `h0;rm`: is no name of a host"),
            ("fd00::1", "--hosts fd00::1: `fd00::1`: an IPv6 address stands in brackets"),
            ("@h0", "--hosts @h0: `@h0`: names no user before the @"),
            ("me@:2", "--hosts me@:2: `me@:2`: names no host"),
            ("[me@h0]", "--hosts [me@h0]: `[me@h0]`: is no name of a host"),
            ("h0:4096,h0", "--hosts h0:4096,h0: `h0`: has more than 4096 slots"),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), problem);
        }
        for (text, problem) in [
            ("h0\nh1 slots=\n", "f:2: `h1 slots=`: the number of slots must be 1 to 4096"),
            ("h0 2\n", "f:1: `h0 2`: has a word that is not understood"),
            ("h0:2 slots=2", "f:1: `h0:2 slots=2`: has a word that is not understood"),
            ("# none\n", "--hostfile f: there is no host in it"),
        ] {
            assert_eq!(from_lines(text, Path::new("f")).unwrap_err().to_string(), problem);
        }
        let error = read(Path::new("/no/such/file")).unwrap_err();
        assert_eq!(error.to_string(), "--hostfile /no/such/file: No such file or directory");
        assert_eq!(error.exit_code(), 2);
    }
}
