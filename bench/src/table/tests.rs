use super::*;
use clap::Parser;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    options: Options,
}

fn options(line: &str) -> Options {
    Line::parse_from(format!("bench {line}").split_whitespace()).options
}

fn full(bytes: usize, microseconds: f64, wrong: Option<u64>) -> Row {
    let half = Half::new(bytes, microseconds / 1e6, 1.0, wrong);
    Row {
        bytes,
        count: bytes / 4,
        datatype: "float",
        op: Some(Op::Sum),
        root: None,
        out_of_place: Some(half.clone()),
        in_place: Some(half),
    }
}

#[test]
fn the_table_is_nccl_tests_own() {
    let device = |rank: usize, host: &str| Device {
        rank,
        pid: 4711 + rank as u32,
        host: host.into(),
        device: 0,
        bus: NO_BUS.into(),
        info: "quic on 10.0.0.1".into(),
    };
    let options = options("-b 1024 -e 1M -f 1024");
    let rows = [full(1024, 31.02, Some(0)), full(1 << 20, 1.2e7, Some(0))];
    let mean = rows.iter().filter_map(|r| r.in_place.as_ref()).map(|h| h.bus_bw).sum::<f64>() / 2.0;
    let mut text = header(
        &options,
        "mutual TLS, secret 3f9a12c4",
        None,
        &[device(0, "node-a"), device(1, "node-b")],
    );
    text.extend(rows.iter().map(|r| row(&options, r, "")));
    text += &footer(&options, 0, mean);
    let version = env!("CARGO_PKG_VERSION");
    let blank = " ";
    let expected = format!(
        "\
# allfold version {version} ranks=2 security: mutual TLS, secret 3f9a12c4
# Collective test starting: all_reduce_perf
# nThread 1 nGpus 0 minBytes 1024 maxBytes 1048576 step: 1024(factor) warmup iters: 1 iters: 20 agg iters: 1 validation: 1 graph: 0 unalign: 0
#
# Using devices
#  Rank  0 Group  0 Pid   4711 on     node-a device  0 [cpu] quic on 10.0.0.1
#  Rank  1 Group  0 Pid   4712 on     node-b device  0 [cpu] quic on 10.0.0.1
#
#                                                              out-of-place                       in-place         {blank}
#       size         count      type   redop    root     time   algbw   busbw  #wrong     time   algbw   busbw  #wrong{blank}
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)             (us)  (GB/s)  (GB/s)        {blank}
        1024           256     float     sum      -1    31.02    0.03    0.03       0    31.02    0.03    0.03       0
     1048576        262144     float     sum      -1  1.2e+07  8.7e-5  8.7e-5       0  1.2e+07  8.7e-5  8.7e-5       0
# Out of bounds values : 0 OK
# Avg bus bandwidth    : 0.0165492{blank}
#
# Collective test concluded: all_reduce_perf
#

"
    );
    assert_eq!(text, expected);
}

#[test]
fn an_empty_half_keeps_the_columns() {
    let options = options("");
    let row = |line: &Row| row(&options, line, "");
    let blank = blank(&options);
    let mut line = full(8, 12.5, None);
    let with = row(&line);
    line.out_of_place = None;
    let without = row(&line);
    line.out_of_place = line.in_place.take();
    let other = row(&line);
    let columns = "           8             2     float     sum      -1";
    let cells = "    12.50  6.4e-4  6.4e-4     N/A";
    assert_eq!(without, format!("{columns}{blank}{cells}\n"));
    assert_eq!(other, format!("{columns}{cells}{blank}\n"));
    assert_eq!(blank.len(), cells.len());
    assert_eq!(with.len(), without.len());
    let title = heading(&options).lines().nth(1).unwrap().rfind("time").unwrap() + "time".len();
    assert_eq!(without.find("12.50").unwrap() + "12.50".len(), title);
}

#[test]
fn a_row_names_operation_and_root() {
    let row = |line: &Row| row(&options(""), line, "");
    let mut line = full(8, 1.0, Some(0));
    line.root = Some(3);
    assert!(row(&line).contains("     float     sum       3  "), "{}", row(&line));
    line.op = None;
    assert!(row(&line).contains("     float    none       3  "), "{}", row(&line));
}

#[test]
fn the_header_says_what_is_forced_and_what_stays_empty() {
    let text = |line| header(&options(line), "mutual TLS, secret 3f9a12c4", None, &[]);
    let first = |line| text(line).lines().next().unwrap_or_default().to_string();
    assert!(first("--algorithm ring").ends_with(" secret 3f9a12c4 algorithm: ring"));
    assert!(first("--algorithm auto").ends_with(" secret 3f9a12c4"));
    assert!(text("sendrecv").contains("# Out of place only: "));
    assert!(text("barrier").contains("# Time only: "));
    assert!(!text("alltoall").contains(" only: "));
}

