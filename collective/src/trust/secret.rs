//! The job's secret: 32 random bytes that make a process a member of the job.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::{hkdf, rand};
use zeroize::{Zeroize, Zeroizing};

use super::own::warn_of_readers;
use crate::error::{Error, ErrorKind, Result};
use crate::identity::{Environment, Identity};

/// A job's secret. It is zeroed when dropped and shows itself to nobody but the file it is for.
#[derive(Clone)]
// In a box, so that handing it on leaves no copy on a stack.
pub struct Secret(Box<Zeroizing<[u8; SECRET_BYTES]>>);

impl Secret {
    /// A fresh one.
    ///
    /// # Errors
    /// [`ErrorKind::System`] if the system has no randomness to give.
    pub fn random() -> Result<Self> {
        let mut bytes = Box::new(Zeroizing::new([0; SECRET_BYTES]));
        fill_random(&mut bytes[..])?;
        Ok(Self(bytes))
    }

    /// The line that ALLFOLD_SECRET, or a line of ALLFOLD_SECRET_FILE, holds: 64 hexadecimal
    /// digits. It is zeroed when dropped, too.
    pub fn to_line(&self) -> Zeroizing<String> {
        // At its full length from the start: growing would leave copies behind.
        let mut line = Zeroizing::new(String::with_capacity(2 * SECRET_BYTES));
        for byte in &self.0[..] {
            for digit in [byte >> 4, byte & 15] {
                line.push(char::from(HEX_DIGITS[usize::from(digit)]));
            }
        }
        line
    }

    /// Eight hexadecimal digits that tell secrets apart and give nothing of them away.
    pub fn fingerprint(&self) -> String {
        let mut bytes = [0; 4];
        self.derive("allfold fingerprint", "", &mut bytes);
        hex(&bytes)
    }

    /// Derives bytes for one purpose and job by HKDF-SHA256 (RFC 5869).
    pub(crate) fn derive(&self, purpose: &str, job: &str, into: &mut [u8]) {
        struct Length(usize);
        impl hkdf::KeyType for Length {
            fn len(&self) -> usize {
                self.0
            }
        }
        let key = hkdf::Salt::new(hkdf::HKDF_SHA256, b"allfold").extract(&self.0[..]);
        let info = [purpose.as_bytes(), &[0], job.as_bytes()];
        let filled = key.expand(&info, Length(into.len())).and_then(|okm| okm.fill(into));
        // It only fails beyond 8,160 bytes; callers ask for at most 32.
        debug_assert!(filled.is_ok());
    }

    fn parse(line: &str, place: &str) -> Result<Self> {
        let wrong = |problem: String| {
            secret_error(problem, Some("`allfold secret` prints a new one".into()))
        };
        let digits = line.as_bytes();
        if digits.len() != 2 * SECRET_BYTES {
            let length = digits.len();
            return Err(wrong(format!(
                "{place} holds {length} characters instead of 64 hexadecimal digits (32 bytes)"
            )));
        }
        let mut bytes = Box::new(Zeroizing::new([0; SECRET_BYTES]));
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |c: u8| char::from(c).to_digit(16).map(|d| d as u8);
            match (digit(pair[0]), digit(pair[1])) {
                (Some(high), Some(low)) => *byte = 16 * high + low,
                _ => {
                    return Err(wrong(format!("{place} holds a character that is no hex digit")));
                }
            }
        }
        Ok(Self(bytes))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "secret {}", self.fingerprint())
    }
}

/// The secrets a rank accepts: the first is its own, the others are for rotation.
#[derive(Clone, Debug)]
pub(crate) struct Secrets(Vec<Secret>);

impl Secrets {
    /// At least one.
    pub(crate) fn all(&self) -> &[Secret] {
        &self.0
    }

    /// One secret a line; empty lines and lines with `#` are skipped.
    pub(crate) fn from_lines(text: &str, place: &str) -> Result<Self> {
        let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
        let secrets: Vec<Secret> =
            lines.take(MAX_SECRETS + 1).map(|l| Secret::parse(l, place)).collect::<Result<_>>()?;
        match secrets.len() {
            0 => {
                let help = "it must hold a line of 64 hexadecimal digits, as `allfold secret` \
                            prints it";
                Err(secret_error(format!("{place} is empty"), Some(help.into())))
            }
            n if n > MAX_SECRETS => {
                Err(secret_error(format!("{place} holds more than {MAX_SECRETS} secrets"), None))
            }
            _ => Ok(Self(secrets)),
        }
    }

