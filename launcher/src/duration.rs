//! A duration on the command line, written as the library's settings are.

use std::time::Duration;

/// `90`, `90s`, `500ms`, `2m`.
pub(crate) fn parse(text: &str) -> Result<Duration, &'static str> {
    let (digits, unit) =
        text.split_at(text.find(|c: char| c.is_alphabetic()).unwrap_or(text.len()));
    let milliseconds = match unit {
        "" | "s" => 1000.0,
        "ms" => 1.0,
        "m" => 60_000.0,
        _ => f64::NAN,
    } * digits.parse::<f64>().unwrap_or(f64::NAN);
    if (0.0..=MAX_MS).contains(&milliseconds) {
        Ok(Duration::from_secs_f64(milliseconds / 1000.0))
    } else {
        Err("must be a duration such as 90, 90s, 500ms or 2m")
    }
}

/// In words: `5 s`, `0.5 s`.
pub(crate) fn text(duration: Duration) -> String {
    match duration.subsec_millis() {
        0 => format!("{} s", duration.as_secs()),
        _ => format!("{} s", duration.as_millis() as f64 / 1000.0),
    }
}

/// A year: what is longer is a slip of the finger.
const MAX_MS: f64 = 365.0 * 24.0 * 3600.0 * 1000.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, milliseconds) in [
            ("90", 90_000),
            ("90s", 90_000),
            ("500ms", 500),
            ("2m", 120_000),
            ("0", 0),
            ("1.5", 1500),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for bad in ["", "s", "-1", "1h", "inf", "nan", "1e99", "2 m"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
