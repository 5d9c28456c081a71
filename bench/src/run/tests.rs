use std::env;
use std::fs;
use std::path::PathBuf;
use std::process;
use std::thread;

use allfold::ErrorKind;
use clap::Parser;
use serde_json::Value;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    options: Options,
}

type Outcome = Result<(), Error>;

fn options(line: &str) -> Options {
    Line::parse_from(format!("bench {line}").split_whitespace()).options
}

/// Every rank's outcome and output.
fn ranks<T: Number>(count: usize, line: &str, call: Call<T>) -> Vec<(Outcome, String)> {
    let options = options(line);
    spread(count, |world| {
        let mut out = Vec::new();
        let outcome = typed(&options, world, call, &mut out);
        (outcome, String::from_utf8(out).unwrap())
    })
}

/// One thread a rank, as the library wants it.
fn spread<R: Send>(count: usize, body: impl Fn(&Communicator) -> R + Sync) -> Vec<R> {
    let worlds = Communicator::in_memory(count).unwrap();
    thread::scope(|scope| {
        let threads: Vec<_> =
            worlds.into_iter().map(|world| scope.spawn(|| body(&{ world }))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

/// The rows' cells.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let rows = text.lines().filter(|l| !l.starts_with('#') && !l.is_empty());
    rows.map(|l| l.split_whitespace().collect()).collect()
}

fn report_path(name: &str) -> PathBuf {
    env::temp_dir().join(format!("allfold-bench-{name}-{}.json", process::id()))
}

#[test]
fn one_rank_prints_every_size() {
    let world = Communicator::single();
    let mut out = Vec::new();
    run_on(&options("-b 1 -e 40 -n 3"), &world, &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    // Sizes below one element are empty calls, and others are rounded down.
    let sizes: Vec<_> = rows(&text)
        .iter()
        .map(|r| (r[0], r[1]))
        .collect::<Vec<_>>()
        .iter()
        .map(|(size, count)| format!("{size}/{count}"))
        .collect();
    assert_eq!(sizes, ["0/0", "0/0", "4/1", "8/2", "16/4", "32/8"]);
    for row in rows(&text) {
        assert_eq!((row[2], row[3], row[4]), ("float", "sum", "-1"));
        // Nothing crosses a link.
        assert_eq!((row[7], row[8]), ("0.00", "0"), "{text}");
    }
    assert!(text.ends_with("# Collective test concluded: all_reduce_perf\n#\n\n"));
}

#[test]
fn all_ranks_are_right_and_rank_0_prints() {
    for count in [2, 3, 4] {
        for line in ["-o sum", "-o avg", "-o sum -c 3 -w 0"] {
            let line = format!("{line} -b 4 -e 1M -f 4 -n 2");
            let floats = ranks(count, &line, all_reduce::<f32>);
            let doubles = ranks(count, &line, all_reduce::<f64>);
            for outcomes in [floats, doubles] {
                for (rank, (outcome, text)) in outcomes.iter().enumerate() {
                    assert!(outcome.is_ok(), "rank {rank} of {count}: {outcome:?}");
                    assert_eq!(text.is_empty(), rank > 0);
                }
                let text = &outcomes[0].1;
                assert!(text.contains(&format!("ranks={count} ")), "{text}");
                assert_eq!(text.matches("#  Rank ").count(), count, "{text}");
                assert_eq!(rows(text).len(), 10);
                assert!(rows(text).iter().all(|row| row[8] == "0"), "{text}");
                assert!(text.contains("# Out of bounds values : 0 OK\n"));
            }
        }
    }
}

#[test]
fn nothing_is_checked_where_nothing_is_asked() {
    let outcomes = ranks(2, "-b 8 -e 64 -n 2 -c 0", all_reduce::<f32>);
    assert!(rows(&outcomes[0].1).iter().all(|row| row[8] == "N/A"));
}

#[test]
fn a_flipped_bit_on_one_rank_fails_every_rank() {
    fn flip(world: &Communicator, buffer: &mut [f32], op: ReduceOp) -> allfold::Result<()> {
        world.all_reduce(buffer, op)?;
        if world.rank() == 1 && buffer.len() >= 256 {
            buffer[255] = f32::from_bits(buffer[255].to_bits() ^ 1);
        }
        Ok(())
    }
    let outcomes = ranks(3, "-b 8 -e 2K -n 2", flip);
    for (outcome, _) in &outcomes {
        let error = outcome.as_ref().unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert_eq!(
            error.to_string(),
            "wrong data: 2 elements differ from the exact result, in 2 of 9 sizes"
        );
    }
    let text = &outcomes[0].1;
    let wrong: Vec<_> = rows(text).iter().map(|r| r[8].to_string()).collect();
    assert_eq!(wrong, ["0", "0", "0", "0", "0", "0", "0", "1", "1"]);
    assert!(text.contains("# Out of bounds values : 2 FAILED\n"), "{text}");
}

#[test]
fn a_call_that_does_nothing_is_wrong() {
    for op in ["sum", "avg"] {
        let line = format!("-b 1K -e 1K -n 1 -o {op}");
        for (outcome, _) in ranks::<f64>(2, &line, |_, _, _| Ok(())) {
            assert!(matches!(outcome, Err(Error::Wrong { wrong, .. }) if wrong > 250));
        }
    }
}

#[test]
fn the_report_holds_every_row() {
    let path = report_path("rows");
    let line = format!("-b 8 -e 1K -n 4 -J {}", path.display());
    let outcomes = ranks(2, &line, all_reduce::<f32>);
    assert!(outcomes.iter().all(|(outcome, _)| outcome.is_ok()));
    let announced = format!("# Writing JSON output to {}\n", path.display());
    assert!(outcomes[0].1.starts_with(&announced));

    let json: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(json["config"]["devices"].as_array().unwrap().len(), 2);
    let results = json["results"].as_array().unwrap();
    assert_eq!(results.len(), 8);
    for result in results {
        assert_eq!(result["in_place"]["nwrong"], 0);
        assert!(result["in_place"]["time"].as_f64().unwrap() > 0.0);
        assert!(result["in_place_per_iter"]["p99_us"].as_f64().unwrap() > 0.0);
        assert_eq!(result["actual_iterations"], 4);
    }
}

#[test]
fn a_report_of_a_failed_run_says_why() {
    fn fail(world: &Communicator, buffer: &mut [f32], op: ReduceOp) -> allfold::Result<()> {
        if buffer.len() > 16 {
            return Err(ErrorKind::Closed.into());
        }
        world.all_reduce(buffer, op)
    }
    let path = report_path("failed");
    let line = format!("-b 8 -e 1K -n 1 -w 0 -J {}", path.display());
    for (outcome, text) in ranks(2, &line, fail) {
        assert!(matches!(outcome, Err(Error::Collective(_))));
        assert!(!text.contains("concluded"));
    }
    let json: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(json["results"].as_array().unwrap().len(), 4);
    assert_eq!(json["errors"][0], "the communicator is closed");
}

#[test]
fn a_report_that_cannot_be_made_stops_every_rank() {
    let outcomes = ranks(3, "-J /no/such/folder/out.json", all_reduce::<f32>);
    for (rank, (outcome, text)) in outcomes.iter().enumerate() {
        let error = outcome.as_ref().unwrap_err();
        match rank {
            0 => assert!(matches!(error, Error::Report { .. }), "{error}"),
            _ => assert!(matches!(error, Error::AnotherRank), "{error}"),
        }
        assert!(text.is_empty());
    }
}

#[test]
fn a_closed_output_ends_the_run_in_peace() {
    for (rank, outcome) in broken(io::ErrorKind::BrokenPipe).into_iter().enumerate() {
        assert!(outcome.is_ok(), "rank {rank}: {outcome:?}");
    }
}

#[test]
fn a_full_disk_ends_the_run_with_an_error() {
    for (rank, outcome) in broken(io::ErrorKind::StorageFull).into_iter().enumerate() {
        let error = outcome.unwrap_err();
        match rank {
            0 => assert!(matches!(error, Error::Output(_)), "{error}"),
            _ => assert!(matches!(error, Error::AnotherRank), "{error}"),
        }
    }
}

/// A run whose output breaks at the first row; more than one row would go on for hours.
fn broken(kind: io::ErrorKind) -> Vec<Outcome> {
    struct Break(io::ErrorKind);
    impl Write for Break {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            match text.first() {
                Some(b'#') => Ok(text.len()),
                _ => Err(self.0.into()),
            }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    fn once(world: &Communicator, buffer: &mut [f32], op: ReduceOp) -> allfold::Result<()> {
        assert_eq!(buffer.len(), 2, "the run goes on without a reader");
        world.all_reduce(buffer, op)
    }
    let options = options("-b 8 -e 1M -n 1 -w 0");
    spread(2, |world| typed(&options, world, once, &mut Break(kind)))
}
