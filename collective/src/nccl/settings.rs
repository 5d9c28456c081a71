//! NCCL's own settings, as NCCL finds them: variables first, then the lines of its files.

use std::path::{Path, PathBuf};

/// A setting that somebody has made.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Setting {
    name: &'static str,
    value: String,
    /// The file that it stands in, unless it is a variable.
    file: Option<PathBuf>,
}

/// One that takes from allfold what it needs to give NCCL up; with what to do about it.
pub(super) fn hindrance() -> Option<(String, String)> {
    let is_other = |(name, default)| find(name).filter(|setting| setting.value != default);
    let setting = OVERRIDES.into_iter().find_map(is_other)?;
    let Setting { name, value, file } = setting;
    let (place, help) = match file {
        None => (String::new(), format!("unset {name} for every rank")),
        Some(file) => {
            let file = file.display();
            (format!(" (in {file})"), format!("take {name} out of {file} on every host"))
        }
    };
    let problem = format!(
        "{name}={value}{place} takes from allfold what it needs to give NCCL up when a rank is lost"
    );
    Some((problem, help))
}

/// Whether NCCL is told that several ranks may use one GPU.
pub(super) fn lets_ranks_share_a_gpu() -> bool {
    find("NCCL_HOSTID").is_some()
        || find("NCCL_MULTI_RANK_GPU_ENABLE").is_some_and(|setting| setting.value != "0")
}

fn find(name: &'static str) -> Option<Setting> {
    if let Ok(value) = std::env::var(name) {
        // It hides the files' also where it is empty.
        return (!value.is_empty()).then_some(Setting { name, value, file: None });
    }
    files().into_iter().find_map(|file| {
        let value = read(&file, name)?;
        (!value.is_empty()).then_some(Setting { name, value, file: Some(file) })
    })
}

/// In the order in which NCCL reads them; the first line counts.
fn files() -> Vec<PathBuf> {
    let own: Vec<PathBuf> = match std::env::var_os("NCCL_CONF_FILE").filter(|file| !file.is_empty())
    {
        Some(file) => vec![file.into()],
        // Newer versions go by HOME, older ones by the list of users.
        None => [std::env::home_dir(), home_of_user()]
            .into_iter()
            .flatten()
            .map(|home| home.join(".nccl.conf"))
            .collect(),
    };
    own.into_iter().chain([PathBuf::from("/etc/nccl.conf")]).collect()
}

fn home_of_user() -> Option<PathBuf> {
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    let own = rustix::process::getuid().as_raw().to_string();
    // NAME:PASSWORD:UID:GID:COMMENT:HOME:SHELL
    let is_own = |line: &&str| line.split(':').nth(2) == Some(own.as_str());
    users.lines().find(is_own)?.split(':').nth(5).map(PathBuf::from)
}

/// One that cannot be read has no settings, to NCCL neither.
fn read(file: &Path, name: &str) -> Option<String> {
    let text = std::fs::read(file).ok()?;
    let text = String::from_utf8_lossy(&text);
    let value = |line: &str| Some(line.strip_prefix(name)?.strip_prefix('=')?.to_string());
    text.lines().find_map(value)
}

/// What would make both communicators of a pair block, or none, or separate their abort flags; with
/// the value that changes nothing.
const OVERRIDES: [(&str, &str); 2] =
    [("NCCL_COMM_BLOCKING", ""), ("NCCL_COMM_SPLIT_SHARE_RESOURCES", "1")];