    /// ALLFOLD_SECRET_FILE, else ALLFOLD_SECRET, else, outside Kubernetes, `~/.allfold/secret`.
    pub(crate) fn from_environment(environment: &Environment, who: &Identity) -> Result<Self> {
        let in_kubernetes = environment.get("KUBERNETES_SERVICE_HOST").is_some();
        if let Some(path) = environment.get("ALLFOLD_SECRET_FILE") {
            if is_no_path(path) {
                let problem = "ALLFOLD_SECRET_FILE holds a secret itself, not the path of a file";
                let help = "put it into ALLFOLD_SECRET, or into a file that only you can read, and \
                            the path of that into ALLFOLD_SECRET_FILE";
                return Err(secret_error(problem.into(), Some(help.into())));
            }
            let text = read_file(Path::new(path)).map_err(|e| {
                let help = match e.kind() {
                    io::ErrorKind::FileTooLarge => LONG.into(),
                    _ if in_kubernetes => in_pods(who, "as a volume with that file in it"),
                    _ => format!("`allfold secret > {path}` makes one; give it to every rank"),
                };
                secret_error(format!("ALLFOLD_SECRET_FILE={path}: {e}"), Some(help))
            })?;
            let secrets = Self::from_lines(&text, path)?;
            if !in_kubernetes {
                warn_of_readers("ALLFOLD_SECRET_FILE", Path::new(path));
            }
            return Ok(secrets);
        }
        if let Some(line) = environment.get("ALLFOLD_SECRET") {
            return Self::from_lines(line, "ALLFOLD_SECRET");
        }
        if in_kubernetes {
            let problem = format!(
                "rank {} of {} has no job secret: neither ALLFOLD_SECRET nor ALLFOLD_SECRET_FILE \
                 is set",
                who.rank, who.size
            );
            let help = in_pods(
                who,
                "as a volume, its file in ALLFOLD_SECRET_FILE, or as ALLFOLD_SECRET (valueFrom: \
                 secretKeyRef)",
            );
            return Err(secret_error(problem, Some(help)));
        }
        let Some(home) = environment.get("HOME") else {
            let problem = "there is no job secret: ALLFOLD_SECRET, ALLFOLD_SECRET_FILE and HOME \
                           are not set";
            return Err(secret_error(problem.into(), Some("set ALLFOLD_SECRET_FILE".into())));
        };
        if !Path::new(home).is_absolute() {
            let problem = format!("there is no job secret, and HOME={home} is no absolute path");
            return Err(secret_error(problem, Some("set ALLFOLD_SECRET_FILE".into())));
        }
        let path = PathBuf::from(home).join(HOME_SECRET);
        let shown = path.display().to_string();
        let text = home_secret(&path).map_err(|e| {
            let help = match e.kind() {
                io::ErrorKind::FileTooLarge => LONG,
                _ => "set ALLFOLD_SECRET_FILE to a file that only you can read",
            };
            secret_error(format!("the job secret {shown}: {e}"), Some(help.into()))
        })?;
        Self::from_lines(&text, &shown)
    }
}

impl Secrets {
    /// The fingerprint of the one that [`from_environment`](Self::from_environment) puts first, and
    /// where it is. None is made.
    pub(crate) fn seen(environment: &Environment, who: &Identity) -> Result<(String, String)> {
        let named = ["ALLFOLD_SECRET_FILE", "ALLFOLD_SECRET"];
        let from = named.into_iter().find(|name| environment.get(name).is_some());
        let home = Path::new(environment.get("HOME").unwrap_or_default()).join(HOME_SECRET);
        let is_made_first =
            !environment.in_kubernetes() && from.is_none() && home.is_absolute() && !home.exists();
        if is_made_first {
            return Ok(("none yet".into(), format!("{}, made at first use", home.display())));
        }
        let secrets = Self::from_environment(environment, who)?;
        let fingerprint = secrets.all().first().map(Secret::fingerprint).unwrap_or_default();
        Ok((fingerprint, from.map_or_else(|| home.display().to_string(), str::to_string)))
    }
}

