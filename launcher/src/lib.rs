//! The programs behind the one binary: run, train, bench, secret.

/// The whole program; returns the exit code of DESIGN's table.
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
