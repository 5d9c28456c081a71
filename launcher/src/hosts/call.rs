//! The line to the launcher on one host.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use zeroize::Zeroizing;

use super::words::{self, Order, Word};
use crate::log;
use crate::output::{Stream, write_all};
use crate::program::own_binary;
use crate::supervisor::Event;

use super::{Hosts, Place, SUBCOMMAND, ssh};

/// What comes from a host.
pub(crate) enum News {
    /// It is there and says its version; the error is one that differs.
    Greeted(Result<(), String>),
    Word(Word),
    /// Nobody here reads that stream any more.
    Unread(Stream),
    /// The line has ended; why, where not in order.
    Gone(Option<io::Error>),
}

/// One that has been made.
pub(crate) struct Call {
    child: Child,
    /// None once there is nothing more to say.
    orders: Option<Sender<ToSend>>,
    pipes: Pipes,
    said: Arc<Mutex<Vec<String>>>,
    has_said_all: Receiver<()>,
}

/// What the thread that writes is given.
enum ToSend {
    Bytes(Zeroizing<Vec<u8>>),
    /// It says when all before this is written.
    Mark(Sender<()>),
}

/// Where to put what the ranks print.
type Pipes = Arc<Mutex<HashMap<(usize, Stream), OwnedFd>>>;

impl Call {
    /// Calls the host; its news are events of host `number`.
    pub(crate) fn make(
        hosts: &Hosts,
        place: &Place,
        number: usize,
        events: Sender<Event>,
    ) -> io::Result<Self> {
        let mut command = match place.is_here {
            true => Command::new(own_binary()),
            false => ssh::command(&hosts.ssh, &place.host, &hosts.path),
        };
        if place.is_here {
            command.arg(SUBCOMMAND);
        }
        let mut child = command
            // A Ctrl-C is for the launcher, which tells the hosts.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let (orders, to_send) = mpsc::channel();
        let pipes = Pipes::default();
        let said = Arc::<Mutex<Vec<String>>>::default();
        let (all_said, has_said_all) = mpsc::channel();
        if let Some(stdin) = child.stdin.take() {
            spawn("orders", move || send(stdin, &to_send))?;
        }
        if let Some(stdout) = child.stdout.take() {
            let pipes = pipes.clone();
            let hear = move || {
                let tell = |news| events.send(Event::OfHost(number, news)).is_ok();
                let problem = hear(stdout, &pipes, tell).err();
                // The ranks' streams end here.
                lock(&pipes).clear();
                tell(News::Gone(problem));
            };
            spawn("words", hear)?;
        }
        if let Some(stderr) = child.stderr.take() {
            let (name, said) = (place.host.destination.clone(), said.clone());
            spawn("complaints", move || {
                complain(stderr, &name, &said);
                drop(all_said);
            })?;
        }
        Ok(Self { child, orders: Some(orders), pipes, said, has_said_all })
    }

    /// Sends the secret, which nobody gets who has not greeted.
    pub(crate) fn send_secret(&self, line: &str) {
        self.send(Zeroizing::new([line.as_bytes(), b"\n"].concat()));
    }

    /// Sends an order; it is lost where the host is.
    pub(crate) fn order(&self, order: &Order) {
        self.send(Zeroizing::new(words::line(order).into_bytes()));
    }

    fn send(&self, bytes: Zeroizing<Vec<u8>>) {
        if let Some(orders) = &self.orders {
            let _ = orders.send(ToSend::Bytes(bytes));
        }
    }

    /// Waits until all orders so far are on their way, for a while.
    pub(crate) fn flush(&self) {
        let (sender, written) = mpsc::channel();
        if let Some(orders) = &self.orders
            && orders.send(ToSend::Mark(sender)).is_ok()
        {
            let _ = written.recv_timeout(FLUSH);
        }
    }

    /// What a rank prints on that stream goes there.
    pub(crate) fn print_to(&self, rank: usize, stream: Stream, pipe: OwnedFd) {
        lock(&self.pipes).insert((rank, stream), pipe);
    }

