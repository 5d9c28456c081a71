//! The cipher suites of TLS 1.3, and how fast this processor encrypts with them.

use std::fmt;
use std::hint::black_box;
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::error::{Error, Result};

/// How the packets of a link are encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cipher {
    /// AES with 128 bits: the runtime's choice, the fastest with AES instructions.
    #[default]
    Aes128Gcm,
    /// AES with 256 bits.
    Aes256Gcm,
    /// The fastest without AES instructions.
    ChaCha20Poly1305,
}

/// What one core encrypts and decrypts, in bytes a second.
#[derive(Clone, Copy, Debug)]
pub struct EncryptionRates {
    /// Encrypting.
    pub seal: f64,
    /// Decrypting.
    pub open: f64,
}

impl Cipher {
    /// All of them.
    pub const ALL: &'static [Self] = &[Self::Aes128Gcm, Self::Aes256Gcm, Self::ChaCha20Poly1305];

    fn algorithm(self) -> &'static aead::Algorithm {
        match self {
            Self::Aes128Gcm => &aead::AES_128_GCM,
            Self::Aes256Gcm => &aead::AES_256_GCM,
            Self::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
        }
    }
}

impl fmt::Display for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aes128Gcm => "AES-128-GCM",
            Self::Aes256Gcm => "AES-256-GCM",
            Self::ChaCha20Poly1305 => "ChaCha20-Poly1305",
        })
    }
}

/// Encrypts and decrypts packets of `payload` bytes on the calling thread, each for `duration`, with
/// the library that TLS uses.
///
/// # Errors
/// [`ErrorKind::System`](crate::ErrorKind::System) if the library refuses.
pub fn encryption(cipher: Cipher, payload: usize, duration: Duration) -> Result<EncryptionRates> {
    let failed = |error| Error::system("encrypt for a measurement", error);
    let algorithm = cipher.algorithm();
    let key = UnboundKey::new(algorithm, &vec![7; algorithm.key_len()]).map_err(failed)?;
    let key = LessSafeKey::new(key);
    // One key and number for all packets: they hold nothing and go nowhere.
    let nonce = || Nonce::assume_unique_for_key([0; aead::NONCE_LEN]);
    let plain = vec![1; payload];
    let mut packet = plain.clone();
    key.seal_in_place_append_tag(nonce(), Aad::empty(), &mut packet).map_err(failed)?;
    let sealed = packet.clone();
    let seal = rate(payload, duration, || {
        let packet = &mut packet[..payload];
        key.seal_in_place_separate_tag(nonce(), Aad::empty(), packet).map(|tag| {
            black_box(tag.as_ref());
        })
    });
    // Opening works on the packet in place, so that each one is copied first.
    let mut copy = sealed.clone();
    let open = rate(payload, duration, || {
        copy.copy_from_slice(&sealed);
        key.open_in_place(nonce(), Aad::empty(), &mut copy).map(|plain| {
            black_box(plain.len());
        })
    });
    Ok(EncryptionRates { seal: seal.map_err(failed)?, open: open.map_err(failed)? })
}

/// Bytes a second.
fn rate<E>(
    bytes: usize,
    duration: Duration,
    mut packet: impl FnMut() -> Result<(), E>,
) -> Result<f64, E> {
    let begun = Instant::now();
    let mut packets = 0_u64;
    while packets == 0 || begun.elapsed() < duration {
        for _ in 0..PACKETS_BETWEEN_LOOKS {
            packet()?;
        }
        packets += PACKETS_BETWEEN_LOOKS;
    }
    let seconds = begun.elapsed().max(Duration::from_nanos(1)).as_secs_f64();
    Ok(packets as f64 * bytes as f64 / seconds)
}

/// At a microsecond each, looking at the clock does not show.
const PACKETS_BETWEEN_LOOKS: u64 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cipher_has_a_rate() {
        for cipher in Cipher::ALL {
            let rates = encryption(*cipher, 1200, Duration::ZERO).unwrap();
            assert!(rates.seal > 0.0 && rates.open > 0.0, "{cipher}: {rates:?}");
        }
    }
}
