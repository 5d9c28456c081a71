//! Packets that the system dropped because a socket's buffer was full.

use std::cell::Cell;
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::{binding, tuning};
use crate::report;

/// Warns if a socket drops packets.
pub(super) struct Drops {
    /// The endpoint's, once more; None: nothing to look at.
    socket: Option<Arc<UdpSocket>>,
    granted: usize,
    watch: Cell<Watch>,
}

/// What has been seen, and said.
#[derive(Clone, Copy)]
struct Watch {
    looked: Instant,
    said: Option<Instant>,
    /// Dropped when it was said.
    known: u32,
}

impl Drops {
    pub(super) fn of(socket: &UdpSocket) -> Self {
        let known = dropped(socket).unwrap_or(0);
        let watch = Watch { looked: Instant::now(), said: None, known };
        let granted = binding::granted(socket);
        let socket = socket.try_clone().ok().map(Arc::new);
        Self { socket, granted, watch: Cell::new(watch) }
    }

    /// For whoever looks at it from another thread.
    pub(super) fn socket(&self) -> Weak<UdpSocket> {
        self.socket.as_ref().map_or_else(Weak::new, Arc::downgrade)
    }

    pub(super) fn look(&self) {
        let (now, mut watch) = (Instant::now(), self.watch.get());
        let Some(socket) = self.socket.as_ref().filter(|_| watch.is_time(now)) else { return };
        if let Some(more) = dropped(socket).and_then(|dropped| watch.judge(now, dropped)) {
            report::warn(&warning(more, self.granted));
        }
        self.watch.set(watch);
    }
}

impl Watch {
    fn is_time(&mut self, now: Instant) -> bool {
        let is_time = now.duration_since(self.looked) >= LOOK_EVERY;
        if is_time {
            self.looked = now;
        }
        is_time
    }

    /// How many have been dropped since it was said last, if that is worth a line.
    fn judge(&mut self, now: Instant, dropped: u32) -> Option<u32> {
        let more = dropped.wrapping_sub(self.known);
        let may_speak = self.said.is_none_or(|said| now.duration_since(said) >= SAY_EVERY);
        if more < ENOUGH || !may_speak {
            return None;
        }
        (self.said, self.known) = (Some(now), dropped);
        Some(more)
    }
}

fn warning(dropped: u32, granted: usize) -> String {
    let wanted = tuning::SOCKET_BUFFER_BYTES;
    let what_helps = match granted < wanted {
        true => format!(
            "`sysctl -w net.core.rmem_max={wanted}` on this host, before the job starts, gives it \
             more room"
        ),
        false => "they come faster than this rank takes them, for want of a CPU perhaps".into(),
    };
    let kibibytes = granted / 1024;
    format!(
        "the system has dropped {dropped} packets for this rank, whose socket holds {kibibytes} KiB: \
         they are sent again, which takes time; {what_helps}"
    )
}

/// How many packets the socket has lost since it was made; None where the system does not say.
pub(super) fn dropped(socket: impl AsFd) -> Option<u32> {
    let mut numbers = [0u32; libc::SK_MEMINFO_DROPS as usize + 1];
    let mut length = size_of_val(&numbers) as libc::socklen_t;
    // SAFETY: the socket is open while it is borrowed, and the system writes so many bytes at most.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            numbers.as_mut_ptr().cast(),
            &mut length,
        )
    };
    let is_whole = result == 0 && length as usize == size_of_val(&numbers);
    is_whole.then_some(numbers[libc::SK_MEMINFO_DROPS as usize])
}

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A line tells of all that were dropped since the one before.
const SAY_EVERY: Duration = Duration::from_secs(60);
/// A few are lost whenever something else runs on this host.
const ENOUGH: u32 = 100;

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn a_socket_that_is_not_read_drops_what_it_cannot_hold() {
        for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            let Ok(receiver) = UdpSocket::bind((ip, 0)) else {
                eprintln!("skipped: a_socket_that_is_not_read_drops: no {ip}");
                continue;
            };
            rustix::net::sockopt::set_socket_recv_buffer_size(&receiver, 16 * 1024).unwrap();
            let address = receiver.local_addr().unwrap();
            assert_eq!(dropped(&receiver), Some(0));
            let sender = UdpSocket::bind((ip, 0)).unwrap();
            for _ in 0..200 {
                sender.send_to(&[0; 8_000], address).unwrap();
            }
            assert!(dropped(&receiver).is_some_and(|dropped| dropped > 100));
            // What another one of the same system has lost is not this one's.
            assert_eq!(dropped(&sender), Some(0));
        }
    }

    #[test]
    fn what_is_no_socket_says_nothing() {
        assert_eq!(dropped(std::fs::File::open("/dev/null").unwrap()), None);
    }

    #[test]
    fn each_line_tells_of_what_was_lost_since_the_one_before() {
        let start = Instant::now();
        let mut watch = Watch { looked: start, said: None, known: u32::MAX - 9 };
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!watch.is_time(start) && watch.is_time(at(1)) && !watch.is_time(at(1)));
        // The count wraps.
        assert_eq!(watch.judge(at(1), 89), None);
        assert_eq!(watch.judge(at(2), 90), Some(100));
        assert_eq!(watch.judge(at(3), 50_000), None);
        assert_eq!(watch.judge(at(62), 60_090), Some(60_000));
        assert_eq!(watch.judge(at(200), 60_100), None);
    }

    #[test]
    fn the_warning_says_what_helps() {
        assert_eq!(
            warning(1234, 212_992),
            "the system has dropped 1234 packets for this rank, whose socket holds 208 KiB: they are \
             sent again, which takes time; `sysctl -w net.core.rmem_max=4194304` on this host, \
             before the job starts, gives it more room"
        );
        assert_eq!(
            warning(100, 4 << 20),
            "the system has dropped 100 packets for this rank, whose socket holds 4096 KiB: they are \
             sent again, which takes time; they come faster than this rank takes them, for want of a \
             CPU perhaps"
        );
    }
}
