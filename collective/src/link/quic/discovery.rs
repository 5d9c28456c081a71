//! Tests: how long a path that lets large packets through is used with small ones, in virtual time.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use quinn_proto::{
    Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig, Event, StreamEvent,
    StreamId, Transmit,
};

use super::endpoint;
use super::tuning::{Path, SURE_BUFFER_BYTES, Traffic};
use crate::trust::Credentials;
use crate::trust::certificates::Membership;
use crate::trust::secret::{Secret, Secrets};
use crate::trust::verifier::Seen;

#[test]
fn a_path_that_was_narrow_for_a_while_is_soon_wide_again() {
    let mut link = Link::new();
    link.send_until("it is wide", Duration::from_secs(5), |packet| packet == LARGEST);
    link.lets_through = NARROW;
    link.send_until("it is narrow", Duration::from_secs(60), |packet| packet == 1_200);
    link.lets_through = LARGEST;
    // quinn's own wait is 60 s.
    link.send_until("it is wide again", Duration::from_secs(5), |packet| packet == LARGEST);
}

#[test]
fn a_search_that_met_with_losses_is_made_again() {
    let mut link = Link::new();
    link.lets_through = NARROW;
    let settled = |link: &Link| link.now >= link.begun + Duration::from_secs(10);
    while !settled(&link) {
        link.send();
    }
    assert!(link.packet() <= NARROW);
    link.lets_through = LARGEST;
    // quinn's own wait is 600 s.
    link.send_until("it is wide", Duration::from_secs(35), |packet| packet == LARGEST);
}

/// Two ranks and what is between them.
struct Link {
    begun: Instant,
    now: Instant,
    /// The dialler and the door.
    ends: [End; 2],
    /// When it arrives, and where.
    under_way: VecDeque<(Instant, usize, Vec<u8>)>,
    /// The largest packet that arrives.
    lets_through: u16,
    stream: Option<StreamId>,
}

struct End {
    endpoint: Endpoint,
    connection: Option<(ConnectionHandle, Connection)>,
}

impl Link {
    fn new() -> Self {
        let secret = Secret::random().unwrap().to_line();
        let member = |rank| {
            let secrets = Secrets::from_lines(&secret, "the test").unwrap();
            Membership::new(&Credentials::Secrets(secrets), "discovery", rank).unwrap()
        };
        let traffic = Traffic::Data { lanes: 1 };
        let path = Path::new(traffic, false, SURE_BUFFER_BYTES);
        let mut config = EndpointConfig::default();
        config.max_udp_payload_size(LARGEST).unwrap();
        let config = Arc::new(config);
        let server = endpoint::server(&member(1), traffic, path).unwrap();
        let client = endpoint::client(&member(0), traffic, (1, path), Seen::default());
        let door = Endpoint::new(config.clone(), Some(Arc::new(server)), true, None);
        let mut dialler = Endpoint::new(config, None, true, None);
        let (begun, name) = (Instant::now(), member(0).name_of(1));
        let connection = dialler.connect(begun, client.unwrap(), address(1), &name).unwrap();
        let ends = [
            End { endpoint: dialler, connection: Some(connection) },
            End { endpoint: door, connection: None },
        ];
        let under_way = VecDeque::new();
        Self { begun, now: begun, ends, under_way, lets_through: LARGEST, stream: None }
    }

    /// The dialler's packets.
    fn packet(&self) -> u16 {
        let connection = self.ends[0].connection.as_ref().unwrap();
        connection.1.stats().path.current_mtu
    }

    fn send_until(&mut self, what: &str, limit: Duration, is_so: impl Fn(u16) -> bool) {
        let begun = self.now;
        while !is_so(self.packet()) {
            self.send();
            let passed = self.now - begun;
            assert!(passed <= limit, "not {what} after {passed:?}: {} bytes", self.packet());
        }
    }

