use std::fs;
use std::process;

use clap::Parser;
use serde_json::Value;

use super::*;
use crate::choices::Op;
use crate::latencies::{Detail, Latencies};

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    options: Options,
}

/// A folder that goes when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = env::temp_dir().join(format!("allfold-report-{name}-{}", process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn row() -> Row {
    Row {
        bytes: 8,
        count: 2,
        datatype: "float",
        op: Some(Op::Avg),
        root: None,
        out_of_place: None,
        in_place: Some(Half::new(8, 1e-5, 1.5, Some(0))),
    }
}

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = value.as_object().unwrap().keys().map(|k| &**k).collect();
    keys.sort_unstable();
    keys
}

fn sorted<const N: usize>(mut keys: [&str; N]) -> Vec<&str> {
    keys.sort_unstable();
    keys.into()
}

#[test]
fn the_keys_are_nccl_tests_own() {
    let folder = Folder::new("keys");
    let options = Line::parse_from(["bench", "-o", "avg"]).options;
    let device = Device {
        rank: 0,
        pid: 4711,
        host: "node-a".into(),
        device: 0,
        bus: "cpu".into(),
        info: "quic on 10.0.0.1".into(),
    };
    let mut report = Report::create(&folder.0.join("out.json")).unwrap();
    report.configure(&options, None, &[device]);
    let world = allfold::Communicator::single();
    let mut latencies = Latencies::new();
    latencies.record(std::time::Duration::from_micros(10));
    let mut row = row();
    if let Some(half) = &mut row.in_place {
        half.per_iteration = latencies.gather(&world, Detail::Summary, 0).unwrap();
    }
    report.add(row, 20);
    report.write(0, 1.25, None, None, None).unwrap();

    let text = fs::read_to_string(folder.0.join("out.json")).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        keys(&json),
        sorted([
            "version",
            "start_time",
            "args",
            "env",
            "nccl_version",
            "allfold_version",
            "config",
            "results",
            "out_of_bounds",
            "average_bus_bandwidth",
            "errors",
            "end_time",
        ])
    );
    assert_eq!(json["version"], 3);
    assert_eq!(
        keys(&json["config"]),
        sorted([
            "device",
            "nthreads",
            "ngpus",
            "minimum_bytes",
            "maximum_bytes",
            "step_factor",
            "warmup_iters",
            "iterations",
            "aggregated_iterations",
            "validation",
            "graph",
            "blocking_collectives",
            "per_iter_timing",
            "per_iter_skip",
            "unalign",
            "parallel_init",
            "devices",
        ])
    );
    assert_eq!(json["config"]["maximum_bytes"], 64 << 20);
    assert_eq!(json["config"]["parallel_init"], "false");
    let device = &json["config"]["devices"][0];
    assert_eq!(device["device_info"], "quic on 10.0.0.1");
    assert_eq!(
        keys(device),
        sorted(["rank", "group", "pid", "hostname", "device", "device_hex", "device_info",])
    );
    let result = &json["results"][0];
    assert_eq!(
        keys(result),
        sorted([
            "size",
            "count",
            "type",
            "redop",
            "root",
            "out_of_place",
            "in_place",
            "in_place_per_iter",
            "actual_iterations",
            "experiment_name",
        ])
    );
    assert_eq!(result["root"], "    -1");
    assert_eq!(result["redop"], "avg");
    assert!(result["out_of_place"].is_null());
    assert!(result["out_of_place_per_iter"].is_null());
    assert_eq!(keys(&result["in_place"]), sorted(["time", "alg_bw", "bus_bw", "nwrong"]));
    // The table would say 0.00.
    assert!((result["in_place"]["bus_bw"].as_f64().unwrap() - 0.0012).abs() < 1e-12);
    assert_eq!(
        keys(&result["in_place_per_iter"]),
        sorted([
            "skipped_iterations",
            "min_us",
            "max_us",
            "avg_us",
            "p50_us",
            "p95_us",
            "p99_us",
            "stdev_us",
            "cv_pct",
        ])
    );
    assert_eq!(json["out_of_bounds"]["okay"], "true");
    assert_eq!(json["average_bus_bandwidth"]["okay"], "unchecked");
    assert_eq!(json["average_bus_bandwidth"]["bandwidth"], 1.25);
    assert_eq!(json["errors"], Value::Array(vec![]));
}

#[test]
fn an_existing_file_is_kept() {
    let folder = Folder::new("kept");
    let path = folder.0.join("out.json");
    fs::write(&path, "mine").unwrap();
    let first = Report::create(&path).unwrap();
    let second = Report::create(&path).unwrap();
    assert_eq!(first.path(), folder.0.join("out.json.0"));
    assert_eq!(second.path(), folder.0.join("out.json.1"));
    let error = Error::AnotherRank;
    second.write(2, 0.0, Some(false), None, Some(&error)).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    let text = fs::read_to_string(folder.0.join("out.json.1")).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["out_of_bounds"]["okay"], "false");
    assert_eq!(json["errors"][0], error.to_string());
}

#[test]
fn a_file_that_cannot_be_written_is_found_without_a_trace() {
    let folder = Folder::new("check");
    let good = folder.0.join("out.json");
    check(&good).unwrap();
    assert!(!good.exists());
    check(Path::new("out.json")).unwrap();

    let error = check(&folder.0.join("missing/out.json")).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().ends_with("no such file or directory"), "{error}");
    fs::write(folder.0.join("file"), "").unwrap();
    let error = check(&folder.0.join("file/out.json")).unwrap_err();
    assert!(error.to_string().ends_with("is not a folder"), "{error}");
    assert!(Report::create(&folder.0.join("missing/out.json")).is_err());
}

#[test]
fn the_secret_is_never_told() {
    assert!(may_be_told("ALLFOLD_RANK"));
    assert!(!may_be_told("ALLFOLD_SECRET"));
    assert!(!may_be_told("ALLFOLD_SECRET_FILE"));
    assert!(!may_be_told("ALLFOLD_TLS_KEY"));
    // What the user may have meant to be the secret.
    for name in ["ALLFOLD_JOB_SECRET", "ALLFOLD_SECERT", "ALLFOLD_KEY", "ALLFOLD_", "RANK"] {
        assert!(!may_be_told(name), "{name}");
    }
    assert!(!may_be_told("AWS_SECRET_ACCESS_KEY"));
}

#[test]
fn a_report_of_gpus_names_nccl_and_what_it_takes_alone() {
    let folder = Folder::new("gpu");
    let options = Line::parse_from(["bench", "-g", "1", "-z", "1"]).options;
    let mut report = Report::create(&folder.0.join("out.json")).unwrap();
    report.configure(&options, Some(22809), &[]);
    let mut row = row();
    if let Some(half) = &mut row.in_place {
        half.beside = Some(Beside { time_us: 10.5, raw_us: 10.0 });
    }
    report.add(row, 20);
    report.write(0, 1.25, None, None, None).unwrap();
    let text = fs::read_to_string(folder.0.join("out.json")).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&json["nccl_version"], &json["config"]["device"]), (&22809.into(), &"gpu".into()));
    assert_eq!(json["config"]["ngpus"], 1);
    assert_eq!(json["config"]["blocking_collectives"], "true");
    let half = &json["results"][0]["in_place"];
    assert_eq!((&half["raw_time"], &half["raw_ratio"]), (&10.0.into(), &1.05.into()));
    assert!(json["results"][0]["out_of_place"].get("raw_time").is_none());
}
