//! Judges the certificates of ranks: of one that was dialled, and of one that dialled.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme,
};

use super::names::{JobNames, names_of};

/// The stock verifier in its two parts, chain and name. The chain, with dates and purpose, is
/// checked by rustls. The name is checked here, because a rank's may be a URI and rustls wants one
/// that DNS knows; it is read from the certificate with the parser that has just verified it.
#[derive(Debug)]
pub(crate) struct RankVerifier {
    pub(crate) rank: u32,
    pub(crate) names: Arc<JobNames>,
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) provider: Arc<CryptoProvider>,
    /// Checks signatures of handshakes.
    pub(crate) stock: Arc<WebPkiServerVerifier>,
    /// Tells the peer which of its leaves is of use.
    pub(crate) hints: Vec<DistinguishedName>,
    pub(crate) met: Option<UnixTime>,
    pub(crate) seen: Seen,
}

/// The stock verifier, but for when it takes a certificate for expired. The name is checked with
/// the hello, which says as which rank the peer comes.
#[derive(Debug)]
pub(crate) struct DiallerVerifier {
    pub(crate) stock: Arc<dyn ClientCertVerifier>,
    pub(crate) met: Option<UnixTime>,
}

/// The certificate that the peer showed, and why it was not accepted if it was not: for the error.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen(Arc<Mutex<Option<Shown>>>);

#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) leaf: CertificateDer<'static>,
    pub(crate) refused: Option<rustls::Error>,
}

impl Seen {
    pub(crate) fn get(&self) -> Option<Shown> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl RankVerifier {
    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        let leaf_read = &ParsedCertificate::try_from(leaf)?;
        let (roots, between) = (&self.roots, intermediates);
        unexpired(now, self.met, |at| {
            verify_server_cert_signed_by_trust_anchor(leaf_read, roots, between, at, algorithms)
        })?;
        match self.names.allow(&names_of(leaf), self.rank) {
            true => Ok(()),
            false => Err(CertificateError::NotValidForName.into()),
        }
    }
}

/// As `judge` says at `now`. Where the ranks have met, a certificate that has expired since is as
/// good as it was then: a job outlives it.
fn unexpired<T>(
    now: UnixTime,
    met: Option<UnixTime>,
    judge: impl Fn(UnixTime) -> Result<T, rustls::Error>,
) -> Result<T, rustls::Error> {
    use CertificateError::{Expired, ExpiredContext};
    match (judge(now), met) {
        (Err(rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. })), Some(met)) => {
            judge(met)
        }
        (judgement, _) => judgement,
    }
}

impl ServerCertVerifier for RankVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        // The name that was dialled is the one that the secret's leaves have; `rank` says it all.
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let refused = self.judge(end_entity, intermediates, now).err();
        let shown = Shown { leaf: end_entity.clone().into_owned(), refused: refused.clone() };
        *self.seen.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(shown);
        refused.map_or_else(|| Ok(ServerCertVerified::assertion()), Err)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.stock.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.stock.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.stock.supported_verify_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        Some(&self.hints)
    }
}

impl ClientCertVerifier for DiallerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.stock.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let judge = |at| self.stock.verify_client_cert(end_entity, intermediates, at);
        unexpired(now, self.met, judge)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.stock.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.stock.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.stock.supported_verify_schemes()
    }
}
