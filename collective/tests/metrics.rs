//! The server of metrics and probes, as a scraper sees it, and one that means no good.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

mod worlds;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use allfold::{Communicator, Config, ReduceOp, Secret};

use worlds::{connect_all, each_rank, free_address};

#[test]
fn a_scrape_shows_what_the_ranks_did() {
    each_rank(served(2), |rank| {
        let images = rank.metrics().counter("my_images_total", "images\nof this rank");
        let loss = rank.metrics().gauge("my_loss", "of the last step");
        for _ in 0..3 {
            rank.all_reduce(&mut [1.0f32; 100], ReduceOp::Sum)?;
            images.add(5);
            loss.set(0.25);
        }
        let peer = 1 - rank.rank();
        let text = get(rank, "/metrics").body;
        for line in [
            "allfold_world_size 2.0".to_string(),
            format!("allfold_link_rtt_seconds{{peer=\"{peer}\"}} 0."),
            format!("allfold_late_seconds_total{{peer=\"{peer}\"}} "),
            "# TYPE allfold_call_seconds histogram".into(),
            "allfold_aborts_total{reason=\"mismatch\"} 0".into(),
            "allfold_refused_connections_total{reason=\"untrusted\"} 0".into(),
            "# HELP my_images_total images of this rank".into(),
            "my_images_total 15".into(),
            "my_loss 0.25".into(),
        ] {
            assert!(text.lines().any(|shown| shown.starts_with(&line)), "`{line}` not in\n{text}");
        }
        let calls = "allfold_calls_total{collective=\"all_reduce\",algorithm=\"";
        let done: u64 = numbers(&text, calls).iter().sum::<f64>() as u64;
        assert_eq!(done, 3, "{text}");
        assert_eq!(numbers(&text, "allfold_call_seconds_count").iter().sum::<f64>(), 3.0);
        let epoch = numbers(&text, "allfold_epoch")[0];
        assert!(epoch > 0.0);
        let mut epochs = [0.0; 2];
        rank.all_gather(&[epoch], &mut epochs)?;
        assert_eq!(epochs[0], epochs[1]);
        let sent = numbers(&text, "allfold_bytes_total{transport=\"quic\",direction=\"sent\"}");
        assert!(sent[0] >= 3.0 * 400.0, "{sent:?}");
        rank.barrier()
    });
}

#[test]
fn promtool_finds_nothing_wrong_with_a_scrape() {
    each_rank(served(2), |rank| {
        rank.metrics().counter("my_images", "images of this rank").add(1);
        rank.barrier()?;
        if rank.rank() == 0 {
            let text = get(rank, "/metrics").body;
            let started = Command::new("promtool")
                .args(["check", "metrics"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn();
            match started {
                Ok(mut promtool) => {
                    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
                    let checked = promtool.wait_with_output().unwrap();
                    let said = String::from_utf8_lossy(&checked.stderr);
                    assert!(checked.status.success() && said.is_empty(), "{said}\n{text}");
                }
                Err(error) => skipped("promtool_finds_nothing_wrong_with_a_scrape", &error),
            }
        }
        rank.barrier()
    });
}

#[test]
fn open_metrics_end_with_their_mark() {
    let world = served(2);
    let accept = "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n";
    let answer =
        request(address(&world[0]), &format!("GET /metrics HTTP/1.1\r\n{accept}Host: x\r\n\r\n"));
    assert!(answer.head.contains("content-type: application/openmetrics-text; version=1.0.0"));
    assert!(answer.body.ends_with("# EOF\n"), "{}", answer.body);
    assert!(answer.body.contains("# TYPE allfold_calls counter\n"), "{}", answer.body);
    each_rank(world, |_| Ok(()));
}

#[test]
fn probes_follow_the_world_from_before_it_begins_to_its_error() {
    let port = free_port();
    let place = free_address();
    let secret = Secret::random().unwrap().to_line();
    let config = |rank| Config::new(rank, 2, &place).unwrap().secret(&secret).unwrap();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| {
            let config = config(0).metrics(&format!("127.0.0.1:{port}")).unwrap();
            Communicator::connect(config).unwrap()
        });
        let served = SocketAddr::from(([127, 0, 0, 1], port));
        until(|| TcpStream::connect(served).is_ok());
        let waiting = ask(served, "/readyz");
        assert_eq!((waiting.status, waiting.body.as_str()), (503, "waiting for the other ranks\n"));
        assert_eq!(ask(served, "/healthz").status, 200);
        assert!(ask(served, "/metrics").body.contains("allfold_epoch 0.0\n"));

        let second = Communicator::connect(config(1)).unwrap();
        let first = first.join().unwrap();
        assert_eq!((ask(served, "/readyz").status, ask(served, "/healthz").status), (200, 200));

        let other = scope.spawn(move || second.all_reduce(&mut [1u8; 8], ReduceOp::Max).is_err());
        assert!(first.all_reduce(&mut [1u8; 7], ReduceOp::Max).is_err());
        assert!(other.join().unwrap());
        for path in ["/readyz", "/healthz"] {
            let answer = ask(served, path);
            assert_eq!(answer.status, 503);
            assert!(answer.body.starts_with("ranks disagree on call #0"), "{}", answer.body);
        }
        assert!(ask(served, "/metrics").body.contains("aborts_total{reason=\"mismatch\"} 1\n"));
    });
}

