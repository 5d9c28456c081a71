//! At a terminal: what is typed goes to rank 0, and Ctrl-C reaches all ranks.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::launched::{Scratch, is_readable};

struct Terminal {
    keyboard: OwnedFd,
    shown: String,
}

impl Terminal {
    /// A new one, and the end that a program gets.
    fn open() -> (Self, File) {
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC);
        let keyboard = keyboard.unwrap();
        grantpt(&keyboard).unwrap();
        unlockpt(&keyboard).unwrap();
        let name = ptsname(&keyboard, Vec::new()).unwrap().into_string().unwrap();
        let program = OpenOptions::new().read(true).write(true).open(name).unwrap();
        (Self { keyboard, shown: String::new() }, program)
    }

    fn type_in(&self, text: &str) {
        File::from(self.keyboard.try_clone().unwrap()).write_all(text.as_bytes()).unwrap();
    }

    fn expect(&mut self, text: &str) {
        while !self.shown.contains(text) {
            let seen = &self.shown;
            assert!(is_readable(&self.keyboard, Duration::from_secs(60)), "seen: {seen:?}");
            let mut buffer = [0; 1024];
            let mut screen = File::from(self.keyboard.try_clone().unwrap());
            // An error says that the last program has let go of the terminal.
            let Ok(size @ 1..) = screen.read(&mut buffer) else {
                panic!("no {text:?} in {:?}", self.shown)
            };
            self.shown.push_str(&String::from_utf8_lossy(&buffer[..size]));
        }
    }
}

/// `setsid -c` makes the terminal the controlling one, as a shell's is.
fn at_terminal(scratch: &Scratch, terminal: &File, script: &str) -> Command {
    let mut command = Command::new("setsid");
    command
        .args(["-c", "-w", env!("CARGO_BIN_EXE_allfold"), "run", "-n", "2"])
        .args(["sh", "-c", script]);
    scratch.prepare(&mut command);
    let stream = || Stdio::from(terminal.try_clone().unwrap());
    command.stdin(stream()).stdout(stream()).stderr(stream());
    command
}

#[test]
fn the_keyboard_is_rank_0_s() {
    let scratch = Scratch::new();
    let (mut terminal, program) = Terminal::open();
    let script = "while read line; do echo $RANK read $line; done; echo $RANK is through";
    let mut child = at_terminal(&scratch, &program, script).spawn().unwrap();
    drop(program);
    terminal.expect("[1] 1 is through");
    terminal.type_in("hello\n");
    terminal.expect("[0] 0 read hello");
    terminal.type_in("\x04");
    terminal.expect("[0] 0 is through");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    scratch.expect_nothing_left();
}

#[test]
fn ctrl_c_reaches_every_rank_once() {
    let scratch = Scratch::new();
    let (mut terminal, program) = Terminal::open();
    let script = "trap 'echo caught $RANK; exit 0' INT; echo ready; while :; do sleep 0.2; done";
    let mut child = at_terminal(&scratch, &program, script).spawn().unwrap();
    drop(program);
    terminal.expect("[0] ready");
    terminal.expect("[1] ready");
    terminal.type_in("\x03");
    terminal.expect("caught 0");
    terminal.expect("caught 1");
    terminal.expect("error: stopped by SIGINT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(terminal.shown.matches("caught").count(), 2, "{:?}", terminal.shown);
    scratch.expect_nothing_left();
}