/// Reads the user's own secret, made at first use. Its link makes it appear whole and only once,
/// also when many ranks start together on a shared home.
fn home_secret(path: &Path) -> io::Result<Zeroizing<String>> {
    if !path.exists() {
        let folder = path.parent().unwrap_or(Path::new("."));
        match fs::DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let secret = Secret::random().map_err(io::Error::other)?;
        let mut nonce = [0; 8];
        fill_random(&mut nonce).map_err(io::Error::other)?;
        let draft = folder.join(format!("secret.{}", hex(&nonce)));
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        let linked = file
            .write_all(secret.to_line().as_bytes())
            .and_then(|()| file.write_all(b"\n"))
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::hard_link(&draft, path));
        fs::remove_file(&draft)?;
        match linked {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    let meta = fs::metadata(path)?;
    if meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other(format!("belongs to user {}, not to you", meta.uid())));
    }
    if meta.mode() & 0o077 != 0 {
        let mode = meta.mode() & 0o777;
        return Err(io::Error::other(format!(
            "can be read by others (mode {mode:03o}); chmod 600 it"
        )));
    }
    read_file(path)
}

fn read_file(path: &Path) -> io::Result<Zeroizing<String>> {
    use std::io::Read;
    // At its full length from the start: growing would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_FILE_BYTES as usize + 1));
    fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let problem = format!("holds more than {MAX_FILE_BYTES} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, problem));
    }
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(Zeroizing::new(text.to_string())),
        Err(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "is no text in UTF-8")),
    }
}

/// Whether what should be the path of a file is what should be in it: nobody may be shown that.
pub(crate) fn is_no_path(value: &str) -> bool {
    let value = value.trim();
    let is_secret = value.len() == 2 * SECRET_BYTES && value.bytes().all(|b| b.is_ascii_hexdigit());
    is_secret || value.contains('\n') || value.starts_with("-----BEGIN")
}

