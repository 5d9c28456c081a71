//! The network between hosts that are far apart: every packet passes through here, one emulated
//! way for each ordered pair of hosts.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use allfold::simulation::Random;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tun_rs::{DeviceBuilder, SyncDevice};

use super::Hosts;

/// What a packet meets on its way. Shares are of 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Weather {
    /// Nothing passes.
    pub is_down: bool,
    /// This share does not arrive.
    pub loss: f64,
    /// This share arrives twice.
    pub duplicate: f64,
    /// This share arrives with one bit turned over, which no checksum of UDP finds.
    pub corrupt: f64,
    /// This share is held up by `hold`, so that later packets overtake it.
    pub reorder: f64,
    /// How long.
    pub hold: Duration,
    /// How long every packet takes.
    pub delay: Duration,
    /// And up to so much more or less; nothing is overtaken by that.
    pub jitter: Duration,
    /// Larger packets vanish without a word.
    pub largest: Option<usize>,
    /// Bits a second.
    pub rate: Option<u64>,
}

/// The network; it ends when dropped.
pub struct Network {
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
    count: usize,
}

/// From now on this is the weather from one host to another.
struct Order {
    from: usize,
    to: usize,
    weather: Weather,
}

impl Network {
    pub(super) fn start(devices: Vec<SyncDevice>, seed: u64) -> Result<Self, String> {
        let (orders, inbox) = channel();
        let count = devices.len();
        let carrier = Carrier {
            ways: (0..count * count).map(|_| Way::default()).collect(),
            devices,
            under_way: BinaryHeap::new(),
            sent: 0,
            random: Random::new(seed),
        };
        let thread = std::thread::Builder::new()
            .name("network".into())
            .spawn(move || carrier.carry(&inbox))
            .map_err(|error| error.to_string())?;
        Ok(Self { orders: Some(orders), thread: Some(thread), count })
    }

    /// The weather from one host to another.
    pub fn set_one_way(&self, from: usize, to: usize, weather: Weather) {
        if let Some(orders) = &self.orders {
            let _ = orders.send(Order { from, to, weather });
        }
    }

    /// The weather between two hosts.
    pub fn set_between(&self, a: usize, b: usize, weather: Weather) {
        self.set_one_way(a, b, weather);
        self.set_one_way(b, a, weather);
    }

