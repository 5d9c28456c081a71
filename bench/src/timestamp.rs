//! The time of day as the JSON report writes it, `2026-01-31 23:59:58`, in UTC.

use std::time::SystemTime;

/// Now. nccl-tests give local time; UTC needs no time zone database and is the same on all hosts.
pub(crate) fn now() -> String {
    text(SystemTime::now())
}

fn text(time: SystemTime) -> String {
    let text = humantime::format_rfc3339_seconds(time).to_string();
    text.trim_end_matches('Z').replace('T', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn dates_are_as_nccl_tests_write_them() {
        let time = UNIX_EPOCH + Duration::from_secs(1_709_251_199);
        assert_eq!(text(time), "2024-02-29 23:59:59");
    }
}
