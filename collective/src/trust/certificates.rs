//! This process's membership of its job: leaves to show, authorities to accept; and the TLS
//! configurations from them.

use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::digest;
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs as tls;
use rustls::crypto::aws_lc_rs::cipher_suite::{
    TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};
use webpki::EndEntityCert;

use super::Credentials;
use super::authority::{Authority, random_key};
use super::names::{JobNames, listed, names_of, of_secret};
use super::own::{self, OwnCertificates};
use super::secret::Secrets;
use super::verifier::{DiallerVerifier, RankVerifier, Seen};
use crate::error::{Error, Result};
use crate::probe::Cipher;

/// This process's membership of its job: its certificates, and the authorities it accepts.
#[derive(Clone)]
pub(crate) struct Membership {
    pub(super) names: Arc<JobNames>,
    pub(super) proof: Proof,
    /// When the ranks met, for links between those who did.
    met: Option<UnixTime>,
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    leaves: Arc<Leaves>,
    key: LeafHash,
}

/// By what a process proves that it belongs to the job.
#[derive(Clone)]
pub(super) enum Proof {
    /// The fingerprints of all secrets that it accepts, its own first.
    Secret(Vec<String>),
    Certificate {
        issuer: String,
        end: SystemTime,
    },
}

/// SHA-256 of a process's public key: the same in its leaf of every secret.
pub(crate) type LeafHash = [u8; 32];

impl Membership {
    pub(crate) fn new(credentials: &Credentials, job: &str, rank: u32) -> Result<Self> {
        match credentials {
            Credentials::Secrets(secrets) => Self::of_secrets(secrets, job, rank),
            Credentials::Certificates(own) => {
                let now = SystemTime::now();
                let end = own.check_dates(now)?;
                let membership = Self::of_certificates(own, job, rank, end)?;
                membership.check_own(own)?;
                own::warn_of_end(&own.place, end, now);
                Ok(membership)
            }
        }
    }

    fn of_secrets(secrets: &Secrets, job: &str, rank: u32) -> Result<Self> {
        let names = JobNames::new(job);
        let key = random_key()?;
        let signer = tls::default_provider()
            .key_provider
            .load_private_key(PrivatePkcs8KeyDer::from(key.serialize_der()).into())
            .map_err(|e| failed(&e))?;
        let mut roots = RootCertStore::empty();
        let (mut leaves, mut fingerprints) = (Vec::new(), Vec::new());
        for secret in secrets.all() {
            let (authority, certificate) = Authority::new(secret, job)?;
            roots.add(certificate).map_err(|e| failed(&e))?;
            let fingerprint = secret.fingerprint();
            let leaf = authority.sign(vec![names.dns(rank), of_secret(&fingerprint)], &key)?;
            fingerprints.push(fingerprint);
            leaves.push(CertifiedKey::new(vec![leaf], signer.clone()));
        }
        Self::build(names, Proof::Secret(fingerprints), roots, leaves)
    }

