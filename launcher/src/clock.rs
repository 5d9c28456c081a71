//! The time of day as events and lines bear it: RFC 3339 in UTC, `2026-01-31T23:59:58.123Z`.

use std::time::{SystemTime, UNIX_EPOCH};

/// Now. UTC needs no time zone database and is the same on all hosts and in a pod's log.
pub(crate) fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    text(since.as_secs(), since.subsec_millis())
}

/// Howard Hinnant's civil_from_days, for the days since 1970.
fn text(seconds: u64, milliseconds: u32) -> String {
    // Counted from 0000-03-01, so that a leap day ends its year.
    let days = seconds / DAY + 719_468;
    let era = days / DAYS_PER_ERA;
    let day_of_era = days % DAYS_PER_ERA;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = (march_month + 2) % 12 + 1;
    let year = 400 * era + year_of_era + u64::from(month <= 2);
    let time = seconds % DAY;
    let (hour, minute, second) = (time / 3_600, time / 60 % 60, time % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milliseconds:03}Z")
}

const DAY: u64 = 86_400;
/// 400 years of the Gregorian calendar.
const DAYS_PER_ERA: u64 = 146_097;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right() {
        for (seconds, milliseconds, expected) in [
            (0, 0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, 7, "2000-02-28T23:59:59.007Z"),
            (951_782_400, 70, "2000-02-29T00:00:00.070Z"),
            (1_709_251_199, 700, "2024-02-29T23:59:59.700Z"),
            (4_107_542_400, 999, "2100-03-01T00:00:00.999Z"),
        ] {
            assert_eq!(text(seconds, milliseconds), expected);
        }
    }
}
