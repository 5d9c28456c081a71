//! Durations as settings and options are written.

use std::time::Duration;

use crate::error::Result;
use crate::identity::{Environment, invalid};

/// The duration in a variable: `90`, `90s`, `500ms`, `2m`.
pub(super) fn duration(
    environment: &Environment,
    name: &str,
    default: Duration,
) -> Result<Duration> {
    let Some(text) = environment.get(name) else {
        return Ok(default);
    };
    match parse_duration(text) {
        Ok(duration) if duration >= SHORTEST => Ok(duration),
        Ok(_) => Err(invalid(name, text, "must be a duration of at least 1ms")),
        Err(problem) => Err(invalid(name, text, problem)),
    }
}

/// A duration as settings and options are written: `90`, `90s`, `500ms`, `2m`; up to a week.
///
/// # Errors
/// What is expected.
pub fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    let (digits, unit) =
        text.split_at(text.find(|c: char| c.is_alphabetic()).unwrap_or(text.len()));
    let milliseconds = match unit {
        "" | "s" => 1000.0,
        "ms" => 1.0,
        "m" => 60_000.0,
        _ => f64::NAN,
    } * digits.trim().parse::<f64>().unwrap_or(f64::NAN);
    if (0.0..=MAX_DURATION_MS).contains(&milliseconds) {
        Ok(Duration::from_secs_f64(milliseconds / 1000.0))
    } else {
        Err("must be a duration such as 90, 90s, 500ms or 2m")
    }
}

/// A week: beyond it a typing error is likelier than a wish.
pub(super) const MAX_DURATION_MS: f64 = 7.0 * 24.0 * 3600.0 * 1000.0;
/// Shorter ones are slips of the finger: no clock here ticks faster.
const SHORTEST: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        let read = |text| {
            duration(
                &Environment::from([("ALLFOLD_TIMEOUT", text)]),
                "ALLFOLD_TIMEOUT",
                Duration::ZERO,
            )
        };
        assert_eq!(read("90").unwrap(), Duration::from_secs(90));
        assert_eq!(read("1.5s").unwrap(), Duration::from_millis(1500));
        assert_eq!(read("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(read("2m").unwrap(), Duration::from_secs(120));
        for wrong in ["x", "-1", "5h", "1e99", "NaN"] {
            let error = read(wrong).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("ALLFOLD_TIMEOUT={wrong}: must be a duration")),
                "{error}"
            );
        }
    }
}
