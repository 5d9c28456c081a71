use std::env;
use std::fs;
use std::path::PathBuf;
use std::process;
use std::thread;

use allfold::ErrorKind;
use clap::{Parser, ValueEnum};
use serde_json::Value;

use super::*;
use crate::call::Buffers;
use crate::collective::Collective;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    options: Options,
}

type Outcome = Result<(), Error>;

fn options(line: &str) -> Options {
    Line::parse_from(format!("bench {line}").split_whitespace()).options
}

/// A caller that is not the library.
macro_rules! caller {
    ($name:ident: |$world:ident, $task:ident, $buffers:ident, $correct:ident| $body:expr) => {
        struct $name;
        impl Caller for $name {
            fn call<T: Number>(
                &self,
                $world: &Communicator,
                $task: Task,
                counts: &[usize],
                mut $buffers: Buffers<'_, T>,
            ) -> allfold::Result<()> {
                let $correct =
                    |buffers: Buffers<'_, T>| Library.call($world, $task, counts, buffers);
                $body
            }
        }
    };
}

/// A buffer for as long as a caller looks at it.
fn again<'a, T>(buffers: &'a mut Buffers<'_, T>) -> Buffers<'a, T> {
    match buffers {
        Buffers::OutOfPlace { input, output } => Buffers::OutOfPlace { input, output },
        Buffers::InPlace(buffer) => Buffers::InPlace(buffer),
    }
}

fn output<'a, T>(buffers: &'a mut Buffers<'_, T>) -> &'a mut [T] {
    match buffers {
        Buffers::OutOfPlace { output, .. } => output,
        Buffers::InPlace(buffer) => buffer,
    }
}

