//! Completions and manual pages.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::launched::{Scratch, finish, is_here};

fn printed(words: &[&str]) -> String {
    let ended = finish(Scratch::new().allfold(words));
    assert_eq!((ended.code(), ended.stderr.as_str()), (Some(0), ""), "{words:?}");
    ended.lines.join("\n")
}

#[test]
fn every_shell_has_its_completions() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = printed(&["completions", shell]);
        for word in ["max-restarts", "json-events", "train", "completions"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
        // what is not for users
        assert!(!script.contains("keeper"), "{shell}");
    }
}

#[test]
fn bash_completes_an_option() {
    if !is_here("bash") {
        let mut stderr = std::io::stderr();
        return writeln!(stderr, "skipped: bash_completes_an_option: bash is missing").unwrap();
    }
    let scratch = Scratch::new();
    let mut command = Command::new("bash");
    let script = "source <(\"$0\" completions bash); COMP_WORDS=(allfold run --max); COMP_CWORD=2; \
                  _allfold allfold --max run; echo \"${COMPREPLY[@]}\"; \
                  COMP_WORDS=(allfold tr); COMP_CWORD=1; _allfold allfold tr allfold; \
                  echo \"${COMPREPLY[@]}\"";
    command.args(["-c", script, env!("CARGO_BIN_EXE_allfold")]);
    scratch.prepare(&mut command);
    let ended = finish(command);
    assert_eq!(ended.lines, ["--max-restarts", "train"], "{}", ended.stderr);
}

#[test]
fn every_subcommand_has_its_page() {
    let pages = [
        (&["man"][..], "allfold\\-run(1)"),
        (&["man", "run"], "\\-\\-max\\-restarts"),
        (&["man", "run"], "Exit codes"),
        (&["man", "train"], "\\-\\-batch\\-size"),
        (&["man", "bench"], "\\-\\-minbytes"),
        (&["man", "manifest"], "\\-\\-checkpoint\\-claim"),
        (&["man", "doctor"], "\\-\\-timeout"),
        (&["man", "man"], "allfold man"),
    ];
    for (words, expected) in pages {
        let page = printed(words);
        assert!(page.contains(".TH ALLFOLD"), "{page}");
        assert!(page.contains(expected), "{words:?}: {page}");
        assert!(!page.contains("keeper"), "{page}");
    }
    let scratch = Scratch::new();
    let ended = finish(scratch.allfold(&["man", "frob"]));
    assert_eq!((ended.code(), ended.error()), (Some(2), "no subcommand frob"));
}

#[test]
fn groff_finds_no_fault_with_the_pages() {
    if !is_here("groff") {
        let mut stderr = std::io::stderr();
        let skipped = "skipped: groff_finds_no_fault_with_the_pages: groff is missing";
        return writeln!(stderr, "{skipped}").unwrap();
    }
    let pages = [&["man"][..], &["man", "run"], &["man", "train"], &["man", "manifest"]];
    for words in pages.into_iter().chain([&["man", "bench"][..]]) {
        let mut groff = Command::new("groff")
            .args(["-man", "-Tutf8", "-Kutf8", "-ww"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let page = Scratch::new().allfold(words).output().unwrap().stdout;
        groff.stdin.take().unwrap().write_all(&page).unwrap();
        let output = groff.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{words:?}");
    }
}
