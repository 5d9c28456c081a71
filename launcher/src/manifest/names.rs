//! Names and quantities, as Kubernetes takes them.

use crate::error::Error;

/// The name of the objects. It becomes part of host names and labels, whose limit is 63.
pub(super) fn check_name(option: &str, name: &str) -> Result<(), Error> {
    refuse_secret(option, name)?;
    let begins = name.starts_with(|first: char| first.is_ascii_lowercase());
    if begins && is_label(name) && name.len() <= MAX_NAME {
        return Ok(());
    }
    Err(bad(
        option,
        name,
        &format!(
            "lower-case letters, digits and dashes, a letter first, no dash last, at most \
             {MAX_NAME} characters"
        ),
    ))
}

/// A namespace: a DNS label.
pub(super) fn check_label(option: &str, name: &str) -> Result<(), Error> {
    refuse_secret(option, name)?;
    match is_label(name) && name.len() <= MAX_LABEL {
        true => Ok(()),
        false => Err(bad(
            option,
            name,
            &format!(
                "lower-case letters, digits and dashes, no dash first or last, at most \
                 {MAX_LABEL} characters"
            ),
        )),
    }
}

/// A Secret or a claim: a DNS subdomain.
pub(super) fn check_subdomain(option: &str, name: &str) -> Result<(), Error> {
    refuse_secret(option, name)?;
    match name.split('.').all(is_label) && name.len() <= MAX_SUBDOMAIN {
        true => Ok(()),
        false => Err(bad(
            option,
            name,
            &format!(
                "lower-case letters, digits, dashes and dots, at most {MAX_SUBDOMAIN} characters"
            ),
        )),
    }
}

/// An image's reference, as far as it can be told without a registry.
pub(super) fn check_image(option: &str, image: &str) -> Result<(), Error> {
    refuse_secret(option, image)?;
    let is_kept = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:@".contains(&byte);
    let begins = image.starts_with(|first: char| first.is_ascii_alphanumeric());
    match begins && image.bytes().all(is_kept) {
        true => Ok(()),
        false => Err(bad(option, image, "an image's name, as in registry.example/allfold:0.1.0")),
    }
}

/// Whether the image may be another one tomorrow.
pub(super) fn is_movable(image: &str) -> bool {
    let name = image.rsplit('/').next().unwrap_or(image);
    match (name.contains('@'), name.split_once(':')) {
        (true, _) => false,
        (false, tag) => tag.is_none_or(|(_, tag)| tag == "latest"),
    }
}

/// A number of cores.
pub(super) fn check_cores(option: &str, text: &str) -> Result<(), Error> {
    refuse_secret(option, text)?;
    match is_positive(text.strip_suffix('m').unwrap_or(text)) {
        true => Ok(()),
        false => Err(bad(option, text, "a number of cores such as 4, 0.5 or 500m")),
    }
}

/// A number of bytes with its unit: 8 and 8m are bytes and thousandths of them, which nobody means.
pub(super) fn check_size(option: &str, text: &str) -> Result<(), Error> {
    refuse_secret(option, text)?;
    let number = UNITS.iter().find_map(|unit| text.strip_suffix(unit));
    match number.is_some_and(is_positive) {
        true => Ok(()),
        false => Err(bad(option, text, "a size with its unit such as 512Mi or 8Gi")),
    }
}

