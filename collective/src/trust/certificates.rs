//! Secret -> certificate authority -> one leaf per process; and the TLS configurations from them.
//!
//! The authority's key comes from the secret and the job's name by HKDF, so it is the same on
//! every rank and never travels. Each process signs a leaf of its own random key. Validity times
//! are not used: whoever holds the secret can sign anew, and a wrong clock would only break jobs.

use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs as tls;
use rustls::crypto::aws_lc_rs::cipher_suite::{
    TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use webpki::EndEntityCert;
use zeroize::Zeroizing;

use super::secret::{Secret, Secrets, hex};
use crate::error::{Error, Result};
use crate::probe::Cipher;

/// This process's membership of its job: its certificate, and the authorities it accepts.
pub(crate) struct Membership {
    job_hash: String,
    fingerprint: String,
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    leaf: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
}

/// SHA-256 of a leaf certificate.
pub(crate) type LeafHash = [u8; 32];

impl Membership {
    pub(crate) fn new(secrets: &Secrets, job: &str, rank: u32) -> Result<Self> {
        let own = secrets.own().ok_or_else(|| failed(&"there is no secret"))?;
        let job_hash = hex(&digest::digest(&digest::SHA256, job.as_bytes()).as_ref()[..8]);
        let mut roots = RootCertStore::empty();
        for secret in secrets.all() {
            let (params, key) = authority(secret, job)?;
            let certificate = params.self_signed(&key).map_err(|e| failed(&e))?;
            roots.add(certificate.der().clone()).map_err(|e| failed(&e))?;
        }
        let fingerprint = own.fingerprint();
        let names = vec![member_name(rank, &job_hash), secret_name(&fingerprint)];
        let mut params = CertificateParams::new(names).map_err(|e| failed(&e))?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "allfold rank");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate_for(&PKCS_ED25519).map_err(|e| failed(&e))?;
        let (authority_params, authority_key) = authority(own, job)?;
        let issuer = Issuer::new(authority_params, authority_key);
        let leaf = params.signed_by(&key, &issuer).map_err(|e| failed(&e))?;
        Ok(Self {
            job_hash,
            fingerprint,
            provider: Arc::new(provider()),
            roots: Arc::new(roots),
            leaf: leaf.der().clone(),
            key: PrivatePkcs8KeyDer::from(key.serialize_der()),
        })
    }

    /// The same with one cipher alone.
    pub(crate) fn only(mut self, cipher: Cipher) -> Self {
        let suite = match cipher {
            Cipher::Aes128Gcm => TLS13_AES_128_GCM_SHA256,
            Cipher::Aes256Gcm => TLS13_AES_256_GCM_SHA384,
            Cipher::ChaCha20Poly1305 => TLS13_CHACHA20_POLY1305_SHA256,
        };
        self.provider = Arc::new(CryptoProvider { cipher_suites: vec![suite], ..provider() });
        self
    }

    /// The own secret's fingerprint.
    pub(crate) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    pub(crate) fn leaf_hash(&self) -> LeafHash {
        leaf_hash(&self.leaf)
    }

    /// The name that a rank's certificate carries.
    pub(crate) fn name_of(&self, rank: u32) -> String {
        member_name(rank, &self.job_hash)
    }

    /// The rank that a verified certificate speaks for, and its hash.
    pub(crate) fn identify(&self, leaf: &CertificateDer<'_>) -> Option<(u32, LeafHash)> {
        let suffix = format!(".{}.allfold", self.job_hash);
        let rank = dns_names(leaf)
            .iter()
            .find_map(|name| name.strip_suffix(&suffix)?.strip_prefix('r')?.parse().ok())?;
        Some((rank, leaf_hash(leaf)))
    }

    /// TLS for dialling. `seen` keeps the names of a certificate that was not accepted.
    pub(crate) fn client(&self, seen: Seen) -> Result<ClientConfig> {
        let stock =
            WebPkiServerVerifier::builder_with_provider(self.roots.clone(), self.provider.clone())
                .build()
                .map_err(|e| failed(&e))?;
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| failed(&e))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Witness { stock, seen }))
            .with_client_auth_cert(vec![self.leaf.clone()], self.private_key())
            .map_err(|e| failed(&e))?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        config.enable_early_data = false;
        Ok(config)
    }

    /// TLS for accepting: only members of the job.
    pub(crate) fn server(&self) -> Result<ServerConfig> {
        let stock =
            WebPkiClientVerifier::builder_with_provider(self.roots.clone(), self.provider.clone())
                .build()
                .map_err(|e| failed(&e))?;
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| failed(&e))?
            .with_client_cert_verifier(stock)
            .with_single_cert(vec![self.leaf.clone()], self.private_key())
            .map_err(|e| failed(&e))?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(config)
    }

    /// Why a certificate with these names was not accepted, in words; None if the names are those
    /// that were to be expected, and so give no reason.
    pub(crate) fn explain(&self, rank: u32, names: &[String]) -> Option<String> {
        let theirs = names.iter().find_map(|n| n.strip_prefix('s')?.strip_suffix(SECRET_SUFFIX))?;
        if theirs != self.fingerprint {
            return Some(format!("secret {} here, {theirs} on rank {rank}", self.fingerprint));
        }
        if !names.contains(&self.name_of(rank)) {
            let job = format!(".{}.allfold", self.job_hash);
            return Some(if names.iter().any(|name| name.ends_with(&job)) {
                format!("another rank than rank {rank} answers there")
            } else {
                "another job, under another ALLFOLD_JOB, answers there".into()
            });
        }
        None
    }

    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.clone_key())
    }
}

