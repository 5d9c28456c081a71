//! The text that Prometheus reads, made anew for every scrape.

use std::fmt::{self, Write};
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::board::{Board, Kind, Shown};
use crate::contract::Collective;
use crate::plan::Algorithm;
use crate::plan::costs;
use crate::rendezvous::ALL_WATCH_ALL;
use crate::statistics::{PeerStatistics, ReasonCount};

/// How a scraper wants its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    OpenMetrics,
    /// What came before it; `promtool check metrics` and many tools read only that.
    Classic,
}

impl Format {
    /// By the `Accept` header, if there is one.
    pub(super) fn accepted(accept: Option<&str>) -> Self {
        let open = accept.is_some_and(|accept| accept.contains("application/openmetrics-text"));
        if open { Format::OpenMetrics } else { Format::Classic }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Classic => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// What the board shows now.
pub(super) fn expose(board: &Arc<Board>, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Exposed(board.clone())));
    let mut open = String::new();
    text::encode(&mut open, &registry)?;
    match format {
        Format::OpenMetrics => Ok(open),
        Format::Classic => classic(&open),
    }
}

#[derive(Debug)]
struct Exposed(Arc<Board>);

type Labels<'a, const N: usize> = [(&'static str, &'a str); N];

impl Collector for Exposed {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let shown = self.0.shown();
        let encoder = &mut encoder;
        about(encoder, &shown)?;
        calls(encoder, &shown)?;
        call_seconds(encoder, &shown)?;
        let statistics = shown.counters.stats();
        let (sent, received) = (statistics.bytes_sent(), statistics.bytes_received());
        bytes(encoder, shown.counters.transport(), sent, received)?;
        let shows_all = shown.counters.size() <= ALL_WATCH_ALL as usize;
        let is_shown = |peer: &PeerStatistics| shows_all || has_to_do_with(peer);
        peers(encoder, &statistics.peers.into_iter().filter(is_shown).collect::<Vec<_>>())?;
        reasons(
            encoder,
            ("allfold_aborts", "worlds that ended in an error, by its reason"),
            &statistics.aborts,
        )?;
        reasons(
            encoder,
            ("allfold_refused_connections", "connections that this rank turned away, by reason"),
            &statistics.refused_connections,
        )?;
        self.own(encoder)
    }
}

impl Exposed {
    /// The program's metrics.
    fn own(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for own in self.0.owns() {
            match own.kind {
                Kind::Gauge => gauge(encoder, &own.name, &own.help, own.level())?,
                Kind::Counter => {
                    let kind = MetricType::Counter;
                    let family = encoder.encode_descriptor(&own.name, &own.help, None, kind)?;
                    ConstCounter::new(own.count()).encode(family)?;
                }
            }
        }
        Ok(())
    }
}

fn about(encoder: &mut DescriptorEncoder<'_>, Shown { about, counters }: &Shown) -> fmt::Result {
    let help = "this rank; its number, its job and what carries its data";
    let mut info = encoder.encode_descriptor("allfold", help, None, MetricType::Info)?;
    info.encode_info(&[
        ("version", env!("CARGO_PKG_VERSION")),
        ("job_name", about.job.as_str()),
        ("rank", counters.rank().to_string().as_str()),
        ("host", about.host.as_str()),
        ("transport", counters.transport()),
    ])?;
    let size = counters.size() as f64;
    gauge(encoder, "allfold_world_size", "ranks of the world", size)?;
    let help = "number of the world, drawn anew at every start and equal on all its ranks; 0 while \
                they meet and once it is closed";
    // Prometheus' numbers have 53 bits.
    gauge(encoder, "allfold_epoch", help, (counters.epoch() & ((1 << 53) - 1)) as f64)
}