/// Every rank's outcome and output.
fn ranks<C: Caller + Sync>(count: usize, line: &str, caller: C) -> Vec<(Outcome, String)> {
    let options = options(line);
    spread(count, |world| {
        let mut out = Vec::new();
        let outcome = run_on(&options, world, &caller, &mut out);
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
    run_on(&options("-b 1 -e 40 -n 3"), &world, &Library, &mut out).unwrap();
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
        assert_eq!((row[11], row[12]), ("0.00", "0"), "{text}");
    }
    assert!(text.ends_with("# Collective test concluded: all_reduce_perf\n#\n\n"));
}

#[test]
fn all_ranks_are_right_and_rank_0_prints() {
    for count in [2, 3, 4] {
        for line in ["-o sum", "-o avg -d double", "-o sum -c 3 -w 0"] {
            let outcomes = ranks(count, &format!("{line} -b 4 -e 1M -f 4 -n 2"), Library);
            for (rank, (outcome, text)) in outcomes.iter().enumerate() {
                assert!(outcome.is_ok(), "rank {rank} of {count}: {outcome:?}");
                assert_eq!(text.is_empty(), rank > 0);
            }
            let text = &outcomes[0].1;
            assert!(text.contains(&format!("ranks={count} ")), "{text}");
            assert_eq!(text.matches("#  Rank ").count(), count, "{text}");
            assert_eq!(rows(text).len(), 10);
            assert!(rows(text).iter().all(|row| row[8] == "0" && row[12] == "0"), "{text}");
            assert!(text.contains("# Out of bounds values : 0 OK\n"));
        }
    }
}

#[test]
fn every_collective_type_operation_and_root_is_right() {
    for collective in Collective::value_variants() {
        for count in [1, 2, 3] {
            let program = collective.program();
            let line = format!("{program} -d all -o all -r all -b 8 -e 2K -f 16 -n 1 -w 0");
            let outcomes = ranks(count, &line, Library);
            let text = &outcomes[0].1;
            for (rank, (outcome, _)) in outcomes.iter().enumerate() {
                assert!(outcome.is_ok(), "rank {rank} of {count}: {outcome:?}\n{text}");
            }
            let ops = if collective.reduces() { 5 } else { 1 };
            let roots = if collective.has_root() { count } else { 1 };
            let sweeps = if collective.has_data() { 10 * 3 } else { 1 };
            let rows = rows(text);
            assert_eq!(rows.len(), ops * roots * sweeps, "{text}");
            for row in rows {
                let halves = collective.halves(false);
                let cells = 4 * (usize::from(halves.out_of_place) + usize::from(halves.in_place));
                assert_eq!(row.len(), 5 + cells, "{text}");
                let wrong = if collective.has_data() { "0" } else { "N/A" };
                assert!(row[8..].iter().step_by(4).all(|cell| *cell == wrong), "{text}");
            }
        }
    }
}

#[test]
fn rows_go_by_type_then_operation_then_root() {
    let outcomes = ranks(2, "reduce_perf -d all -o all -r all -b 64 -e 64 -n 1 -w 0", Library);
    let rows = rows(&outcomes[0].1);
    let keys = |row: &Vec<&str>| format!("{} {} {}", row[2], row[3], row[4]);
    let found: Vec<_> = rows.iter().map(keys).collect();
    assert_eq!(found.len(), 100);
    assert_eq!(found[..3], ["int8 sum 0", "int8 sum 1", "int8 prod 0"]);
    assert_eq!(found[9..11], ["int8 avg 1", "uint8 sum 0"]);
    assert_eq!(found[99], "bfloat16 avg 1");
}

#[test]
fn parts_have_nccl_tests_sizes() {
    let outcomes = ranks(3, "all_gather -b 100 -e 400 -f 4 -n 1", Library);
    let cells: Vec<_> = rows(&outcomes[0].1).iter().map(|r| r[..5].join(" ")).collect();
    assert_eq!(cells, ["96 8 float none -1", "384 32 float none -1"]);
    let outcomes = ranks(3, "scatter -b 100 -e 100 -n 1 -r 2 -d double", Library);
    assert_eq!(rows(&outcomes[0].1)[0][..5].join(" "), "96 4 double none 2");
}

#[test]
fn a_root_that_is_no_rank_is_refused_on_every_rank() {
    for (outcome, text) in ranks(2, "broadcast -r 2", Library) {
        assert!(matches!(outcome, Err(Error::Root { root: 2, ranks: 2 })));
        assert!(text.is_empty());
    }
}

#[test]
fn nothing_is_checked_where_nothing_is_asked() {
    let outcomes = ranks(2, "-b 8 -e 64 -n 2 -c 0", Library);
    assert!(rows(&outcomes[0].1).iter().all(|row| row[8] == "N/A" && row[12] == "N/A"));
}

#[test]
fn a_flipped_bit_on_one_rank_fails_every_rank() {
    caller!(Flip: |world, task, buffers, correct| {
        correct(again(&mut buffers))?;
        let output = output(&mut buffers);
        if world.rank() == 1 && output.len() >= 256 {
            output[255] = T::from_bits(output[255].bits() ^ 1);
        }
        Ok(())
    });
    let outcomes = ranks(3, "-b 8 -e 2K -n 2", Flip);
    for (outcome, _) in &outcomes {
        let error = outcome.as_ref().unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert_eq!(
            error.to_string(),
            "wrong data: 4 elements differ from the exact result, in 2 of 9 rows"
        );
    }
    let text = &outcomes[0].1;
    for column in [8, 12] {
        let wrong: Vec<_> = rows(text).iter().map(|r| r[column].to_string()).collect();
        assert_eq!(wrong, ["0", "0", "0", "0", "0", "0", "0", "1", "1"]);
    }
    assert!(text.contains("# Out of bounds values : 2 FAILED\n"), "{text}");
}

#[test]
fn a_flipped_bit_is_noticed_in_every_collective_type_and_operation() {
    caller!(FlipLast: |world, task, buffers, correct| {
        correct(again(&mut buffers))?;
        // In every rank's output, where it has one.
        if let Some(last) = output(&mut buffers).last_mut() {
            *last = T::from_bits(last.bits() ^ 1);
        }
        Ok(())
    });
    for collective in Collective::value_variants().iter().filter(|c| c.has_data()) {
        let line = format!("{} -d all -o all -b 64 -e 64 -n 1 -w 0", collective.program());
        let text = ranks(2, &line, FlipLast).swap_remove(0).1;
        let rows = rows(&text);
        assert!(rows.len() >= 10, "{text}");
        for row in rows {
            // One element on each rank, or on the root alone.
            assert!(row[8..].iter().step_by(4).all(|c| ["1", "2"].contains(c)), "{text}");
        }
    }
}

#[test]
fn a_call_that_does_nothing_is_wrong() {
    caller!(Idle: |_world, _task, _buffers, _correct| Ok(()));
    for collective in Collective::value_variants().iter().filter(|c| c.has_data()) {
        let line = format!("{} -b 1K -e 1K -n 1 -d all -o all", collective.program());
        let outcomes = ranks(2, &line, Idle);
        for (outcome, _) in &outcomes {
            assert!(matches!(outcome, Err(Error::Wrong { failed, rows, .. }) if failed == rows));
        }
    }
}

#[test]
fn the_report_holds_every_row() {
    let path = report_path("rows");
    let line = format!("-b 8 -e 1K -n 4 -J {}", path.display());
    let outcomes = ranks(2, &line, Library);
    assert!(outcomes.iter().all(|(outcome, _)| outcome.is_ok()));
    let announced = format!("# Writing JSON output to {}\n", path.display());
    assert!(outcomes[0].1.starts_with(&announced));

    let json: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(json["config"]["devices"].as_array().unwrap().len(), 2);
    let results = json["results"].as_array().unwrap();
    assert_eq!(results.len(), 8);
    for result in results {
        for half in ["out_of_place", "in_place"] {
            assert_eq!(result[half]["nwrong"], 0);
            assert!(result[half]["time"].as_f64().unwrap() > 0.0);
            let per_iteration = &result[format!("{half}_per_iter")];
            assert!(per_iteration["p99_us"].as_f64().unwrap() > 0.0);
        }
        assert_eq!(result["actual_iterations"], 4);
    }
}

#[test]
fn a_report_of_a_failed_run_says_why() {
    caller!(Fail: |_world, _task, buffers, correct| {
        if output(&mut buffers).len() > 16 {
            return Err(ErrorKind::Closed.into());
        }
        correct(buffers)
    });
    let path = report_path("failed");
    let line = format!("-b 8 -e 1K -n 1 -w 0 -J {}", path.display());
    for (outcome, text) in ranks(2, &line, Fail) {
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
    let outcomes = ranks(3, "-J /no/such/folder/out.json", Library);
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
    caller!(Once: |_world, _task, buffers, correct| {
        assert_eq!(output(&mut buffers).len(), 2, "the run goes on without a reader");
        correct(buffers)
    });
    let options = options("-b 8 -e 1M -n 1 -w 0");
    spread(2, |world| run_on(&options, world, &Once, &mut Break(kind)))
}

#[test]
fn calls_that_are_started_together_are_right() {
    for collective in Collective::value_variants() {
        for count in [1, 2, 3] {
            let program = collective.program();
            let line = format!("{program} -d float -o all -r all -b 8 -e 2K -f 16 -n 2 -w 1 -m 3");
            let outcomes = ranks(count, &line, Library);
            let text = &outcomes[0].1;
            for (rank, (outcome, _)) in outcomes.iter().enumerate() {
                assert!(outcome.is_ok(), "rank {rank} of {count}: {outcome:?}\n{text}");
            }
            assert!(text.contains(" agg iters: 3 "), "{text}");
            for row in rows(text) {
                assert_eq!(row.len(), 9, "{text}");
                let wrong = if collective.has_data() { "0" } else { "N/A" };
                assert_eq!(row[8], wrong, "{text}");
            }
        }
    }
}

#[test]
fn unaligned_buffers_are_right() {
    for line in ["-u 1", "-u 3 -d uint8", "alltoall_perf -u 5 -d double"] {
        let outcomes = ranks(2, &format!("{line} -b 8 -e 4K -f 4 -n 3"), Library);
        assert!(outcomes.iter().all(|(outcome, _)| outcome.is_ok()), "{line}");
        let unalign = line.split("-u ").nth(1).and_then(|u| u.split(' ').next()).unwrap();
        assert!(outcomes[0].1.contains(&format!(" unalign: {unalign}\n")), "{line}");
    }
}

#[test]
fn sizes_go_up_by_bytes_and_the_sweep_is_repeated() {
    let text = ranks(2, "-b 0 -e 64 -i 24 -N 2 -n 1", Library).swap_remove(0).1;
    let sizes: Vec<_> = rows(&text).iter().map(|row| row[0].to_string()).collect();
    assert_eq!(sizes, ["0", "24", "48", "0", "24", "48"]);
    assert!(text.contains(" step: 24(bytes) "), "{text}");
}

#[test]
fn a_sweep_for_ever_ends_when_nobody_reads() {
    struct Head(usize);
    impl Write for Head {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.0 -= usize::from(text.first() != Some(&b'#'));
            if self.0 == 0 { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(text.len()) }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let options = options("-b 8 -e 8 -n 1 -N 0");
    for outcome in spread(2, |world| run_on(&options, world, &Library, &mut Head(50))) {
        assert!(outcome.is_ok(), "{outcome:?}");
    }
}

#[test]
fn the_time_is_of_the_ranks_that_are_asked_for() {
    use crate::choices::Average;
    for average in spread(3, |world| {
        [Average::Rank0, Average::Mean, Average::Min, Average::Max]
            .map(|average| world::average(world, [4.0, 2.0, 9.0][world.rank()], average).unwrap())
    }) {
        assert_eq!(average, [4.0, 5.0, 2.0, 9.0]);
    }
}

#[test]
fn a_row_that_takes_too_long_ends_every_rank() {
    // Minutes, without a limit.
    for (outcome, text) in ranks(2, "-b 8 -e 8 -n 100000000 -w 0 -T 1", Library) {
        let error = outcome.unwrap_err();
        assert_eq!(
            error.to_string(),
            "all_reduce_perf of 8 bytes, float sum took longer than 1 s (-T)"
        );
        assert_eq!(error.exit_code(), 75);
        assert!(rows(&text).is_empty());
    }
}

#[test]
fn a_call_that_takes_too_long_is_the_limits_fault_wherever_it_is() {
    fn slow() -> allfold::Error {
        let late = Some("rank 1 had not arrived".into());
        ErrorKind::TimedOut { call: "call #3".into(), limit: "9 s".into(), late }.into()
    }
    caller!(Stuck: |_world, _task, _buffers, _correct| Err(slow()));
    for (line, words) in [
        ("-w 1", "the warm-up of all_reduce_perf of 8 bytes, float sum"),
        ("-w 0", "all_reduce_perf of 8 bytes, float sum"),
    ] {
        for (outcome, _) in ranks(2, &format!("-b 8 -e 8 -n 1 -T 9 {line}"), Stuck) {
            let error = outcome.unwrap_err();
            assert_eq!(
                error.to_string(),
                format!(
                    "{words} took longer than 9 s (-T): call #3 did not end; rank 1 had not arrived"
                )
            );
            assert_eq!(error.exit_code(), 75);
        }
    }
    // Without -T it is the library's limit, and so its error.
    for (outcome, _) in ranks(2, "-b 8 -e 8 -n 1", Stuck) {
        assert_eq!(outcome.unwrap_err().to_string(), slow().to_string());
    }
}

#[test]
fn a_bandwidth_below_the_minimum_fails_every_rank() {
    for (outcome, _) in ranks(2, "-b 8 -e 64 -n 2 --min-bandwidth 1e9", Library) {
        let error = outcome.unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().ends_with("--min-bandwidth is 1e+09 GB/s"), "{error}");
    }
    let outcomes = ranks(2, "-b 8 -e 64 -n 2 --min-bandwidth 1e-9", Library);
    assert!(outcomes.iter().all(|(outcome, _)| outcome.is_ok()));
    assert!(outcomes[0].1.contains(" OK\n#\n"), "{}", outcomes[0].1);
}

#[test]
fn the_report_holds_the_times_of_every_rank() {
    let path = report_path("times");
    let line = format!("-b 8 -e 8 -n 4 -m 2 -i 8 -I 1 -K 1 -C 1 -J {}", path.display());
    assert!(ranks(2, &line, Library).iter().all(|(outcome, _)| outcome.is_ok()));
    let json: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    fs::remove_file(&path).unwrap();
    let config = &json["config"];
    assert_eq!((&config["step_bytes"], &config["step_factor"]), (&8.into(), &Value::Null));
    assert_eq!(
        (&config["aggregated_iterations"], &config["per_iter_skip"]),
        (&2.into(), &1.into())
    );
    assert_eq!(config["per_iter_timing"], "true");
    let row = &json["results"][0];
    assert_eq!(row["out_of_place"], Value::Null);
    assert!(
        row["in_place"]["cpu_time"].as_f64().is_some() && row["in_place"].get("time").is_none()
    );
    let times = &row["in_place_per_iter"];
    let list = |value: &Value| -> Vec<f64> {
        value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    };
    let ranks: Vec<_> =
        times["per_process_max_times_us"].as_array().unwrap().iter().map(list).collect();
    assert_eq!((ranks.len(), ranks[0].len()), (2, 4));
    let slowest: Vec<f64> = (0..4).map(|i| ranks[0][i].max(ranks[1][i])).collect();
    assert_eq!(list(&times["times_us"]), slowest);
    assert_eq!(times["skipped_iterations"], 1);
}

/// Every key that nccl-tests' tools/analyze_perf_json.py looks up, and the kind of its value.
#[test]
fn what_nvidias_script_reads_is_there() {
    let path = report_path("script");
    // A call that is started has no out-of-place half.
    for (calls, halves, missing) in [
        (1, &["out_of_place_per_iter", "in_place_per_iter"][..], None),
        (2, &["in_place_per_iter"], Some("out_of_place_per_iter")),
    ] {
        let line = format!("-b 8 -e 64 -n 4 -I 1 -m {calls} -J {}", path.display());
        assert!(ranks(3, &line, Library).iter().all(|(outcome, _)| outcome.is_ok()));
        let json: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        fs::remove_file(&path).unwrap();
        for pointer in ["/version", "/config/iterations", "/config/aggregated_iterations"] {
            assert!(json.pointer(pointer).is_some_and(Value::is_u64), "{pointer}: {json:#}");
        }
        let devices = json["config"]["devices"].as_array().unwrap();
        assert_eq!(devices.len(), 3);
        assert!(devices.iter().all(|device| device["hostname"].is_string()), "{devices:#?}");
        let results = json["results"].as_array().unwrap();
        assert_eq!(results.len(), 4);
        for row in results {
            assert!(row["size"].is_u64(), "{row:#}");
            // A key that is there is asked for its members.
            assert!(missing.is_none_or(|key| row.get(key).is_none()), "{row:#}");
            for half in halves {
                let times = &row[half];
                for key in ["avg_us", "min_us", "max_us", "p99_us", "cv_pct"] {
                    assert!(times[key].is_f64(), "{half} {key}: {row:#}");
                }
                // It divides by it.
                assert!(times["avg_us"].as_f64().unwrap() > 0.0, "{half}: {row:#}");
                let list = |value: &Value| -> Option<Vec<f64>> {
                    value.as_array()?.iter().map(Value::as_f64).collect()
                };
                let slowest = list(&times["times_us"]).unwrap();
                let processes = times["per_process_max_times_us"].as_array().unwrap();
                let processes: Vec<_> = processes.iter().map(|row| list(row).unwrap()).collect();
                assert_eq!((processes.len(), slowest.len()), (3, 4), "{half}: {row:#}");
                for (iteration, time) in slowest.iter().enumerate() {
                    let most = processes.iter().map(|times| times[iteration]).fold(0.0, f64::max);
                    assert_eq!(most, *time, "{half}: {row:#}");
                }
            }
        }
    }
}

#[test]
fn the_largest_row_is_explained() {
    for count in [1, 2, 3] {
        let outcomes = ranks(count, "-b 1K -e 256K -f 16 -n 3 --explain", Library);
        for (rank, (outcome, _)) in outcomes.iter().enumerate() {
            assert!(outcome.is_ok(), "rank {rank} of {count}: {outcome:?}");
        }
        let text = &outcomes[0].1;
        assert!(text.contains("# Where the time went: 256.0 KiB, float sum\n"), "{text}");
        assert!(text.contains("#   limited by "), "{text}");
        let has_link = text.contains("% of the link limit") && text.contains(" per GB sent");
        assert_eq!(has_link, count > 1, "{text}");
        assert_eq!(text.contains("one rank sends nothing"), count == 1, "{text}");
    }
}