/// The names in the certificate that the peer showed, kept when it is not accepted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen(Arc<Mutex<Vec<String>>>);

impl Seen {
    pub(crate) fn names(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The stock verifier decides; this one only remembers whom it refused, so that the error can say
/// which secret the other side has.
#[derive(Debug)]
struct Witness {
    stock: Arc<WebPkiServerVerifier>,
    seen: Seen,
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verdict = self.stock.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        if verdict.is_err() {
            *self.seen.0.lock().unwrap_or_else(PoisonError::into_inner) = dns_names(end_entity);
        }
        verdict
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

/// The authority of a secret and a job: always the same subject, so that anchors are tried by key.
fn authority(secret: &Secret, job: &str) -> Result<(CertificateParams, KeyPair)> {
    let mut der = Zeroizing::new([0; PKCS8_PREFIX.len() + 32]);
    der[..PKCS8_PREFIX.len()].copy_from_slice(&PKCS8_PREFIX);
    secret.derive("allfold authority", job, &mut der[PKCS8_PREFIX.len()..]);
    let key = PrivatePkcs8KeyDer::from(&der[..]);
    let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ED25519).map_err(|e| failed(&e))?;
    let mut params = CertificateParams::new(Vec::new()).map_err(|e| failed(&e))?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "allfold job");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok((params, key))
}

/// aws-lc-rs with AES-128-GCM first: with AVX-512 or AES-NI it is the fastest, and 128 bits do.
fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            TLS13_AES_128_GCM_SHA256,
            TLS13_AES_256_GCM_SHA384,
            TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..tls::default_provider()
    }
}

/// Of the first packets, for any cipher of the others: RFC 9001, 5.
pub(crate) fn initial_suite() -> Result<rustls::quic::Suite> {
    let suite = TLS13_AES_128_GCM_SHA256.tls13().and_then(|suite| suite.quic_suite());
    suite.ok_or_else(|| Error::system("set up TLS for QUIC", "AES-128-GCM is missing"))
}

fn dns_names(leaf: &CertificateDer<'_>) -> Vec<String> {
    match EndEntityCert::try_from(leaf) {
        Ok(certificate) => certificate.valid_dns_names().map(str::to_string).collect(),
        Err(_) => Vec::new(),
    }
}

fn leaf_hash(leaf: &CertificateDer<'_>) -> LeafHash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, leaf).as_ref());
    hash
}

fn member_name(rank: u32, job_hash: &str) -> String {
    format!("r{rank}.{job_hash}.allfold")
}

fn secret_name(fingerprint: &str) -> String {
    format!("s{fingerprint}{SECRET_SUFFIX}")
}

fn failed(problem: &dyn std::fmt::Display) -> Error {
    Error::system("make the job's certificates", problem)
}

/// The protocol and its version: a peer of another version fails in the handshake.
const ALPN: &[u8] = b"allfold/1";
const SECRET_SUFFIX: &str = ".secret.allfold";
/// PKCS#8 version 1 of an Ed25519 key (RFC 8410): 32 bytes of seed follow.
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
