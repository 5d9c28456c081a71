//! The job's secret stays where it belongs: in a file that the user alone reads, and nowhere else.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use allfold_tests::{Ended, Folder, Job, Process, clean_command, machine_lock};
use rustix::fs::{SeekFrom as SeekTo, seek};
use rustix::process::Signal;

const RANK: &str = env!("CARGO_BIN_EXE_rank-under-test");
const ALLFOLD: &str = env!("CARGO_BIN_EXE_allfold-under-test");

#[test]
fn under_the_launcher_no_form_of_the_secret_shows_anywhere() {
    let _one_at_a_time = machine_lock();
    let folder = Folder::new("secrecy");
    let (events, logs) = (folder.path().join("events"), folder.path().join("logs"));
    let mut command = clean_command(ALLFOLD);
    command
        .args(["run", "-n", "2", "--json-events"])
        .arg(&events)
        .arg("--log-dir")
        .arg(&logs)
        .args([ALLFOLD, "bench", "-b", "4K", "-e", "4K", "-n", "10000000"])
        .env("ALLFOLD_LOG", "trace")
        .env("RUST_LOG", "trace");
    let mut job = Process::start(&mut command);
    // The table's head, which rank 0 prints once the ranks have met; before it, their log lines.
    while job.wait_for_line("mutual TLS, secret ").starts_with("! ") {}
    let ranks = children(job.id());
    assert_eq!(ranks.len(), 2, "{ranks:?}");
    let file = variable(ranks[0], "ALLFOLD_SECRET_FILE");
    let secret = Forms::of(std::fs::read_to_string(&file).unwrap().trim());
    for pid in ranks.into_iter().chain([job.id()]) {
        for part in ["environ", "cmdline"] {
            let bytes = std::fs::read(format!("/proc/{pid}/{part}")).unwrap();
            secret.assert_not_in(&bytes, &format!("{part} of {pid}"));
        }
        secret.assert_not_in_memory(pid);
    }
    job.signal(Signal::TERM);
    let ended = job.wait();
    assert!(ended.lines.len() > 20, "no trace: {ended:#?}");
    secret.assert_not_printed(&ended);
    let mut written = vec![events];
    written.extend(std::fs::read_dir(&logs).unwrap().map(|entry| entry.unwrap().path()));
    assert_eq!(written.len(), 3, "{written:?}");
    for path in written {
        secret.assert_not_in(&std::fs::read(&path).unwrap(), &path.display().to_string());
    }
    assert!(!Path::new(&file).exists(), "the secret was left behind");
}

#[test]
fn a_rank_forgets_its_secret_once_it_has_certificates() {
    let _one_at_a_time = machine_lock();
    let job = Job::new(2);
    let folder = Folder::new("forgets");
    let file = folder.write("secret", &job.secret, 0o600);
    let start = |rank| {
        let mut command = job.rank(rank, RANK, &["forever"]);
        Process::start(command.env_remove("ALLFOLD_SECRET").env("ALLFOLD_SECRET_FILE", &file))
    };
    let mut ranks = [0, 1].map(start);
    ranks.iter_mut().for_each(|rank| _ = rank.wait_for_line("started"));
    let secret = Forms::of(&job.secret);
    ranks.iter().for_each(|rank| secret.assert_not_in_memory(rank.id()));
    ranks.iter().for_each(|rank| rank.signal(Signal::KILL));
    // What is looked for is found where it is.
    let secret_is_found =
        std::panic::catch_unwind(|| secret.assert_not_in_memory(std::process::id()));
    assert!(secret_is_found.is_err(), "the search finds nothing");
}

#[test]
fn a_script_makes_a_secret_of_its_own() {
    let secret = Forms::of(&Job::new(2).secret);
    let mut command = clean_command(ALLFOLD);
    command
        .args(["run", "-n", "2", "--dry-run", RANK, "forever"])
        .env("ALLFOLD_SECRET", &secret.line);
    let ended = Process::start(&mut command).wait();
    assert_eq!(ended.code(), 0, "{ended:#?}");
    secret.assert_not_printed(&ended);
}

#[test]
fn an_error_about_a_secret_does_not_quote_it() {
    let job = Job::new(2);
    let wrong = format!("{}x", &job.secret[1..]);
    let mut command = job.rank(0, RANK, &["forever"]);
    let ended = Process::start(command.env("ALLFOLD_SECRET", &wrong)).wait();
    ended.assert_error(2, &["ALLFOLD_SECRET holds a character that is no hex digit"]);
    Forms { line: wrong, bytes: Vec::new() }.assert_not_printed(&ended);
}

