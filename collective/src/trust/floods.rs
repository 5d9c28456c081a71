//! Members that say more on a control link than is dealt with, or read nothing of what they are
//! sent: neither takes more memory than a limit.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{Notify, mpsc};

use super::doors::silent_member;
use super::hello;
use super::secret::Secret;
use super::strangers::{PATIENCE, of_secrets, on_runtime, open, said_by};
use crate::config::Config;
use crate::control::endpoint::{Control, Event, LinkEnd, Message};
use crate::link::quic::endpoint::{Caller, OpenEndpoint};
use crate::link::quic::tuning::Traffic;
use crate::statistics::Counters;
use crate::wire;

#[test]
fn a_member_that_floods_its_link_is_read_no_faster_than_it_is_dealt_with() {
    let secret = Secret::random().unwrap();
    on_runtime(async {
        let mut host = Host::new(&secret);
        let guest = of_secrets(&[&secret], 1);
        let (_, endpoint) = open(&guest);
        let caller = Caller { endpoint: &endpoint, membership: &guest, traffic: Traffic::Control };
        let hello = said_by(1);
        let dialling = caller.dial(0, host.address, &hello, PATIENCE);
        let (welcomed, ()) = tokio::join!(dialling, host.let_in(1));
        let mut welcomed = welcomed.unwrap();
        let frame = wire::encode_control(&Message::LeaveRead).unwrap();
        let flood = frame.repeat(FLOOD);
        tokio::task::spawn_local(async move {
            welcomed.sender.write_all(&flood).await.unwrap();
            // Its end must not overtake what it has said.
            welcomed.connection.closed().await
        });
        while host.events.len() < UNHANDLED {
            tokio::task::yield_now().await;
        }
        // The link has its turns while others come: it is read no further.
        let other = of_secrets(&[&secret], 2);
        let caller = Caller { membership: &other, ..caller };
        for _ in 0..50 {
            let (hello, address) = (said_by(2), host.address);
            let dialling = caller.dial(0, address, &hello, PATIENCE);
            assert!(tokio::join!(dialling, host.let_in(2)).0.is_ok());
        }
        let mut messages = 0;
        for _ in 0..host.events.len() {
            messages +=
                usize::from(matches!(host.events.recv().await, Some(Event::Message(1, ..))));
        }
        assert_eq!(messages, UNHANDLED);
        while messages < FLOOD {
            match host.events.recv().await {
                Some(Event::Message(1, Message::LeaveRead, Some(_share))) => messages += 1,
                Some(Event::Ended { rank: 2, .. }) => {}
                _ => panic!("the link has ended after {messages} messages"),
            }
        }
    });
}

#[test]
fn a_link_whose_peer_reads_nothing_ends_and_one_that_is_read_goes_on() {
    let secret = Secret::random().unwrap();
    on_runtime(async {
        let mut host = Host::new(&secret);
        let [silent, guest] = [2, 1].map(|rank| of_secrets(&[&secret], rank));
        let ((_, silent_end), (_, endpoint)) = (open(&silent), open(&guest));
        let hello = said_by(2);
        let knocking = silent_member(&silent_end, &silent, host.address, &hello);
        let ((connection, _stream), ()) = tokio::join!(knocking, host.let_in(2));
        let caller = Caller { endpoint: &endpoint, membership: &guest, traffic: Traffic::Control };
        let hello = said_by(1);
        let dialling = caller.dial(0, host.address, &hello, PATIENCE);
        let (welcomed, ()) = tokio::join!(dialling, host.let_in(1));
        let mut welcomed = welcomed.unwrap();
        let message = Message::Missing((0..1 << 20).collect());
        for number in 0.. {
            host.control.post_all(&message);
            let read = hello::receive::<Message>(&mut welcomed.receiver, wire::MAX_CONTROL_BYTES);
            assert!(matches!(read.await, Ok(Message::Missing(_))));
            match host.events.try_recv() {
                Err(_) => assert!(number < 16, "{number} messages of 4 MiB lie about"),
                Ok(Event::Ended { rank: 2, how: LinkEnd::Closed(how), .. }) => {
                    assert_eq!(how, "it does not read what it is sent");
                    break;
                }
                Ok(_) => panic!("another event"),
            }
        }
        connection.closed().await;
        host.control.post_all(&Message::LeaveRead);
        let last = hello::receive(&mut welcomed.receiver, wire::MAX_CONTROL_BYTES).await;
        assert!(matches!(last, Ok(Message::LeaveRead)));
    });
}

/// The control endpoint of rank 0 of sixteen.
struct Host {
    control: Rc<Control>,
    events: mpsc::UnboundedReceiver<Event>,
    address: SocketAddr,
    door: OpenEndpoint,
}

impl Host {
    fn new(secret: &Secret) -> Self {
        let membership = Arc::new(of_secrets(&[secret], 0));
        let (address, door) = open(&membership);
        let (sender, events) = mpsc::unbounded_channel();
        let control = Rc::new(Control {
            config: Config::new(0, 16, &address.to_string()).unwrap(),
            membership,
            endpoint: door.clone(),
            counters: Arc::new(Counters::new(0, 16, "quic")),
            is_launched: false,
            links: RefCell::new(BTreeMap::new()),
            world: OnceCell::new(),
            events: sender,
            changed: Notify::new(),
        });
        Self { control, events, address, door }
    }

    /// Makes the next one that knocks welcome, as the link to `rank`.
    async fn let_in(&mut self, rank: u32) {
        let incoming = self.door.accept().await.unwrap();
        let greeted = hello::greet(incoming, &self.control.membership).await;
        assert!(self.control.welcome(rank, greeted.ok().expect("no member")));
    }
}

/// Small messages that a link may have read and not dealt with.
const UNHANDLED: usize = 1024;
/// Messages of eight bytes: more than fit all windows.
const FLOOD: usize = 400_000;