#[test]
fn a_world_that_follows_takes_the_place_of_one_that_is_over() {
    let port = free_port();
    for round in 0..2 {
        let world = connect_all(2, |config| match config.rank() {
            0 => config.transport("quic").unwrap().metrics(&format!("127.0.0.1:{port}")).unwrap(),
            _ => config,
        });
        let mut addresses = Vec::new();
        let world: Vec<_> = world.into_iter().map(|rank| rank.unwrap()).collect();
        addresses.extend(world[0].metrics().address());
        world[0].metrics().counter("my_rounds", "worlds of this process").add(1);
        each_rank(world, |rank| rank.barrier());
        let after = ask(addresses[0], "/readyz");
        assert_eq!((after.status, after.body.as_str()), (503, "the communicator is closed\n"));
        assert_eq!(ask(addresses[0], "/healthz").status, 200);
        let text = ask(addresses[0], "/metrics").body;
        assert!(text.contains(&format!("my_rounds_total {}\n", round + 1)), "{text}");
        let barriers = numbers(&text, "allfold_calls_total{collective=\"barrier\"");
        assert_eq!(barriers, [1.0, 0.0], "over QUIC, and in memory");
        assert_eq!(numbers(&text, "allfold_epoch"), [0.0]);
    }
}

#[test]
fn a_port_in_use_is_an_error_before_the_ranks_meet() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    // Nobody is at the rendezvous: the error does not wait for anybody.
    let config = Config::new(1, 2, &free_address()).unwrap().metrics(&address).unwrap();
    let config = config.secret(&Secret::random().unwrap().to_line()).unwrap();
    let Err(error) = Communicator::connect(config) else { panic!("it connected") };
    assert_eq!(
        error.to_string(),
        format!("cannot serve metrics at {address}: another process listens there")
    );
    assert_eq!(error.exit_code(), 2);
    let help = error.help().unwrap();
    assert!(help.contains("ss -ltnp") && help.contains("ALLFOLD_METRICS"), "{help}");
}

#[test]
fn a_world_of_one_is_watched_too() {
    let config = Config::new(0, 1, "127.0.0.1:1").unwrap().metrics("127.0.0.1:0").unwrap();
    let world = Communicator::connect(config).unwrap();
    let part = world.split(Some(1), 0).unwrap().unwrap();
    let served = address(&world);
    assert_eq!(address(&part), served);
    drop(part);
    assert_eq!(ask(served, "/readyz").status, 200);
    assert!(ask(served, "/metrics").body.contains("allfold_world_size 1.0\n"));
    world.close().unwrap();
    assert_eq!(ask(served, "/readyz").status, 503);
    // Where metrics are off, all of this does nothing.
    let metrics = Communicator::single().metrics();
    metrics.gauge("no such name", "").set(1.0);
    metrics.counter("my_images", "").add(1);
    assert_eq!(metrics.address(), None);
}