    /// Nothing more will be said; the launcher there ends, and what it still has of the job.
    pub(crate) fn hang_up(&mut self) {
        self.orders = None;
    }

    /// Ends it at once.
    pub(crate) fn cut(&mut self) {
        self.orders = None;
        // It is not reaped before `end`.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
    }

    /// After its last news: how ssh ended, and what it has said.
    pub(crate) fn end(mut self) -> (Option<ExitStatus>, Vec<String>) {
        self.orders = None;
        let until = Instant::now() + LAST_WORDS;
        let _ = self.has_said_all.recv_timeout(LAST_WORDS);
        let status = loop {
            match self.child.try_wait() {
                Ok(None) if Instant::now() < until => thread::sleep(LOOK_AGAIN),
                Ok(Some(status)) => break Some(status),
                _ => {
                    self.cut();
                    break self.child.wait().ok();
                }
            }
        };
        (status, std::mem::take(&mut lock(&self.said)))
    }
}

fn spawn(name: &str, act: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.into()).spawn(act).map(drop)
}

/// Writes all that is ordered, and beats between, until nothing more can come.
fn send(mut to: ChildStdin, orders: &Receiver<ToSend>) {
    let beat = words::line(&Order::Beat);
    let mut has_task = false;
    loop {
        let sent = match orders.recv_timeout(BEAT) {
            Ok(ToSend::Bytes(bytes)) => {
                has_task = true;
                to.write_all(&bytes)
            }
            Ok(ToSend::Mark(written)) => {
                let _ = written.send(());
                Ok(())
            }
            // Before its first order nobody is there who understands it.
            Err(mpsc::RecvTimeoutError::Timeout) if !has_task => Ok(()),
            Err(mpsc::RecvTimeoutError::Timeout) => to.write_all(beat.as_bytes()),
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        };
        if sent.is_err() {
            return;
        }
    }
}

/// Reads all that the host says, and prints what the ranks do.
fn hear(from: ChildStdout, pipes: &Pipes, tell: impl Fn(News) -> bool) -> io::Result<()> {
    let mut from = BufReader::new(from);
    let mut skipped = 0;
    let greeting = loop {
        let Some(line) = words::read_line(&mut from)? else { return Ok(()) };
        if let Some(greeting) = words::greeted(&line) {
            break greeting;
        }
        skipped += line.len();
        if skipped > MAX_NOISE {
            return Err(io::Error::other("what comes from there is not allfold"));
        }
    };
    tell(News::Greeted(greeting));
    while let Some(word) = words::read(&mut from)? {
        let Word::Printed { rank, stream, length } = word else {
            tell(News::Word(word));
            continue;
        };
        let bytes = words::read_printed(&mut from, length)?;
        let key = (rank, stream);
        // Not under the lock: whoever reads may be slow.
        let Some(pipe) = lock(pipes).remove(&key) else { continue };
        match write_all(std::os::fd::AsFd::as_fd(&pipe), &bytes) {
            Ok(()) => drop(lock(pipes).insert(key, pipe)),
            Err(_) => {
                tell(News::Unread(stream));
            }
        }
    }
    Ok(())
}

/// Shows what ssh says, and the launcher there outside its words, once that is there; until then it
/// is why there is none.
fn complain(from: ChildStderr, name: &str, said: &Mutex<Vec<String>>) {
    for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        if line.is_empty() {
            continue;
        }
        // A warning of the launcher's own.
        if let Some(text) = line.strip_prefix("allfold: ") {
            log::say("warning", &format!("{name}: {text}"));
            continue;
        }
        let mut said = lock(said);
        said.push(line);
        if said.len() > MAX_SAID {
            said.remove(0);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A host that takes nothing holds nobody up.
const FLUSH: Duration = Duration::from_secs(1);
/// A third of what the other side waits for.
const BEAT: Duration = Duration::from_secs(10);
/// Between the end of what a host says and ssh's own end, and what it has to say of that.
const LAST_WORDS: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// A login shell may greet its user.
const MAX_NOISE: usize = 64 << 10;
/// The last lines are those that say why.
const MAX_SAID: usize = 20;
