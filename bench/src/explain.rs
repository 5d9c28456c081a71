//! `--explain`: where the time of a row went, from what the ranks counted meanwhile, what bare links
//! carry in the same run, and what encryption costs on this processor.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

use allfold::Communicator;
use allfold::probe::{self, Cipher, Link, LinkFigures, Route};
use serde::Serialize;

use crate::choices::Average;
use crate::cores::{self, Share};
use crate::measure::processor_time;
use crate::size::binary;
use crate::{Error, world};

/// What this rank counted during the timed calls of a row.
#[derive(Clone, Debug, Default)]
pub(crate) struct Observed {
    /// Seconds.
    pub(crate) wall: f64,
    /// Seconds of all threads.
    pub(crate) processor: f64,
    pub(crate) bytes_sent: f64,
    /// Seconds that this rank waited for each rank to come.
    pub(crate) late: Vec<f64>,
}

/// Counts from here on.
pub(crate) struct Observer {
    begun: Instant,
    processor: Duration,
    bytes_sent: u64,
    late: Vec<Duration>,
}

/// The row that is explained: the last one of the largest size.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    /// `float sum`.
    pub(crate) what: String,
    pub(crate) bytes: usize,
    /// GB/s.
    pub(crate) bus_bw: f64,
    pub(crate) observed: Observed,
}

/// What was found, as it goes into the report.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Explanation {
    pub(crate) row: String,
    pub(crate) size: usize,
    pub(crate) bus_bw: f64,
    /// What the slowest bare link carries while all ranks send at once, in GB/s.
    pub(crate) link_limit: Option<f64>,
    /// That link.
    pub(crate) slowest_link: Option<[usize; 2]>,
    pub(crate) link_problem: Option<String>,
    /// Over all ranks.
    pub(crate) cpu_seconds_per_gb: Option<f64>,
    /// The same of bare links.
    pub(crate) link_cpu_seconds_per_gb: Option<f64>,
    /// One core, in GB/s.
    pub(crate) seal_rate: f64,
    pub(crate) open_rate: f64,
    /// Estimated, of the processor's time.
    pub(crate) encryption_share: f64,
    /// For whom the others waited longest.
    pub(crate) latest_rank: Option<usize>,
    /// Seconds that the others waited for it, added up.
    pub(crate) waited_seconds: f64,
    /// Of all ranks' time.
    pub(crate) waited_share: f64,
    /// Whether it is waited for far longer than the others are.
    pub(crate) stands_out: bool,
    /// The busiest host: its name, the cores that the ranks kept busy, and those it has.
    pub(crate) busiest_host: (String, f64, f64),
    pub(crate) limited_by: String,
}

impl Observer {
    pub(crate) fn begin(world: &Communicator) -> Self {
        let statistics = world.stats();
        Self {
            bytes_sent: statistics.bytes_sent(),
            late: statistics.peers.iter().map(|peer| peer.late.total).collect(),
            processor: processor_time(),
            begun: Instant::now(),
        }
    }

    pub(crate) fn end(self, world: &Communicator) -> Observed {
        let wall = self.begun.elapsed().as_secs_f64();
        let processor = processor_time().saturating_sub(self.processor).as_secs_f64();
        let statistics = world.stats();
        let mut late = vec![0.0; world.size()];
        for (peer, before) in statistics.peers.iter().zip(&self.late) {
            if let Some(late) = late.get_mut(peer.rank) {
                *late = peer.late.total.saturating_sub(*before).as_secs_f64();
            }
        }
        let bytes_sent = statistics.bytes_sent().saturating_sub(self.bytes_sent) as f64;
        Observed { wall, processor, bytes_sent, late }
    }
}

