//! `allfold bench link`: what one link carries without a collective above it, by cipher, packet
//! size and number of streams.

use std::fmt::Write as _;
use std::io::Write;
use std::time::Duration;

use allfold::probe::{Cipher, Link, LinkFigures, Route};
use allfold::{Communicator, ErrorKind, Peer, Ranks};
use clap::Args;

use crate::choices::{Average, Unit};
use crate::console::{Console, State};
use crate::latencies::summarise;
use crate::measure::processor_time;
use crate::number::{bandwidth_cell, cell};
use crate::{Error, world};

/// The options of `allfold bench link`.
#[derive(Args, Clone, Debug)]
pub(crate) struct LinkOptions {
    /// Number of ranks; auto: one for each core, gpu: one for each GPU [outside a launcher: 2]
    #[arg(long, value_name = "N|auto|gpu", allow_negative_numbers = true)]
    pub(crate) ranks: Option<Ranks>,

    /// The rank that sends
    #[arg(long, value_name = "RANK", default_value_t = 0, allow_negative_numbers = true)]
    from: usize,

    /// The rank that receives
    #[arg(long, value_name = "RANK", default_value_t = 1, allow_negative_numbers = true)]
    to: usize,

    /// Every rank sends to the next at once, as in a ring; the slowest link is shown
    #[arg(long, conflicts_with_all = ["from", "to"])]
    ring: bool,

    /// UDP payloads in bytes, 1200 to 6500; auto is what the path lets through
    #[arg(long, value_name = "BYTES,..", default_value = "auto,1200,1452", value_delimiter = ',', value_parser = payload)]
    payload: Vec<Payload>,

    /// Numbers of streams side by side
    #[arg(
        long,
        value_name = "N,..",
        default_value = "1,4",
        value_delimiter = ',',
        allow_negative_numbers = true
    )]
    streams: Vec<usize>,

    /// Ciphers: aes-128-gcm, aes-256-gcm, chacha20-poly1305, all
    #[arg(long, value_name = "NAME,..", default_value = "all", value_delimiter = ',', value_parser = ciphers)]
    cipher: Vec<Ciphers>,

    /// How long each row sends, in seconds, at least 0.01
    #[arg(long, value_name = "SECONDS", default_value = "0.5", value_parser = seconds, allow_negative_numbers = true)]
    duration: Duration,

    /// Messages of 8 bytes there and back before each row, for the round trip
    #[arg(long, value_name = "N", default_value_t = 200, allow_negative_numbers = true)]
    round_trips: usize,

    /// The column's unit
    #[arg(long, value_enum, value_name = "UNIT", default_value_t)]
    unit: Unit,
}

/// A UDP payload; none is auto.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Payload(Option<u16>);

/// What a word for ciphers stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ciphers(&'static [Cipher]);

impl LinkOptions {
    /// Finds bad input before any of the `ranks` ranks starts.
    pub(crate) fn check(&self, ranks: usize) -> Result<(), Error> {
        let wrong = |problem: String, help| Err(Error::Link { problem, help });
        let Self { from, to, .. } = *self;
        if ranks < 2 {
            return wrong("a link needs two ranks".into(), "give --ranks 2");
        }
        if !self.ring && (from.max(to) >= ranks || from == to) {
            return wrong(
                format!("--from {from} --to {to}: there is no such link between {ranks} ranks"),
                "ranks are counted from 0; give more --ranks, or two that differ",
            );
        }
        if let Some(streams) = self.streams.iter().find(|n| !(1..=MOST_STREAMS).contains(*n)) {
            return wrong(
                format!("--streams {streams}: a link takes 1 to {MOST_STREAMS}"),
                "leave it out for 1 and 4",
            );
        }
        if self.duration < SHORTEST {
            return wrong(
                format!("--duration {}: too short for a rate", self.duration.as_secs_f64()),
                "give at least 0.01 seconds; leave it out for 0.5",
            );
        }
        if self.round_trips > MOST_ROUND_TRIPS {
            return wrong(
                format!("--round-trips {}: at most {MOST_ROUND_TRIPS}", self.round_trips),
                "leave it out for 200",
            );
        }
        Ok(())
    }

