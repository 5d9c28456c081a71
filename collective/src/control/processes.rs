//! Other ranks' processes on this host, as the kernel knows them: that one has ended, without
//! waiting for its silence, and what one that is silent does.

use std::fs;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::identity::host_name;
use crate::verdict::Habits;

/// Where process ids mean the same: this start of this kernel, in this pid namespace. Containers
/// on one host may share its name, but number their processes each for itself. 0 where it cannot be
/// known.
pub(crate) fn habitat() -> u64 {
    static HABITAT: OnceLock<u64> = OnceLock::new();
    *HABITAT.get_or_init(|| {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let space = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        if boot.is_empty() || space.as_os_str().is_empty() {
            return 0;
        }
        // Copies of a virtual machine share its boot id, and seldom their names.
        let words = format!("{}{}{}", boot.trim(), space.display(), host_name());
        // FNV-1a (Fowler, Noll and Vo 1991): it need not be hard to find another of the same.
        words
            .bytes()
            .fold(FNV_OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME))
    })
}

/// Returns when the process has ended; never where it cannot be watched.
pub(crate) async fn ended(pid: u32) {
    match watch(pid) {
        Ok(process) => {
            if process.readable().await.is_ok() {
                return;
            }
        }
        // It had ended before it could be watched.
        Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => return,
        Err(_) => {}
    }
    std::future::pending().await
}

/// A pidfd, which can be read once its process has ended.
// What replaces the deprecated function is unsafe, for types that do not own what they name.
#[expect(deprecated)]
fn watch(pid: u32) -> std::io::Result<AsyncFd<OwnedFd>> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::INVAL)?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    AsyncFd::with_interest(process, Interest::READABLE)
}

/// What keeps a silent process from answering, where its state says so.
pub(crate) fn habits(pid: u32) -> Option<Habits> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold any character.
    match stat.rsplit_once(") ")?.1.chars().next()? {
        'T' | 't' => Some(Habits::Stopped),
        'D' => Some(Habits::InKernel),
        _ => None,
    }
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::process::{Child, Command, Stdio};

    use rustix::process::{Signal, WaitOptions, kill_process, waitpid};

    use super::*;

    /// A process that waits for input; before it first does, the disk may keep it in the kernel.
    fn idle() -> Child {
        let mut command = Command::new("cat");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        child
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_seen_before_anybody_has_waited_for_it() {
        let mut child = idle();
        let pid = child.id();
        let end = tokio::spawn(ended(pid));
        assert!(!end.is_finished());
        child.kill().unwrap();
        end.await.unwrap();
        child.wait().unwrap();
        ended(pid).await;
    }

    #[test]
    fn a_stopped_process_is_known_as_such() {
        let mut child = idle();
        let pid = Pid::from_child(&child);
        assert_eq!(habits(child.id()), None);
        kill_process(pid, Signal::STOP).unwrap();
        waitpid(Some(pid), WaitOptions::UNTRACED).unwrap();
        assert_eq!(habits(child.id()), Some(Habits::Stopped));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn one_host_is_one_habitat() {
        assert_ne!(habitat(), 0);
        assert_eq!(habitat(), habitat());
    }
}
