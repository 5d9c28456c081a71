//! What a user says, as YAML.

/// One string, bare where every reader of YAML takes it for one.
pub(super) fn scalar(text: &str) -> String {
    if is_plain(text) {
        return text.into();
    }
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            _ if must_be_escaped(character) => {
                quoted.push_str(&format!("\\u{:04x}", u32::from(character)));
            }
            _ => quoted.push(character),
        }
    }
    quoted.push('"');
    quoted
}

/// The words of a command, an item each, as the container is to get them: Kubernetes puts variables
/// in place of `$(NAME)`, and one `$` in place of two.
pub(super) fn words(command: &[String]) -> String {
    let item = |word: &String| format!("- {}\n", scalar(&escaped(word)));
    command.iter().map(item).collect()
}

fn escaped(word: &str) -> String {
    let mut escaped = String::with_capacity(word.len());
    let mut characters = word.chars().peekable();
    while let Some(character) = characters.next() {
        escaped.push(character);
        if character == '$' && matches!(characters.peek(), Some('$' | '(')) {
            escaped.push('$');
        }
    }
    escaped
}

/// Words that begin with a letter, a slash or two dashes are no numbers, dates or signs of YAML's.
fn is_plain(text: &str) -> bool {
    let begins = text.strip_prefix("--").or(text.strip_prefix('/')).unwrap_or(text);
    let is_kept = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./=@%+:".contains(&byte);
    begins.starts_with(|first: char| first.is_ascii_alphabetic())
        && begins.bytes().all(is_kept)
        && !text.ends_with(':')
        && !WORDS.contains(&text.to_ascii_lowercase().as_str())
}

/// What YAML does not take as it stands, and what ends a line in some of its versions.
fn must_be_escaped(character: char) -> bool {
    character.is_control() || matches!(character, '\u{2028}' | '\u{2029}' | '\u{feff}')
}

/// What YAML 1.1 reads as true, false or nothing.
const WORDS: [&str; 9] = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_stays_a_string() {
        for plain in ["train", "--steps", "--lr=0.1", "/bin/sh", "trainer-1", "a@b:1", "x.py"] {
            assert_eq!(scalar(plain), plain);
        }
        for quoted in
            ["", "4", "-1", "-n", "0x1f", "1e3", "on", "No", "null", "a:", "a: b", "a #b", ".5"]
        {
            assert_eq!(scalar(quoted), format!("\"{quoted}\""));
        }
        assert_eq!(scalar("a\"b\\c\nd\u{7f}\u{2028}é"), r#""a\"b\\c\nd\u007f\u2028é""#);
    }

    /// As third_party/forked/golang/expansion of Kubernetes does it, with no variable set to A.
    fn expanded(word: &str) -> String {
        let (mut text, mut rest) = (String::new(), word);
        while let Some(place) = rest.find('$') {
            text.push_str(&rest[..=place]);
            rest = &rest[place + 1..];
            if let Some(after) = rest.strip_prefix('$') {
                rest = after;
            } else if let Some(after) = rest.strip_prefix("(A)") {
                text.pop();
                text.push('1');
                rest = after;
            }
        }
        text + rest
    }

    #[test]
    fn a_command_arrives_as_it_was_typed() {
        for word in ["$(A)", "$$(A)", "$$$(A)", "$A", "$$", "$$$", "a$", "$(date) $(A) $$x", "${A}"]
        {
            assert_eq!(expanded(&escaped(word)), word);
        }
        assert_eq!(expanded("$(A)$$"), "1$", "the model does what Kubernetes does");
        assert_eq!(words(&["sh".into(), "$HOME".into()]), "- sh\n- \"$HOME\"\n");
    }
}
