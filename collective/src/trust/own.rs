//! Certificates of a cluster's own authority, in place of a secret: ALLFOLD_TLS_CERT, ALLFOLD_TLS_KEY
//! and ALLFOLD_TLS_CA.

use std::fmt;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;
use zeroize::Zeroizing;

use super::secret::is_no_path;
use crate::error::{Error, ErrorKind, Result};
use crate::identity::Environment;
use crate::report;

/// What the three files hold.
pub(crate) struct OwnCertificates {
    /// The rank's own certificate, then those between it and the authority.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) authorities: Vec<CertificateDer<'static>>,
    /// The file of the chain, as the user named it.
    pub(crate) place: String,
}

impl OwnCertificates {
    /// All three variables, or none.
    pub(crate) fn from_environment(environment: &Environment, rank: usize) -> Result<Option<Self>> {
        let [certificate, key, authorities] = NAMES.map(|name| environment.get(name));
        let (Some(certificate), Some(key), Some(authorities)) = (certificate, key, authorities)
        else {
            let given: Vec<&str> =
                NAMES.into_iter().filter(|name| environment.get(name).is_some()).collect();
            let Some(missing) = NAMES.into_iter().find(|name| environment.get(name).is_none())
            else {
                return Ok(None);
            };
            if given.is_empty() {
                return Ok(None);
            }
            return Err(ErrorKind::Setting {
                name: missing.into(),
                value: None,
                problem: format!(
                    "is not set, but {} {}",
                    given.join(" and "),
                    if given.len() == 1 { "is" } else { "are" }
                ),
                help: Some(format!(
                    "certificates of your own need {}; without them the job's secret is used",
                    NAMES.join(", ")
                )),
            }
            .into());
        };
        let in_kubernetes = environment.get("KUBERNETES_SERVICE_HOST").is_some();
        let own = Self::read([certificate, key, authorities].map(|path| of_rank(path, rank)))?;
        if !in_kubernetes {
            warn_of_readers(NAMES[1], &of_rank(key, rank));
        }
        Ok(Some(own))
    }

    /// Reads chain, key and authorities.
    pub(crate) fn read([chain, key, authorities]: [PathBuf; 3]) -> Result<Self> {
        for (path, name) in [&chain, &key, &authorities].into_iter().zip(NAMES) {
            if is_no_path(&path.to_string_lossy()) {
                return Err(ErrorKind::Setting {
                    name: name.into(),
                    value: None,
                    problem: "holds a key or certificate itself, not the path of a file".into(),
                    help: Some(format!(
                        "put it into a file, a key into one that only you can read, and the path of \
                         that into {name}"
                    )),
                }
                .into());
            }
        }
        let place = chain.display().to_string();
        let certificates = |path: &Path, name| {
            let text = read_file(path, name)?;
            let all: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&text)
                .collect::<Result<_, _>>()
                .map_err(|error| wrong(name, path, format!("is no PEM file: {error}")))?;
            match all.len() {
                0 => Err(wrong(name, path, "holds no certificate (-----BEGIN CERTIFICATE-----)")),
                n if n > MAX_CERTIFICATES => {
                    Err(wrong(name, path, format!("holds more than {MAX_CERTIFICATES}")))
                }
                _ => Ok(all),
            }
        };
        let text = read_file(&key, NAMES[1])?;
        // Its own words could quote the file.
        let no_key =
            |_| wrong(NAMES[1], &key, "holds no private key (-----BEGIN PRIVATE KEY-----)");
        Ok(Self {
            chain: certificates(&chain, NAMES[0])?,
            key: PrivateKeyDer::from_pem_slice(&text).map_err(no_key)?,
            authorities: certificates(&authorities, NAMES[2])?,
            place,
        })
    }

    /// When the first of the chain expires; an error if that is past, or one is not valid yet.
    pub(crate) fn check_dates(&self, now: SystemTime) -> Result<SystemTime> {
        let mut first = None;
        for der in &self.chain {
            let (_, certificate) = X509Certificate::from_der(der)
                .map_err(|error| self.wrong(format!("cannot be read: {error}")))?;
            let validity = certificate.validity();
            let subject = words(&certificate.subject().to_string());
            if now < time_of(validity.not_before) {
                return Err(self.wrong(format!(
                    "the certificate of {subject} is not valid before {}: is the clock of this \
                     host right?",
                    date(time_of(validity.not_before))
                )));
            }
            let end = time_of(validity.not_after);
            if end <= now {
                let problem = format!("the certificate of {subject} expired on {}", date(end));
                return Err(self.wrong(problem));
            }
            first = Some(first.map_or(end, |first: SystemTime| first.min(end)));
        }
        first.ok_or_else(|| self.wrong("holds no certificate".into()))
    }

    /// An error about the chain.
    pub(crate) fn wrong(&self, problem: String) -> Error {
        wrong(NAMES[0], Path::new(&self.place), problem)
    }
}

