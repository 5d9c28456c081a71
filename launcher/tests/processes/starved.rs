//! A rank that the kernel kills for want of memory.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use crate::launched::{Scratch, finish};

/// A control group with little memory; removed when dropped.
struct Poor(PathBuf);

impl Poor {
    /// None where this process may not make one.
    fn new() -> Option<Self> {
        let name = format!("allfold-starved-{}", std::process::id());
        // Version 1, then version 2.
        let v1 = Self(PathBuf::from("/sys/fs/cgroup/memory").join(&name));
        if fs::create_dir(&v1.0).is_ok()
            && fs::write(v1.0.join("memory.limit_in_bytes"), LIMIT).is_ok()
        {
            return Some(v1);
        }
        let v2 = Self(PathBuf::from("/sys/fs/cgroup").join(&name));
        let is_made = fs::create_dir(&v2.0).is_ok();
        (is_made && fs::write(v2.0.join("memory.max"), LIMIT).is_ok()).then_some(v2)
    }
}

impl Drop for Poor {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn memory_that_ran_out_is_named() {
    let Some(group) = Poor::new() else {
        let skipped = "skipped: memory_that_ran_out_is_named: no control group can be made here";
        return writeln!(std::io::stderr(), "{skipped}").unwrap();
    };
    let scratch = Scratch::new();
    let script = "[ $ALLFOLD_RANK = 1 ] && exec tail /dev/zero; exec sleep 300";
    let inner = scratch.run(2, script);
    let mut command = Command::new("sh");
    command.args(["-c", "echo $$ > \"$0\"/cgroup.procs && exec \"$@\""]).arg(&group.0);
    command.arg(inner.get_program()).args(inner.get_args());
    scratch.prepare(&mut command);
    let ended = finish(command);
    assert_eq!(ended.code(), Some(137), "{}", ended.stderr);
    let error = ended.error();
    assert!(error.starts_with("rank 1 (pid "), "{error}");
    assert!(error.contains(" was killed by the kernel: out of memory"), "{error}");
    assert!(ended.stderr.contains("\nhelp: give the job more memory"), "{}", ended.stderr);
    scratch.expect_nothing_left();
}

/// More than the launcher and a sleeping rank need.
const LIMIT: &str = "67108864";
