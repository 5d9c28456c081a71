//! Numbers as C's printf writes them, so that the table reads like nccl-tests' own.

/// A cell of `width` characters with as many decimals as fit: 2, 1, none, else an exponent.
pub(crate) fn cell(value: f64, width: usize) -> String {
    for decimals in [2, 1, 0] {
        let text = format!("{value:width$.decimals$}");
        if text.len() <= width {
            return text;
        }
    }
    let digits = if width >= EXPONENT_WIDTH { 1 } else { 0 };
    format!("{:>width$}", exponent(value, digits))
}

/// A cell for a bandwidth, of 6 characters: where two decimals would say nothing, two significant
/// digits in as few characters.
pub(crate) fn bandwidth_cell(value: f64) -> String {
    match value {
        value if value >= 0.005 || value <= 0.0 => cell(value, 6),
        value if value >= 0.001 => format!("{value:.4}"),
        value if value >= 9.5e-10 => format!("{value:6.1e}"),
        value => format!("{value:6.0e}"),
    }
}

/// C's `%g`: six significant digits, without trailing zeros.
pub(crate) fn general(value: f64) -> String {
    if !value.is_finite() {
        return value.to_string().to_lowercase();
    }
    let rounded = format!("{value:.*e}", SIGNIFICANT - 1);
    let power: i32 = match rounded.split_once('e') {
        Some((_, power)) => power.parse().unwrap_or(0),
        None => 0,
    };
    if (-4..SIGNIFICANT as i32).contains(&power) {
        let decimals = (SIGNIFICANT as i32 - 1 - power) as usize;
        return without_zeros(&format!("{value:.decimals$}")).into();
    }
    let text = exponent(value, SIGNIFICANT - 1);
    match text.split_once('e') {
        Some((mantissa, power)) => format!("{}e{power}", without_zeros(mantissa)),
        None => text,
    }
}

/// C's `%e`: a sign and at least two digits after the e, where Rust writes neither.
fn exponent(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$e}");
    let Some((mantissa, power)) = text.split_once('e') else {
        return text;
    };
    let (sign, digits) = match power.strip_prefix('-') {
        Some(digits) => ('-', digits),
        None => ('+', power),
    };
    format!("{mantissa}e{sign}{digits:0>2}")
}

fn without_zeros(text: &str) -> &str {
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.'),
        false => text,
    }
}

/// From this width on, nccl-tests give the exponent form one decimal.
const EXPONENT_WIDTH: usize = 7;
/// The precision of `%g`.
const SIGNIFICANT: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_keeps_its_width() {
        for (value, width, text) in [
            (31.02, 7, "  31.02"),
            (9999.99, 7, "9999.99"),
            (99999.0, 7, "99999.0"),
            (99999.94, 7, "99999.9"),
            (99999.96, 7, " 100000"),
            (1234567.0, 7, "1234567"),
            (12345678.0, 7, "1.2e+07"),
            (0.0, 6, "  0.00"),
            (0.004, 6, "  0.00"),
            (0.03, 6, "  0.03"),
            (999.99, 6, "999.99"),
            (1000.0, 6, "1000.0"),
            (12345.0, 6, " 12345"),
            (1234567.0, 6, " 1e+06"),
        ] {
            assert_eq!(cell(value, width), text);
        }
    }

    #[test]
    fn a_small_bandwidth_keeps_two_digits() {
        for (value, text) in [
            (0.0, "  0.00"),
            (1.5, "  1.50"),
            (0.005, "  0.01"),
            (0.00499, "0.0050"),
            (0.00123, "0.0012"),
            (0.001, "0.0010"),
            (0.0009999, "1.0e-3"),
            (0.000949, "9.5e-4"),
            (8.738e-5, "8.7e-5"),
            (9.96e-6, "1.0e-5"),
            (3.2e-12, " 3e-12"),
            (12345.0, " 12345"),
        ] {
            assert_eq!(bandwidth_cell(value), text, "{value}");
        }
    }

    #[test]
    fn general_is_cs() {
        for (value, text) in [
            (0.0, "0"),
            (0.0165479, "0.0165479"),
            (0.016547912, "0.0165479"),
            (12.5, "12.5"),
            (100000.0, "100000"),
            (999999.5, "1e+06"),
            (1e6, "1e+06"),
            (1234567.0, "1.23457e+06"),
            (0.0001, "0.0001"),
            (0.00001234, "1.234e-05"),
            (f64::INFINITY, "inf"),
            (f64::NAN, "nan"),
        ] {
            assert_eq!(general(value), text);
        }
    }
}
