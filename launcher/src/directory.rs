//! The job's private directory: its secret, its socket, its ranks' reports.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::random;

/// Makes it, mode 0700, under a name that cannot be guessed; `announce` learns the name before.
pub(crate) fn create(mut announce: impl FnMut(&Path)) -> io::Result<PathBuf> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let places = [runtime, Some(std::env::temp_dir()), Some("/tmp".into())];
    let mut last_error = io::Error::from(io::ErrorKind::NotFound);
    for place in places.into_iter().flatten().filter(|place| place.is_absolute()) {
        let path = place.join(format!("allfold-{}", random::hex()?));
        let bytes = path.as_os_str().as_bytes();
        // A socket's path is short by the kernel's rule, and the keeper is told by lines.
        if bytes.len() + 1 + SOCKET.len() > MAX_SOCKET_PATH || bytes.contains(&b'\n') {
            last_error = io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} is too long for a socket's path", place.display()),
            );
            continue;
        }
        announce(&path);
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) => last_error = error,
        }
    }
    Err(last_error)
}

/// Writes the secret's line, mode 0600.
pub(crate) fn write_secret(directory: &Path, line: &str) -> io::Result<PathBuf> {
    let path = directory.join(SECRET);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    file.write_all(line.as_bytes())?;
    file.write_all(b"\n")?;
    Ok(path)
}

/// Where the launcher listens.
pub(crate) fn socket(directory: &Path) -> PathBuf {
    directory.join(SOCKET)
}

/// Where a copy of ourselves leaves its error for the launcher.
pub(crate) fn report(directory: &Path, rank: usize) -> PathBuf {
    directory.join(format!("{REPORT}{rank}"))
}

/// Removes what the launcher puts there, and the directory; nothing else, whatever path it is
/// told.
pub(crate) fn remove(directory: &Path) {
    let Ok(entries) = directory.read_dir() else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.as_bytes();
        if name == SECRET.as_bytes()
            || name == SOCKET.as_bytes()
            || name.starts_with(REPORT.as_bytes())
        {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    let _ = std::fs::remove_dir(directory);
}

const SECRET: &str = "secret";
const SOCKET: &str = "launcher.sock";
const REPORT: &str = "report-";
/// sun_path less its final zero.
const MAX_SOCKET_PATH: usize = 107;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn nobody_else_can_read_it_and_nothing_stays() {
        let mut announced = PathBuf::new();
        let path = create(|path| announced = path.to_owned()).unwrap();
        assert_eq!(path, announced);
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        let secret = write_secret(&path, "ab").unwrap();
        assert_eq!(mode(&secret), 0o600);
        assert_eq!(std::fs::read(&secret).unwrap(), b"ab\n");
        std::fs::write(report(&path, 3), "x").unwrap();
        remove(&path);
        assert!(!path.exists());
    }

    #[test]
    fn files_of_others_stay() {
        let path = create(|_| ()).unwrap();
        std::fs::write(path.join("precious"), "x").unwrap();
        remove(&path);
        assert!(path.join("precious").exists());
        std::fs::remove_dir_all(path).unwrap();
    }
}
