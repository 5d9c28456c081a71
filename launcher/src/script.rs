//! `run --dry-run`: a POSIX shell script that does the same without allfold.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use crate::binding::Binding;
use crate::environment::{THREADS, threads};
use crate::error::Error;
use crate::options::{Bind, JobOptions, OutputOptions, Prefix};
use crate::variables::Variable;

/// What the script starts, as [`crate::job::Job`] would.
pub(crate) struct Script<'a> {
    pub(crate) ranks: usize,
    pub(crate) command: &'a [OsString],
    pub(crate) options: &'a JobOptions,
    pub(crate) output: &'a OutputOptions,
    pub(crate) variables: &'a [Variable],
}

impl Script<'_> {
    /// The script's text; an error where no script can do it.
    pub(crate) fn text(&self) -> Result<Vec<u8>, Error> {
        let (stop_grace, hang_grace) = match self.options.grace {
            None => ("30".into(), "1".into()),
            Some(grace) => (seconds(grace), seconds(grace)),
        };
        let parts: [(&str, Vec<u8>); 9] = [
            ("@RANKS@", self.ranks.to_string().into()),
            ("@STOP_GRACE@", stop_grace.into()),
            ("@HANG_GRACE@", hang_grace.into()),
            ("@LEFT_OUT@", self.left_out_comment().into()),
            ("@THREADS@", self.thread_lines().into()),
            ("@VARIABLES@", self.variable_lines()?),
            ("@OUTPUT@", self.output_lines()),
            ("@BINDING@", self.binding_lines()?.into()),
            ("@COMMAND@", self.command_line()),
        ];
        let mut text = Vec::new();
        for line in TEMPLATE.lines() {
            let part = parts.iter().find(|(mark, _)| line.contains(mark));
            match part.map(|(mark, value)| (line.split_once(mark).unwrap_or((line, "")), value)) {
                None => text.extend_from_slice(line.as_bytes()),
                // A line for something that was not asked for.
                Some((("", ""), value)) if value.is_empty() => continue,
                Some(((before, after), value)) => {
                    text.extend_from_slice(before.as_bytes());
                    text.extend_from_slice(value);
                    text.extend_from_slice(after.as_bytes());
                }
            }
            text.push(b'\n');
        }
        Ok(text)
    }

    /// Options that were given and that a shell cannot heed.
    pub(crate) fn left_out(&self) -> Vec<&'static str> {
        let given = [
            ("--max-restarts", self.options.max_restarts > 0),
            ("--json-events", self.options.json_events.is_some()),
            ("--prefix", self.output.prefix == Prefix::Always),
            ("--timestamp", self.output.timestamp),
        ];
        given.into_iter().filter_map(|(option, is_given)| is_given.then_some(option)).collect()
    }

    fn left_out_comment(&self) -> String {
        match &self.left_out()[..] {
            [] => String::new(),
            options => format!("# Left out, since only allfold does it: {}.", options.join(", ")),
        }
    }

    fn thread_lines(&self) -> String {
        let threads = threads(self.ranks);
        let line = |name: &&str| format!("    export {name}=\"${{{name}-{threads}}}\"");
        THREADS.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    fn variable_lines(&self) -> Result<Vec<u8>, Error> {
        let mut lines = Vec::new();
        for (name, value) in self.variables {
            if !is_identifier(name) {
                return Err(Error::Usage {
                    problem: format!("--env {}: no shell can set such a name", name.display()),
                    help: Some("drop it, or drop --dry-run".into()),
                });
            }
            lines.push([b"    export ", name.as_bytes(), b"=", &quoted(value)].concat());
        }
        Ok(lines.join(&b'\n'))
    }

    fn output_lines(&self) -> Vec<u8> {
        if let Some(directory) = &self.output.log_dir {
            let directory = quoted(directory.as_os_str());
            return [
                b"    # Logged, and not shown.\n    mkdir -p ".as_slice(),
                &directory,
                b" || exit 2\n    exec >",
                &directory,
                b"/\"rank-$1.log\" 2>&1",
            ]
            .concat();
        }
        if self.output.only_rank.is_empty() {
            return Vec::new();
        }
        let shown: Vec<String> = self.output.only_rank.iter().map(usize::to_string).collect();
        let shown = shown.join(" | ");
        format!("    case $1 in {shown}) ;; *) exec >/dev/null 2>&1 ;; esac").into()
    }

    fn binding_lines(&self) -> Result<String, Error> {
        let bind = self.options.binding.bind;
        if bind == Bind::None {
            return Ok(String::new());
        }
        let binding = Binding::plan(bind, self.ranks)?;
        let mut lines = vec!["    # The CPUs of the host where this was printed.".to_owned()];
        lines.push("    case $1 in".into());
        for rank in 0..self.ranks {
            lines.push(format!("    {rank}) cpus={} ;;", binding.list(rank)));
        }
        lines.push("    esac".into());
        Ok(lines.join("\n"))
    }

    fn command_line(&self) -> Vec<u8> {
        let mut words: Vec<Vec<u8>> = self.command.iter().map(quoted).collect();
        if self.options.binding.bind != Bind::None {
            words.insert(0, b"taskset -c \"$cpus\"".to_vec());
        }
        words.join(&b' ')
    }
}

