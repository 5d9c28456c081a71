//! Warnings: to `tracing` where the program set a subscriber, else to standard error.

/// One line for the person who runs the job.
pub(crate) fn warn(message: &str) {
    if tracing::dispatcher::has_been_set() {
        tracing::warn!("{message}");
    } else {
        line("warning", message);
    }
}

/// One line that is worth knowing and needs nothing done.
pub(crate) fn info(message: &str) {
    // Without a subscriber a library stays quiet about what went well.
    tracing::info!("{message}");
}

/// Words of a peer, as they may be shown: nothing in them steers a terminal or fills a screen.
pub(crate) fn printable(words: &str) -> String {
    words.chars().map(|c| if c.is_control() { '?' } else { c }).take(MAX_WORDS).collect()
}

fn line(level: &str, message: &str) {
    use std::io::Write;
    // In one write, so that lines of several ranks do not mix; a closed stderr is no error.
    let _ = std::io::stderr().write_all(format!("allfold: {level}: {message}\n").as_bytes());
}

/// `90 s`, `0.5 s`, `2.1 s`: as errors show durations.
pub(crate) fn duration(duration: std::time::Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds >= 10.0 || seconds.fract() == 0.0 {
        format!("{seconds:.0} s")
    } else {
        format!("{seconds:.1} s")
    }
}

/// The longest description of two calls with their source lines is below half of this.
const MAX_WORDS: usize = 1024;
