//! Durations in words, for messages.

use std::time::Duration;

/// In words: `5 s`, `0.5 s`.
pub(crate) fn text(duration: Duration) -> String {
    match duration.subsec_millis() {
        0 => format!("{} s", duration.as_secs()),
        _ => format!("{} s", duration.as_millis() as f64 / 1000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_in_words() {
        assert_eq!(text(Duration::from_secs(5)), "5 s");
        assert_eq!(text(Duration::from_millis(500)), "0.5 s");
    }
}
