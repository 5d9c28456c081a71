//! Whole processes under test: start them, read what they print, wait with a deadline, and leave
//! none behind.

pub mod faults;
pub mod gpu;
pub mod hosts;
mod namespaces;
pub mod networks;
pub mod pods;
pub mod rank;
pub mod slurm;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};

use crate::faults::victim::Part;

/// A process with its output; killed when dropped.
pub struct Process {
    child: Child,
    lines: Receiver<String>,
    printed: Vec<String>,
    readers: Vec<JoinHandle<()>>,
}

/// How a process ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it printed, in lines; standard error's begin with `! `.
    pub lines: Vec<String>,
}

impl Process {
    /// Starts `command` with its output caught.
    pub fn start(command: &mut Command) -> Self {
        Self::start_with(command, Stdio::piped())
    }

    /// Starts `command` with its output caught, but for standard error, where that is not a pipe
    /// of this process's.
    pub fn start_with(command: &mut Command, stderr: Stdio) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => panic!("cannot start {command:?}: {error}"),
        };
        let (sender, lines) = channel();
        let mut readers = Vec::new();
        let mut read = |mark: &'static str, stream: Option<Box<dyn Read + Send>>| {
            let sender = sender.clone();
            readers.push(std::thread::spawn(move || {
                let Some(stream) = stream else { return };
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    let _ = sender.send(format!("{mark}{line}"));
                }
            }));
        };
        read("", child.stdout.take().map(|s| Box::new(s) as Box<dyn Read + Send>));
        read("! ", child.stderr.take().map(|s| Box::new(s) as Box<dyn Read + Send>));
        Self { child, lines, printed: Vec::new(), readers }
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits for a line that contains `text`.
    pub fn wait_for_line(&mut self, text: &str) -> String {
        self.wait_for_line_within(text, CAP).unwrap_or_else(|problem| panic!("{problem}"))
    }

    /// Waits for a line that contains `text`, so long.
    ///
    /// # Errors
    /// What was printed instead.
    pub fn wait_for_line_within(&mut self, text: &str, limit: Duration) -> Result<String, String> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.printed.push(line.clone());
                    if line.contains(text) {
                        return Ok(line);
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return Err(format!("no line with `{text}`, but {:#?}", self.printed));
                }
            }
        }
    }

    /// The next line; none once the output has ended.
    fn next_line(&mut self) -> Option<String> {
        let line = self.lines.recv().ok()?;
        self.printed.push(line.clone());
        Some(line)
    }

    /// Waits for the end; a process that does not end within `CAP` fails the test.
    pub fn wait(self) -> Ended {
        self.wait_within(CAP)
    }

    /// As [`wait`](Self::wait), for one that may take longer.
    pub fn wait_within(mut self, limit: Duration) -> Ended {
        let deadline = Instant::now() + limit;
        // The output ends with the process, and is waited for with a deadline.
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.printed.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("still running after {limit:?}: {:#?}", self.printed)
                }
            }
        }
        match self.child.wait() {
            Ok(status) => Ended { status, lines: std::mem::take(&mut self.printed) },
            Err(error) => panic!("cannot wait: {error}"),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }
}

impl Ended {
    /// The exit code; a signal counts as 128 + its number.
    pub fn code(&self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        self.status.code().or(self.status.signal().map(|s| 128 + s)).unwrap_or(-1)
    }

    /// The lines of standard error.
    pub fn errors(&self) -> Vec<&str> {
        self.lines.iter().filter_map(|line| line.strip_prefix("! ")).collect()
    }

    /// The lines of standard output.
    pub fn output(&self) -> Vec<&str> {
        self.lines.iter().filter(|line| !line.starts_with("! ")).map(String::as_str).collect()
    }

    /// That it ended with `code` and exactly one `error: ...` line, which contains all of `words`,
    /// without a panic or a backtrace.
    pub fn assert_error(&self, code: i32, words: &[&str]) {
        let errors = self.errors();
        let lines: Vec<_> = errors.iter().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(lines.len(), 1, "not one error line: {self:#?}");
        for word in words {
            assert!(lines[0].contains(word), "`{word}` is missing: {self:#?}");
        }
        for line in errors {
            assert!(!line.contains("panicked at"), "a panic: {self:#?}");
            assert!(!line.contains("stack backtrace"), "a backtrace: {self:#?}");
        }
        assert_eq!(self.code(), code, "{self:#?}");
    }
}

