//! Command lines of `allfold`: how they end, and what they print.

use allfold_tests::{Ended, Process, clean_command};
use rustix::process::Pid;

pub(crate) fn start(line: &str) -> Process {
    Process::start(clean_command(ALLFOLD).args(line.split_whitespace()))
}

pub(crate) fn run(line: &str) -> Ended {
    start(line).wait()
}

/// Standard output of a command that succeeds and has nothing to complain about.
pub(crate) fn ends_well(line: &str) -> String {
    let ended = run(line);
    assert_eq!(ended.code(), 0, "{line}: {ended:#?}");
    assert!(ended.errors().is_empty(), "{line}: {ended:#?}");
    ended.output().join("\n") + "\n"
}

/// A command that gets no further than to one line with these words.
pub(crate) fn refused(line: &str, words: &[&str]) {
    is_refusal(&run(line), words);
}

pub(crate) fn is_refusal(ended: &Ended, words: &[&str]) {
    ended.assert_error(2, words);
    let errors = ended.errors();
    assert!(errors.len() == 2 && errors[1].starts_with("help: "), "{ended:#?}");
    assert!(ended.output().is_empty(), "{ended:#?}");
}

/// The line of the parameters' digest.
pub(crate) fn digest(output: &str) -> &str {
    let line = output.lines().find(|line| line.contains(", digest "));
    line.unwrap_or_else(|| panic!("no digest: {output}"))
}

/// How good the model is on the test set: `test accuracy 97.1 % (97 of 100)`.
pub(crate) fn accuracy(output: &str) -> &str {
    let line = output.lines().find(|line| line.starts_with("test accuracy "));
    let line = line.unwrap_or_else(|| panic!("no accuracy: {output}"));
    line.split(',').next().unwrap()
}

/// The ranks' processes, from the line that names them.
pub(crate) fn pids(line: &str) -> Vec<Pid> {
    let numbers = line.split_whitespace().skip(1).map_while(|word| word.parse().ok());
    numbers.map(|number| Pid::from_raw(number).unwrap()).collect()
}

pub(crate) const ALLFOLD: &str = env!("CARGO_BIN_EXE_allfold-under-test");