/// What a secret looks like must not be shown, nor printed into a manifest.
pub(super) fn is_secret(text: &str) -> bool {
    let text = text.trim();
    text.len() == SECRET_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn refuse_secret(option: &str, text: &str) -> Result<(), Error> {
    match is_secret(text) {
        false => Ok(()),
        true => Err(Error::Usage {
            problem: format!("{option} looks like a secret itself, which no manifest may hold"),
            help: Some(
                "give the name of a Secret, and make that by `kubectl create secret`; the first \
                 lines of a manifest say how"
                    .into(),
            ),
        }),
    }
}

fn bad(option: &str, value: &str, wanted: &str) -> Error {
    let value: String = value.chars().take(MAX_SHOWN).flat_map(char::escape_debug).collect();
    Error::Usage {
        problem: format!("{option} {value}: must be {wanted}"),
        help: Some("see `allfold manifest --help`".into()),
    }
}

fn is_label(text: &str) -> bool {
    let is_kept = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(is_kept) && !text.starts_with('-') && !text.ends_with('-')
}

/// Digits, and perhaps a point between them.
fn is_positive(text: &str) -> bool {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    is_digits(whole)
        && is_digits(part)
        && text.len() <= MAX_DIGITS
        && text.bytes().any(|b| (b'1'..=b'9').contains(&b))
}

/// Of a DNS label (RFC 1123), less `-ranks-0-65535-` and five random characters, which JobSet and
/// Job add to it for their pods.
const MAX_NAME: usize = MAX_LABEL - 20;
const MAX_LABEL: usize = 63;
/// Of a DNS name.
const MAX_SUBDOMAIN: usize = 253;
/// Of a word that is refused: more says nothing.
const MAX_SHOWN: usize = 80;
/// More than any host has.
const MAX_DIGITS: usize = 12;
/// 32 bytes in hexadecimal.
const SECRET_DIGITS: usize = 64;
const UNITS: [&str; 8] = ["Ki", "Mi", "Gi", "Ti", "k", "M", "G", "T"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let long = "a".repeat(MAX_NAME + 1);
        for good in ["trainer", "a", "a-1", &long[1..]] {
            assert!(check_name("--name", good).is_ok(), "{good}");
        }
        for bad in ["", "Trainer", "1a", "-a", "a-", "a.b", "a_b", "é", "a\nb", &long] {
            assert!(check_name("--name", bad).is_err(), "{bad}");
        }
        assert!(check_label("--namespace", "1a").is_ok());
        assert!(check_subdomain("--secret", "a.b-c.1").is_ok());
        for bad in ["", ".", "a..b", "a.", "a/b", "A"] {
            assert!(check_subdomain("--secret", bad).is_err(), "{bad}");
        }
        let error = check_name("--name", "a\nb").unwrap_err().to_string();
        assert!(error.starts_with(r"--name a\nb: must be lower-case letters"), "{error}");
    }

    #[test]
    fn the_longest_name_fits_into_a_pods() {
        let pod = format!("{}-ranks-0-65535-abcde", "a".repeat(MAX_NAME));
        assert_eq!(pod.len(), MAX_LABEL);
    }

    #[test]
    fn quantities() {
        for good in ["4", "0.5", "500m", "64"] {
            assert!(check_cores("--cpu", good).is_ok(), "{good}");
        }
        for bad in ["", "0", "0.0", "-1", "4Gi", "m", ".5", "1e3", "4 ", "inf", "9999999999999"] {
            assert!(check_cores("--cpu", bad).is_err(), "{bad}");
        }
        for good in ["8Gi", "1.5Gi", "512Mi", "16G"] {
            assert!(check_size("--memory", good).is_ok(), "{good}");
        }
        for bad in ["8", "8m", "0Gi", "Gi", "8gi", "8GB", "8 Gi", "-8Gi"] {
            assert!(check_size("--memory", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn images() {
        for (image, movable) in [
            ("allfold", true),
            ("r.example:5000/allfold", true),
            ("r.example:5000/allfold:latest", true),
            ("r.example:5000/allfold:0.1.0", false),
            ("allfold@sha256:0123", false),
        ] {
            assert!(check_image("--image", image).is_ok(), "{image}");
            assert_eq!(is_movable(image), movable, "{image}");
        }
        for bad in ["", "a b", "-x", "a\n", "a;b", "a#b"] {
            assert!(check_image("--image", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_secret_is_never_shown() {
        let secret = "0123456789abcdef".repeat(4);
        for check in
            [check_name, check_label, check_subdomain, check_image, check_cores, check_size]
        {
            for text in [secret.clone(), secret.to_uppercase(), format!("{secret}\n")] {
                let error = check("--x", &text).unwrap_err();
                let shown = format!("{error} {:?}", error.help()).to_lowercase();
                assert!(!shown.contains(&secret[..8]), "{shown}");
            }
        }
    }
}