#[test]
fn what_is_no_request_is_answered_or_cut_off_and_harms_nobody() {
    let world = served(2);
    let served = address(&world[0]);
    let status = |text: &str| request(served, text).status;
    assert_eq!(status("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), 404);
    assert_eq!(status("GET /metrics/../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n"), 404);
    let post = request(served, "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(post.status, 405);
    assert!(post.head.contains("allow: GET, HEAD"), "{}", post.head);
    let head = request(served, "HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert_eq!(status("\u{1}\u{2}garbage\r\n\r\n"), 400);
    let long = "x".repeat(100_000);
    assert_eq!(status(&format!("GET /metrics HTTP/1.1\r\nHost: {long}\r\n\r\n")), 431);
    let many = "X: y\r\n".repeat(100);
    assert_eq!(status(&format!("GET /metrics HTTP/1.1\r\n{many}\r\n")), 431);
    // More connections that say nothing than there are places: they make room for others.
    let idle: Vec<TcpStream> = (0..270)
        .map(|_| {
            let mut stream = TcpStream::connect(served).unwrap();
            stream.write_all(b"GET /metr").unwrap();
            stream
        })
        .collect();
    each_rank(world, |rank| {
        // Meanwhile calls go on.
        rank.all_reduce(&mut [1u8; 7], ReduceOp::Max)?;
        if rank.rank() == 0 {
            assert_eq!(ask(served, "/readyz").status, 200);
        }
        rank.barrier()
    });
    for mut stream in idle {
        stream.set_read_timeout(Some(CAP)).unwrap();
        let mut rest = Vec::new();
        assert!(
            !matches!(stream.read_to_end(&mut rest), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
        );
    }
}

#[test]
fn names_that_cannot_be_shown_are_not() {
    let config = Config::new(0, 1, "127.0.0.1:1").unwrap().metrics("127.0.0.1:0").unwrap();
    let world = Communicator::connect(config).unwrap();
    let metrics = world.metrics();
    let before = ask(address(&world), "/metrics").body;
    for wrong in
        ["", "9lives", "a-b", "a b", "a\nb", "é", "allfold_bytes", "allfold_call_seconds_sum"]
    {
        metrics.gauge(wrong, "").set(7.0);
        metrics.counter(wrong, "").add(7);
    }
    assert_eq!(ask(address(&world), "/metrics").body, before);
    metrics.gauge("mine", "first").set(1.0);
    // The same name is the same gauge; another kind under it is not shown.
    metrics.gauge("mine", "second").set(2.0);
    metrics.counter("mine", "third").add(3);
    let added = "# HELP mine first\n# TYPE mine gauge\nmine 2.0\n";
    assert_eq!(ask(address(&world), "/metrics").body, before + added);
}

/// `size` ranks over QUIC, each with a server.
fn served(size: usize) -> Vec<Communicator> {
    let quic = |config: Config| config.transport("quic").unwrap();
    let world = connect_all(size, |config| quic(config).metrics("127.0.0.1:0").unwrap());
    world.into_iter().map(|rank| rank.unwrap()).collect()
}

fn address(rank: &Communicator) -> SocketAddr {
    rank.metrics().address().unwrap()
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

fn get(rank: &Communicator, path: &str) -> Answer {
    ask(address(rank), path)
}

fn ask(served: SocketAddr, path: &str) -> Answer {
    request(served, &format!("GET {path} HTTP/1.1\r\nHost: {served}\r\n\r\n"))
}

/// Sends `text` and reads until the server hangs up, which it does after each answer.
fn request(served: SocketAddr, text: &str) -> Answer {
    let mut stream = TcpStream::connect(served).unwrap();
    stream.set_read_timeout(Some(CAP)).unwrap();
    // A server that has heard enough need not take the rest.
    let _ = stream.write_all(text.as_bytes());
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut piece) {
        answer.extend_from_slice(&piece[..length]);
    }
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.unwrap_or_else(|| panic!("no answer to {text:?}, but {answer:?}"));
    Answer { status, head: head.into(), body: body.into() }
}

/// The values of all series that begin with `start`.
fn numbers(text: &str, start: &str) -> Vec<f64> {
    let lines = text.lines().filter(|line| line.starts_with(start));
    lines.map(|line| line.rsplit_once(' ').unwrap().1.parse().unwrap()).collect()
}

/// Free a moment ago, and not among those that the system gives to whoever asks for any.
fn free_port() -> u16 {
    loop {
        let address: SocketAddr = free_address().parse().unwrap();
        if TcpListener::bind(address).is_ok() {
            return address.port();
        }
    }
}

fn until(mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < CAP, "not within {CAP:?}");
        std::thread::yield_now();
    }
}

/// Past the runner, which would keep it to itself where a test passes.
fn skipped(test: &str, reason: &dyn std::fmt::Display) {
    let line = format!("skipped: {test}: promtool: {reason}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// No test waits longer for anything.
const CAP: Duration = Duration::from_secs(60);
