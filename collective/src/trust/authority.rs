//! The authority of a secret: its key comes from the secret and the job's name by HKDF, so it is
//! the same on every rank and never travels.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519, PublicKeyData, SignatureAlgorithm, SigningKey,
};
use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::secret::Secret;
use crate::error::{Error, Result};

/// Signs leaves in the name of a secret, for one job.
pub(crate) struct Authority(Issuer<'static, Key>);

impl Authority {
    /// The authority and its own certificate. Validity times are not used: whoever holds the secret
    /// can sign anew, and a wrong clock would only break jobs.
    pub(crate) fn new(secret: &Secret, job: &str) -> Result<(Self, CertificateDer<'static>)> {
        let mut seed = Zeroizing::new([0; 32]);
        secret.derive("allfold authority", job, &mut seed[..]);
        let key = Key(Ed25519KeyPair::from_seed_unchecked(&seed[..]).map_err(|e| failed(&e))?);
        let mut params = CertificateParams::new(Vec::new()).map_err(|e| failed(&e))?;
        params.distinguished_name = DistinguishedName::new();
        // By this a process that knows several secrets finds the leaf that its peer accepts.
        let subject = format!("allfold job, secret {}", secret.fingerprint());
        params.distinguished_name.push(DnType::CommonName, subject);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).map_err(|e| failed(&e))?;
        Ok((Self(Issuer::new(params, key)), certificate.der().clone()))
    }

    /// A leaf of `key` with these names.
    pub(crate) fn sign(
        &self,
        names: Vec<String>,
        key: &KeyPair,
    ) -> Result<CertificateDer<'static>> {
        let mut params = CertificateParams::new(names).map_err(|e| failed(&e))?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "allfold rank");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(key, &self.0).map_err(|e| failed(&e))?;
        Ok(leaf.der().clone())
    }
}

/// A fresh key for a process.
pub(crate) fn random_key() -> Result<KeyPair> {
    KeyPair::generate_for(&PKCS_ED25519).map_err(|e| failed(&e))
}

/// rcgen's own key pair would keep a copy of the private key that nobody wipes.
struct Key(Ed25519KeyPair);

impl PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

impl SigningKey for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.0.sign(message).as_ref().to_vec())
    }
}

fn failed(problem: &dyn std::fmt::Display) -> Error {
    Error::system("make the job's certificates", problem)
}
