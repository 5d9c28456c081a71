//! GPUs for a machine that has none: the look-alikes of libcuda and libnccl in tests/gpu, compiled
//! into a folder that a program under test finds by `LD_LIBRARY_PATH`.

use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// The libraries of one machine. What they pretend, environment variables say: the first lines of
/// tests/gpu/cuda.c and tests/gpu/nccl.c list them.
pub struct FakeGpus {
    folder: PathBuf,
}

/// Which libraries there are, and what is wrong with them.
#[derive(Clone, Debug, Hash)]
pub struct Recipe {
    cuda: bool,
    nccl: Option<&'static str>,
    missing: Vec<String>,
    checks: bool,
}

impl FakeGpus {
    /// Both libraries, as they should be. Compiled once for all processes.
    pub fn new() -> Self {
        Self::recipe().build()
    }

    /// Both libraries, to be spoiled.
    pub fn recipe() -> Recipe {
        Recipe { cuda: true, nccl: Some(NCCL), missing: Vec::new(), checks: false }
    }

    /// Where they are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Lets a program that this command starts find them before any others.
    pub fn lend(&self, command: &mut Command) {
        let given = command.get_envs().find(|(name, _)| *name == "LD_LIBRARY_PATH");
        let before = match given {
            Some((_, value)) => value.map(OsString::from),
            None => std::env::var_os("LD_LIBRARY_PATH"),
        };
        let mut path = self.folder.clone().into_os_string();
        if let Some(before) = before.filter(|before| !before.is_empty()) {
            path.push(":");
            path.push(before);
        }
        command.env("LD_LIBRARY_PATH", path);
    }

    /// The program that checks libraries which it is lent; only of a recipe with checks.
    pub fn check(&self, name: &str, ranks: usize) -> Command {
        let mut command = Command::new(self.folder.join(CHECK));
        command.args([name, &ranks.to_string()]);
        command
    }
}

impl Default for FakeGpus {
    fn default() -> Self {
        Self::new()
    }
}

impl Recipe {
    /// A machine without the driver.
    pub fn without_cuda(mut self) -> Self {
        self.cuda = false;
        self
    }

    /// A machine without NCCL.
    pub fn without_nccl(mut self) -> Self {
        self.nccl = None;
        self
    }

    /// Only the name that compilers look for, as where just the development files are.
    pub fn nccl_without_version(mut self) -> Self {
        self.nccl = Some("libnccl.so");
        self
    }

    /// Libraries that lack this function, as older ones do.
    pub fn without_symbol(mut self, name: &str) -> Self {
        let function = format!(" {name}(");
        let known = SOURCES.iter().any(|(_, text)| text.contains(&function));
        assert!(known, "the look-alikes have no {name} to lack");
        self.missing.push(name.to_owned());
        self
    }

    /// Also the program that checks them; of libraries that are whole.
    pub fn with_checks(mut self) -> Self {
        self.checks = true;
        self
    }

    /// Compiles them, where nobody has done so yet.
    pub fn build(&self) -> FakeGpus {
        let program = std::env::current_exe();
        let beside = match program.as_deref().map(Path::parent) {
            Ok(Some(folder)) => folder,
            other => panic!("no folder to build in: {other:?}"),
        };
        let mut hasher = DefaultHasher::new();
        (self, SOURCES, FLAGS).hash(&mut hasher);
        let folder = beside.join(format!("fake-gpus-{:016x}", hasher.finish()));
        if !folder.exists() {
            self.build_in(&folder);
        }
        FakeGpus { folder }
    }

    /// Others may do the same at this moment: whoever is done first gives it the name.
    fn build_in(&self, folder: &Path) {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mine = folder.with_extension(format!("{}-{number}", std::process::id()));
        if let Err(error) = self.compile(&mine) {
            let _ = std::fs::remove_dir_all(&mine);
            panic!("{}: {error}", mine.display());
        }
        let renamed = std::fs::rename(&mine, folder);
        if renamed.is_err() {
            let _ = std::fs::remove_dir_all(&mine);
        }
        assert!(folder.exists(), "{}: {renamed:?}", folder.display());
    }

