//! What docs/monitoring promises: alert rules that fire when they should, and a dashboard whose
//! every query is answered by a real Prometheus that scrapes a real training.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use allfold_tests::{CAP, Process, clean_command, free_address, machine_lock, skipped};
use serde_json::Value;

const ALLFOLD: &str = env!("CARGO_BIN_EXE_allfold-under-test");

#[test]
fn the_alert_rules_fire_when_they_should() {
    let test = "the_alert_rules_fire_when_they_should";
    for arguments in [["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]] {
        let mut promtool = Command::new("promtool");
        match promtool.args(arguments).current_dir(pages()).output() {
            Ok(checked) => assert!(checked.status.success(), "{checked:#?}"),
            Err(error) => return skipped(test, &format!("promtool: {error}")),
        }
    }
}

#[test]
fn every_query_of_the_dashboard_and_the_alerts_is_answered() {
    let _one_at_a_time = machine_lock();
    let folder = std::env::temp_dir().join(format!("allfold-prometheus-{}", std::process::id()));
    let port = port_of(&free_address());
    let first = free_ports(4);
    std::fs::create_dir_all(&folder).unwrap();
    let _folder = Folder(folder.clone());
    let targets: Vec<String> =
        (0..4).map(|rank| format!("\"127.0.0.1:{}\"", first + rank)).collect();
    let config = format!(
        "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
         rule_files: [{}]\n\
         scrape_configs:\n- job_name: digits\n  static_configs: [{{targets: [{}]}}]\n",
        pages().join("alerts.yml").display(),
        targets.join(", ")
    );
    std::fs::write(folder.join("prometheus.yml"), config).unwrap();
    if let Err(error) = Command::new("prometheus").arg("--version").output() {
        let test = "every_query_of_the_dashboard_and_the_alerts_is_answered";
        return skipped(test, &format!("prometheus: {error}"));
    }
    let _training = Process::start(
        clean_command(ALLFOLD)
            .args(["train", "-n", "4", "--model", "mlp", "--steps", "1000000"])
            .env("ALLFOLD_METRICS", format!("127.0.0.1:{first}")),
    );
    let _prometheus = Process::start(
        Command::new("prometheus")
            .arg(format!("--config.file={}", folder.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}")),
    );

    let queries = queries();
    assert!(queries.len() >= 16, "{queries:#?}");
    let deadline = Instant::now() + CAP;
    let mut unanswered = queries;
    while !unanswered.is_empty() {
        unanswered.retain(|(_, query)| !has_data(port, query));
        assert!(Instant::now() < deadline, "no data for {unanswered:#?}");
        // Prometheus has new data once a second.
        std::thread::sleep(Duration::from_millis(200));
    }
    // All four ranks, each under its own number.
    let ranks = ask(port, "count(count by (rank) (allfold_info))").unwrap();
    assert_eq!(ranks[0]["value"][1], "4", "{ranks}");
    // The rules were evaluated on the same data.
    let rules = get(port, "/api/v1/rules").unwrap();
    let rules = rules["data"]["groups"][0]["rules"].as_array().unwrap();
    assert!(rules.len() >= 4);
    for rule in rules {
        assert_eq!(rule["health"], "ok", "{rule}");
    }
}

#[test]
fn a_metrics_port_in_use_ends_a_training_at_once() {
    let _one_at_a_time = machine_lock();
    let first = free_ports(2);
    // Rank 1 is the one whose port is taken.
    let address = format!("127.0.0.1:{}", first + 1);
    let _taken = TcpListener::bind(&address).unwrap();
    let mut command = clean_command(ALLFOLD);
    let setting = format!("127.0.0.1:{first}");
    command.args(["train", "-n", "2", "--steps", "2"]).env("ALLFOLD_METRICS", setting);
    let ended = Process::start(&mut command).wait();
    let words = format!("cannot serve metrics at {address}: another process listens there");
    let errors = ended.errors().join("\n");
    assert_eq!(ended.code(), 2, "{ended:#?}");
    assert!(errors.contains(&words) && errors.contains("help: "), "{ended:#?}");
}

/// `docs/monitoring`.
fn pages() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/monitoring").canonicalize().unwrap()
}

/// The panels' queries, with what Grafana puts in for its variables.
fn queries() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(pages().join("dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut queries = Vec::new();
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let title = panel["title"].as_str().unwrap();
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title}");
        for target in targets {
            let query = target["expr"].as_str().unwrap();
            let query = query.replace("$job", ".+").replace("$__rate_interval", "5s");
            assert!(!query.contains('$'), "{title}: {query}");
            queries.push((title.to_string(), query));
        }
    }
    queries
}

/// Whether Prometheus answers with at least one number. One that is not finite is none: a quantile
/// of nothing is NaN.
fn has_data(port: u16, query: &str) -> bool {
    let Some(result) = ask(port, query) else { return false };
    let numbers = result.as_array().unwrap().iter();
    let mut numbers = numbers.filter_map(|series| series["value"][1].as_str()?.parse::<f64>().ok());
    numbers.any(f64::is_finite)
}

/// The result of a query; None while Prometheus is not up. A query that it cannot read fails.
fn ask(port: u16, query: &str) -> Option<Value> {
    let encoded: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let answer = get(port, &format!("/api/v1/query?query={encoded}"))?;
    assert_eq!(answer["status"], "success", "{query}: {answer}");
    Some(answer["data"]["result"].clone())
}

fn get(port: u16, path: &str) -> Option<Value> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(CAP)).unwrap();
    // Version 1.0: the answer comes in one piece, and then the connection ends.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    // While it starts it says so in plain words.
    serde_json::from_str(body).ok()
}

/// The first of so many ports in a row that were free a moment ago.
fn free_ports(count: u16) -> u16 {
    loop {
        let first = port_of(&free_address());
        if (first..first + count).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return first;
        }
    }
}

fn port_of(address: &str) -> u16 {
    address.rsplit_once(':').unwrap().1.parse().unwrap()
}

/// Removed with all that is in it when dropped.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