    fn rows(&self) -> Vec<Link> {
        let mut rows = Vec::new();
        for cipher in self.cipher.iter().flat_map(|ciphers| ciphers.0) {
            for Payload(payload) in &self.payload {
                for streams in &self.streams {
                    rows.push(Link {
                        cipher: *cipher,
                        payload: *payload,
                        streams: *streams,
                        duration: self.duration,
                        round_trips: self.round_trips,
                    });
                }
            }
        }
        rows
    }

    fn route(&self) -> Route {
        match self.ring {
            true => Route::Ring,
            false => Route::Pair { from: self.from, to: self.to },
        }
    }
}

/// Measures every row; every rank of `world` calls it, and rank 0 prints.
pub(crate) fn run(
    options: &LinkOptions,
    world: &Communicator,
    out: &mut dyn Write,
) -> Result<(), Error> {
    options.check(world.size())?;
    let leader = world.rank() == 0;
    let mut console = Console::new(out);
    if leader {
        console.print(&header(options, world));
    }
    let mut problems = Vec::new();
    let mut rows = 0;
    for link in options.rows() {
        let before = processor_time();
        let figures = link.measure(world, options.route()).map_err(refused)?;
        let own = (processor_time() - before).as_secs_f64();
        // Of both ends, or of all.
        let processor = world::average(world, own, Average::Mean)? * world.size() as f64;
        rows += 1;
        problems.extend(figures.iter().find_map(|f| f.problem.clone()));
        if leader {
            console.print(&row(options.unit, &link, &figures, processor));
        }
        let is_closed = f64::from(u8::from(!matches!(console.state(), State::Open)));
        if world::sum(world, [is_closed])? != [0.0] {
            break;
        }
    }
    if let Some(problem) = problems.first() {
        let (failed, problem) = (problems.len(), problem.clone());
        return Err(Error::LinkFailed { failed, rows, problem });
    }
    match console.into_state() {
        State::Failed(error) => Err(Error::Output(error)),
        State::Open | State::Closed => Ok(()),
    }
}

/// What `check` cannot know: the world's settings.
fn refused(error: allfold::Error) -> Error {
    match error.kind() {
        ErrorKind::Argument { problem } => Error::Link {
            problem: problem.clone(),
            help: "give a shorter --duration, or a longer ALLFOLD_TIMEOUT",
        },
        _ => error.into(),
    }
}

fn header(options: &LinkOptions, world: &Communicator) -> String {
    let peers = world.peers();
    let place = |rank: usize| match peers.get(rank) {
        Some(Peer { host, pid, .. }) => format!("rank {rank} ({host}, pid {pid})"),
        None => format!("rank {rank}"),
    };
    let route = match options.ring {
        true => format!("each of {} ranks to the next, the slowest link shown", world.size()),
        false => format!("{} to {}", place(options.from), place(options.to)),
    };
    let unit = format!("({})", options.unit.name());
    format!(
        "# allfold version {} ranks={} security: mutual TLS, a secret of its own\n\
         # Link test starting: {route}, {} s a row over QUIC\n\
         #\n\
         # {:>17}  {:>7}  {:>7}  {:>7}  {:>6}  {:>7}  {:>7}  {:>7}  {:>7}\n\
         # {:>17}  {:>7}  {:>7}  {:>7}  {:>6}  {:>7}  {:>7}  {:>7}  {:>7}\n",
        env!("CARGO_PKG_VERSION"),
        world.size(),
        options.duration.as_secs_f64(),
        "cipher",
        "packet",
        "streams",
        "rate",
        "lost",
        "cpu",
        "rtt p50",
        "rtt p99",
        "rtt max",
        "",
        "(B)",
        "",
        unit,
        "(%)",
        "(s/GB)",
        "(us)",
        "(us)",
        "(us)",
    )
}