#[test]
fn the_header_of_gpus_is_nccl_tests_own() {
    let device = Device {
        rank: 0,
        pid: 4711,
        host: "node-a".into(),
        device: 3,
        bus: "0000:1b:00".into(),
        info: "NVIDIA H100".into(),
    };
    let text = |line| header(&options(line), "none", Some(22809), std::slice::from_ref(&device));
    let plain = text("--device gpu");
    assert!(plain.lines().next().unwrap().ends_with("security: none nccl-library=22809"));
    assert!(plain.contains("\n# nThread 1 nGpus 1 minBytes 8 "), "{plain}");
    let line = "#  Rank  0 Group  0 Pid   4711 on     node-a device  3 [0000:1b:00] NVIDIA H100\n";
    assert!(plain.contains(line), "{plain}");
    assert!(!plain.contains(" only: ") && !plain.contains("Blocking"), "{plain}");
    assert!(text("-g 1 broadcast").contains("# In place only: "));
    assert!(text("-g 1 -z 1").contains("\n# Blocking Enabled: wait for completion and barrier"));
    assert!(text("-g 1 -I 1").contains("\n# Per-Iteration Report: CUDA event timing; i_* uses"));
    assert!(text("-g 1 -m 2").lines().all(|line| !line.contains(" only: ")));
}

#[test]
fn many_wrong_elements_keep_their_cell() {
    let row = |line: &Row| row(&options(""), line, "");
    let line = row(&full(8, 1.0, Some(12)));
    assert!(line.ends_with("    0.01    0.01      12\n"), "{line}");
    let line = row(&full(8, 1.0, Some(16_777_216)));
    assert!(line.ends_with("  1.67772e+07\n"), "{line}");
    assert!(footer(&options(""), 3, 1.5).contains("# Out of bounds values : 3 FAILED\n"));
}

#[test]
fn bandwidths_follow_the_formulas() {
    let half = Half::new(1_000_000_000, 0.5, 1.5, Some(0));
    assert_eq!((half.time_us, half.alg_bw, half.bus_bw), (5e5, 2.0, 3.0));
    assert_eq!(Half::new(8, 1.0, 0.0, None).bus_bw, 0.0);
}

#[test]
fn columns_are_added_where_they_are_asked_for() {
    let mut line = full(1 << 20, 100.0, Some(0));
    let times = PerIteration {
        skipped_iterations: 0,
        min_us: 90.0,
        max_us: 120.5,
        avg_us: 100.0,
        p50_us: 99.0,
        p95_us: 119.0,
        p99_us: 120.0,
        stdev_us: 5.0,
        cv_pct: 5.0,
        times_us: Vec::new(),
        per_process_max_times_us: Vec::new(),
    };
    for half in [&mut line.out_of_place, &mut line.in_place].into_iter().flatten() {
        half.per_iteration = Some(times.clone());
    }
    let options = options("-I 1 -K 2 -S 1 -C 1 --unit MB/s");
    let text = row(&options, &line, "2026-01-31 23:59:58");
    let cells = "   100.00   10486   10486       0    90.00   120.50   120.00     5.00";
    assert!(text.ends_with(&format!("{cells}{cells}  2026-01-31 23:59:58\n")), "{text}");
    let heading = heading(&options);
    let lines: Vec<_> = heading.lines().collect();
    assert!(lines[1].contains("cputime") && lines[2].contains("(MB/s)"), "{heading}");
    assert!(lines[1].ends_with("i_cv%           timestamp"), "{heading}");
    // Titles end where their cells end.
    for (title, cell) in [("i_min", "90.00"), ("i_p99", "120.00"), ("timestamp", "23:59:58")] {
        let at = |text: &str, word: &str| text.rfind(word).map(|at| at + word.len());
        assert!(at(lines[1], title).unwrap().abs_diff(at(&text, cell).unwrap()) <= 1, "{title}");
    }
    let header = header(&options, "", None, &[]);
    assert!(header.contains("over process rows; summary skips first 2 iterations \n"));
}

#[test]
fn the_average_has_a_verdict_where_a_minimum_is_asked_for() {
    let line = |line, average| {
        let text = footer(&options(line), 0, average);
        text.lines().nth(1).unwrap_or_default().to_string()
    };
    assert_eq!(line("", 1.5), "# Avg bus bandwidth    : 1.5 ");
    assert_eq!(line("--min-bandwidth 1.5", 1.5), "# Avg bus bandwidth    : 1.5 OK");
    assert_eq!(line("--min-bandwidth 1.6", 1.5), "# Avg bus bandwidth    : 1.5 FAILED");
    assert_eq!(line("--unit MB/s", 0.0015), "# Avg bus bandwidth    : 1.5 MB/s ");
}
