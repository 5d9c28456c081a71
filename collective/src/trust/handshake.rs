//! Why a handshake failed, in words, for both ends: as far as either can know. TLS tells the end
//! that was refused no more than one of its alerts.

use std::net::SocketAddr;

use quinn::{ConnectionError, TransportErrorCode};
use rustls::CertificateError;
use rustls::pki_types::CertificateDer;

use super::certificates::{ALPN, Membership, Proof};
use super::hello::DialError;
use super::names::{listed, names_of, secret_in};
use super::own;
use super::verifier::{Seen, Shown};
use crate::report;

/// Why dialling `rank` failed. `seen` belongs to the connection's verifier.
pub(super) fn why_not_reached(
    membership: &Membership,
    rank: u32,
    address: SocketAddr,
    seen: &Seen,
    error: &ConnectionError,
) -> DialError {
    // Whoever answers there gives its own words when it hangs up.
    let words = report::printable(&error.to_string());
    if let ConnectionError::ConnectionClosed(close) = error
        && close.error_code == TransportErrorCode::CONNECTION_REFUSED
    {
        return DialError::Busy(format!("{address}: {words}"));
    }
    let Some(alert) = alert_of(error) else {
        return DialError::Retry(format!("{address}: {words}"));
    };
    let shown = seen.get();
    if let Some(Shown { leaf, refused: Some(refused) }) = &shown
        && let Some(reason) = who_else(membership, rank, &names_of(leaf), refused)
    {
        return DialError::Elsewhere(reason);
    }
    let reason = match &shown {
        Some(Shown { leaf, refused: Some(refused) }) => {
            let names = names_of(leaf);
            why_refused_here(membership, rank, leaf, &names, refused)
        }
        _ => None,
    };
    let reason = reason.or_else(|| {
        let names = shown.map(|shown| names_of(&shown.leaf)).unwrap_or_default();
        why_refused_there(membership, rank, &names, alert)
    });
    DialError::Final(reason.unwrap_or_else(|| {
        format!("rank {rank} at {address} and this process do not accept each other: {words}")
    }))
}

/// Why `from` was not let in; None if the handshake did not fail over trust. `server_name` is the
/// name it dialled, where that is known.
pub(super) fn why_not_let_in(
    membership: &Membership,
    from: SocketAddr,
    server_name: Option<&str>,
    error: &ConnectionError,
) -> Option<String> {
    let alert = alert_of(error)?;
    let refused_here = matches!(error, ConnectionError::TransportError(_));
    let another_job = another_job(membership, server_name);
    let reason = match (&membership.proof, alert, another_job) {
        (_, Alert::NO_APPLICATION_PROTOCOL, _) => {
            let ours = String::from_utf8_lossy(ALPN);
            format!("it does not speak {ours}: it is another version of allfold, or no allfold")
        }
        (_, _, Some(reason)) => reason,
        (Proof::Secret(known), Alert::UNKNOWN_CA, _) => {
            let secrets = secrets(known);
            format!("it has another secret (here: {secrets}), or certificates of its own")
        }
        (Proof::Certificate { issuer, .. }, Alert::UNKNOWN_CA, _) => match refused_here {
            true => "its certificate is of an authority that ALLFOLD_TLS_CA here does not hold, \
                     or made of a secret"
                .to_string(),
            false => format!(
                "it does not know the authority of this rank's certificate ({issuer}), or it has \
                 a secret and no certificates"
            ),
        },
        (_, Alert::EXPIRED, _) => match refused_here {
            true => "its certificate has expired or is not valid yet".into(),
            false => "it takes this rank's certificate for expired or not valid yet".into(),
        },
        (_, Alert::CERTIFICATE_REQUIRED, _) => "it showed no certificate".into(),
        (_, Alert::BAD_CERTIFICATE, _) if !refused_here => {
            "it awaited another rank or another job here".into()
        }
        _ => {
            let words = report::printable(&error.to_string());
            format!("it and this rank do not accept each other: {words}")
        }
    };
    Some(format!("refused a process at {from}: {reason}"))
}

/// The words for who dialled another job's rank here; None for one who did not.
pub(super) fn another_job(membership: &Membership, server_name: Option<&str>) -> Option<String> {
    let job = membership.names.job();
    let is_another = server_name.is_some_and(|name| membership.names.is_another_job(name));
    is_another.then(|| format!("it belongs to another job (ALLFOLD_JOB is {job} here)"))
}

