//! The line to the launcher on one host.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use zeroize::Zeroizing;

use super::words::{self, Order, Word};
use crate::log;
use crate::output::{Output, Printed, Reader, Stream};
use crate::program::own_binary;
use crate::supervisor::Event;

use super::{Hosts, Place, SUBCOMMAND, ssh};

/// What comes from a host.
pub(crate) enum News {
    /// It is there and says its version; the error is one that differs.
    Greeted(Result<(), String>),
    Word(Word),
    /// The line has ended; why, where not in order.
    Gone(Option<io::Error>),
}

/// One that has been made.
pub(crate) struct Call {
    child: Child,
    voice: Arc<Voice>,
    screen: Screen,
    said: Arc<Mutex<Said>>,
    has_said_all: Receiver<()>,
}

/// What the thread that writes is given.
enum ToSend {
    Bytes(Zeroizing<Vec<u8>>),
    /// It says when all before this is written.
    Mark(Sender<()>),
}

/// What prints what ranks do; None before the start and after the end.
type Screen = Arc<Mutex<Option<Arc<Output>>>>;

/// Sends words to the host.
struct Voice {
    /// None once there is nothing more to say.
    orders: Mutex<Option<Sender<ToSend>>>,
    /// What was printed and is not told yet, of standard output and standard error.
    printed: [AtomicUsize; 2],
}

impl Voice {
    fn order(&self, order: &Order) {
        self.send(ToSend::Bytes(Zeroizing::new(words::line(order).into_bytes())));
    }

    fn send(&self, words: ToSend) -> bool {
        lock(&self.orders).as_ref().is_some_and(|orders| orders.send(words).is_ok())
    }

    fn close(&self) {
        *lock(&self.orders) = None;
    }
}

impl Printed for Voice {
    fn tell(&self, stream: Stream, reader: Reader) {
        let Reader::Took(bytes) = reader else {
            return self.order(&Order::Reader { stream, reader });
        };
        let [out, err] = &self.printed;
        let printed = if stream == Stream::Out { out } else { err };
        // Only one thread prints a stream.
        let sum = printed.load(Ordering::Relaxed) + bytes;
        let is_enough = sum >= ENOUGH;
        printed.store(if is_enough { 0 } else { sum }, Ordering::Relaxed);
        if is_enough {
            self.order(&Order::Reader { stream, reader: Reader::Took(sum) });
        }
    }
}

/// What came from a host beside words.
#[derive(Default)]
struct Said {
    /// On standard error.
    lines: Vec<String>,
    /// The last line on standard output before the greeting.
    noise: Option<String>,
}

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
        let orders = Mutex::new(Some(orders));
        let voice = Arc::new(Voice { orders, printed: [(); 2].map(|()| AtomicUsize::new(0)) });
        let screen = Screen::default();
        let said = Arc::<Mutex<Said>>::default();
        let (all_said, has_said_all) = mpsc::channel();
        if let Some(stdin) = child.stdin.take() {
            spawn("orders", move || send(stdin, &to_send))?;
        }
        if let Some(stdout) = child.stdout.take() {
            let (screen, said) = (screen.clone(), said.clone());
            let (voice, ranks) = (voice.clone(), place.ranks.clone());
            let hear = move || {
                let tell = |news| events.send(Event::OfHost(number, news)).is_ok();
                let show = |rank, stream, bytes| {
                    let output = lock(&screen).clone().filter(|_| ranks.contains(&rank));
                    if let Some(output) = output {
                        output.print(stream, rank, bytes, voice.clone());
                    }
                };
                let problem = hear(stdout, &said, show, tell).err();
                // Nothing comes any more for whom the output would have to wait.
                *lock(&screen) = None;
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
        Ok(Self { child, voice, screen, said, has_said_all })
    }

    /// Sends the secret, which nobody gets who has not greeted.
    pub(crate) fn send_secret(&self, line: &str) {
        self.voice.send(ToSend::Bytes(Zeroizing::new([line.as_bytes(), b"\n"].concat())));
    }

    /// Sends an order; it is lost where the host is.
    pub(crate) fn order(&self, order: &Order) {
        self.voice.order(order);
    }

    /// Waits until all orders so far are on their way, for a while.
    pub(crate) fn flush(&self) {
        let (sender, written) = mpsc::channel();
        if self.voice.send(ToSend::Mark(sender)) {
            let _ = written.recv_timeout(FLUSH);
        }
    }

    /// From now on what the ranks print goes there.
    pub(crate) fn show_on(&self, output: &Arc<Output>) {
        *lock(&self.screen) = Some(output.clone());
    }

    /// Who learns what became of that.
    pub(crate) fn printed(&self) -> Arc<dyn Printed> {
        self.voice.clone()
    }

    /// Nothing more will be said; the launcher there ends, and what it still has of the job.
    pub(crate) fn hang_up(&self) {
        self.voice.close();
    }

    /// Ends it at once.
    pub(crate) fn cut(&self) {
        self.voice.close();
        // Nobody waits for what may still come.
        *lock(&self.screen) = None;
        // It is not reaped before `end`.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
    }

    /// After its last news: how ssh ended, and what it has said.
    pub(crate) fn end(mut self) -> (Option<ExitStatus>, Vec<String>) {
        self.voice.close();
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
        let Said { mut lines, noise } = std::mem::take(&mut *lock(&self.said));
        if lines.is_empty() {
            lines.extend(noise);
        }
        (status, lines)
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

/// Reads all that the host says, and shows what the ranks print. It never waits for whoever reads
/// that, or the host's words would wait, too.
fn hear(
    from: impl Read,
    said: &Mutex<Said>,
    show: impl Fn(usize, Stream, Vec<u8>),
    tell: impl Fn(News) -> bool,
) -> io::Result<()> {
    let mut from = BufReader::new(from);
    let mut skipped = 0;
    let greeting = loop {
        let Some(line) = words::read_line(&mut from)? else { return Ok(()) };
        if let Some(greeting) = words::greeted(&line) {
            break greeting;
        }
        skipped += line.len();
        if skipped > MAX_NOISE {
            let problem = "what comes from there is not allfold";
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        let text = String::from_utf8_lossy(line.trim_ascii()).into_owned();
        if !text.is_empty() {
            lock(said).noise = Some(text);
        }
    };
    // It was not why anything failed.
    *lock(said) = Said::default();
    tell(News::Greeted(greeting));
    while let Some(word) = words::read(&mut from)? {
        let Word::Printed { rank, stream, length } = word else {
            tell(News::Word(word));
            continue;
        };
        show(rank, stream, words::read_printed(&mut from, length)?);
    }
    Ok(())
}

/// Shows what ssh says, and the launcher there outside its words, once that is there; until then it
/// is why there is none.
fn complain(from: ChildStderr, name: &str, said: &Mutex<Said>) {
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
        let lines = &mut lock(said).lines;
        lines.push(line);
        if lines.len() > MAX_SAID {
            lines.remove(0);
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
/// A quarter of what a host sends before it must hear of some.
const ENOUGH: usize = 64 << 10;
/// A login shell may greet its user.
const MAX_NOISE: usize = 64 << 10;
/// The last lines are those that say why.
const MAX_SAID: usize = 20;
