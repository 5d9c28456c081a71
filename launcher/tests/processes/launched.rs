//! Starts the launcher, waits for what it says, and finds whatever it left behind.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTSTP};

/// A directory of its own for every test; every process of the test has its path in `SCRATCH`.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("launcher-test-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        fs::create_dir(path.join("runtime")).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// `allfold` with these words, in an environment without a launcher's variables.
    pub(crate) fn allfold(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_allfold"));
        command.args(words);
        self.prepare(&mut command);
        command
    }

    /// Marks a command as part of this test.
    pub(crate) fn prepare(&self, command: &mut Command) {
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("SCRATCH", &self.0)
            .env("XDG_RUNTIME_DIR", self.0.join("runtime"))
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null());
    }

    /// `allfold run -n RANKS sh -c SCRIPT`.
    pub(crate) fn run(&self, ranks: usize, script: &str) -> Command {
        self.run_with(&["-n", &ranks.to_string()], script)
    }

    /// `allfold run OPTIONS sh -c SCRIPT`.
    pub(crate) fn run_with(&self, options: &[&str], script: &str) -> Command {
        self.allfold(&[&["run"], options, &["sh", "-c", script]].concat())
    }

    /// Names of the processes of this test that are alive.
    pub(crate) fn alive(&self) -> Vec<String> {
        let mark = format!("SCRATCH={}", self.0.display()).into_bytes();
        processes()
            .filter(|path| {
                let environment = fs::read(path.join("environ")).unwrap_or_default();
                environment.split(|byte| *byte == 0).any(|entry| entry == mark)
            })
            .filter(|path| is_alive(path))
            .map(|path| name(&path))
            .collect()
    }

    /// Waits until no process of the test and no private directory is left.
    pub(crate) fn expect_nothing_left(&self) {
        wait_until("nothing is left", || {
            let mut left = self.alive();
            let runtime = fs::read_dir(self.0.join("runtime")).unwrap();
            left.extend(runtime.map(|entry| entry.unwrap().path().display().to_string()));
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
    }

    /// Lets a rank that waits in `WAIT` go on.
    pub(crate) fn release(&self, rank: usize, word: &str) {
        fs::write(self.0.join(format!("go.{rank}")), format!("{word}\n")).unwrap();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A script's wait for [`Scratch::release`]; the word is then in `$word`.
pub(crate) const WAIT: &str =
    "mkfifo $SCRATCH/go.$RANK; echo ready; read word < $SCRATCH/go.$RANK;";

/// A process that was started, whose lines arrive while it runs.
pub(crate) struct Launched {
    child: Child,
    lines: Receiver<String>,
    errors: Option<thread::JoinHandle<Vec<u8>>>,
    seen: Vec<String>,
}

/// How it ended.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// All lines of stdout, sorted, since ranks have no order.
    pub(crate) lines: Vec<String>,
    pub(crate) stderr: String,
}

impl Launched {
    pub(crate) fn start(mut command: Command) -> Self {
        heed_signals();
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            let mut line = Vec::new();
            while stdout.read_until(b'\n', &mut line).unwrap() > 0 {
                let text = String::from_utf8_lossy(&line).into_owned();
                let _ = sender.send(text.trim_end_matches('\n').to_owned());
                line.clear();
            }
        });
        let mut stderr = child.stderr.take().unwrap();
        let errors = thread::spawn(move || {
            let mut text = Vec::new();
            stderr.read_to_end(&mut text).unwrap();
            text
        });
        Self { child, lines, errors: Some(errors), seen: Vec::new() }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits for that line on stdout.
    pub(crate) fn expect_line(&mut self, wanted: &str) {
        self.expect(|line| line == wanted);
    }

    /// Waits for a line that fits.
    pub(crate) fn expect(&mut self, fits: impl Fn(&str) -> bool) -> String {
        if let Some(line) = self.seen.iter().find(|line| fits(line)) {
            return line.clone();
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if fits(&line) {
                        return line;
                    }
                }
                Err(error) => panic!("{error}; seen so far: {:?}", self.seen),
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) fn finish(mut self) -> Ended {
        let handle = pidfd_open(self.pid(), PidfdFlags::empty()).unwrap();
        let has_ended = is_readable(&handle, PATIENCE);
        assert!(has_ended, "it did not end; lines so far: {:?}", self.seen);
        let status = self.child.wait().unwrap();
        let stderr = self.errors.take().unwrap().join().unwrap();
        let mut lines = std::mem::take(&mut self.seen);
        lines.extend(self.lines.iter());
        lines.sort();
        Ended { status, lines, stderr: String::from_utf8_lossy(&stderr).into_owned() }
    }
}

/// A shell ignores Ctrl-C for what it starts in the background, and a launcher that begins so
/// leaves it ignored. Here each begins as on a terminal, however the tests were started: a signal
/// that is caught has its default action again in a child.
fn heed_signals() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
        let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap();
        for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTSTP] {
            if ignored & (1 << (signal - 1)) != 0 {
                signal_hook::flag::register(signal, Arc::default()).unwrap();
            }
        }
    });
}

