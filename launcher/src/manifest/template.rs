//! Templates: text with marks such as `@NAME@`.

/// Puts the values in place of their marks.
///
/// A mark that has a line for itself stands for any number of lines, each of which gets the mark's
/// indentation; where its value is empty, the line goes. What a value holds is never taken for a
/// mark.
pub(super) fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut text = String::with_capacity(2 * template.len());
    for line in template.lines() {
        let word = line.trim_start();
        let indentation = &line[..line.len() - word.len()];
        match values.iter().find(|(mark, _)| *mark == word) {
            Some((_, value)) => {
                for line in value.lines() {
                    text.push_str(if line.is_empty() { "" } else { indentation });
                    text.push_str(line);
                    text.push('\n');
                }
            }
            None => {
                push_filled(&mut text, line, values);
                text.push('\n');
            }
        }
    }
    text
}

fn push_filled(text: &mut String, mut rest: &str, values: &[(&str, &str)]) {
    let first = |rest: &str| {
        let places =
            values.iter().filter_map(|(mark, value)| Some((rest.find(mark)?, mark, value)));
        places
            .min_by_key(|(place, ..)| *place)
            .map(|(place, mark, value)| (place, mark.len(), *value))
    };
    while let Some((place, length, value)) = first(rest) {
        text.push_str(&rest[..place]);
        text.push_str(value);
        rest = &rest[place + length..];
    }
    text.push_str(rest);
}

#[cfg(test)]
mod tests {
    use super::fill;

    #[test]
    fn lines_words_and_nothing() {
        let template = "a: @A@\n  @B@\n  @C@\nd: @A@/@D@\n";
        let values = [("@A@", "1"), ("@B@", "x\n\n  y\n"), ("@C@", ""), ("@D@", "@A@")];
        assert_eq!(fill(template, &values), "a: 1\n  x\n\n    y\nd: 1/@A@\n");
    }
}