/// Measures what is missing and puts all together; every rank of `world` makes the call.
pub(crate) fn explain(world: &Communicator, subject: &Subject) -> Result<Explanation, Error> {
    let ranks = gather(world, &subject.observed)?;
    let mut figures = Vec::new();
    let mut link_processor = 0.0;
    // A limit is what was reached at best.
    for _ in 0..if world.size() > 1 { PROBES } else { 0 } {
        let before = processor_time();
        let link = Link { duration: PROBE, round_trips: 0, ..Link::default() };
        let found = link.measure(world, Route::Ring)?;
        let own = processor_time().saturating_sub(before).as_secs_f64();
        let processor = world::average(world, own, Average::Mean)? * world.size() as f64;
        if figures.is_empty() || slowest(&found) > slowest(&figures) {
            (figures, link_processor) = (found, processor);
        }
    }
    // One rank at a time, so that it has a core to itself.
    let mut rates = [0.0; 2];
    if world.rank() == 0 {
        let payload = figures.first().map_or(TYPICAL_PAYLOAD, |found| found.payload.into());
        let found = probe::encryption(Cipher::default(), payload.max(TYPICAL_PAYLOAD), ENCRYPT)?;
        rates = [found.seal, found.open];
    }
    world.broadcast(&mut rates, 0)?;
    let hosts: Vec<String> = world.peers().into_iter().map(|peer| peer.host).collect();
    Ok(conclude(subject, &ranks, &hosts, &figures, link_processor, rates))
}

/// Bytes a second.
fn slowest(figures: &[LinkFigures]) -> f64 {
    figures.iter().map(LinkFigures::rate).fold(f64::INFINITY, f64::min)
}

/// Lines below the table.
pub(crate) fn text(found: &Explanation) -> String {
    let mut text = format!("# Where the time went: {}, {}\n", binary(found.size as u64), found.row);
    let mut line = |name: &str, words: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "#   {name:<18} {words}");
    };
    match (found.link_limit, found.slowest_link, &found.link_problem) {
        (Some(limit), Some([from, to]), _) => {
            let share = found.bus_bw / limit * 100.0;
            line(
                "bus bandwidth",
                format!(
                    "{:.3} GB/s, {share:.0} % of the link limit{}",
                    found.bus_bw,
                    if share > BEYOND { ": the hosts were busier later" } else { "" }
                ),
            );
            line(
                "link limit",
                format!(
                    "{limit:.3} GB/s: the slowest bare link, rank {from} to rank {to}, while every \
                     rank sends and receives"
                ),
            );
        }
        (_, _, problem) => {
            line("bus bandwidth", format!("{:.3} GB/s", found.bus_bw));
            let why = problem.clone().unwrap_or_else(|| "one rank has no link".into());
            line("link limit", format!("not measured: {why}"));
        }
    }
    if let Some(cost) = found.cpu_seconds_per_gb {
        let bare = found.link_cpu_seconds_per_gb;
        let bare = bare.map_or(String::new(), |bare| format!("; bare links: {bare:.2}"));
        line("processor", format!("{cost:.2} CPU seconds per GB sent, all ranks{bare}"));
        line(
            "encryption",
            format!(
                "about {:.0} % of that: GB sent and received, at {:.1} and {:.1} GB/s a core \
                 (AES-128-GCM, measured now)",
                found.encryption_share * 100.0,
                found.seal_rate,
                found.open_rate
            ),
        );
    }
    let (host, busy, cores) = &found.busiest_host;
    line("cores", format!("{busy:.1} of {cores:.0} busy with the ranks of {host}"));
    if let Some(rank) = found.latest_rank {
        line(
            "slowest rank",
            format!(
                "rank {rank}: others waited {} for it to come, {:.0} % of their time{}",
                milliseconds(found.waited_seconds),
                found.waited_share * 100.0,
                if found.stands_out { "" } else { " (nobody stands out)" }
            ),
        );
    }
    line("limited by", found.limited_by.clone());
    text
}

/// Of one rank.
struct Rank {
    wall: f64,
    processor: f64,
    bytes_sent: f64,
    share: Share,
    late: Vec<f64>,
}

