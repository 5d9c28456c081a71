//! A file of the user's: opened, unpacked where it is packed, and named in every error.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use super::gzip::{BytesBehind, MAGIC, Unpacked};
use crate::error::{Error, Result};

/// A file to read from, whether it is packed by gzip or not.
pub(super) struct Source {
    path: PathBuf,
    reader: Box<dyn Read>,
    most: u64,
    packed: bool,
}

impl Source {
    /// Opens a regular file that is not empty. Its first bytes say whether it is packed, not its
    /// name.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let failed = |error: io::Error| bad(path, unreadable(&error), LOOK_AT_PATH);
        // Before it is opened: to open a pipe waits for somebody who writes.
        let about = path.metadata().map_err(failed)?;
        if !about.is_file() {
            let what = if about.is_dir() { "is a directory" } else { "is no regular file" };
            return Err(bad(path, what, LOOK_AT_PATH));
        }
        let mut file = File::open(path).map_err(failed)?;
        let mut start = [0; MAGIC.len()];
        let read = read_up_to(&mut file, &mut start).map_err(failed)?;
        if read == 0 {
            return Err(bad(path, "the file is empty", GET_AGAIN));
        }
        file.rewind().map_err(failed)?;
        let packed = start == MAGIC;
        let (most, reader): (u64, Box<dyn Read>) = if packed {
            let file = BufReader::with_capacity(BUFFER, file);
            (about.len().saturating_mul(MOST_PACKED), Box::new(Unpacked::new(file)))
        } else {
            (about.len(), Box::new(file))
        };
        Ok(Self { path: path.into(), reader, most, packed })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The bytes that can come out of it at most.
    pub(super) fn most(&self) -> u64 {
        self.most
    }

    /// Whether it is packed, so that places in it are not those of the file on disk.
    pub(super) fn is_packed(&self) -> bool {
        self.packed
    }

    /// Reads up to `limit` further bytes, fewer at the end of the file.
    pub(super) fn read(&mut self, limit: u64) -> Result<Vec<u8>> {
        // What a forged header announces is not there: more memory only as bytes come.
        let expected = limit.min(self.most).min(FIRST_MEMORY);
        let mut bytes = Vec::with_capacity(expected as usize);
        match self.reader.by_ref().take(limit).read_to_end(&mut bytes) {
            Ok(_) => Ok(bytes),
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// An error of the reader in words.
    pub(super) fn failed(&self, error: &io::Error) -> Error {
        let problem = match (self.packed, error.kind()) {
            _ if BytesBehind::is_in(error) => "has bytes behind the end of its gzip data".into(),
            (true, io::ErrorKind::UnexpectedEof) => "truncated: its gzip data ends early".into(),
            (true, io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => {
                format!("its gzip data is damaged ({error})")
            }
            _ => unreadable(error),
        };
        bad(&self.path, problem, GET_AGAIN)
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer)
    }
}

/// An error about a file as a whole.
pub(super) fn bad(path: &Path, problem: impl Into<String>, help: impl Into<String>) -> Error {
    let place = path.display().to_string();
    Error::Input { place, problem: problem.into(), help: help.into() }
}

/// An error about a line of a file, from 1.
pub(super) fn bad_line(
    path: &Path,
    line: u64,
    problem: impl Into<String>,
    help: impl Into<String>,
) -> Error {
    let place = format!("{}:{line}", path.display());
    Error::Input { place, problem: problem.into(), help: help.into() }
}

/// A system error without its number: `cannot be read: permission denied`.
pub(super) fn unreadable(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file or directory".into(),
        io::ErrorKind::PermissionDenied => "cannot be read: permission denied".into(),
        _ => format!("cannot be read: {error}"),
    }
}

fn read_up_to(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let length = buffer.len() as u64;
    let mut start = Vec::new();
    let read = file.take(length).read_to_end(&mut start)?;
    buffer[..read].copy_from_slice(&start);
    Ok(read)
}

/// What to do about a file that is not whole.
pub(super) const GET_AGAIN: &str = "copy or download the file again";
/// What to do about a path that leads nowhere.
pub(super) const LOOK_AT_PATH: &str = "check the path given by --data, on this host";

/// Deflate unpacks a byte to 1032 at most (a match of 258 bytes in two bits).
const MOST_PACKED: u64 = 1032;
/// Read at once from disk: unpacking asks for little pieces.
const BUFFER: usize = 1 << 17;
/// Memory taken before any byte came: the training images of MNIST.
const FIRST_MEMORY: u64 = 48 << 20;

#[cfg(test)]
pub(crate) use scratch::Scratch;
#[cfg(test)]
pub(super) use scratch::gzip;

#[cfg(test)]
mod scratch {
    use std::fs;
    use std::io::Write;
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// A folder of a test's own, removed at its end.
    pub(crate) struct Scratch(PathBuf);

    impl Scratch {
        pub(crate) fn new(name: &str) -> Self {
            static NEXT: AtomicUsize = AtomicUsize::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("allfold-{name}-{}-{number}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        pub(crate) fn path(&self) -> &Path {
            &self.0
        }

        pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, bytes).unwrap();
            path
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    pub(in crate::data) fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(bytes).unwrap();
        packed.finish().unwrap()
    }
}
