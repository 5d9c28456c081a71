//! Ranks of this program, started without a launcher.

use std::process::Command;
use std::time::Duration;

use crate::processes::together;

/// Runs so many for so long at most, and returns what rank 0 printed.
pub(crate) fn run(
    ranks: usize,
    words: &[&str],
    transport: &str,
    limit: Duration,
) -> Result<String, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let free = std::net::UdpSocket::bind("127.0.0.1:0")
        .and_then(|socket| socket.local_addr())
        .map_err(|error| error.to_string())?;
    let secret = allfold::Secret::random().map_err(|error| error.to_string())?;
    let line = secret.to_line();
    let start = |rank: usize| {
        let mut command = Command::new(&own);
        command.arg("rank").args(words);
        command.env("ALLFOLD_RANK", rank.to_string());
        command.env("ALLFOLD_WORLD_SIZE", ranks.to_string());
        command.env("ALLFOLD_RENDEZVOUS", free.to_string());
        command.env("ALLFOLD_TRANSPORT", transport);
        command.env("ALLFOLD_SECRET", line.as_str());
        command
    };
    let ended = together((0..ranks).map(start).collect(), limit);
    match ended.problem {
        Some(problem) => Err(format!("{ranks} ranks: {problem}")),
        None => Ok(ended.text),
    }
}
