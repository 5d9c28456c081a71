//! How many lanes a rank has.

use crate::error::Result;
use crate::identity::{Environment, invalid};

/// Of the variable, else the default.
pub(super) fn read(environment: &Environment) -> Result<u16> {
    environment.number(LANES)?.map_or(Ok(DEFAULT_LANES), |lanes| check_lanes(lanes as u64))
}

/// A number of lanes that a rank may have.
pub(crate) fn check_lanes(lanes: u64) -> Result<u16> {
    match u16::try_from(lanes) {
        Ok(lanes @ 1..=MAX_LANES) => Ok(lanes),
        _ => Err(invalid(LANES, &lanes.to_string(), &format!("must be 1 to {MAX_LANES}"))),
    }
}

pub(super) const LANES: &str = "ALLFOLD_LANES";
/// As many as a 100 Gbit/s card takes at what one core seals and opens; each costs a thread, a
/// socket and its buffers.
const MAX_LANES: u16 = 8;
/// Measured: docs/benchmarks.md.
const DEFAULT_LANES: u16 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_have_a_limit() {
        let read_from = |environment| read(&environment).map_err(|error| error.to_string());
        let read = |text| read_from(Environment::from([(LANES, text)]));
        let unset = read_from(Environment::from([]));
        assert_eq!([read("1"), read("8"), unset], [Ok(1), Ok(8), Ok(DEFAULT_LANES)]);
        for wrong in ["0", "9", "65537"] {
            let error = read(wrong).unwrap_err();
            assert!(
                error.starts_with(&format!("ALLFOLD_LANES={wrong}: must be 1 to 8")),
                "{error}"
            );
        }
        assert!(read("two").unwrap_err().contains("must be a whole number"));
    }
}