    /// Without a look at the clock.
    pub(super) fn of_certificates(
        own: &OwnCertificates,
        job: &str,
        rank: u32,
        end: SystemTime,
    ) -> Result<Self> {
        let names = JobNames::new(job);
        let leaf = own.chain.first().ok_or_else(|| failed(&"there is no certificate"))?;
        let given = names_of(leaf);
        if !names.allow(&given, rank) {
            return Err(own.wrong(format!(
                "is not for rank {rank} of job {}: among its subject alternative names must be \
                 URI:{} or DNS:{}; it has {}",
                names.job(),
                names.uri(rank),
                names.dns(rank),
                listed(&given)
            )));
        }
        let mut roots = RootCertStore::empty();
        for authority in &own.authorities {
            let unusable = |e| own.wrong(format!("ALLFOLD_TLS_CA holds what is unusable: {e}"));
            roots.add(authority.clone()).map_err(unusable)?;
        }
        let pair = CertifiedKey::from_der(own.chain.clone(), own.key.clone_key(), &provider());
        let pair = pair.map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                own.wrong("ALLFOLD_TLS_KEY is the key of another certificate".into())
            }
            error => own.wrong(format!("cannot be used with ALLFOLD_TLS_KEY: {error}")),
        })?;
        let proof = Proof::Certificate { issuer: own::issuer(leaf), end };
        Self::build(names, proof, roots, vec![pair])
    }

    fn build(
        names: JobNames,
        proof: Proof,
        roots: RootCertStore,
        leaves: Vec<CertifiedKey>,
    ) -> Result<Self> {
        let leaves: Vec<_> = leaves
            .into_iter()
            .map(Leaf::new)
            .collect::<Option<_>>()
            .ok_or_else(|| failed(&"a certificate cannot be read"))?;
        let first = leaves.first().and_then(|leaf| leaf_hash(leaf.pair.cert.first()?));
        Ok(Self {
            names: Arc::new(names),
            proof,
            met: None,
            provider: Arc::new(provider()),
            roots: Arc::new(roots),
            leaves: Arc::new(Leaves(leaves)),
            key: first.ok_or_else(|| failed(&"there is no certificate"))?,
        })
    }

    /// Judges the own certificate as the other ranks will: better here and now, with the file's
    /// name, than as everybody's refusal.
    fn check_own(&self, own: &OwnCertificates) -> Result<()> {
        let Some((leaf, between)) = own.chain.split_first() else { return Ok(()) };
        let algorithms = self.provider.signature_verification_algorithms.all;
        let as_server = ParsedCertificate::try_from(leaf).and_then(|leaf| {
            let now = UnixTime::now();
            rustls::client::verify_server_cert_signed_by_trust_anchor(
                &leaf,
                &self.roots,
                between,
                now,
                algorithms,
            )
        });
        let verifier = self.client_verifier()?;
        as_server
            .and_then(|()| verifier.verify_client_cert(leaf, between, UnixTime::now()))
            .map(|_| ())
            .map_err(|error| {
                own.wrong(match error {
                    // The second: of another authority with the same name.
                    rustls::Error::InvalidCertificate(
                        CertificateError::UnknownIssuer | CertificateError::BadSignature,
                    ) => {
                        format!(
                            "was not signed by an authority in ALLFOLD_TLS_CA (its issuer: {}), or \
                             a certificate between the two is missing behind it",
                            own::issuer(leaf)
                        )
                    }
                    error => format!("other ranks would not accept it: {error}"),
                })
            })
    }

    /// The same for links between the ranks of a world that met at that time. A certificate that
    /// was valid then is accepted for as long as the world lasts: for links that are held to the
    /// keys of the world table besides.
    pub(crate) fn after_meeting(&self, at: SystemTime) -> Self {
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { met: Some(UnixTime::since_unix_epoch(since)), ..self.clone() }
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

    /// `mutual TLS, secret 3f9a12c4`; `mutual TLS, certificate of CN=cluster, expires in 12 days`.
    pub(crate) fn security(&self) -> String {
        match &self.proof {
            Proof::Secret(fingerprints) => {
                let own = fingerprints.first().map_or("", String::as_str);
                format!("mutual TLS, secret {own}")
            }
            Proof::Certificate { issuer, end } => {
                let left = end.duration_since(SystemTime::now()).unwrap_or_default();
                let left = own::in_words(left);
                format!("mutual TLS, certificate of {issuer}, expires in {left}")
            }
        }
    }

    pub(crate) fn leaf_hash(&self) -> LeafHash {
        self.key
    }

    /// The name by which a rank is dialled.
    pub(crate) fn name_of(&self, rank: u32) -> String {
        self.names.dns(rank)
    }

    /// The hash of a verified certificate, if it speaks for that rank.
    pub(crate) fn identify(&self, leaf: &CertificateDer<'_>, rank: u32) -> Option<LeafHash> {
        self.names.allow(&names_of(leaf), rank).then(|| leaf_hash(leaf)).flatten()
    }

    /// TLS for dialling `rank`. `seen` keeps the certificate that it shows.
    pub(crate) fn client(&self, rank: u32, seen: Seen) -> Result<ClientConfig> {
        let stock =
            WebPkiServerVerifier::builder_with_provider(self.roots.clone(), self.provider.clone())
                .build()
                .map_err(|e| failed(&e))?;
        let verifier = RankVerifier {
            rank,
            names: self.names.clone(),
            roots: self.roots.clone(),
            provider: self.provider.clone(),
            stock,
            hints: self.roots.subjects(),
            met: self.met,
            seen,
        };
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| failed(&e))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(self.leaves.clone());
        config.alpn_protocols = vec![ALPN.to_vec(), ALPN_OF_ALL.to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        config.enable_early_data = false;
        Ok(config)
    }

    /// TLS for accepting: only members of the job.
    pub(crate) fn server(&self) -> Result<ServerConfig> {
        let verifier = DiallerVerifier { stock: self.client_verifier()?, met: self.met };
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| failed(&e))?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(self.leaves.clone());
        config.alpn_protocols = vec![ALPN.to_vec(), ALPN_OF_ALL.to_vec()];
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(config)
    }

    fn client_verifier(&self) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>> {
        WebPkiClientVerifier::builder_with_provider(self.roots.clone(), self.provider.clone())
            .build()
            .map_err(|e| failed(&e))
    }
}

/// What this process may show: with several secrets a leaf of each, all of one key.
#[derive(Debug)]
struct Leaves(Vec<Leaf>);

#[derive(Debug)]
struct Leaf {
    issuer: DistinguishedName,
    pair: Arc<CertifiedKey>,
}

impl Leaf {
    fn new(pair: CertifiedKey) -> Option<Self> {
        // Of a chain the peer knows the authority of its last certificate.
        let last = EndEntityCert::try_from(pair.cert.last()?).ok()?;
        let issuer = DistinguishedName::in_sequence(last.issuer());
        Some(Self { issuer, pair: Arc::new(pair) })
    }
}

impl Leaves {
    /// The first that the peer says it accepts, else the first: it may accept it all the same, or
    /// else says why not.
    fn choose(&self, accepted: impl Fn(&[u8]) -> bool) -> Option<Arc<CertifiedKey>> {
        let fits = self.0.iter().find(|leaf| accepted(leaf.issuer.as_ref()));
        fits.or(self.0.first()).map(|leaf| leaf.pair.clone())
    }
}

impl ResolvesClientCert for Leaves {
    fn resolve(&self, accepted: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.choose(|issuer| accepted.contains(&issuer))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Leaves {
    fn resolve(&self, client: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let accepted = client.certificate_authorities().unwrap_or_default();
        self.choose(|issuer| accepted.iter().any(|name| name.as_ref() == issuer))
    }
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

fn leaf_hash(leaf: &CertificateDer<'_>) -> Option<LeafHash> {
    let key = EndEntityCert::try_from(leaf).ok()?.subject_public_key_info();
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, key.as_ref()).as_ref());
    Some(hash)
}

fn failed(problem: &dyn std::fmt::Display) -> Error {
    Error::system("make the job's certificates", problem)
}

/// The protocol and its version.
pub const PROTOCOL: &str = "allfold/3";
pub(super) const ALPN: &[u8] = PROTOCOL.as_bytes();
/// What is left between versions: the dialler's hello begins with its version and rank, in all of
/// them alike, and is refused with both versions named.
pub(super) const ALPN_OF_ALL: &[u8] = b"allfold";
