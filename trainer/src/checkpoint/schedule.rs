//! When a checkpoint is due.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// How often a checkpoint is written. Reads `epoch`, `600s`, `10m`, `500ms` or `100steps`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Every {
    /// At the end of each epoch.
    Epoch,
    /// When this long has passed since the last one, at the end of a step.
    Time(Duration),
    /// After steps whose number this divides.
    Steps(u64),
}

impl FromStr for Every {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fail = || "must be `epoch`, a time such as 600s or 10m, or steps such as 100steps";
        if text == "epoch" {
            return Ok(Self::Epoch);
        }
        if let Some(steps) = text.strip_suffix("steps").or(text.strip_suffix("step")) {
            let steps: u64 = steps.parse().map_err(|_| fail())?;
            if steps == 0 {
                return Err("must be at least 1 step".into());
            }
            return Ok(Self::Steps(steps));
        }
        // Seconds in other settings, but here as likely steps.
        if let Ok(number) = text.parse::<f64>() {
            return Err(format!("has no unit: {number}s is a time, {number}steps are steps"));
        }
        match allfold::parse_duration(text) {
            Ok(Duration::ZERO) => Err("must be more than no time".into()),
            Ok(time) => Ok(Self::Time(time)),
            Err(_) => Err(fail().into()),
        }
    }
}

impl fmt::Display for Every {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Epoch => f.write_str("epoch"),
            Self::Time(time) if time.subsec_nanos() == 0 => write!(f, "{}s", time.as_secs()),
            Self::Time(time) => write!(f, "{}ms", time.as_secs_f64() * 1000.0),
            Self::Steps(steps) => write!(f, "{steps}steps"),
        }
    }
}

/// Says when the next checkpoint is due. Rank 0 alone asks: its clock decides.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    every: Every,
    last: Instant,
}

impl Schedule {
    /// Time counts from `start`.
    pub fn new(every: Every, start: Instant) -> Self {
        Self { every, last: start }
    }

    /// Whether one is due after `step` steps.
    pub fn due(&mut self, step: u64, epoch_ended: bool, now: Instant) -> bool {
        match self.every {
            Every::Epoch => epoch_ended,
            Every::Steps(steps) => step.is_multiple_of(steps),
            Every::Time(time) => {
                let due = now.saturating_duration_since(self.last) >= time;
                if due {
                    self.last = now;
                }
                due
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_read_and_printed() {
        let second = Duration::from_secs(1);
        for (text, every, printed) in [
            ("epoch", Every::Epoch, "epoch"),
            ("600s", Every::Time(second * 600), "600s"),
            ("10m", Every::Time(second * 600), "600s"),
            ("1.5m", Every::Time(second * 90), "90s"),
            ("500ms", Every::Time(second / 2), "500ms"),
            ("100steps", Every::Steps(100), "100steps"),
            ("1step", Every::Steps(1), "1steps"),
        ] {
            assert_eq!(text.parse(), Ok(every));
            assert_eq!(every.to_string(), printed);
            assert_eq!(printed.parse(), Ok(every));
        }
    }

    #[test]
    fn what_cannot_be_read_says_what_can() {
        for (text, expected) in [
            ("", "must be `epoch`, a time"),
            ("often", "must be `epoch`, a time"),
            ("10h", "must be `epoch`, a time"),
            ("-5steps", "must be `epoch`, a time"),
            ("1.5steps", "must be `epoch`, a time"),
            ("600", "has no unit: 600s is a time, 600steps are steps"),
            ("0steps", "must be at least 1 step"),
            ("0s", "must be more than no time"),
            ("-1s", "must be `epoch`"),
            ("1e30s", "must be `epoch`"),
            ("9999999999999m", "must be `epoch`"),
        ] {
            let error = text.parse::<Every>().unwrap_err();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }

    #[test]
    fn steps_and_epochs_are_due_when_they_end() {
        let now = Instant::now();
        let mut steps = Schedule::new(Every::Steps(100), now);
        let due: Vec<u64> = (1..=300).filter(|step| steps.due(*step, true, now)).collect();
        assert_eq!(due, [100, 200, 300]);
        let mut epochs = Schedule::new(Every::Epoch, now);
        assert!(!epochs.due(100, false, now));
        assert!(epochs.due(101, true, now));
    }

    #[test]
    fn time_counts_from_the_last_one() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut times = Schedule::new(Every::Time(Duration::from_secs(600)), start);
        let due: Vec<u64> = (0..2000).filter(|second| times.due(1, true, at(*second))).collect();
        assert_eq!(due, [600, 1200, 1800]);
    }
}