impl Drop for Launched {
    fn drop(&mut self) {
        // After a test that failed; its keeper then ends the rest.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command to its end.
pub(crate) fn finish(command: Command) -> Ended {
    Launched::start(command).finish()
}

impl Ended {
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The last `error:` line, without that word.
    pub(crate) fn error(&self) -> &str {
        let mut lines = self.stderr.lines().rev();
        lines
            .find_map(|line| line.strip_prefix("error: "))
            .unwrap_or_else(|| panic!("no error in {:?}", self.stderr))
    }
}

/// Whether there is such a program.
pub(crate) fn is_here(tool: &str) -> bool {
    let search = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&search).any(|directory| directory.join(tool).is_file())
}

/// Asks again and again until the answer is Ok.
pub(crate) fn wait_until<E: std::fmt::Debug>(what: &str, mut ask: impl FnMut() -> Result<(), E>) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(answer) = ask() {
        assert!(Instant::now() < deadline, "not yet: {what}; {answer:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Whether there is something to read within that time.
pub(crate) fn is_readable(handle: &OwnedFd, within: Duration) -> bool {
    let mut waits = [PollFd::new(handle, PollFlags::IN)];
    let timeout =
        Timespec { tv_sec: within.as_secs().cast_signed(), tv_nsec: within.subsec_nanos().into() };
    poll(&mut waits, Some(&timeout)).unwrap() > 0
}

/// Children of `parent` whose command line begins with `text`.
pub(crate) fn children(parent: Pid, text: &str) -> Vec<Pid> {
    let parent = parent.as_raw_pid().to_string();
    processes()
        .filter(|path| stat(path).is_some_and(|fields| fields[1] == parent))
        .filter(|path| name(path).starts_with(text))
        .filter_map(|path| Pid::from_raw(path.file_name()?.to_str()?.parse().ok()?))
        .collect()
}

/// Whether the process is alive, zombies not counted.
pub(crate) fn runs(pid: Pid) -> bool {
    is_alive(&Path::new("/proc").join(pid.as_raw_pid().to_string()))
}

/// The letter of the process's state: T is stopped.
pub(crate) fn state(pid: Pid) -> String {
    let path = Path::new("/proc").join(pid.as_raw_pid().to_string());
    stat(&path).map(|mut fields| fields.swap_remove(0)).unwrap_or_default()
}

fn processes() -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir("/proc").unwrap();
    entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("stat").exists() && path.file_name().unwrap() != "self")
}

fn is_alive(path: &Path) -> bool {
    stat(path).is_some_and(|fields| fields[0] != "Z" && fields[0] != "X")
}

fn stat(path: &Path) -> Option<Vec<String>> {
    let text = fs::read_to_string(path.join("stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    Some(fields.split_whitespace().map(Into::into).collect())
}

fn name(path: &Path) -> String {
    let words = fs::read(path.join("cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&words).replace('\0', " ")
}

/// Far more than anything takes, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);
