//! docs/troubleshooting.md beside the sources: what it quotes is still said, and each kind of error
//! has an entry.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// In the sources a message may be put together of parts; those between capitals and colons are the
/// ones that must be there, all in one file.
#[test]
fn what_is_quoted_is_in_the_sources() {
    let sources = sources();
    let quoted = quoted(&page());
    assert!(quoted.len() > 100, "only {} messages are quoted", quoted.len());
    for message in quoted {
        let (words, names) = parts(&message);
        assert!(!words.is_empty() || !names.is_empty(), "nothing to look for: {message}");
        let is_said =
            |text: &&String| words.iter().all(|words| text.contains(words.trim_matches('`')));
        assert!(sources.iter().any(|text| is_said(&text)), "nobody says: {message}");
        for name in names {
            assert!(sources.iter().any(|text| text.contains(&name)), "no {name}: {message}");
        }
    }
}

/// The fixed words of an error's text, the longest of them, stand on the page.
#[test]
fn every_kind_of_error_has_an_entry() {
    let page = page().replace('`', "");
    let mut count = 0;
    for text in sources() {
        for (_, from) in text.match_indices("#[error(").map(|(at, _)| text.split_at(at)) {
            let Some(literal) = from.split('"').nth(1).filter(|_| !from.starts_with("#[error(tr"))
            else {
                continue;
            };
            let fixed = literal.split(['{', '}']).step_by(2).flat_map(|words| words.split(':'));
            let words = fixed.map(|words| words.trim_matches(|c: char| !c.is_alphanumeric()));
            let Some(longest) = words.max_by_key(|words| words.len()) else { continue };
            if longest.len() < FEW_LETTERS {
                continue;
            }
            count += 1;
            let longest = longest.replace('`', "");
            assert!(page.contains(&longest), "docs/troubleshooting.md has no entry for: {literal}");
        }
    }
    assert!(count > 50, "only {count} kinds of errors were found");
}

fn page() -> String {
    fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap()
}

/// What stands on the page as **`message`**, or with two backticks where it holds some itself.
fn quoted(page: &str) -> Vec<String> {
    let bold = page.split("**").skip(1).step_by(2);
    let message = |text: &str| {
        Some(text.strip_prefix('`')?.strip_suffix('`')?.trim_matches('`').trim().to_string())
    };
    bold.filter_map(message).collect()
}

/// Fixed words, and names of variables and the like; what only stands for something is left out.
fn parts(message: &str) -> (Vec<String>, Vec<String>) {
    let (mut words, mut names) = (Vec::new(), Vec::new());
    for part in message.split([':', ';', '=']) {
        let mut run = String::new();
        for word in part.split_inclusive(|c: char| !c.is_alphanumeric() && c != '_' && c != '-') {
            let name = word.trim_matches(|c: char| !c.is_alphanumeric());
            let is_name = !name.is_empty()
                && name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
                && name.starts_with(|c: char| c.is_ascii_uppercase());
            if !is_name {
                run.push_str(word);
                continue;
            }
            words.push(std::mem::take(&mut run));
            if !STANDS_FOR_SOMETHING.contains(&name) {
                names.push(name.to_string());
            }
        }
        words.push(run);
    }
    let bare = |words: String| words.trim_matches(|c: char| !c.is_alphanumeric()).to_string();
    let words = words.into_iter().map(bare).filter(|words| words.len() > 1).collect();
    (words, names)
}

/// All sources without comments and tests, each text in quotes on one line.
fn sources() -> Vec<String> {
    let mut files = Vec::new();
    for room in ["collective", "trainer", "bench", "launcher"] {
        collect(&root().join(room).join("src"), &mut files);
    }
    files
}

fn collect(folder: &Path, files: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
            let mut whole = String::new();
            for line in code.lines().map(str::trim_start).filter(|line| !line.starts_with("//")) {
                match line.strip_suffix('\\') {
                    Some(start) => whole.push_str(start),
                    None => whole.extend([line, "\n"]),
                }
            }
            files.push(whole);
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// As the page's second paragraph explains them.
const STANDS_FOR_SOMETHING: [&str; 13] = [
    "N", "M", "HOST", "ADDRESS", "PLACE", "PATH", "NAME", "VALUE", "CALL", "TIME", "WHO",
    "LAUNCHER", "PROBLEM",
];
/// Shorter words, such as `rank`, are everywhere.
const FEW_LETTERS: usize = 8;
