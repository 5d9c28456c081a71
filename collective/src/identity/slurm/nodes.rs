//! Slurm's short forms: `n[01-03,07],gpu5` for hosts, `2(x3),1` for tasks on each.

use crate::identity::MAX_WORLD_SIZE;

/// All hosts of a list, in its order.
pub(super) fn expand(list: &str) -> Result<Vec<String>, &'static str> {
    let mut hosts = Vec::new();
    for item in split_outside(list)? {
        let mut names = vec![String::new()];
        let mut rest = item;
        while let Some((before, from)) = rest.split_once('[') {
            let (ranges, after) = from.split_once(']').ok_or(UNCLOSED)?;
            let parts = numbers(ranges)?;
            if names.len() * parts.len() > MAX_WORLD_SIZE {
                return Err(TOO_MANY);
            }
            let with = |name: &String| {
                let start = format!("{name}{before}");
                parts.iter().map(move |part| format!("{start}{part}")).collect::<Vec<_>>()
            };
            names = names.iter().flat_map(with).collect();
            rest = after;
        }
        if hosts.len() + names.len() > MAX_WORLD_SIZE {
            return Err(TOO_MANY);
        }
        hosts.extend(names.into_iter().map(|name| name + rest));
    }
    match hosts.iter().any(String::is_empty) {
        true => Err("names a host without a name"),
        false => Ok(hosts),
    }
}

/// How many tasks each node has.
pub(super) fn tasks(text: &str) -> Result<Vec<usize>, &'static str> {
    let wrong = "must be numbers of tasks, such as 2(x3),1";
    let mut counts = Vec::new();
    for item in text.split(',') {
        let (count, times) = match item.split_once("(x") {
            Some((count, times)) => (count, times.strip_suffix(')').ok_or(wrong)?),
            None => (item, "1"),
        };
        let count: usize = count.parse().map_err(|_| wrong)?;
        let times: usize = times.parse().map_err(|_| wrong)?;
        if count > MAX_WORLD_SIZE || times > MAX_WORLD_SIZE - counts.len() {
            return Err(TOO_MANY);
        }
        counts.extend(std::iter::repeat_n(count, times));
    }
    Ok(counts)
}

/// The first of `12000-12003,12010`.
pub(super) fn first_port(text: &str) -> Option<u16> {
    text.split([',', '-']).next()?.parse().ok().filter(|port| *port > 0)
}

/// At commas that stand in no bracket.
fn split_outside(list: &str) -> Result<Vec<&str>, &'static str> {
    let mut items = Vec::new();
    let (mut start, mut is_inside) = (0, false);
    for (at, character) in list.char_indices() {
        match character {
            '[' if is_inside => return Err("has a bracket within brackets"),
            '[' => is_inside = true,
            ']' if !is_inside => return Err("closes a bracket that is not open"),
            ']' => is_inside = false,
            ',' if !is_inside => {
                items.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    items.push(&list[start..]);
    if is_inside { Err(UNCLOSED) } else { Ok(items) }
}

/// `01-03,07` in full; leading zeros stay.
fn numbers(ranges: &str) -> Result<Vec<String>, &'static str> {
    let wrong = "must have numbers and ranges in brackets, such as n[01-03,07]";
    let mut all = Vec::new();
    for range in ranges.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !is_number(first) || !is_number(last) {
            return Err(wrong);
        }
        let width = first.len();
        if width > MAX_DIGITS {
            return Err(wrong);
        }
        let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) else {
            return Err(wrong);
        };
        let count = last.checked_sub(first).ok_or("has a range that ends before it begins")?;
        if all.len().saturating_add(count) >= MAX_WORLD_SIZE {
            return Err(TOO_MANY);
        }
        all.extend((first..=last).map(|number| format!("{number:0width$}")));
    }
    Ok(all)
}

/// Of the largest number.
const MAX_DIGITS: usize = 20;
const UNCLOSED: &str = "opens a bracket that it does not close";
const TOO_MANY: &str = "stands for more than allfold can number";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lists_of_hosts_are_expanded() {
        let all = |list: &str| expand(list).map(|hosts| hosts.join(" "));
        assert_eq!(all("n0"), Ok("n0".into()));
        assert_eq!(all("n[01-03,07],gpu5"), Ok("n01 n02 n03 n07 gpu5".into()));
        assert_eq!(all("n[8-11]"), Ok("n8 n9 n10 n11".into()));
        assert_eq!(all("n[098-101]-ib.x"), Ok("n098-ib.x n099-ib.x n100-ib.x n101-ib.x".into()));
        assert_eq!(all("r[1-2]n[1,3],x"), Ok("r1n1 r1n3 r2n1 r2n3 x".into()));
        for wrong in
            ["", "n[1", "n1]", "n[1-]", "n[3-1]", "n[a-b]", "n[[1]]", "a,,b", "n[0-99999]", "n[]"]
        {
            assert!(expand(wrong).is_err(), "{wrong}");
        }
        assert!(expand("r[1-9999]n[1-9999]").is_err());
        assert!(expand("n[1-99999999999999999999]").is_err());
    }

    #[test]
    fn tasks_are_counted() {
        assert_eq!(tasks("2(x3),1"), Ok(vec![2, 2, 2, 1]));
        assert_eq!(tasks("4"), Ok(vec![4]));
        for wrong in ["", "x", "2(x", "2(3)", "2(x3", "2(x99999999)", "-1"] {
            assert!(tasks(wrong).is_err(), "{wrong}");
        }
        assert_eq!(first_port("12000-12003"), Some(12000));
        assert_eq!(first_port("x"), None);
    }

    proptest! {
        #[test]
        fn ranges_have_their_length_and_order(first in 0..2000_usize, count in 1..500_usize) {
            let hosts = expand(&format!("n[{first:04}-{:04}]x", first + count - 1)).unwrap();
            let expected: Vec<_> = (first..first + count).map(|i| format!("n{i:04}x")).collect();
            prop_assert_eq!(hosts, expected);
        }

        #[test]
        fn nothing_panics(text in "[n0-9,\\[\\]x()-]{0,40}") {
            let _ = (expand(&text), tasks(&text), first_port(&text));
        }
    }
}
