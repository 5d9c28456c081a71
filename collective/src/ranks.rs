//! How many ranks a command line asks for.

use std::fmt;
use std::str::FromStr;

/// A number of ranks, as `-n` takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ranks {
    /// That many.
    Number(usize),
    /// `auto`: one for each core.
    Auto,
    /// `gpu`: one for each GPU.
    Gpu,
}

impl FromStr for Ranks {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(ranks) => Ok(Self::Number(ranks)),
            Err(_) if text == AUTO => Ok(Self::Auto),
            Err(_) if text == GPU => Ok(Self::Gpu),
            Err(_) if text.parse::<f64>().is_ok_and(|ranks| ranks < 0.0) => {
                Err("must not be negative")
            }
            Err(_) => Err("must be a number, auto or gpu"),
        }
    }
}

impl fmt::Display for Ranks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(ranks) => ranks.fmt(f),
            Self::Auto => f.write_str(AUTO),
            Self::Gpu => f.write_str(GPU),
        }
    }
}

const AUTO: &str = "auto";
const GPU: &str = "gpu";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_ranks() {
        for (text, ranks) in [("4", Ranks::Number(4)), ("auto", Ranks::Auto), ("gpu", Ranks::Gpu)] {
            assert_eq!((text.parse(), ranks.to_string().as_str()), (Ok(ranks), text));
        }
        assert_eq!("-4".parse::<Ranks>(), Err("must not be negative"));
        for bad in ["", "x", "4.5", "AUTO", "gpus", "nan"] {
            assert_eq!(bad.parse::<Ranks>(), Err("must be a number, auto or gpu"), "{bad}");
        }
    }
}
