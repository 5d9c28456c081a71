//! Sizes: as nccl-tests read them, as the sweep walks over them, and in words.

/// Reads a size in bytes: a number and one of K, M, G (powers of 1024), as in `8`, `1.5K`, `64M`.
///
/// As in nccl-tests a fraction of a byte is cut off, and what follows the unit may be `B` or `iB`.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let trimmed = text.trim();
    let (number, unit) = match trimmed.find(is_unit) {
        Some(at) => {
            let (number, unit) = trimmed.split_at(at);
            let mut letters = unit.chars();
            let unit = letters.next().and_then(factor).ok_or(EXPECTED)?;
            if !matches!(letters.as_str(), "" | "B" | "b" | "iB") {
                return Err(EXPECTED.into());
            }
            (number.trim_end(), unit)
        }
        None => (trimmed, 1.0),
    };
    let bytes = number.parse::<f64>().map_err(|_| EXPECTED)? * unit;
    if !bytes.is_finite() {
        return Err(EXPECTED.into());
    }
    if bytes < 0.0 {
        return Err("must be positive".into());
    }
    if bytes >= LIMIT {
        return Err("larger than any memory".into());
    }
    Ok(bytes as u64)
}

/// From one size to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// So many times.
    Factor(u64),
    /// So many bytes more.
    Bytes(u64),
}

impl Step {
    /// Whether the next size is the same.
    pub(crate) fn stands_still(self) -> bool {
        matches!(self, Self::Factor(0 | 1) | Self::Bytes(0))
    }
}

/// The sizes from `minimum` to `maximum`.
pub(crate) fn steps(minimum: u64, maximum: u64, step: Step) -> impl Iterator<Item = u64> {
    std::iter::successors(Some(minimum), move |size| {
        let next = match step {
            Step::Factor(factor) => size.checked_mul(factor),
            Step::Bytes(bytes) => size.checked_add(bytes),
        };
        // A size that stays is a single row.
        next.filter(|next| next > size)
    })
    .take_while(move |size| *size <= maximum)
}

/// Bytes in words, such as `1.5 GiB`.
pub(crate) fn binary(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "bytes";
    for larger in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    match unit {
        "bytes" => format!("{bytes} bytes"),
        _ => format!("{value:.1} {unit}"),
    }
}

/// A letter ends the number, unless it is the exponent's.
fn is_unit(letter: char) -> bool {
    letter.is_alphabetic() && !matches!(letter, 'e' | 'E')
}

fn factor(unit: char) -> Option<f64> {
    match unit {
        'K' | 'k' => Some(1024.0),
        'M' | 'm' => Some(1024.0 * 1024.0),
        'G' | 'g' => Some(1024.0 * 1024.0 * 1024.0),
        _ => None,
    }
}

const EXPECTED: &str =
    "a size is a number of bytes with K, M or G (powers of 1024) or without, such as 8, 1.5K, 64M";

/// 8 EiB: above it a size does not fit into the JSON report of a reader with signed numbers.
const LIMIT: f64 = 9_223_372_036_854_775_808.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_nccl_tests_do() {
        for (text, bytes) in [
            ("8", 8),
            ("16M", 16 << 20),
            ("1.5K", 1536),
            ("2g", 2 << 30),
            ("64 M", 64 << 20),
            ("16MB", 16 << 20),
            ("16MiB", 16 << 20),
            ("1e3", 1000),
            ("0", 0),
            ("7.9", 7),
            (".5k", 512),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "", "K", "8X", "8T", "8B", "-1", "nan", "inf", "1e", "1 2", "8M8", "16Mx", "9e18G", "µ",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(parse("-1K").unwrap_err(), "must be positive");
    }

    #[test]
    fn the_sweep_multiplies_and_ends() {
        let sweep = |a, b, f| steps(a, b, Step::Factor(f)).collect::<Vec<_>>();
        assert_eq!(sweep(8, 64, 2), [8, 16, 32, 64]);
        assert_eq!(sweep(8, 63, 2), [8, 16, 32]);
        assert_eq!(sweep(1024, 1 << 20, 1024), [1024, 1 << 20]);
        assert_eq!(sweep(8, 8, 1), [8]);
        assert_eq!(sweep(1 << 62, u64::MAX, 4), [1 << 62]);
        let sweep = |a, b, s| steps(a, b, Step::Bytes(s)).collect::<Vec<_>>();
        assert_eq!(sweep(0, 64, 24), [0, 24, 48]);
        assert_eq!(sweep(8, 8, 0), [8]);
        assert_eq!(sweep(u64::MAX - 1, u64::MAX, 2), [u64::MAX - 1]);
    }

    #[test]
    fn bytes_read_well() {
        assert_eq!(binary(12), "12 bytes");
        assert_eq!(binary(1536), "1.5 KiB");
        assert_eq!(binary(64 << 30), "64.0 GiB");
    }
}
