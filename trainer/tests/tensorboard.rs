//! Event files on disk, and as TensorBoard reads them.

#![allow(clippy::unwrap_used, reason = "a test says by a panic that it failed")]

mod python;
mod skipped;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use allfold_trainer::EventFile;
use python::python_has;

fn fresh(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tensorboard").join(name);
    let _ = fs::remove_dir_all(&path);
    path
}

#[test]
fn tensorboard_reads_the_values() {
    if !python_has("tensorboard_reads_the_values", &["tensorboard"]) {
        return;
    }
    let folder = fresh("read");
    let mut first = EventFile::create(&folder, None).unwrap();
    for step in [100, 200, 300] {
        first.scalars(step, &[("loss/train", 1.0 / step as f32), ("images_per_second", 15_800.0)]);
    }
    drop(first);
    // A run that was killed after step 300 and resumed at 200.
    let mut second = EventFile::create(&folder, Some(200)).unwrap();
    second.scalar("loss/train", 250, 0.5);
    second.flush();

    let program = "
import sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1])
events.Reload()
for tag in sorted(events.Tags()['scalars']):
    print(tag, *(f'{it.step}:{it.value:.4f}' for it in events.Scalars(tag)))
print(min(it.wall_time for it in events.Scalars('loss/train')) > 1.7e9)
";
    let output = Command::new("python3").args(["-c", program]).arg(&folder).output().unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "images_per_second 100:15800.0000 200:15800.0000\n\
         loss/train 100:0.0100 200:0.0050 250:0.5000\n\
         True\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn each_file_has_its_own_name() {
    let folder = fresh("names");
    let files =
        [EventFile::create(&folder, None).unwrap(), EventFile::create(&folder, None).unwrap()];
    for (file, other) in [(&files[0], &files[1]), (&files[1], &files[0])] {
        let name = file.path().file_name().unwrap().to_str().unwrap();
        let rest = name.strip_prefix("events.out.tfevents.").unwrap();
        let (seconds, rest) = rest.split_once('.').unwrap();
        assert_eq!((seconds.len(), seconds.parse::<u64>().is_ok()), (10, true), "{name}");
        assert!(rest.contains(&format!(".{}.", std::process::id())), "{name}");
        assert_ne!(file.path(), other.path());
        // Its first record is there before any value is.
        assert_eq!(fs::metadata(file.path()).unwrap().len(), 40);
    }
}

#[test]
fn a_folder_that_cannot_be_made_is_told() {
    let file = fresh("a-file");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, "in the way").unwrap();
    let folder = file.join("below");
    assert_eq!(
        EventFile::create(&folder, None).unwrap_err().to_string(),
        format!("no values for TensorBoard: {}: Not a directory (os error 20)", folder.display())
    );
    fs::remove_file(file).unwrap();
}
