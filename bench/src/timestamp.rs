//! The time of day as the JSON report writes it, `2026-01-31 23:59:58`, in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

/// Now. nccl-tests give local time; UTC needs no time zone database and is the same on all hosts.
pub(crate) fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    text(seconds)
}

/// Howard Hinnant's civil_from_days, for the days since 1970.
fn text(seconds: u64) -> String {
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
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

const DAY: u64 = 86_400;
/// 400 years of the Gregorian calendar.
const DAYS_PER_ERA: u64 = 146_097;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right() {
        assert_eq!(text(0), "1970-01-01 00:00:00");
        assert_eq!(text(951_782_399), "2000-02-28 23:59:59");
        assert_eq!(text(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(text(1_709_251_199), "2024-02-29 23:59:59");
        assert_eq!(text(1_735_689_599), "2024-12-31 23:59:59");
        assert_eq!(text(4_107_542_400), "2100-03-01 00:00:00");
    }
}