/// One line, or one that says why there is none.
fn row(unit: Unit, link: &Link, figures: &[LinkFigures], processor: f64) -> String {
    let Link { cipher, payload, streams, .. } = link;
    let Some(slowest) = figures.iter().min_by(|a, b| a.rate().total_cmp(&b.rate())) else {
        return String::new();
    };
    if let Some(problem) = figures.iter().find_map(|found| found.problem.as_ref()) {
        let asked = payload.map_or("auto".into(), |bytes| bytes.to_string());
        let cipher = cipher.to_string();
        return format!("# {cipher:>17}  {asked:>7}  {streams:>7}  failed: {problem}\n");
    }
    let gigabytes: f64 = figures.iter().map(|found| found.bytes as f64 / 1e9).sum();
    let (packets, lost) =
        figures.iter().fold((0, 0), |(all, lost), f| (all + f.packets, lost + f.lost));
    let mut text = format!(
        "  {:>17}  {:>7}  {streams:>7}  {:>7}  {:>6}  {:>7}",
        cipher.to_string(),
        slowest.payload,
        bandwidth_cell(unit.of(slowest.rate() / 1e9)),
        cell(lost as f64 / packets.max(1) as f64 * 100.0, 6).trim(),
        // Where nothing but the first read arrived there is no rate either.
        if gigabytes > 0.0 { cell(processor / gigabytes, 7) } else { "N/A".into() }.trim(),
    );
    let times: Vec<f64> =
        slowest.round_trips.iter().map(|time| time.as_nanos() as f64 / 1e3).collect();
    // Writing to a string cannot fail.
    let _ = match summarise(&times, 0) {
        Some(times) => write!(
            text,
            "  {}  {}  {}",
            cell(times.p50_us, 7),
            cell(times.p99_us, 7),
            cell(times.max_us, 7)
        ),
        None => write!(text, "  {:>7}  {:>7}  {:>7}", "N/A", "N/A", "N/A"),
    };
    if let Some(asked) = payload.filter(|asked| *asked != slowest.payload) {
        let _ = write!(text, "  # the path does not let {asked} through");
    }
    text + "\n"
}

fn payload(text: &str) -> Result<Payload, String> {
    match text.parse() {
        _ if text == "auto" => Ok(Payload(None)),
        Ok(bytes) if (1200..=6500).contains(&bytes) => Ok(Payload(Some(bytes))),
        _ => Err("a UDP payload is auto or a number of bytes from 1200 to 6500".into()),
    }
}

fn ciphers(text: &str) -> Result<Ciphers, String> {
    if text.eq_ignore_ascii_case("all") {
        return Ok(Ciphers(Cipher::ALL));
    }
    let found = Cipher::ALL.iter().find(|c| c.to_string().eq_ignore_ascii_case(text));
    found
        .map(|cipher| Ciphers(std::slice::from_ref(cipher)))
        .ok_or("there are aes-128-gcm, aes-256-gcm, chacha20-poly1305 and all".into())
}

/// Reads a number of seconds.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text).parse::<f64>().unwrap_or(f64::NAN);
    match number > 0.0 && number <= LONGEST_SECONDS {
        true => Ok(Duration::from_secs_f64(number)),
        false => {
            Err(format!("a number of seconds above 0, at most {LONGEST_SECONDS}, such as 0.5"))
        }
    }
}

/// The runtime's limits for a measurement.
const MOST_STREAMS: usize = 256;
const MOST_ROUND_TRIPS: usize = 10_000;
/// The windows fill within a few round trips; before that there is no rate to speak of.
const SHORTEST: Duration = Duration::from_millis(10);
/// An hour a row is a slip of the finger beyond.
const LONGEST_SECONDS: f64 = 3_600.0;

