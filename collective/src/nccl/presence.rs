//! What of CUDA and NCCL is on this machine, and if they cannot be used, why.

use std::fmt;
#[cfg(feature = "nccl")]
use std::path::Path;
use std::path::PathBuf;

#[cfg(feature = "nccl")]
use super::{driver::Driver, library::Nccl};
use crate::error::{Error, ErrorKind};

/// What this process finds of GPUs, their driver and NCCL.
#[derive(Clone, Debug)]
pub struct Presence {
    /// The version of CUDA that the driver has, or why there is none.
    pub driver: Result<Version, Absence>,
    /// The GPUs that this process may use, in CUDA's order.
    pub gpus: Vec<String>,
    /// The version of NCCL and where it lies, or why there is none.
    pub nccl: Result<(Version, Option<PathBuf>), Absence>,
}

/// Why something cannot be used, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absence {
    /// What is missing or wrong.
    pub problem: String,
    /// What to do about it.
    pub help: String,
}

/// Of CUDA or NCCL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 2 in 2.28.9.
    pub major: u32,
    /// 28 in 2.28.9.
    pub minor: u32,
    /// 9 in 2.28.9; always 0 of CUDA.
    pub patch: u32,
}

impl Presence {
    /// This build looks for neither.
    #[cfg(not(feature = "nccl"))]
    pub fn find() -> Self {
        let absence = Absence::not_built();
        Self { driver: Err(absence.clone()), gpus: Vec::new(), nccl: Err(absence) }
    }

    /// Looks for driver and NCCL. The first call loads what it finds of them into this process.
    #[cfg(feature = "nccl")]
    pub fn find() -> Self {
        let driver = Driver::find();
        Self {
            driver: driver.map(|driver| driver.version).map_err(Clone::clone),
            gpus: driver.map(|driver| driver.names()).unwrap_or_default(),
            nccl: Nccl::find().map(|n| (n.version, n.path.clone())).map_err(Clone::clone),
        }
    }

    /// Which of the GPUs the process takes that is number `local_rank` of its host. More ranks than
    /// GPUs take turns here, and are refused by [`Gpu::connect`](super::Gpu::connect).
    pub fn gpu_of(&self, local_rank: usize) -> Option<usize> {
        local_rank.checked_rem(self.gpus.len())
    }

    /// Whether a program could compute on a GPU, without other ranks, or else why not.
    ///
    /// # Errors
    /// What is missing.
    pub fn check_driver(&self) -> Result<(), Absence> {
        self.driver.as_ref().map(|_| ()).map_err(Clone::clone)
    }

    /// Whether NCCL could be used by a rank of this process, or else why not.
    ///
    /// # Errors
    /// The first thing that is missing.
    pub fn check(&self) -> Result<(), Absence> {
        self.check_driver()?;
        self.nccl.as_ref().map(|_| ()).map_err(Clone::clone)
    }
}

/// `2 GPUs (CUDA 13.0), NCCL 2.28.9`, or what is missing.
impl fmt::Display for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.driver {
            Ok(version) => {
                let many = if self.gpus.len() == 1 { "" } else { "s" };
                write!(f, "{} GPU{many} (CUDA {version})", self.gpus.len())?;
            }
            Err(absence) => write!(f, "no GPU: {}", absence.problem)?,
        }
        match &self.nccl {
            Ok((version, Some(path))) => write!(f, "; NCCL {version} ({})", path.display()),
            Ok((version, None)) => write!(f, "; NCCL {version}"),
            Err(absence) => write!(f, "; no NCCL: {}", absence.problem),
        }
    }
}

impl Absence {
    #[cfg(not(feature = "nccl"))]
    pub(super) fn not_built() -> Self {
        Self {
            problem: "this program was built without NCCL".into(),
            help: "build it with the feature `nccl` of the crate allfold".into(),
        }
    }
}

impl Absence {
    pub(super) fn new(problem: impl Into<String>, help: impl Into<String>) -> Self {
        Self { problem: problem.into(), help: help.into() }
    }
}

#[cfg(feature = "nccl")]
impl Absence {
    pub(super) fn no_nccl(missing: &[String]) -> Self {
        Self::new(format!("there is no NCCL: {}", telling(missing)), INSTALL_NCCL)
    }

