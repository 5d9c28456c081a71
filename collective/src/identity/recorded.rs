//! Tests: environments as launchers make them, recorded or after their sources, and what comes of
//! each. `collective/tests/environments` has a file for each: lines with `#` say where it is from,
//! `host` and `domain` what the host is called, the variables follow, and after `---` what
//! `allfold env` prints, and what a program is warned of that may also be alone. With ACCEPT=1 what it prints now becomes what is expected.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use super::environment::{Environment, Host};
use super::findings::Findings;

#[test]
fn each_recorded_environment_gives_what_its_file_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/environments");
    let accepts = std::env::var_os("ACCEPT").is_some();
    let mut wrong = String::new();
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let (given, expected) = text.split_once("---\n").unwrap();
        let found = outcome(&environment(given));
        count += 1;
        if found != expected {
            if accepts {
                std::fs::write(&path, format!("{given}---\n{found}")).unwrap();
            }
            let name = path.file_name().unwrap().display();
            write!(wrong, "{name}: expected\n{expected}found\n{found}\n").unwrap();
        }
    }
    assert_eq!(count, ENVIRONMENTS, "files are missing, or not counted here");
    assert!(wrong.is_empty(), "\n{wrong}");
}

/// The environment that a file describes.
fn environment(text: &str) -> Environment {
    let mut host = Host { name: "node-7".into(), domain: None };
    let mut variables = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        if let Some(name) = line.strip_prefix("host ") {
            host.name = name.into();
        } else if let Some(domain) = line.strip_prefix("domain ") {
            host.domain = Some(domain.into());
        } else {
            let (name, value) = line.split_once('=').unwrap();
            variables.insert(name.to_string(), value.to_string());
        }
    }
    Environment::recorded(variables, host)
}

fn outcome(environment: &Environment) -> String {
    let findings = Findings::of(environment);
    let mut text = findings.to_string();
    let error = match findings.identity() {
        Ok(Some(_)) => return text,
        Ok(None) => findings.no_environment(),
        Err(error) => error,
    };
    writeln!(text, "error: {error}").unwrap();
    if let Some(help) = error.help() {
        writeln!(text, "help: {help}").unwrap();
    }
    for warning in findings.forgotten() {
        writeln!(text, "warning: {warning}").unwrap();
    }
    text
}

/// So that a file that is lost is missed.
const ENVIRONMENTS: usize = 126;