/// As one word of a shell, whatever it holds.
pub(crate) fn quoted(word: impl AsRef<OsStr>) -> Vec<u8> {
    let bytes = word.as_ref().as_bytes();
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_./:,+@%".contains(byte);
    if !bytes.is_empty() && bytes.iter().all(is_plain) {
        return bytes.to_vec();
    }
    let mut word = vec![b'\''];
    for byte in bytes {
        match byte {
            b'\'' => word.extend_from_slice(b"'\\''"),
            _ => word.push(*byte),
        }
    }
    word.push(b'\'');
    word
}

fn is_identifier(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
        && bytes.first().is_some_and(|first| !first.is_ascii_digit())
}

/// Whole ones, since the script looks once a second.
fn seconds(duration: Duration) -> String {
    duration.as_millis().div_ceil(1000).to_string()
}

const TEMPLATE: &str = include_str!("script/template.sh");

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(word: &str) -> String {
        String::from_utf8(quoted(word)).unwrap()
    }

    #[test]
    fn words_stay_one_word() {
        assert_eq!(text_of("./a-b_c.py"), "./a-b_c.py");
        assert_eq!(text_of(""), "''");
        assert_eq!(text_of("a b"), "'a b'");
        assert_eq!(text_of("it's $x"), r"'it'\''s $x'");
        assert_eq!(text_of("~"), "'~'");
        assert_eq!(quoted(OsStr::from_bytes(b"\xff")), b"'\xff'");
    }

    #[test]
    fn every_mark_is_filled_in() {
        let only_rank = vec![0, 2];
        let mut output = OutputOptions { only_rank, timestamp: true, ..Default::default() };
        let options = JobOptions { max_restarts: 3, ..Default::default() };
        let text = |output: &OutputOptions| {
            let script = Script {
                ranks: 3,
                command: &["prog".into(), "a b".into()],
                options: &options,
                output,
                variables: &[("A".into(), "it's".into())],
            };
            String::from_utf8(script.text().unwrap()).unwrap()
        };
        let shown = text(&output);
        assert!(!shown.contains('@'), "{shown}");
        for line in [
            "ranks=3",
            "# Left out, since only allfold does it: --max-restarts, --timestamp.",
            r"    export A='it'\''s'",
            "    case $1 in 0 | 2) ;; *) exec >/dev/null 2>&1 ;; esac",
            "    exec prog 'a b'",
        ] {
            assert!(shown.lines().any(|shown| shown == line), "{line}: {shown}");
        }
        output.log_dir = Some("my logs".into());
        assert!(text(&output).contains("    exec >'my logs'/\"rank-$1.log\" 2>&1\n"));
    }

    #[test]
    fn a_name_that_a_shell_cannot_set_is_refused() {
        for (name, is_good) in [("A_1", true), ("_", true), ("1A", false), ("A.B", false)] {
            assert_eq!(is_identifier(OsStr::new(name)), is_good, "{name}");
        }
    }
}
