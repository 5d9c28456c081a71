//! `ALLFOLD_INTERFACE`: which of a host's addresses a rank uses.

use std::fmt;
use std::net::IpAddr;

use crate::error::Result;
use crate::identity::invalid;

/// Interfaces by name, address or block of addresses; or all but some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interfaces {
    text: String,
    all_but: bool,
    choices: Vec<Choice>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Choice {
    Name(String),
    /// The addresses that begin with so many of its bits.
    Block(IpAddr, u8),
}

impl Interfaces {
    /// `eth0`, `eth0,ib0`, `^docker0`, `10.0.0.7`, `10.0.0.0/8,fd00::/8`.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let wrong = |problem: &str| invalid("ALLFOLD_INTERFACE", text, problem);
        let list = text.strip_prefix('^');
        let mut choices = Vec::new();
        for word in list.unwrap_or(text).split(',').map(str::trim).filter(|word| !word.is_empty()) {
            let (start, length) = match word.split_once('/') {
                Some((start, length)) => (start, Some(length)),
                None => (word, None),
            };
            let start = start.trim_start_matches('[').trim_end_matches(']');
            choices.push(match (start.parse::<IpAddr>(), length) {
                (Ok(ip), length) => {
                    let all = if ip.is_ipv4() { 32 } else { 128 };
                    let length = length.map_or(Ok(all), str::parse);
                    match length {
                        Ok(length) if length <= all => Choice::Block(ip, length),
                        _ => return Err(wrong("has a block that is none, such as 10.0.0.0/8")),
                    }
                }
                (Err(_), Some(_)) => {
                    return Err(wrong("has a block that is none, such as 10.0.0.0/8"));
                }
                (Err(_), None) => Choice::Name(word.into()),
            });
        }
        match choices.is_empty() {
            true => Err(wrong("names no interface; give eth0, or eth0,ib0, or 10.0.0.0/8")),
            false => Ok(Self { text: text.into(), all_but: list.is_some(), choices }),
        }
    }

    /// Whether it says only which are not to be used.
    pub(crate) fn is_all_but(&self) -> bool {
        self.all_but
    }

    /// Whether this address of that interface is one of them.
    pub(crate) fn takes(&self, interface: &str, ip: IpAddr) -> bool {
        let is_named = self.choices.iter().any(|choice| match choice {
            Choice::Name(name) => name == interface,
            Choice::Block(start, length) => is_within(ip, *start, *length),
        });
        is_named != self.all_but
    }
}

impl fmt::Display for Interfaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn is_within(ip: IpAddr, start: IpAddr, length: u8) -> bool {
    // The bits of both, and how many there are.
    let (one, other, all) = match (ip, start) {
        (IpAddr::V4(one), IpAddr::V4(other)) => {
            (u128::from(one.to_bits()), u128::from(other.to_bits()), 32)
        }
        (IpAddr::V6(one), IpAddr::V6(other)) => (one.to_bits(), other.to_bits(), 128),
        _ => return false,
    };
    // A shift by all 128 bits is none.
    (one ^ other).checked_shr(u32::from(all - length)).is_none_or(|rest| rest == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_compared_bit_by_bit() {
        let within = |ip: &str, block: &str| {
            Interfaces::parse(block).unwrap().takes("eth0", ip.parse().unwrap())
        };
        assert!(within("10.1.2.3", "10.0.0.0/8") && !within("11.1.2.3", "10.0.0.0/8"));
        assert!(within("10.1.2.3", "10.1.2.2/31") && !within("10.1.2.4", "10.1.2.2/31"));
        assert!(within("10.1.2.3", "0.0.0.0/0") && !within("fd00::1", "0.0.0.0/0"));
        assert!(within("fd00::1", "::/0") && !within("10.1.2.3", "::/0"));
        assert!(within("fd00::1", "[fd00::1]") && !within("fd00::2", "fd00::1"));
    }

    #[test]
    fn what_chooses_nothing_is_refused() {
        for text in ["", ",", "^", "10.0.0.0/33", "fd00::/129", "10.0.0.0/", "eth0/24"] {
            let error = Interfaces::parse(text).unwrap_err().to_string();
            assert!(error.contains("ALLFOLD_INTERFACE"), "{error}");
        }
    }
}