impl Rank {
    /// Cores that it keeps busy.
    fn busy(&self) -> f64 {
        if self.wall > 0.0 { self.processor / self.wall } else { 0.0 }
    }
}

fn gather(world: &Communicator, own: &Observed) -> Result<Vec<Rank>, Error> {
    let mut record = vec![own.wall, own.processor, own.bytes_sent];
    record.extend(Share::own().to_numbers());
    let counted = record.len();
    record.extend(&own.late);
    record.resize(counted + world.size(), 0.0);
    let mut all = vec![0.0; record.len() * world.size()];
    world.all_gather(&record, &mut all)?;
    let rank = |record: &[f64]| {
        let (share, late) = record[3..].split_first_chunk()?;
        Some(Rank {
            wall: record[0],
            processor: record[1],
            bytes_sent: record[2],
            share: Share::from_numbers(share),
            late: late.to_vec(),
        })
    };
    Ok(all.chunks_exact(record.len()).filter_map(rank).collect())
}

fn conclude(
    subject: &Subject,
    ranks: &[Rank],
    hosts: &[String],
    figures: &[LinkFigures],
    link_processor: f64,
    [seal, open]: [f64; 2],
) -> Explanation {
    let sum = |of: fn(&Rank) -> f64| ranks.iter().map(of).sum::<f64>();
    let (wall, processor) = (sum(|rank| rank.wall), sum(|rank| rank.processor));
    let sent = sum(|rank| rank.bytes_sent);
    // What one rank sends, another receives.
    let encryption = if seal > 0.0 && open > 0.0 { sent / seal + sent / open } else { 0.0 };
    let encryption_share = if processor > 0.0 { (encryption / processor).min(1.0) } else { 0.0 };
    let waited = |rank: usize| ranks.iter().filter_map(|other| other.late.get(rank)).sum::<f64>();
    let latest = (0..ranks.len()).max_by(|a, b| waited(*a).total_cmp(&waited(*b)));
    let latest = latest.filter(|rank| waited(*rank) > 0.0);
    let waited_seconds = latest.map_or(0.0, waited);
    // The one that is late waits for nobody then.
    let others = wall * (ranks.len() as f64 - 1.0) / ranks.len() as f64;
    let waited_share = if others > 0.0 { (waited_seconds / others).min(1.0) } else { 0.0 };
    let for_others: f64 = (0..ranks.len()).map(waited).sum::<f64>() - waited_seconds;
    let average = for_others / (ranks.len() as f64 - 1.0).max(1.0);
    let stands_out = waited_seconds >= OUTSTANDING * average;
    let problem = figures.iter().find_map(|found| found.problem.clone());
    let slowest = figures
        .iter()
        .filter(|found| problem.is_none() && found.rate() > 0.0)
        .min_by(|a, b| a.rate().total_cmp(&b.rate()));
    let carried: f64 = figures.iter().map(|found| found.bytes as f64).sum();
    let mut found = Explanation {
        row: subject.what.clone(),
        size: subject.bytes,
        bus_bw: subject.bus_bw,
        link_limit: slowest.map(|link| link.rate() / 1e9),
        slowest_link: slowest.map(|link| [link.from, link.to]),
        link_problem: problem,
        cpu_seconds_per_gb: (sent > 0.0).then(|| processor / (sent / 1e9)),
        link_cpu_seconds_per_gb: (carried > 0.0).then(|| link_processor / (carried / 1e9)),
        seal_rate: seal / 1e9,
        open_rate: open / 1e9,
        encryption_share,
        latest_rank: latest,
        waited_seconds,
        waited_share,
        stands_out,
        busiest_host: busiest(ranks, hosts),
        limited_by: String::new(),
    };
    found.limited_by = limit(&found, ranks);
    found
}