pub(crate) fn fill_random(into: &mut [u8]) -> Result<()> {
    rand::fill(into).map_err(|_| {
        into.zeroize();
        Error::system("draw random bytes", "the system gave none")
    })
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How all pods of a job get one secret, which goes from one program to the other and is on no
/// command line.
fn in_pods(who: &Identity, how: &str) -> String {
    let name = match &who.job {
        Some(job) if is_of_names(job) => format!("{job}-secret"),
        _ => "allfold-secret".into(),
    };
    format!(
        "allfold secret | kubectl create secret generic {name} --from-file=secret=/dev/stdin, and \
         give it to every pod {how}"
    )
}

/// Whether Kubernetes takes it as a part of a name, and no shell takes it for more.
fn is_of_names(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn secret_error(problem: String, help: Option<String>) -> Error {
    ErrorKind::Secret { problem, help }.into()
}

/// Below HOME.
const HOME_SECRET: &str = ".allfold/secret";
const SECRET_BYTES: usize = 32;
const HEX_DIGITS: &[u8; 16] = b"0123456789abcdef";
/// Rotation needs two; a few more do no harm.
const MAX_SECRETS: usize = 8;
/// Eight secrets and some comments.
const MAX_FILE_BYTES: u64 = 4096;
/// What to do about more.
const LONG: &str = "a line of 64 hexadecimal digits is enough; shorten the comments";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_survives_its_line_and_shows_only_its_fingerprint() {
        let secret = Secret::random().unwrap();
        let read = Secrets::from_lines(&format!("# mine\n\n{}\n", *secret.to_line()), "x").unwrap();
        assert_eq!(read.all()[0].to_line(), secret.to_line());
        assert_eq!(secret.fingerprint().len(), 8);
        assert!(!format!("{secret:?}").contains(&secret.to_line()[..8]));
        assert_eq!(secret.to_line().len(), 64);
        assert_eq!(*secret.to_line(), hex(&secret.0[..]));
    }

    #[test]
    fn a_short_secret_is_refused_without_showing_it() {
        let error = Secrets::from_lines("abcdef", "ALLFOLD_SECRET").unwrap_err();
        assert_eq!(
            error.to_string(),
            "ALLFOLD_SECRET holds 6 characters instead of 64 hexadecimal digits (32 bytes)"
        );
        let error = Secrets::from_lines(&"zz".repeat(32), "x").unwrap_err();
        assert!(!error.to_string().contains("zz"));
    }

    #[test]
    fn the_home_secret_is_made_once_and_read_alike_by_all() {
        let folder = std::env::temp_dir().join(format!("allfold-secret-{}", std::process::id()));
        let path = folder.join("secret");
        let read = |path: PathBuf| std::thread::spawn(move || home_secret(&path).unwrap());
        let readers: Vec<_> = (0..8).map(|_| read(path.clone())).collect();
        let lines: Vec<_> = readers.into_iter().map(|r| r.join().unwrap()).collect();
        assert!(lines.iter().all(|line| *line == lines[0]));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "a draft was left behind");
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        assert!(home_secret(&path).unwrap_err().to_string().contains("chmod 600"));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_file_that_is_too_long_is_refused_whole() {
        let path =
            std::env::temp_dir().join(format!("allfold-long-secrets-{}", std::process::id()));
        let secrets = [Secret::random().unwrap(), Secret::random().unwrap()];
        let [new, old] = secrets.map(|secret| secret.to_line().to_string());
        let read = |length: usize| {
            let comment = "#".repeat(length - 2 * 65 - 1);
            fs::write(&path, format!("{new}\n{comment}\n{old}\n")).unwrap();
            let environment = Environment::from([("ALLFOLD_SECRET_FILE", path.to_str().unwrap())]);
            Secrets::from_environment(&environment, &Identity::explicit(0, 2))
        };
        let all = read(MAX_FILE_BYTES as usize).unwrap();
        assert_eq!(all.all().len(), 2);
        let error = read(MAX_FILE_BYTES as usize + 1).unwrap_err();
        fs::remove_file(&path).unwrap();
        assert!(error.to_string().ends_with(": holds more than 4096 bytes"), "{error}");
        assert!(error.help().unwrap().contains("shorten the comments"), "{:?}", error.help());
    }

    #[test]
    fn a_secret_in_the_place_of_its_path_is_not_shown() {
        let line = Secret::random().unwrap().to_line().to_string();
        let key = "-----BEGIN PRIVATE KEY-----";
        for value in [line.clone(), line.to_uppercase(), format!("# mine\n{line}"), key.into()] {
            let environment = Environment::from([("ALLFOLD_SECRET_FILE", value.as_str())]);
            let who = Identity::explicit(0, 2);
            let error = Secrets::from_environment(&environment, &who).unwrap_err();
            assert_eq!(
                error.to_string(),
                "ALLFOLD_SECRET_FILE holds a secret itself, not the path of a file"
            );
            let help = error.help().unwrap();
            assert!(help.starts_with("put it into ALLFOLD_SECRET, or"), "{help}");
            assert!(!help.contains(&value), "{help}");
        }
        assert!(!is_no_path("/run/secrets/allfold"));
        assert!(!is_no_path(&line[1..]));
    }

    #[test]
    fn in_kubernetes_a_missing_secret_names_the_one_to_create() {
        let environment =
            Environment::from([("KUBERNETES_SERVICE_HOST", "10.0.0.1"), ("HOME", "/")]);
        let error = Secrets::from_environment(&environment, &Identity::explicit(2, 4)).unwrap_err();
        assert!(error.to_string().starts_with("rank 2 of 4 has no job secret"));
        let help = error.help().unwrap();
        assert!(help.starts_with("allfold secret | kubectl create secret generic allfold-secret "));
        assert!(help.contains("secretKeyRef"), "{help}");
        let mut who = Identity::explicit(2, 4);
        who.job = Some("trainer".into());
        let missing = "/nowhere/secret";
        for (variable, problem) in [
            ("HOME", "rank 2 of 4 has no job secret"),
            ("ALLFOLD_SECRET_FILE", "ALLFOLD_SECRET_FILE=/nowhere/secret: No such file"),
        ] {
            let pairs = [("KUBERNETES_SERVICE_HOST", "10.0.0.1"), (variable, missing)];
            let error = Secrets::from_environment(&Environment::from(pairs), &who).unwrap_err();
            assert!(error.to_string().starts_with(problem), "{error}");
            let help = error.help().unwrap();
            assert!(
                help.contains(" generic trainer-secret --from-file=secret=/dev/stdin"),
                "{help}"
            );
        }
    }
}