/// Every kind of call that can be, so that the first one of a kind is an increase.
fn calls(encoder: &mut DescriptorEncoder<'_>, shown: &Shown) -> fmt::Result {
    let counters = &shown.counters;
    let help = "calls that ended well";
    let mut family = encoder.encode_descriptor("allfold_calls", help, None, MetricType::Counter)?;
    for collective in Collective::kinds() {
        for algorithm in Algorithm::ALL {
            let counted = counters.calls_of_kind(collective, algorithm);
            let in_memory =
                algorithm == Algorithm::SharedMemory && costs::meets_in_memory(collective);
            let can_be = in_memory || costs::algorithms(collective).contains(&algorithm);
            if counted.is_none() && !can_be {
                continue;
            }
            let labels: Labels<'_, 3> = [
                ("collective", collective.name()),
                ("algorithm", algorithm.name()),
                ("transport", counters.transport_of(algorithm.name())),
            ];
            let count = counted.map_or(0, |calls| calls.count());
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

/// Only those kinds of call of which there was one: each has two dozen series.
fn call_seconds(encoder: &mut DescriptorEncoder<'_>, shown: &Shown) -> fmt::Result {
    let help = "how long a call took, from when its turn came";
    let kind = MetricType::Histogram;
    let mut family = encoder.encode_descriptor("allfold_call_seconds", help, None, kind)?;
    for ((collective, algorithm), calls) in shown.counters.calls() {
        let transport = shown.counters.transport_of(algorithm);
        let labels: Labels<'_, 3> =
            [("collective", collective), ("algorithm", algorithm), ("transport", transport)];
        // Of one reading, so that the count is that of the buckets.
        let buckets: Vec<(f64, u64)> = calls.buckets().collect();
        let count = buckets.iter().map(|(_, calls)| calls).sum();
        family.encode_family(&labels)?.encode_histogram::<Labels<'_, 0>>(
            calls.total().as_secs_f64(),
            count,
            &buckets,
            None,
        )?;
    }
    Ok(())
}

fn bytes(
    encoder: &mut DescriptorEncoder<'_>,
    transport: &'static str,
    sent: u64,
    received: u64,
) -> fmt::Result {
    let help = "bytes of calls, without what the transport adds";
    let mut family = encoder.encode_descriptor("allfold_bytes", help, None, MetricType::Counter)?;
    for (direction, bytes) in [("sent", sent), ("received", received)] {
        let labels: Labels<'_, 2> = [("transport", transport), ("direction", direction)];
        ConstCounter::new(bytes).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn peers(encoder: &mut DescriptorEncoder<'_>, peers: &[PeerStatistics]) -> fmt::Result {
    let help = "time this rank waited, in calls, for the peer to come";
    let kind = MetricType::Counter;
    let mut family = encoder.encode_descriptor("allfold_late_seconds", help, None, kind)?;
    for peer in peers {
        let rank = peer.rank.to_string();
        let labels: Labels<'_, 1> = [("peer", &rank)];
        ConstCounter::new(peer.late.total.as_secs_f64()).encode(family.encode_family(&labels)?)?;
    }
    let help = "time since the peer's last heartbeat";
    gauges(encoder, "allfold_heartbeat_age_seconds", help, peers, |peer| peer.heartbeat_age)?;
    let help = "smoothed round trip of the data link to the peer";
    gauges(encoder, "allfold_link_rtt_seconds", help, peers, |peer| peer.rtt)
}

fn gauges(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    peers: &[PeerStatistics],
    value: impl Fn(&PeerStatistics) -> Option<std::time::Duration>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for peer in peers {
        let Some(value) = value(peer) else { continue };
        let rank = peer.rank.to_string();
        let labels: Labels<'_, 1> = [("peer", &rank)];
        ConstGauge::new(value.as_secs_f64()).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn reasons(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    counts: &[ReasonCount],
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for ReasonCount { reason, count } in counts {
        let labels: Labels<'_, 1> = [("reason", reason)];
        ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: f64) -> fmt::Result {
    let family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    ConstGauge::new(value).encode(family)
}

/// In a large world a rank has to do with few others, and shows only those.
fn has_to_do_with(peer: &PeerStatistics) -> bool {
    peer.heartbeat_age.is_some() || peer.rtt.is_some() || peer.bytes_sent + peer.bytes_received > 0
}

/// The same in Prometheus' own text format (version 0.0.4), which names a counter and an info with
/// their endings throughout, and knows neither infos, units nor an end.
fn classic(open: &str) -> Result<String, fmt::Error> {
    let ending = |name: &str| {
        let kind = open.lines().find_map(|line| {
            let (of, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
            (of == name).then_some(kind)
        });
        match kind {
            Some("counter") => "_total",
            Some("info") => "_info",
            _ => "",
        }
    };
    let mut text = String::with_capacity(open.len());
    for line in open.lines() {
        let words = line.strip_prefix("# ").and_then(|line| {
            let (word, rest) = line.split_once(' ')?;
            let (name, rest) = rest.split_once(' ')?;
            Some((word, name, rest))
        });
        match words {
            Some(("TYPE", name, "info")) => writeln!(text, "# TYPE {name}_info gauge")?,
            Some((word @ ("TYPE" | "HELP"), name, rest)) => {
                writeln!(text, "# {word} {name}{} {rest}", ending(name))?;
            }
            _ if line.starts_with('#') => {}
            _ => writeln!(text, "{line}")?,
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::address::Address;
    use crate::metrics::{About, Metrics};
    use crate::statistics::Counters;

    #[test]
    fn the_classic_text_names_counters_in_full() {
        let open = "# HELP a help of a\n# TYPE a counter\na_total{x=\"# y\"} 1\n# HELP b_c of bytes\n\
                    # TYPE b_c info\nb_c_info{v=\"1\"} 1\n# HELP d of d\n# TYPE d gauge\n# UNIT d s\nd 2\n# EOF\n";
        let expected = "# HELP a_total help of a\n# TYPE a_total counter\na_total{x=\"# y\"} 1\n\
                        # HELP b_c_info of bytes\n# TYPE b_c_info gauge\nb_c_info{v=\"1\"} 1\n\
                        # HELP d of d\n# TYPE d gauge\nd 2\n";
        assert_eq!(classic(open).unwrap(), expected);
    }

    #[test]
    fn a_large_world_shows_the_peers_it_has_to_do_with_and_words_stay_in_their_quotes() {
        let counters = Arc::new(Counters::new(3, 1000, "quic"));
        counters.waits(4, Duration::from_millis(1500));
        counters.sent(4, 1);
        counters.heard(5);
        let about = About { job: "a\"} 1\nb\\".into(), host: "node-3".into() };
        let address = Address::parse("127.0.0.1:0").unwrap().unwrap();
        let metrics = Metrics::serve(address, about, counters).unwrap();
        let text = expose(&metrics.board.unwrap(), Format::OpenMetrics).unwrap();
        let late: Vec<&str> =
            text.lines().filter(|line| line.starts_with("allfold_late_seconds_total")).collect();
        let expected = [
            "allfold_late_seconds_total{peer=\"4\"} 1.5",
            "allfold_late_seconds_total{peer=\"5\"} 0.0",
        ];
        assert_eq!(late, expected);
        let name = r#"job_name="a\"} 1\nb\\",rank="3",host="node-3""#;
        assert!(text.contains(name), "{text}");
    }

    #[test]
    fn open_metrics_is_for_those_who_accept_it() {
        let prometheus =
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
        assert_eq!(Format::accepted(Some(prometheus)), Format::OpenMetrics);
        assert_eq!(Format::accepted(Some("text/html, */*")), Format::Classic);
        assert_eq!(Format::accepted(None), Format::Classic);
    }
}