#[cfg(test)]
mod tests {
    use super::*;
    use allfold::InMemory;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: LinkOptions,
    }

    fn parse(line: &str) -> Result<LinkOptions, clap::Error> {
        Line::try_parse_from(format!("link {line}").split_whitespace()).map(|l| l.options)
    }

    #[test]
    fn rows_are_every_combination() {
        let links = parse("").unwrap().rows();
        assert_eq!(links.len(), 18);
        let links = parse("--cipher AES-256-GCM --payload 6500 --streams 2,3").unwrap().rows();
        let found: Vec<_> = links.iter().map(|l| (l.cipher, l.payload, l.streams)).collect();
        let expected = |streams| (Cipher::Aes256Gcm, Some(6500), streams);
        assert_eq!(found, [expected(2), expected(3)]);
    }

    #[test]
    fn what_has_no_meaning_is_refused() {
        for line in ["--payload 100", "--cipher des", "--duration 0", "--ring --from 1", "--to -1"]
        {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
        for (line, ranks) in [
            ("", 1),
            ("--to 2", 2),
            ("--from 1", 2),
            ("--streams 0", 2),
            ("--round-trips 10001", 2),
            ("--duration 0.000001", 2),
            ("--duration 0.009", 2),
        ] {
            let error = parse(line).unwrap().check(ranks).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.help().is_some(), "{line}");
        }
        assert!(parse("--ring").unwrap().check(2).is_ok());
    }

    #[test]
    fn a_duration_that_the_timeout_cuts_short_is_refused() {
        let options = parse("--duration 3").unwrap();
        let world = InMemory::new(2).unwrap().timeout(Duration::from_secs(3)).start().unwrap();
        for rank in &world {
            let error = run(&options, rank, &mut Vec::new()).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{error}");
            assert!(error.help().unwrap().contains("ALLFOLD_TIMEOUT"));
        }
        std::thread::scope(|scope| {
            world.into_iter().for_each(|rank| drop(scope.spawn(move || rank.close())));
        });
    }

    #[test]
    fn rank_0_prints_a_row_for_each_link() {
        for line in ["--from 1 --to 0", "--ring"] {
            let line = format!("{line} --duration 0.01 --streams 1 --payload 1200 --unit MB/s");
            let options = parse(&line).unwrap();
            let worlds = Communicator::in_memory(2).unwrap();
            let texts: Vec<String> = std::thread::scope(|scope| {
                let rank = |world: Communicator| {
                    let options = options.clone();
                    scope.spawn(move || {
                        let mut out = Vec::new();
                        run(&options, &world, &mut out).unwrap();
                        String::from_utf8(out).unwrap()
                    })
                };
                let ranks: Vec<_> = worlds.into_iter().map(rank).collect();
                ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
            });
            assert!(texts[1].is_empty());
            let lines: Vec<&str> = texts[0].lines().collect();
            let rows: Vec<Vec<&str>> = lines
                .iter()
                .filter(|line| !line.starts_with('#'))
                .map(|line| line.split_whitespace().collect())
                .collect();
            assert_eq!(rows.len(), 3, "{}", texts[0]);
            for row in rows {
                assert_eq!((row.len(), row[1], row[2]), (9, "1200", "1"), "{}", texts[0]);
                assert!(row[3].parse::<f64>().unwrap() > 0.0, "{}", texts[0]);
            }
            assert!(
                lines.windows(2).skip(3).all(|pair| pair[0].len() == pair[1].len()),
                "{}",
                texts[0]
            );
        }
    }

    #[test]
    fn a_link_that_fails_says_why_in_its_row() {
        let figures = LinkFigures {
            from: 0,
            to: 1,
            bytes: 0,
            elapsed: Duration::ZERO,
            payload: 0,
            packets: 0,
            lost: 0,
            round_trips: Vec::new(),
            problem: Some("rank 0: 10.0.0.7:4711 does not answer".into()),
        };
        let link = Link { payload: Some(1452), ..Link::default() };
        assert_eq!(
            row(Unit::Giga, &link, &[figures], 1.0),
            "#       AES-128-GCM     1452        1  failed: rank 0: 10.0.0.7:4711 does not answer\n"
        );
    }
}