#[test]
fn a_secret_in_the_wrong_place_is_not_shown() {
    let job = Job::new(2);
    let secret = Forms::of(&job.secret);
    let place = "holds a secret itself, not the path of a file";
    let mut command = job.rank(0, RANK, &["forever"]);
    command.env_remove("ALLFOLD_SECRET").env("ALLFOLD_SECRET_FILE", &job.secret);
    let ended = Process::start(&mut command).wait();
    ended.assert_error(2, &["ALLFOLD_SECRET_FILE ", place]);
    secret.assert_not_printed(&ended);
    let mut command = job.rank(0, RANK, &["forever"]);
    let key = format!("-----BEGIN PRIVATE KEY-----\n{}\n", job.secret);
    command.env("ALLFOLD_TLS_CERT", "a").env("ALLFOLD_TLS_CA", "b").env("ALLFOLD_TLS_KEY", key);
    let ended = Process::start(&mut command).wait();
    ended.assert_error(2, &["ALLFOLD_TLS_KEY holds a key or certificate itself"]);
    secret.assert_not_printed(&ended);
    let mut command = clean_command(ALLFOLD);
    command.args(["run", "-n", "2", "--env"]).arg(format!("ALLFOLD_SECRET={}", job.secret));
    let ended = Process::start(command.args([RANK, "forever"])).wait();
    ended.assert_error(2, &["--env ALLFOLD_SECRET: allfold run itself sets or removes"]);
    secret.assert_not_printed(&ended);
}

/// A secret, and the forms in which it could show.
struct Forms {
    line: String,
    bytes: Vec<u8>,
}

impl Forms {
    fn of(line: &str) -> Self {
        assert_eq!(line.len(), 64);
        let byte = |at| u8::from_str_radix(&line[at..at + 2], 16).unwrap();
        Self { line: line.into(), bytes: (0..64).step_by(2).map(byte).collect() }
    }

    /// Half of it is too much already.
    fn is_in(&self, text: &[u8]) -> bool {
        let upper = self.line.to_uppercase();
        let listed = format!("{:?}", self.bytes);
        let half = |form: &[u8]| {
            let form = &form[..form.len() / 2];
            !form.is_empty() && contains(text, form)
        };
        half(self.line.as_bytes())
            || half(upper.as_bytes())
            || half(&self.bytes)
            || (!self.bytes.is_empty() && contains(text, &listed.as_bytes()[1..listed.len() / 2]))
    }

    fn assert_not_in(&self, text: &[u8], place: &str) {
        assert!(!self.is_in(text), "the secret shows in {place}");
    }

    fn assert_not_printed(&self, ended: &Ended) {
        self.assert_not_in(ended.lines.join("\n").as_bytes(), "the output");
    }

    /// Looks through all that the process can write to.
    fn assert_not_in_memory(&self, pid: u32) {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let mut memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
        for line in maps.lines() {
            let (range, rest) = line.split_once(' ').unwrap();
            // Arenas are large, and mostly nothing: below.
            if !rest.starts_with("rw") || rest.contains(ARENA) {
                continue;
            }
            let (from, to) = range.split_once('-').unwrap();
            let [from, to] = [from, to].map(|number| u64::from_str_radix(number, 16).unwrap());
            let mut bytes = vec![0; (to - from) as usize];
            memory.seek(SeekFrom::Start(from)).unwrap();
            // Parts that nobody has touched cannot be read.
            if memory.read_exact(&mut bytes).is_ok() {
                self.assert_not_in(&bytes, &format!("memory of {pid}: {line}"));
            }
        }
        let written = arena_bytes(pid);
        assert_eq!(written.is_empty(), !maps.contains(ARENA), "{pid} shows what it shares");
        self.assert_not_in(&written, &format!("the memory that {pid} shares"));
    }
}

/// What has been written to the memory that a process shares.
fn arena_bytes(pid: u32) -> Vec<u8> {
    let mut written = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let path = entry.unwrap().path();
        if !std::fs::read_link(&path).is_ok_and(|link| link.to_string_lossy().contains(ARENA)) {
            continue;
        }
        let mut file = std::fs::File::open(&path).unwrap();
        let mut end = 0;
        while let Ok(start) = seek(&file, SeekTo::Data(end)) {
            end = seek(&file, SeekTo::Hole(start)).unwrap();
            file.seek(SeekFrom::Start(start)).unwrap();
            (&mut file).take(end - start).read_to_end(&mut written).unwrap();
        }
    }
    written
}

/// Names the memory that ranks share.
const ARENA: &str = "memfd:allfold";

fn contains(text: &[u8], part: &[u8]) -> bool {
    let first = part[0];
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| *byte == first) {
        if rest[at..].starts_with(part) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

/// The processes that `pid` has started, apart from those that only keep watch.
fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let lists = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("children")));
    let all: Vec<u32> = lists
        .flat_map(|list| {
            let list = list.unwrap_or_default();
            list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<u32>>()
        })
        .collect();
    all.into_iter().filter(|pid| has_variable(*pid, "ALLFOLD_RANK")).collect()
}

fn environment(pid: u32) -> Vec<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    bytes.split(|byte| *byte == 0).map(|v| String::from_utf8_lossy(v).into_owned()).collect()
}

fn has_variable(pid: u32, name: &str) -> bool {
    environment(pid).iter().any(|variable| variable.starts_with(&format!("{name}=")))
}

fn variable(pid: u32, name: &str) -> String {
    let all = environment(pid);
    let value = all.iter().find_map(|v| v.strip_prefix(name)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("no {name} in {all:?}")).into()
}