impl fmt::Debug for OwnCertificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "certificates from {}", self.place)
    }
}

/// Warns of what is to be renewed.
pub(crate) fn warn_of_end(place: &str, end: SystemTime, now: SystemTime) {
    let left = end.duration_since(now).unwrap_or_default();
    if left < WARN_BEFORE_END {
        report::warn(&format!(
            "the certificate in {place} expires in {}, on {}: from then on no job can start with it",
            in_words(left),
            date(end)
        ));
    }
}

/// Warns of a file that is meant for one user and can be read by all. In Kubernetes that is the
/// way files are mounted, and there is nobody else in a container.
pub(crate) fn warn_of_readers(name: &str, path: &Path) {
    if let Ok(meta) = std::fs::metadata(path)
        && meta.mode() & 0o004 != 0
    {
        let (path, mode) = (path.display(), meta.mode() & 0o777);
        report::warn(&format!(
            "{name}={path} can be read by every user of this host (mode {mode:03o}); chmod 600 it"
        ));
    }
}

/// Who signed a certificate, for people.
pub(crate) fn issuer(der: &CertificateDer<'_>) -> String {
    match X509Certificate::from_der(der) {
        Ok((_, certificate)) => words(&certificate.issuer().to_string()),
        Err(_) => "an unknown authority".into(),
    }
}

/// When a certificate expires, for people.
pub(crate) fn end_of(der: &CertificateDer<'_>) -> String {
    match X509Certificate::from_der(der) {
        Ok((_, certificate)) => date(time_of(certificate.validity().not_after)),
        Err(_) => "an unknown date".into(),
    }
}

/// `12 days`, `3 hours`, `1 minute`
pub(crate) fn in_words(left: Duration) -> String {
    let seconds = left.as_secs();
    let (count, unit) = match seconds {
        172_800.. => (seconds / 86_400, "day"),
        7_200.. => (seconds / 3_600, "hour"),
        _ => (seconds / 60, "minute"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

/// `2026-11-22 20:59 UTC`
pub(crate) fn date(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let Ok(time) = ASN1Time::from_timestamp(seconds.cast_signed()) else { return "no date".into() };
    let time = time.to_datetime();
    let (year, month, day) = (time.year(), u8::from(time.month()), time.day());
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", time.hour(), time.minute())
}

fn time_of(time: ASN1Time) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(time.timestamp().max(0).cast_unsigned())
}

fn words(name: &str) -> String {
    if name.is_empty() { "an unnamed authority".into() } else { report::printable(name) }
}

/// One value for all ranks may say where each finds its own.
fn of_rank(path: &str, rank: usize) -> PathBuf {
    path.replace("{rank}", &rank.to_string()).into()
}

fn read_file(path: &Path, name: &str) -> Result<Zeroizing<Vec<u8>>> {
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_FILE_BYTES as usize));
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES).read_to_end(&mut text))
        .map_err(|error| wrong(name, path, error.to_string()))?;
    match text.len() as u64 {
        MAX_FILE_BYTES => Err(wrong(name, path, format!("holds more than {MAX_FILE_BYTES} bytes"))),
        _ => Ok(text),
    }
}

fn wrong(name: &str, path: &Path, problem: impl Into<String>) -> Error {
    ErrorKind::Setting {
        name: name.into(),
        value: Some(path.display().to_string()),
        problem: problem.into(),
        help: Some("docs/security.md shows step by step how the three files are made".into()),
    }
    .into()
}

/// The variables, in the order of [`OwnCertificates::read`].
const NAMES: [&str; 3] = ["ALLFOLD_TLS_CERT", "ALLFOLD_TLS_KEY", "ALLFOLD_TLS_CA"];
/// A bundle of a cluster's authorities.
const MAX_CERTIFICATES: usize = 64;
/// Four kilobytes each.
const MAX_FILE_BYTES: u64 = 256 * 1024;
/// A week: the person who renews them has weekends.
const WARN_BEFORE_END: Duration = Duration::from_secs(7 * 24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_in_the_place_of_its_path_is_not_shown() {
        let key =
            "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIDI\n-----END PRIVATE KEY-----\n";
        for wrong in 0..NAMES.len() {
            let mut values = ["/no/cert.pem", "/no/key.pem", "/no/ca.pem"];
            values[wrong] = key;
            let pairs = [0, 1, 2].map(|at| (NAMES[at], values[at]));
            let read = OwnCertificates::from_environment(&Environment::from(pairs), 0);
            let error = read.unwrap_err();
            let problem = "holds a key or certificate itself, not the path of a file";
            assert_eq!(error.to_string(), format!("{} {problem}", NAMES[wrong]));
            let help = error.help().unwrap();
            assert!(help.contains(NAMES[wrong]) && !help.contains("MC4C"), "{help}");
        }
    }
}