    fn compile(&self, folder: &Path) -> Result<(), String> {
        std::fs::create_dir(folder).map_err(|error| error.to_string())?;
        for (name, text) in SOURCES {
            std::fs::write(folder.join(name), text).map_err(|error| error.to_string())?;
        }
        if self.cuda {
            self.library(folder, CUDA, CUDA, "cuda", "cu")?;
        }
        if let Some(name) = self.nccl {
            self.library(folder, name, NCCL, "nccl", "nccl")?;
        }
        if self.checks {
            let mut words = vec!["-o", CHECK];
            words.extend(of("check"));
            words.extend([NCCL, CUDA, "-lm"]);
            cc(folder, &words)?;
        }
        Ok(())
    }

    /// Compiles a library, or takes it from where it is whole.
    fn library(
        &self,
        folder: &Path,
        name: &str,
        soname: &str,
        sources: &str,
        prefix: &str,
    ) -> Result<(), String> {
        let missing = self.missing.iter().filter(|name| name.starts_with(prefix));
        let missing: Vec<_> = missing.map(|name| format!("-D{name}=gone")).collect();
        let is_plain = self.cuda && self.nccl == Some(NCCL) && !self.checks;
        if missing.is_empty() && !(is_plain && self.missing.is_empty()) {
            let whole = FakeGpus::new().folder.join(soname);
            let copied = std::fs::copy(whole, folder.join(name));
            return copied.map(|_| ()).map_err(|error| error.to_string());
        }
        let soname = format!("-Wl,-soname,{soname}");
        let mut words = vec!["-fPIC", "-shared", "-fvisibility=hidden", "-o", name, &soname];
        words.extend(missing.iter().map(String::as_str));
        words.extend(of(sources));
        words.extend(["-lm", "-ldl"]);
        cc(folder, &words)
    }
}

/// The C files of one part.
fn of(part: &str) -> impl Iterator<Item = &str> {
    let is_of = move |name: &&str| name.starts_with(part) && name.ends_with(".c");
    SOURCES.iter().map(|(name, _)| *name).filter(is_of)
}

fn cc(folder: &Path, words: &[&str]) -> Result<(), String> {
    let mut command = Command::new("cc");
    command.current_dir(folder).args(FLAGS).args(words).stdin(Stdio::null());
    let ended = command.output().map_err(|error| format!("cannot start cc: {error}"))?;
    match ended.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&ended.stderr))),
    }
}

const CUDA: &str = "libcuda.so.1";
const NCCL: &str = "libnccl.so.2";
const CHECK: &str = "check";

const FLAGS: &[&str] =
    &["-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"];

/// As they were when this was compiled, so that the tests do not need the repository.
const SOURCES: &[(&str, &str)] = &[
    ("cuda.h", include_str!("../gpu/cuda.h")),
    ("cuda.c", include_str!("../gpu/cuda.c")),
    ("cuda_memory.c", include_str!("../gpu/cuda_memory.c")),
    ("cuda_streams.c", include_str!("../gpu/cuda_streams.c")),
    ("nccl.h", include_str!("../gpu/nccl.h")),
    ("nccl.c", include_str!("../gpu/nccl.c")),
    ("nccl_calls.c", include_str!("../gpu/nccl_calls.c")),
    ("nccl_group.c", include_str!("../gpu/nccl_group.c")),
    ("nccl_kernels.c", include_str!("../gpu/nccl_kernels.c")),
    ("nccl_life.c", include_str!("../gpu/nccl_life.c")),
    ("nccl_reduce.c", include_str!("../gpu/nccl_reduce.c")),
    ("nccl_world.c", include_str!("../gpu/nccl_world.c")),
    ("check.h", include_str!("../gpu/check.h")),
    ("check.c", include_str!("../gpu/check.c")),
    ("check_data.c", include_str!("../gpu/check_data.c")),
    ("check_life.c", include_str!("../gpu/check_life.c")),
    ("check_mistakes.c", include_str!("../gpu/check_mistakes.c")),
    ("check_streams.c", include_str!("../gpu/check_streams.c")),
];