/// The host whose cores have the least to spare.
fn busiest(ranks: &[Rank], hosts: &[String]) -> (String, f64, f64) {
    let mut on_host: BTreeMap<&str, Vec<&Rank>> = BTreeMap::new();
    for (rank, host) in ranks.iter().zip(hosts) {
        on_host.entry(host).or_default().push(rank);
    }
    let load = |(host, ranks): (&str, Vec<&Rank>)| {
        let busy = ranks.iter().map(|rank| rank.busy()).sum::<f64>();
        let cores = cores::together(ranks.iter().map(|rank| &rank.share));
        (host.to_string(), busy, f64::from(cores))
    };
    let share = |(_, busy, cores): &(String, f64, f64)| busy / cores;
    let most = on_host.into_iter().map(load).max_by(|a, b| share(a).total_cmp(&share(b)));
    most.unwrap_or((String::new(), 0.0, 1.0))
}

/// The first of these that holds.
fn limit(found: &Explanation, ranks: &[Rank]) -> String {
    if ranks.len() == 1 {
        return ALONE.into();
    }
    let (_, busy, cores) = &found.busiest_host;
    let of_link = found.link_limit.map_or(0.0, |limit| found.bus_bw / limit);
    let encryption = format!("encryption about {:.0} % of it", found.encryption_share * 100.0);
    let fullest = ranks.iter().map(Rank::busy).fold(0.0, f64::max);
    match found.latest_rank {
        Some(rank) if found.stands_out && found.waited_share >= MUCH_WAITING => {
            return format!("waiting for rank {rank}");
        }
        _ => {}
    }
    if busy / cores.max(1.0) >= ALL_BUSY {
        return match found.encryption_share >= MOSTLY {
            true => format!("the processor, in encryption: no core is idle, {encryption}"),
            false => format!(
                "the processor: no core is idle; {encryption}, the rest QUIC, the kernel's UDP and \
                 the reduction"
            ),
        };
    }
    if of_link >= AT_THE_LIMIT {
        return "the link: a bare one carries no more".into();
    }
    if fullest >= ALL_BUSY {
        return format!("one core of a rank, which its lane's thread fills; {encryption}");
    }
    "none of these: latency, or steps that wait for each other; larger sizes show more".into()
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.1} ms", seconds * 1e3)
}

/// Of a world of one.
const ALONE: &str = "the call itself: one rank sends nothing and waits for nobody, and copies only \
                     out of place; --ranks 2 shows more";
/// Long enough for the congestion window to open.
const PROBE: Duration = Duration::from_millis(400);
/// Of which one is likely to be undisturbed.
const PROBES: usize = 3;
const ENCRYPT: Duration = Duration::from_millis(100);
/// Of a packet over Ethernet, in bytes.
const TYPICAL_PAYLOAD: usize = 1_200;
/// A quarter of the time spent on one rank is more than chance.
const MUCH_WAITING: f64 = 0.25;
/// Ranks always wait for each other a little: for the network, and for who is ahead.
const OUTSTANDING: f64 = 2.0;
/// The clock ticks between counting processor time and wall time.
const ALL_BUSY: f64 = 0.85;
/// Rates of two measurements differ by so much from run to run.
const AT_THE_LIMIT: f64 = 0.8;
const MOSTLY: f64 = 0.5;
/// In percent: two measurements of one thing do not differ by more for nothing.
const BEYOND: f64 = 110.0;

#[cfg(test)]
mod tests {
    use super::*;

    /// Two ranks for a second each, one GB sent by each, each bound to two of a host's
    /// cores.
    fn ranks(processor: f64, late_for_1: f64) -> Vec<Rank> {
        let rank = |late: [f64; 2], cores: [usize; 2]| Rank {
            wall: 1.0,
            processor,
            bytes_sent: 1e9,
            share: Share::of(&cores),
            late: late.to_vec(),
        };
        vec![rank([0.0, late_for_1], [0, 1]), rank([0.0, 0.0], [2, 3])]
    }

