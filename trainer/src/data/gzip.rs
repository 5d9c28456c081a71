//! Unpacks gzip: members, one behind the other, and nothing else.

use std::fmt;
use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;

/// What the members of a file unpack to. As flate2's `MultiGzDecoder`, except that bytes which
/// begin no member are told from a member that ends early.
pub(super) struct Unpacked<R> {
    /// None once there is nothing more to come.
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> Unpacked<R> {
    /// From the start of the first member on.
    pub(super) fn new(packed: R) -> Self {
        Self { member: Some(GzDecoder::new(packed)) }
    }
}

impl<R: BufRead> Read for Unpacked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(member) = &mut self.member else {
                return Ok(0);
            };
            let read = member.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            let Some(mut packed) = self.member.take().map(GzDecoder::into_inner) else {
                return Ok(0);
            };
            match packed.fill_buf()?.first() {
                None => return Ok(0),
                Some(&byte) if byte == MAGIC[0] => self.member = Some(GzDecoder::new(packed)),
                Some(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, BytesBehind)),
            }
        }
    }
}

/// The error for bytes that begin no member.
#[derive(Debug)]
pub(super) struct BytesBehind;

impl BytesBehind {
    /// Whether it is the cause of this one.
    pub(super) fn is_in(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|cause| cause.is::<Self>())
    }
}

impl fmt::Display for BytesBehind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes behind the end of the gzip data")
    }
}

impl std::error::Error for BytesBehind {}

/// How a member starts.
pub(super) const MAGIC: [u8; 2] = [0x1f, 0x8b];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::file::gzip;

    fn unpack(packed: &[u8]) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        // Small pieces, so that members do not end where a piece does.
        let packed = io::BufReader::with_capacity(7, packed);
        Unpacked::new(packed).read_to_end(&mut bytes).map(|_| bytes)
    }

    #[test]
    fn members_follow_each_other() {
        let [one, two] = [gzip(b"one, "), gzip(b"two")];
        assert_eq!(unpack(&one).unwrap(), b"one, ");
        assert_eq!(unpack(&[&one[..], &gzip(b""), &two].concat()).unwrap(), b"one, two");
    }

    #[test]
    fn what_is_behind_is_told_from_what_is_missing() {
        let one = gzip(b"one");
        for behind in [&b"\0"[..], b"x", b"<html>more than a header of gzip</html>"] {
            let error = unpack(&[&one[..], behind].concat()).unwrap_err();
            assert!(BytesBehind::is_in(&error), "{behind:?}: {error}");
        }
        for length in 2..one.len() {
            let error = unpack(&one[..length]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{length}: {error}");
        }
        let error = unpack(&[&one[..], &one[..5]].concat()).unwrap_err();
        assert!(!BytesBehind::is_in(&error), "{error}");
    }
}