/// The whole binary `allfold`; a rank of `train` does to itself what a test tells it to.
pub fn allfold() -> ExitCode {
    let part = Part::take();
    let code = allfold_launcher::main();
    if let Some(part) = part {
        part.ended();
    }
    code
}

/// Says why a test does nothing here: past the runner, which would keep it to itself where a test
/// passes.
pub fn skipped(test: &str, reason: &str) {
    let line = format!("skipped: {test}: {reason}\n");
    // A closed stderr is no reason to fail.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// A command without any launcher's variables, and with a backtrace asked for: none may show.
pub fn clean_command(program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        let of_launchers = ["ALLFOLD_", "OMPI_COMM_WORLD_", "PMI_", "SLURM_", "FLUX_", "PET_"];
        if of_launchers.iter().any(|prefix| name.starts_with(prefix))
            || [
                "RANK",
                "WORLD_SIZE",
                "LOCAL_RANK",
                "LOCAL_WORLD_SIZE",
                "MASTER_ADDR",
                "MASTER_PORT",
                "TORCHELASTIC_RUN_ID",
                "TF_CONFIG",
            ]
            .contains(&name.as_ref())
        {
            command.env_remove(&*name);
        }
    }
    command.env("RUST_BACKTRACE", "1");
    command
}

/// A job that the test launches itself, by plain environment.
pub struct Job {
    /// Where the ranks meet.
    pub rendezvous: String,
    /// What they share.
    pub secret: String,
    /// The world size they are told.
    pub size: usize,
}

impl Job {
    /// A fresh secret and a loopback port that was free a moment ago.
    pub fn new(size: usize) -> Self {
        let secret = match allfold::Secret::random() {
            Ok(secret) => secret.to_line().to_string(),
            Err(error) => panic!("{error}"),
        };
        Self { rendezvous: free_address(), secret, size }
    }

    /// The command of one rank.
    pub fn rank(&self, rank: usize, program: &str, arguments: &[&str]) -> Command {
        let mut command = clean_command(program);
        command
            .args(arguments)
            .env("ALLFOLD_RANK", rank.to_string())
            .env("ALLFOLD_WORLD_SIZE", self.size.to_string())
            .env("ALLFOLD_RENDEZVOUS", &self.rendezvous)
            .env("ALLFOLD_SECRET", &self.secret)
            .env("ALLFOLD_CONNECT_TIMEOUT", "20s");
        command
    }

    /// Starts all ranks.
    pub fn start(&self, program: &str, arguments: &[&str]) -> Vec<Process> {
        let start = |rank| Process::start(&mut self.rank(rank, program, arguments));
        (0..self.size).map(start).collect()
    }
}

/// A folder of a test, gone when dropped.
pub struct Folder(PathBuf);

impl Folder {
    /// An empty one, for this user only.
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("allfold-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        match std::fs::create_dir(&path) {
            Ok(()) => Self(path),
            Err(error) => panic!("{}: {error}", path.display()),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file of this mode; its path.
    pub fn write(&self, name: &str, text: &str, mode: u32) -> String {
        use std::os::unix::fs::PermissionsExt;
        let path = self.0.join(name);
        let written = std::fs::write(&path, text)
            .and_then(|()| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)));
        match written {
            Ok(()) => path.display().to_string(),
            Err(error) => panic!("{}: {error}", path.display()),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A loopback address whose UDP port was free a moment ago.
pub fn free_address() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Below the range from which the system takes ports for sockets that ask for any: those of
    // the other tests cannot get in between. Processes start at different places.
    loop {
        let step =
            NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(std::process::id().wrapping_mul(101));
        let port = 10_000 + step % 20_000;
        let address = format!("127.0.0.1:{port}");
        if std::net::UdpSocket::bind(&address).is_ok() {
            return address;
        }
    }
}

/// Lets one whole-process test run at a time on this machine, so that they do not starve each
/// other; released when dropped.
pub fn machine_lock() -> File {
    let path = std::env::temp_dir().join("allfold-tests.lock");
    let file = match File::create(&path) {
        Ok(file) => file,
        Err(error) => panic!("{}: {error}", path.display()),
    };
    if let Err(error) = flock(&file, FlockOperation::LockExclusive) {
        panic!("{}: {error}", path.display());
    }
    file
}

/// No test waits longer for anything; on a busy machine the promised 3 s may become more.
pub const CAP: Duration = Duration::from_secs(60);