    fn found(ranks: &[Rank], bus_bw: f64, seal: f64) -> Explanation {
        let what = "float sum, in place".into();
        let observed = Observed::default();
        let subject = Subject { what, bytes: 64 << 20, bus_bw, observed };
        let link = |from: usize, bytes| LinkFigures {
            from,
            to: 1 - from,
            bytes,
            elapsed: Duration::from_secs(1),
            payload: 1452,
            packets: 1,
            lost: 0,
            round_trips: Vec::new(),
            problem: None,
        };
        let hosts = ["node-a".to_string(), "node-a".to_string()];
        let figures = [link(0, 3_000_000_000), link(1, 2_000_000_000)];
        conclude(&subject, ranks, &hosts, &figures, 2.5, [seal, seal])
    }

    #[test]
    fn what_limits_is_named() {
        let limited = |found: Explanation| found.limited_by;
        assert_eq!(limited(found(&ranks(0.5, 0.5), 1.0, 1e10)), "waiting for rank 1");
        let mut alike = ranks(0.5, 0.5);
        alike[1].late[0] = 0.4;
        let alike = found(&alike, 1.0, 1e10);
        assert!(text(&alike).contains(" (nobody stands out)\n"), "{}", text(&alike));
        assert!(limited(alike).starts_with("none of these"));
        assert!(limited(found(&ranks(2.0, 0.0), 1.0, 1e9)).starts_with("the processor, in enc"));
        assert!(limited(found(&ranks(2.0, 0.0), 1.0, 1e10)).starts_with("the processor: no core"));
        assert!(limited(found(&ranks(0.5, 0.0), 1.9, 1e10)).starts_with("the link"));
        assert!(limited(found(&ranks(0.95, 0.0), 1.0, 1e10)).starts_with("one core of a rank"));
        assert!(limited(found(&ranks(0.5, 0.0), 1.0, 1e10)).starts_with("none of these"));
    }

    #[test]
    fn one_rank_hears_nothing_of_links_and_encryption() {
        let rank = Rank {
            wall: 1.0,
            processor: 1.0,
            bytes_sent: 0.0,
            share: Share::of(&[0]),
            late: vec![0.0],
        };
        let what = "float sum".into();
        let subject = Subject { what, bytes: 8, bus_bw: 0.0, observed: Observed::default() };
        let hosts = ["node-a".to_string()];
        let found = conclude(&subject, &[rank], &hosts, &[], 0.0, [1e10, 1e10]);
        let text = text(&found);
        assert!(found.limited_by.starts_with("the call itself: one rank sends nothing"), "{text}");
        assert!(text.contains("not measured: one rank has no link"), "{text}");
        for word in ["QUIC", "UDP", "encryption", "processor  ", "slowest rank"] {
            assert!(!text.contains(word), "`{word}`:\n{text}");
        }
    }

    #[test]
    fn shares_follow_from_what_was_counted() {
        let found = found(&ranks(0.5, 0.1), 1.0, 1e10);
        assert_eq!((found.link_limit, found.slowest_link), (Some(2.0), Some([1, 0])));
        assert_eq!(
            (found.cpu_seconds_per_gb, found.link_cpu_seconds_per_gb),
            (Some(0.5), Some(0.5))
        );
        // Two GB, sealed and opened at 10 GB/s, of one second.
        assert!((found.encryption_share - 0.4).abs() < 1e-9);
        assert_eq!(found.latest_rank, Some(1));
        assert!((found.waited_share - 0.1).abs() < 1e-9);
        assert_eq!(found.busiest_host, ("node-a".into(), 1.0, 4.0));
        let text = text(&found);
        for words in [
            "# Where the time went: 64.0 MiB, float sum, in place\n",
            "bus bandwidth      1.000 GB/s, 50 % of the link limit\n",
            "rank 1 to rank 0",
            "0.50 CPU seconds per GB sent",
            "about 40 % of that",
            "rank 1: others waited 100.0 ms",
            "1.0 of 4 busy with the ranks of node-a",
        ] {
            assert!(text.contains(words), "`{words}` is missing:\n{text}");
        }
        assert!(text.lines().all(|line| line.starts_with('#')), "{text}");
    }
}