/// This process did not accept the certificate that rank `rank` showed.
fn why_refused_here(
    membership: &Membership,
    rank: u32,
    leaf: &CertificateDer<'_>,
    names: &[String],
    refused: &rustls::Error,
) -> Option<String> {
    let rustls::Error::InvalidCertificate(problem) = refused else { return None };
    match (&membership.proof, secret_in(names)) {
        (Proof::Secret(known), Some(theirs)) if !known.iter().any(|own| own == theirs) => {
            Some(format!("secret {} here, {theirs} on rank {rank}", secrets(known)))
        }
        (Proof::Secret(_), None) => Some(format!(
            "rank {rank} has certificates of its own (ALLFOLD_TLS_CERT), this rank a secret: all \
             ranks need the one or the other"
        )),
        (Proof::Certificate { .. }, Some(theirs)) => Some(format!(
            "rank {rank} has a secret ({theirs}), this rank certificates of its own \
             (ALLFOLD_TLS_CERT): all ranks need the one or the other"
        )),
        _ => None,
    }
    .or_else(|| {
        use CertificateError::{
            BadSignature, Expired, ExpiredContext, NotValidForName, NotValidYet, NotValidYetContext,
            UnknownIssuer,
        };
        match problem {
            Expired | ExpiredContext { .. } => Some(format!(
                "the certificate of rank {rank} expired on {}, or the clock of this host is wrong",
                own::end_of(leaf)
            )),
            NotValidYet | NotValidYetContext { .. } => Some(format!(
                "the certificate of rank {rank} is not valid yet, or the clock of this host is wrong"
            )),
            // The second: of another authority with the same name.
            UnknownIssuer | BadSignature => Some(format!(
                "the certificate of rank {rank} was not signed by an authority in ALLFOLD_TLS_CA \
                 (its issuer: {})",
                own::issuer(leaf)
            )),
            NotValidForName => None,
            _ => None,
        }
    })
}

/// Who answers in the place of `rank`, as its certificate says, if it is not for that rank.
fn who_else(
    membership: &Membership,
    rank: u32,
    names: &[String],
    refused: &rustls::Error,
) -> Option<String> {
    use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    let rustls::Error::InvalidCertificate(problem) = refused else { return None };
    // Those have reasons of their own, which come first.
    let has_another_proof = match (&membership.proof, secret_in(names)) {
        (Proof::Secret(known), Some(theirs)) => !known.iter().any(|own| own == theirs),
        (Proof::Secret(_), None) | (Proof::Certificate { .. }, Some(_)) => true,
        (Proof::Certificate { .. }, None) => false,
    };
    let is_of_another_day = matches!(
        problem,
        Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. }
    );
    if has_another_proof || is_of_another_day {
        return None;
    }
    // An authority made of the secret is another one for each job.
    if names_another_rank(membership, rank, names) {
        return Some(format!("{ANOTHER_RANK}{rank} answers there"));
    }
    (!membership.names.are_of_job(names)).then(|| {
        format!(
            "another job, under another ALLFOLD_JOB, answers there: its certificate has {}",
            listed(names)
        )
    })
}

/// Rank `rank` did not accept this process, or could not talk to it.
fn why_refused_there(
    membership: &Membership,
    rank: u32,
    names: &[String],
    alert: Alert,
) -> Option<String> {
    Some(match (&membership.proof, alert) {
        (_, Alert::NO_APPLICATION_PROTOCOL) => {
            let ours = String::from_utf8_lossy(ALPN);
            format!("rank {rank} runs another version of allfold: it does not speak {ours}")
        }
        (Proof::Secret(known), Alert::UNKNOWN_CA) => {
            let theirs = secret_in(names).unwrap_or("another");
            format!("rank {rank} does not know secret {}; it has {theirs}", secrets(known))
        }
        (Proof::Certificate { issuer, .. }, Alert::UNKNOWN_CA) => format!(
            "rank {rank} does not know the authority of this rank's certificate ({issuer}): its \
             ALLFOLD_TLS_CA does not hold it"
        ),
        (Proof::Certificate { end, .. }, Alert::EXPIRED) => format!(
            "rank {rank} takes this rank's certificate (valid until {}) for expired or not valid \
             yet: the clock of one of the two hosts is wrong, or it has just expired",
            own::date(*end)
        ),
        _ => return None,
    })
}

fn names_another_rank(membership: &Membership, rank: u32, names: &[String]) -> bool {
    membership.names.are_of_job(names) && !membership.names.allow(names, rank)
}

/// `3f9a12c4`; where there are several, `3f9a12c4 (and 77b01e9d)`.
fn secrets(known: &[String]) -> String {
    match known {
        [own] => own.clone(),
        [own, others @ ..] => format!("{own} (and {})", others.join(", ")),
        [] => "none".into(),
    }
}

/// A TLS alert, sent or received.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Alert(u8);

impl Alert {
    const BAD_CERTIFICATE: Self = Self(42);
    const EXPIRED: Self = Self(45);
    const UNKNOWN_CA: Self = Self(48);
    const DECRYPT_ERROR: Self = Self(51);
    const CERTIFICATE_REQUIRED: Self = Self(116);
    const NO_APPLICATION_PROTOCOL: Self = Self(120);
}

/// The alert over which a connection failed, if it was one.
fn alert_of(error: &ConnectionError) -> Option<Alert> {
    let code = match error {
        ConnectionError::TransportError(error) => u64::from(error.code),
        ConnectionError::ConnectionClosed(close) => u64::from(close.error_code),
        _ => return None,
    };
    let alert = u8::try_from(code.checked_sub(FIRST_ALERT)?).ok().map(Alert)?;
    // An authority that is unknown, but has the name of one that is known.
    Some(if alert == Alert::DECRYPT_ERROR { Alert::UNKNOWN_CA } else { alert })
}

/// With what the words begin for a rank of this job in the place of another.
pub(crate) const ANOTHER_RANK: &str = "another rank than rank ";
/// An alert's error code in QUIC is this plus the alert: RFC 9001, 4.8.
const FIRST_ALERT: u64 = 0x100;