    /// The dialler has something to send; what comes of it until it has more.
    fn send(&mut self) {
        let (_, connection) = self.ends[0].connection.as_mut().unwrap();
        if !connection.is_handshaking() {
            let stream =
                *self.stream.get_or_insert_with(|| connection.streams().open(Dir::Uni).unwrap());
            let _ = connection.send_stream(stream).write(&[0; MESSAGE]);
        }
        let end = self.now + EVERY;
        while self.now < end {
            (0..2).for_each(|end| self.turn(end));
            let timeouts = self.ends.iter_mut().filter_map(|end| end.timeout());
            let arrives = self.under_way.front().map(|(at, ..)| *at);
            self.now = timeouts.chain(arrives).fold(end, Instant::min).max(self.now);
            while self.under_way.front().is_some_and(|(at, ..)| *at <= self.now) {
                let (_, to, packet) = self.under_way.pop_front().unwrap();
                self.arrive(to, packet);
            }
            for end in &mut self.ends {
                if end.timeout().is_some_and(|timeout| timeout <= self.now) {
                    end.connection.as_mut().unwrap().1.handle_timeout(self.now);
                }
            }
        }
    }

    fn arrive(&mut self, to: usize, packet: Vec<u8>) {
        let (end, now, mut answer) = (&mut self.ends[to], self.now, Vec::new());
        let data = BytesMut::from(&packet[..]);
        match end.endpoint.handle(now, address(1 - to), None, None, data, &mut answer) {
            Some(DatagramEvent::NewConnection(incoming)) => {
                let accepted = end.endpoint.accept(incoming, now, &mut answer, None);
                end.connection = Some(accepted.ok().unwrap());
            }
            Some(DatagramEvent::ConnectionEvent(_, event)) => {
                end.connection.as_mut().unwrap().1.handle_event(event);
            }
            Some(DatagramEvent::Response(transmit)) => self.transmit(to, transmit, answer),
            None => {}
        }
    }

    fn turn(&mut self, from: usize) {
        let end = &mut self.ends[from];
        let Some((handle, connection)) = &mut end.connection else { return };
        while let Some(event) = connection.poll_endpoint_events() {
            if let Some(event) = end.endpoint.handle_event(*handle, event) {
                connection.handle_event(event);
            }
        }
        while let Some(event) = connection.poll() {
            assert!(!matches!(event, Event::ConnectionLost { .. }), "{event:?}");
            let stream = match event {
                Event::Stream(StreamEvent::Opened { dir }) => connection.streams().accept(dir),
                Event::Stream(StreamEvent::Readable { id }) => Some(id),
                _ => None,
            };
            if let Some(id) = stream {
                let mut stream = connection.recv_stream(id);
                let mut chunks = stream.read(true).unwrap();
                while let Ok(Some(_)) = chunks.next(usize::MAX) {}
                let _ = chunks.finalize();
            }
        }
        loop {
            let (mut packet, now) = (Vec::new(), self.now);
            let Some((_, connection)) = &mut self.ends[from].connection else { return };
            let Some(transmit) = connection.poll_transmit(now, 1, &mut packet) else { return };
            self.transmit(from, transmit, packet);
        }
    }

    fn transmit(&mut self, from: usize, transmit: Transmit, mut packet: Vec<u8>) {
        packet.truncate(transmit.size);
        if packet.len() <= self.lets_through.into() {
            self.under_way.push_back((self.now + DELAY, 1 - from, packet));
        }
    }
}

impl End {
    fn timeout(&mut self) -> Option<Instant> {
        self.connection.as_mut()?.1.poll_timeout()
    }
}

fn address(end: usize) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, end as u16 + 1).into()
}

/// Jumbo frames, and what is left of them.
const LARGEST: u16 = 8_952;
const NARROW: u16 = 1_300;
/// One way.
const DELAY: Duration = Duration::from_micros(200);
/// Several packets at a time, and so many times.
const MESSAGE: usize = 40_000;
const EVERY: Duration = Duration::from_millis(50);
