//! The names of all settings, and the nearest to one that is none.

use crate::identity::Environment;
use crate::report;

/// Whether this version has a setting in a variable of that name, such as `ALLFOLD_RANK`.
pub fn is_setting(name: &str) -> bool {
    name.strip_prefix("ALLFOLD_").is_some_and(|name| NAMES.contains(&name))
}

/// Says once which variables look like settings and are none.
pub(super) fn warn_of_unknown(environment: &Environment) {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        for name in environment.names().filter(|name| name.starts_with("ALLFOLD_")) {
            if is_setting(name) {
                continue;
            }
            let nearest = NAMES.iter().min_by_key(|known| distance(&name[8..], known));
            let nearest =
                nearest.map_or(String::new(), |n| format!("; the nearest is ALLFOLD_{n}"));
            report::warn(&format!("{name} is set, but this version has no such setting{nearest}"));
        }
    });
}

/// Edit distance (Wagner and Fischer 1974).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// All settings, without `ALLFOLD_`.
const NAMES: [&str; 32] = [
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "RENDEZVOUS",
    "PEERS",
    "ORDINAL_START",
    "JOB_INDEX",
    "PODS_PER_JOB",
    "JOB",
    "SECRET",
    "SECRET_FILE",
    "TLS_CERT",
    "TLS_KEY",
    "TLS_CA",
    "PORT",
    "INTERFACE",
    "CONNECT_TIMEOUT",
    "TIMEOUT",
    "HEARTBEAT",
    "DEAD_AFTER",
    "LATE_AFTER",
    "ALGORITHM",
    "TRANSPORT",
    "LANES",
    "NCCL",
    "METRICS",
    "LOG",
    "LOG_FORMAT",
    "LAUNCHER",
    "WITHIN",
    "RESTART",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_found() {
        let nearest = NAMES.iter().min_by_key(|known| distance("RENDEVOUS", known));
        assert_eq!(nearest, Some(&"RENDEZVOUS"));
    }
}