    pub(super) fn nccl_too_old(version: Version, oldest: Version, path: Option<&Path>) -> Self {
        let problem = format!(
            "NCCL {version}{} is too old: {oldest} is the oldest that lets go of a lost rank in time",
            at(path)
        );
        Self::new(problem, INSTALL_NCCL)
    }

    pub(super) fn nccl_lacks(name: &str, version: Option<Version>, path: Option<&Path>) -> Self {
        let version = version.map_or_else(String::new, |version| format!(" {version}"));
        let problem = format!("NCCL{version}{} lacks the function {name}", at(path));
        Self::new(problem, INSTALL_NCCL)
    }
}

impl From<Absence> for Error {
    fn from(Absence { problem, help }: Absence) -> Self {
        ErrorKind::NoGpu { problem, help: Some(help) }.into()
    }
}

#[cfg(feature = "nccl")]
impl Version {
    /// As `ncclGetVersion` gives it: 22809 is 2.28.9; before 2.9 it was 2804.
    pub(super) fn of_nccl(number: i32) -> Self {
        let number = u32::try_from(number).unwrap_or(0);
        let (major, rest) = match number < 10_000 {
            true => (number / 1000, number % 1000),
            false => (number / 10_000, number % 10_000),
        };
        Self { major, minor: rest / 100, patch: rest % 100 }
    }

    /// As `cuDriverGetVersion` gives it: 12040 is 12.4.
    pub(super) fn of_cuda(number: i32) -> Self {
        let number = u32::try_from(number).unwrap_or(0);
        Self { major: number / 1000, minor: number % 1000 / 10, patch: 0 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { major, minor, patch } = self;
        match *patch {
            0 => write!(f, "{major}.{minor}"),
            _ => write!(f, "{major}.{minor}.{patch}"),
        }
    }
}

#[cfg(feature = "nccl")]
/// What the loader says of a library, on one line.
pub(super) fn loader_words(name: &str, error: &libloading::Error) -> String {
    let words = match std::error::Error::source(error) {
        Some(source) => source.to_string(),
        None => error.to_string(),
    };
    // Where it is only absent, everything else in glibc's words is noise.
    match words.contains("No such file") && words.starts_with(name) {
        true => format!("{name}{NOT_FOUND}"),
        false => format!("{name} cannot be loaded ({})", crate::report::printable(words.trim())),
    }
}

/// Of what the loader said of several names, what tells most: why one that is there cannot be loaded,
/// else that the first is missing.
#[cfg(feature = "nccl")]
pub(super) fn telling(words: &[String]) -> &str {
    let there = words.iter().find(|words| !words.ends_with(NOT_FOUND));
    there.or(words.first()).map_or("", String::as_str)
}

#[cfg(feature = "nccl")]
/// Where the library lies that this process has loaded, by the start of its file's name.
pub(super) fn mapped(name: &str) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let mut paths = maps.lines().filter_map(|line| Some(&line[line.find('/')?..]));
    paths.find(|path| path.rsplit('/').next().is_some_and(|f| f.starts_with(name))).map(Into::into)
}

#[cfg(feature = "nccl")]
fn at(path: Option<&Path>) -> String {
    path.map_or_else(String::new, |path| format!(" ({})", path.display()))
}

#[cfg(feature = "nccl")]
const NOT_FOUND: &str = " is not found";
#[cfg(feature = "nccl")]
const INSTALL_NCCL: &str = "install NCCL (the package libnccl2, or `pip install nvidia-nccl-cu12`) \
                            and put the folder of its libnccl.so.2 into LD_LIBRARY_PATH";

#[cfg(all(test, feature = "nccl"))]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_their_makers_write_them() {
        let nccl = |number| Version::of_nccl(number).to_string();
        assert_eq!([nccl(22809), nccl(21805), nccl(2804)], ["2.28.9", "2.18.5", "2.8.4"]);
        let cuda = |number| Version::of_cuda(number).to_string();
        assert_eq!([cuda(13000), cuda(12040), cuda(-1)], ["13.0", "12.4", "0.0"]);
        assert!(Version::of_nccl(2804) < Version::of_nccl(21805));
    }
}
