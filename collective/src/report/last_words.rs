//! The line that ends a rank, left where its cluster looks for it: in Kubernetes the termination
//! log, which `kubectl describe pod` shows; under torchrun the error file, which its summary shows.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};
use serde_json::json;

use super::writer::{self, Weight};
use crate::identity::Environment;

/// Leaves the line that ends this process where its cluster looks for it: in Kubernetes in
/// `/dev/termination-log`, under torchrun in the file that `TORCHELASTIC_ERROR_FILE` names.
///
/// What another process has left there stays: the first error is the cause. Where it cannot be
/// written, nothing happens. allfold does this itself for the errors of its communicators.
pub fn leave(message: &str, help: Option<&str>) {
    let places = Places::of(&Environment::of_process());
    places.leave(message, help);
}

/// Takes back what this process has left for Kubernetes: it has outlived that, and its pod's status
/// is to show what ends it, if anything does.
pub fn take_back() {
    let places = Places::of(&Environment::of_process());
    if places.termination_log.is_some() {
        // Behind all that allfold's own threads were to leave before.
        writer::FILES.hand_over(Weight::End, move || places.take_back());
        super::flush();
    }
}

struct Places {
    termination_log: Option<PathBuf>,
    error_file: Option<PathBuf>,
    /// This process has written the termination log.
    is_ours: &'static AtomicBool,
}

impl Places {
    fn of(environment: &Environment) -> Self {
        static IS_OURS: AtomicBool = AtomicBool::new(false);
        let in_kubernetes = environment.get("KUBERNETES_SERVICE_HOST").is_some();
        Self {
            termination_log: in_kubernetes.then(|| TERMINATION_LOG.into()),
            error_file: environment.get("TORCHELASTIC_ERROR_FILE").map(PathBuf::from),
            is_ours: &IS_OURS,
        }
    }

    fn leave(&self, message: &str, help: Option<&str>) {
        let mut text = message.to_string();
        if let Some(help) = help {
            text.push_str("\nhelp: ");
            text.push_str(help);
        }
        // Nobody is left to hear that these words could not be left.
        if let Some(path) = &self.termination_log {
            let _ = self.log(path, &text);
        }
        if let Some(path) = &self.error_file {
            let _ = write_error_file(path, message, &text);
        }
    }

    fn take_back(&self) {
        if let Some(path) = self.termination_log.as_ref().filter(|_| self.is_ours.load(Relaxed)) {
            let _ = OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(0));
        }
    }

    /// The kubelet has made the file; several processes of a container may end at once.
    fn log(&self, path: &Path, text: &str) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).open(path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let is_free = file.metadata()?.len() == 0;
        if !is_free && !self.is_ours.load(Relaxed) {
            return Ok(());
        }
        self.is_ours.store(true, Relaxed);
        file.set_len(0)?;
        let room = text.len().min(MAX_LOG_BYTES - 1);
        let end = (0..=room).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        file.write_all(format!("{}\n", &text[..end]).as_bytes())
    }
}

/// As torch's `ErrorHandler.record_exception` writes it. torchrun shows `py_callstack`, and takes
/// the error with the lowest `timestamp` for the cause.
fn write_error_file(path: &Path, message: &str, text: &str) -> io::Result<()> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let timestamp = since.as_secs().to_string();
    let extra = json!({ "py_callstack": text, "timestamp": timestamp });
    let object = json!({ "message": { "message": message, "extraInfo": extra } });
    let mut file = File::create_new(path)?;
    file.write_all(object.to_string().as_bytes())
}

const TERMINATION_LOG: &str = "/dev/termination-log";
/// What the kubelet reads of it at most.
const MAX_LOG_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of the test's own, and its termination log as the kubelet makes it.
    fn places(name: &str) -> Places {
        let folder = std::env::temp_dir().join(format!("allfold-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        let log = folder.join("termination-log");
        File::create(&log).unwrap();
        Places {
            termination_log: Some(log),
            error_file: Some(folder.join("error.json")),
            is_ours: Box::leak(Box::default()),
        }
    }

    fn read(path: &Option<PathBuf>) -> String {
        std::fs::read_to_string(path.as_ref().unwrap()).unwrap()
    }

    #[test]
    fn the_line_and_its_help_stand_in_both_places() {
        let places = places("both");
        places.leave("rank 3 stopped", Some("look at it"));
        assert_eq!(read(&places.termination_log), "rank 3 stopped\nhelp: look at it\n");
        let object: serde_json::Value = serde_json::from_str(&read(&places.error_file)).unwrap();
        let message = &object["message"];
        assert_eq!(message["message"], "rank 3 stopped");
        let extra = &message["extraInfo"];
        assert_eq!(extra["py_callstack"], "rank 3 stopped\nhelp: look at it");
        // torchrun reads it by int().
        assert!(extra["timestamp"].as_str().unwrap().parse::<u64>().unwrap() > 1_700_000_000);
    }

    #[test]
    fn the_first_process_has_the_last_word() {
        let first = places("first");
        first.leave("the cause", None);
        let second = Places {
            termination_log: first.termination_log.clone(),
            error_file: first.error_file.clone(),
            is_ours: Box::leak(Box::default()),
        };
        second.leave("what came of it", None);
        assert_eq!(read(&first.termination_log), "the cause\n");
        assert!(read(&first.error_file).contains("the cause"));
        // A process that goes on after an error may end by another.
        first.leave("the end", None);
        assert_eq!(read(&first.termination_log), "the end\n");
        assert!(read(&first.error_file).contains("the cause"));
    }

    #[test]
    fn what_was_outlived_is_taken_back_by_who_left_it() {
        let first = places("back");
        let second = Places {
            termination_log: first.termination_log.clone(),
            error_file: None,
            is_ours: Box::leak(Box::default()),
        };
        first.leave("the cause", None);
        second.take_back();
        assert_eq!(read(&first.termination_log), "the cause\n");
        first.take_back();
        assert_eq!(read(&first.termination_log), "");
        first.leave("the end", None);
        assert_eq!(read(&first.termination_log), "the end\n");
    }

    #[test]
    fn a_long_line_is_cut_where_a_letter_ends() {
        let places = places("long");
        places.leave(&"ä".repeat(4000), None);
        let text = read(&places.termination_log);
        assert_eq!(text.len(), MAX_LOG_BYTES - 1, "{}", text.len());
        assert!(text.ends_with("ä\n"));
    }

    #[test]
    fn where_nothing_can_be_written_nothing_happens() {
        let mut places = places("nowhere");
        let log = places.termination_log.take().unwrap();
        std::fs::remove_file(&log).unwrap();
        places.termination_log = Some(log.clone());
        places.error_file = Some("/proc/none/error.json".into());
        places.leave("lost", None);
        assert!(!log.exists(), "the kubelet makes it, not we");
    }

    #[test]
    fn only_a_cluster_has_places() {
        let none = Places::of(&Environment::from([]));
        assert_eq!((none.termination_log, none.error_file), (None, None));
        let pod = Places::of(&Environment::from([("KUBERNETES_SERVICE_HOST", "10.96.0.1")]));
        assert_eq!(pod.termination_log, Some("/dev/termination-log".into()));
        let torchrun = Places::of(&Environment::from([("TORCHELASTIC_ERROR_FILE", "/tmp/e")]));
        assert_eq!(torchrun.error_file, Some("/tmp/e".into()));
    }
}
