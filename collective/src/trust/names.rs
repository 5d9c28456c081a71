//! The names in certificates: which rank of which job a process may be.

use aws_lc_rs::digest;
use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

use super::secret::hex;
use crate::report;

/// The names that a job's ranks have.
#[derive(Debug)]
pub(crate) struct JobNames {
    job: String,
    /// Eight bytes of the SHA-256 of the job's name, as hexadecimal digits: a job may be called
    /// what no host can be.
    hash: String,
}

impl JobNames {
    pub(crate) fn new(job: &str) -> Self {
        let hash = hex(&digest::digest(&digest::SHA256, job.as_bytes()).as_ref()[..8]);
        Self { job: job.into(), hash }
    }

    pub(crate) fn job(&self) -> &str {
        &self.job
    }

    /// `r3.37a8eec1ce19687d.allfold`
    pub(crate) fn dns(&self, rank: u32) -> String {
        format!("r{rank}.{}{DOMAIN}", self.hash)
    }

    /// `allfold://train-7/3`; what RFC 3986 does not let stand there is written as %20.
    pub(crate) fn uri(&self, rank: u32) -> String {
        let written = |byte: u8| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        };
        let job: String = self.job.bytes().map(written).collect();
        format!("{SCHEME}{job}/{rank}")
    }

    /// Whether a certificate with these names may speak for the rank.
    pub(crate) fn allow(&self, names: &[String], rank: u32) -> bool {
        let (dns, uri) = (self.dns(rank), self.uri(rank));
        names.iter().any(|name| *name == dns || *name == uri)
    }

    /// Whether one of the names is of this job, whichever rank's.
    pub(crate) fn are_of_job(&self, names: &[String]) -> bool {
        let domain = format!(".{}{DOMAIN}", self.hash);
        let uri = self.uri(0);
        let uri = uri.trim_end_matches('0');
        names.iter().any(|name| name.ends_with(&domain) || name.starts_with(uri))
    }

    /// Whether whoever dialled with this server name means another job.
    pub(crate) fn is_another_job(&self, server_name: &str) -> bool {
        server_name.ends_with(DOMAIN) && !self.are_of_job(&[server_name.into()])
    }
}

/// The DNS names and URIs of a certificate. Whoever reads them verifies the certificate with the
/// same parser: two that disagree would be a way in.
pub(crate) fn names_of(leaf: &CertificateDer<'_>) -> Vec<String> {
    let Ok(certificate) = EndEntityCert::try_from(leaf) else { return Vec::new() };
    let dns = certificate.valid_dns_names();
    dns.chain(certificate.valid_uri_names()).map(str::to_string).collect()
}

/// Names of a certificate, to be shown.
pub(crate) fn listed(names: &[String]) -> String {
    if names.is_empty() {
        return "no name".into();
    }
    let more = if names.len() > MAX_LISTED { ", ..." } else { "" };
    let names: Vec<&str> = names.iter().take(MAX_LISTED).map(String::as_str).collect();
    report::printable(&format!("{}{more}", names.join(", ")))
}

/// What a leaf made of a secret carries beside its rank: the secret's fingerprint.
pub(crate) fn of_secret(fingerprint: &str) -> String {
    format!("s{fingerprint}{SECRET_DOMAIN}")
}

/// The fingerprint of the secret that a leaf with these names was made of. A URI can hold anything,
/// and a fingerprint is shown.
pub(crate) fn secret_in(names: &[String]) -> Option<&str> {
    names.iter().find_map(|name| {
        let found = name.strip_prefix('s')?.strip_suffix(SECRET_DOMAIN)?;
        let is_one = found.len() == 8 && found.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_one.then_some(found)
    })
}

const DOMAIN: &str = ".allfold";
const SECRET_DOMAIN: &str = ".secret.allfold";
const SCHEME: &str = "allfold://";
/// A certificate for the web may carry a hundred.
const MAX_LISTED: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_is_named_by_either_form_and_no_other() {
        let names = JobNames::new("default");
        assert_eq!(names.dns(3), "r3.37a8eec1ce19687d.allfold");
        assert_eq!(names.uri(3), "allfold://default/3");
        for good in ["r3.37a8eec1ce19687d.allfold", "allfold://default/3"] {
            assert!(names.allow(&["x".into(), good.into()], 3), "{good}");
            assert!(!names.allow(&[good.into()], 30));
        }
        for bad in ["r3.37a8eec1ce19687d.allfold.evil", "allfold://default/03", "allfold://x/3"] {
            assert!(!names.allow(&[bad.into()], 3), "{bad}");
        }
        assert!(names.are_of_job(&["allfold://default/9".into()]));
        assert!(!names.are_of_job(&["allfold://default-2/9".into()]));
        assert!(names.is_another_job(&JobNames::new("other").dns(0)));
        assert!(!names.is_another_job("example.org"));
        assert_eq!(JobNames::new("a b/c").uri(0), "allfold://a%20b%2Fc/0");
    }

    #[test]
    fn a_fingerprint_is_eight_digits_and_nothing_else() {
        let found = |name: &str| secret_in(&[name.to_string()]).map(str::to_string);
        assert_eq!(found(&of_secret("3f9a12c4")).as_deref(), Some("3f9a12c4"));
        // What a URI in a stranger's certificate may hold.
        for other in ["3f9a\x1b[2J", "3f9a12c", "3f9a12c4\n", "", &"3".repeat(10_000)] {
            assert_eq!(found(&of_secret(other)), None, "{other:?}");
        }
    }
}
