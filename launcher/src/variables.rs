//! `--env NAME[=V]`: what the user sets for all ranks.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use crate::environment::OWN_NAMES;
use crate::error::Error;

/// A variable and its value.
pub(crate) type Variable = (OsString, OsString);

/// Finds what cannot be before any rank starts.
pub(crate) fn parse(words: &[OsString]) -> Result<Vec<Variable>, Error> {
    words.iter().map(|word| variable(word, |name| std::env::var_os(name))).collect()
}

fn variable(
    word: &OsStr,
    inherited: impl Fn(&OsStr) -> Option<OsString>,
) -> Result<Variable, Error> {
    let bytes = word.as_bytes();
    let end = bytes.iter().position(|byte| *byte == b'=');
    let name = OsStr::from_bytes(&bytes[..end.unwrap_or(bytes.len())]);
    // Only the name: the value may be a secret.
    let refuse = |problem: String, help: String| Error::Usage {
        problem: format!("--env {}: {problem}", name.display()),
        help: Some(help),
    };
    if name.is_empty() {
        let problem = "--env: a variable has a name".into();
        return Err(Error::Usage { problem, help: Some("--env NAME=VALUE".into()) });
    }
    let shown = name.display();
    if OWN_NAMES.iter().any(|own| name == *own) {
        return Err(refuse(
            format!("allfold run itself sets or removes {shown}"),
            "drop it; docs/launcher.md lists what each rank gets".into(),
        ));
    }
    let value = match end {
        Some(end) => OsStr::from_bytes(bytes.get(end + 1..).unwrap_or_default()).to_owned(),
        None => inherited(name).ok_or_else(|| {
            refuse("not set here".into(), format!("export it, or give a value: --env {shown}=V"))
        })?,
    };
    Ok((name.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(word: &str) -> Result<(String, String), String> {
        let inherited = |name: &OsStr| (name == "HERE").then(|| "yes".into());
        let text = |text: OsString| text.into_string().unwrap();
        variable(OsStr::new(word), inherited)
            .map(|(name, value)| (text(name), text(value)))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_name_and_a_value() {
        let pair = |name: &str, value: &str| Ok((name.into(), value.into()));
        assert_eq!(parsed("A=b"), pair("A", "b"));
        assert_eq!(parsed("A=b=c d"), pair("A", "b=c d"));
        assert_eq!(parsed("A="), pair("A", ""));
        assert_eq!(parsed("HERE"), pair("HERE", "yes"));
        assert_eq!(parsed("NOT_HERE").unwrap_err(), "--env NOT_HERE: not set here");
        assert_eq!(parsed("=b").unwrap_err(), "--env: a variable has a name");
        for (own, name) in [
            ("RANK=3", "RANK"),
            ("ALLFOLD_SECRET=3f9a12c4", "ALLFOLD_SECRET"),
            ("MASTER_PORT", "MASTER_PORT"),
        ] {
            assert_eq!(
                parsed(own).unwrap_err(),
                format!("--env {name}: allfold run itself sets or removes {name}")
            );
        }
    }
}
