//! Programs that are given so much time and no more: when it is over, or somebody presses Ctrl-C,
//! they and all that they have started end.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use rustix::process::{
    Pid, Signal, WaitOptions, kill_process, set_child_subreaper, wait as wait_for_any,
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// What the first program printed, and how all ended.
pub(crate) struct Ended {
    pub(crate) text: String,
    pub(crate) problem: Option<String>,
}

/// From now on orphans of our children are ours, so that none is missed, and a signal that would end
/// this process ends first what it has started.
pub(crate) fn take_charge() {
    let _ = set_child_subreaper(Some(Pid::INIT));
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    // nohup means it.
    for signal in [SIGHUP, SIGINT, SIGTERM].into_iter().filter(|s| ignored & (1 << (s - 1)) == 0) {
        // Without it a signal ends this process as ever.
        let _ = signal_hook::flag::register_usize(signal, CAUGHT.clone(), signal as usize);
    }
}

/// The exit code where a signal has come that asks this process to end.
pub(crate) fn interrupted() -> Option<u8> {
    match CAUGHT.load(Ordering::SeqCst) {
        0 => None,
        signal => Some(128 + signal as u8),
    }
}

/// Starts the programs together, and waits until all have ended or `limit` is over.
pub(crate) fn together(commands: Vec<Command>, limit: Duration) -> Ended {
    let mut children: Vec<Child> = Vec::new();
    for (place, mut command) in commands.into_iter().enumerate() {
        command.stdin(Stdio::null());
        command.stdout(if place == 0 { Stdio::piped() } else { Stdio::null() });
        match command.spawn() {
            Ok(child) => children.push(child),
            Err(error) => {
                end_all(&mut children);
                let problem = format!("{}: {error}", command.get_program().display());
                return Ended { text: String::new(), problem: Some(problem) };
            }
        }
    }
    let output = children.first_mut().and_then(|child| child.stdout.take());
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is all there is.
        let _ = output.map(|mut output| output.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let problem = wait(&mut children, limit);
    end_all(&mut children);
    Ended { text: reader.join().unwrap_or_default(), problem }
}

/// Why they did not all end well.
fn wait(children: &mut [Child], limit: Duration) -> Option<String> {
    let began = Instant::now();
    loop {
        let mut all_ended = true;
        for child in &mut *children {
            match child.try_wait() {
                Ok(Some(status)) if !status.success() => return Some(status.to_string()),
                Ok(Some(_)) => {}
                Ok(None) => all_ended = false,
                Err(error) => return Some(error.to_string()),
            }
        }
        if all_ended {
            return None;
        }
        if interrupted().is_some() {
            return Some("interrupted".into());
        }
        if began.elapsed() > limit {
            return Some(format!("stopped after {} s", limit.as_secs_f64()));
        }
        std::thread::sleep(LOOK);
    }
}

/// Ends whatever we have started and what that has started. A launcher that is asked to end can
/// still remove its files.
fn end_all(children: &mut [Child]) {
    for child in &mut *children {
        if let (Ok(None), Some(pid)) = (child.try_wait(), Pid::from_raw(child.id().cast_signed())) {
            let _ = kill_process(pid, Signal::TERM);
        }
    }
    let asked = Instant::now();
    let is_running = |child: &mut Child| matches!(child.try_wait(), Ok(None));
    while asked.elapsed() < GRACE && children.iter_mut().any(is_running) {
        std::thread::sleep(LOOK);
    }
    for _ in 0..ROUNDS {
        let running = descendants();
        if running.is_empty() {
            break;
        }
        for pid in running {
            let _ = kill_process(pid, Signal::KILL);
        }
        for child in &mut *children {
            let _ = child.wait();
        }
        // Adopted ones.
        while let Ok(Some(_)) = wait_for_any(WaitOptions::NOHANG) {}
        std::thread::sleep(LOOK);
    }
}

/// All processes below this one, whichever process group or session they have moved to.
fn descendants() -> Vec<Pid> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // pid (name) state parent; a name may hold anything.
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent =
            stat.rsplit_once(')').and_then(|(_, rest)| rest.split(' ').nth(2)?.parse().ok());
        if let Some(parent) = parent {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = vec![std::process::id()];
    let mut next = 0;
    while let Some(pid) = found.get(next) {
        found.extend(children.get(pid).cloned().unwrap_or_default());
        next += 1;
    }
    found.iter().skip(1).filter_map(|pid| Pid::from_raw(pid.cast_signed())).collect()
}

/// The signal that has come; 0 is none.
static CAUGHT: LazyLock<Arc<AtomicUsize>> = LazyLock::new(Arc::default);
/// At the state of the programs: they take seconds, and all cores are theirs.
const LOOK: Duration = Duration::from_millis(20);
/// For a launcher to remove its files.
const GRACE: Duration = Duration::from_secs(3);
/// One that is being started while we look is found in the next.
const ROUNDS: usize = 500;
