//! Certificates that expire while a job runs.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber, span};

use super::certificates::Membership;
use super::hello;
use super::strangers::{Cluster, Form, meet, on_runtime, open, refused, said_by};
use crate::link::quic::binding;
use crate::link::quic::{LaneAddress, LaneId, QuicLinks};
use crate::statistics::Counters;

#[test]
fn links_of_a_world_outlive_its_certificates() {
    let cluster = Cluster::new();
    // Made while it was valid; it has expired since.
    let expired = |rank| {
        let own = cluster.issue(Form::Uri, rank, "job", -60);
        Membership::of_certificates(&own, "job", rank, SystemTime::now()).unwrap()
    };
    let ago = |seconds| SystemTime::now() - Duration::from_secs(seconds);
    let met = |rank| expired(rank).after_meeting(ago(120));
    assert!(meet(&met(0), &met(1), 1).is_ok());
    // Links of control, which only those open who meet now.
    let refusal = refused(&expired(0), &met(1), 1);
    refusal.assert_warned("its certificate has expired");
    let refusal = refused(&met(0), &expired(1), 1);
    assert!(refusal.told.starts_with("the certificate of rank 0 expired on 20"), "{refusal:?}");
    // Nobody met with a certificate that had expired by then.
    let late = |rank| expired(rank).after_meeting(ago(30));
    let refusal = refused(&met(0), &late(1), 1);
    assert!(refusal.told.starts_with("the certificate of rank 0 expired on 20"), "{refusal:?}");
    let refusal = refused(&late(0), &met(1), 1);
    refusal.assert_warned("its certificate has expired");
}

#[test]
fn a_rank_that_cannot_be_dialled_is_worth_one_warning() {
    let cluster = Cluster::new();
    let expired = cluster.issue(Form::Uri, 1, "job", -60);
    let expired = Membership::of_certificates(&expired, "job", 1, SystemTime::now()).unwrap();
    let zero = Arc::new(cluster.rank(0, "job", Form::Uri));
    let log = Log::default();
    tracing::subscriber::with_default(log.clone(), || {
        on_runtime(async {
            let (address, door) = open(&expired);
            let socket = binding::bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let own = LaneAddress {
                addresses: vec![socket.local_addr().unwrap()],
                leaf: zero.leaf_hash(),
            };
            let addresses =
                vec![own, LaneAddress { addresses: vec![address], leaf: expired.leaf_hash() }];
            let counters = Arc::new(Counters::new(0, 2, "quic"));
            let links =
                QuicLinks::new(socket, zero, said_by(0), LaneId::only(1), addresses, counters)
                    .unwrap();
            links.want(1);
            for _ in 0..ATTEMPTS {
                let incoming = door.accept().await.unwrap();
                assert!(hello::greet(incoming, &expired).await.is_err(), "it is valid");
            }
            links.close().await;
        });
    });
    let said = log.said.lock().unwrap();
    let of_rank = said.iter().filter(|line| line.starts_with("the certificate of rank 1 expired"));
    assert_eq!(of_rank.count(), 1, "{said:#?}");
}

/// What is said on this thread.
#[derive(Clone, Default)]
struct Log {
    said: Arc<Mutex<Vec<String>>>,
    spans: Arc<AtomicUsize>,
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("allfold")
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(self.spans.fetch_add(1, Ordering::Relaxed) as u64 + 1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut message = Message(String::new());
        event.record(&mut message);
        self.said.lock().unwrap().push(message.0);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

/// As the door sees them: all but the last have been warned of, if they are.
const ATTEMPTS: usize = 4;
