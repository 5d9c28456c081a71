//! Names that cannot be guessed.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

/// 16 random hex digits.
pub(crate) fn hex() -> io::Result<String> {
    let mut bytes = [0; 8];
    // So few bytes are never cut short, says the manual page.
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(format!("{:016x}", u64::from_ne_bytes(bytes)))
}