    /// The weather everywhere.
    pub fn set(&self, weather: Weather) {
        for from in 0..self.count {
            (0..self.count).for_each(|to| self.set_one_way(from, to, weather));
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// On a thread within the host's namespace: its way into the network.
pub(super) fn device(address: Ipv4Addr) -> Result<SyncDevice, String> {
    let device = DeviceBuilder::new().name("far0").ipv4(address, 24, None).mtu(MTU).build_sync();
    let device = device.map_err(|error| format!("no TUN device: {error}"))?;
    device.set_nonblocking(true).map_err(|error| error.to_string())?;
    Ok(device)
}

struct Carrier {
    devices: Vec<SyncDevice>,
    /// By sender and receiver.
    ways: Vec<Way>,
    under_way: BinaryHeap<Reverse<Packet>>,
    sent: u64,
    random: Random,
}

#[derive(Default)]
struct Way {
    weather: Weather,
    /// When the last one arrives that was not held up.
    last: Option<Instant>,
    /// When what waits for the rate has gone.
    free: Option<Instant>,
}

/// In the order of arrival.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Packet {
    arrives: Instant,
    number: u64,
    to: usize,
    bytes: Vec<u8>,
}

impl Carrier {
    fn carry(mut self, orders: &Receiver<Order>) {
        loop {
            loop {
                match orders.try_recv() {
                    Ok(Order { from, to, weather }) => {
                        let at = from * self.devices.len() + to;
                        self.ways[at].weather = weather;
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            let now = Instant::now();
            self.deliver(now);
            let next = self.under_way.peek().map(|Reverse(packet)| packet.arrives);
            let wait = next.map_or(LONGEST_WAIT, |next| next.saturating_duration_since(now));
            let wait = wait.min(LONGEST_WAIT);
            let timeout = Timespec { tv_sec: 0, tv_nsec: wait.as_nanos() as _ };
            let mut readable: Vec<PollFd<'_>> =
                self.devices.iter().map(|device| PollFd::new(device, PollFlags::IN)).collect();
            // An interrupted wait is a short one.
            let _ = poll(&mut readable, Some(&timeout));
            let ready: Vec<usize> = (0..readable.len())
                .filter(|host| readable[*host].revents().contains(PollFlags::IN))
                .collect();
            ready.into_iter().for_each(|host| self.take_from(host));
        }
    }

    fn deliver(&mut self, now: Instant) {
        while self.under_way.peek().is_some_and(|Reverse(packet)| packet.arrives <= now) {
            if let Some(Reverse(packet)) = self.under_way.pop() {
                // A full queue loses it, as everywhere.
                let _ = self.devices[packet.to].send(&packet.bytes);
            }
        }
    }

    fn take_from(&mut self, host: usize) {
        let mut buffer = [0; MTU as usize];
        for _ in 0..BATCH {
            match self.devices[host].recv(&mut buffer) {
                Ok(length) => self.forward(host, &buffer[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn forward(&mut self, from: usize, bytes: &[u8]) {
        let to = (0..self.devices.len())
            .find(|to| bytes.get(16..20) == Some(&Hosts::address(*to).octets()[..]));
        let Some(to) = to else { return };
        let now = Instant::now();
        let weather = self.ways[from * self.devices.len() + to].weather;
        if weather.is_down
            || weather.largest.is_some_and(|largest| bytes.len() > largest)
            || self.random.chance_of(weather.loss)
        {
            return;
        }
        let mut bytes = bytes.to_vec();
        if self.random.chance_of(weather.corrupt) {
            self.corrupt(&mut bytes);
        }
        let copies = if self.random.chance_of(weather.duplicate) { 2 } else { 1 };
        let is_held = self.random.chance_of(weather.reorder);
        // From -1 to 1.
        let share = self.random.below(2001) as f64 / 1000.0 - 1.0;
        let way = &mut self.ways[from * self.devices.len() + to];
        let mut leaves = now;
        if let Some(rate) = weather.rate {
            leaves = way.free.map_or(now, |free| free.max(now));
            if leaves - now > LONGEST_QUEUE {
                return;
            }
            let bits = bytes.len() as f64 * 8.0;
            leaves += Duration::from_secs_f64(bits / rate as f64);
            way.free = Some(leaves);
        }
        let takes = weather.delay.as_secs_f64() + weather.jitter.as_secs_f64() * share;
        let mut arrives = leaves + Duration::from_secs_f64(takes.max(0.0));
        if is_held {
            arrives += weather.hold;
        } else {
            arrives = way.last.map_or(arrives, |last| arrives.max(last));
            way.last = Some(arrives);
        }
        for _ in 0..copies {
            self.sent += 1;
            let (number, bytes) = (self.sent, bytes.clone());
            self.under_way.push(Reverse(Packet { arrives, number, to, bytes }));
        }
    }

    /// Turns one bit of the datagram over, and takes away UDP's checksum, which would find it.
    fn corrupt(&mut self, packet: &mut [u8]) {
        let header = usize::from(packet[0] & 0xf) * 4;
        if packet.get(9) != Some(&UDP) || packet.len() <= header + UDP_HEADER {
            return;
        }
        packet[header + 6..header + UDP_HEADER].fill(0);
        let data = &mut packet[header + UDP_HEADER..];
        let at = self.random.below(data.len() as u64 * 8) as usize;
        data[at / 8] ^= 1 << (at % 8);
    }
}

/// As on Ethernet.
const MTU: u16 = 1500;
/// In IP's header.
const UDP: u8 = 17;
const UDP_HEADER: usize = 8;
/// So long orders and the end may wait.
const LONGEST_WAIT: Duration = Duration::from_millis(20);
/// Packets of one host before the others get their turn.
const BATCH: usize = 64;
/// What would wait longer for the rate is dropped, as a router's queue does.
const LONGEST_QUEUE: Duration = Duration::from_millis(100);
