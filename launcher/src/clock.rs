//! The time of day as events and lines bear it: RFC 3339 in UTC, `2026-01-31T23:59:58.123Z`.

use std::time::SystemTime;

/// Now. UTC needs no time zone database and is the same on all hosts and in a pod's log.
pub(crate) fn now() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}
