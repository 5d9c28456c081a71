//! Whether the buffers fit into this host, asked before any rank starts.

use std::fs;

use crate::Error;

/// Compares so many `buffers` of `maximum` bytes with the memory that is available; a system that
/// does not tell how much that is passes.
pub(crate) fn check(maximum: u64, buffers: usize) -> Result<(), Error> {
    match fs::read_to_string("/proc/meminfo") {
        Ok(text) => compare(maximum, buffers, available(&text)),
        Err(_) => Ok(()),
    }
}

/// An empty buffer of `length` elements, all zero bits.
pub(crate) fn buffer<T: Copy + Default>(length: usize) -> Result<Vec<T>, Error> {
    let mut buffer = Vec::new();
    buffer
        .try_reserve_exact(length)
        .map_err(|_| Error::Allocation { maximum: length.saturating_mul(size_of::<T>()) as u64 })?;
    buffer.resize(length, T::default());
    Ok(buffer)
}

fn compare(maximum: u64, buffers: usize, available: Option<u64>) -> Result<(), Error> {
    let needed = maximum.saturating_mul(buffers as u64);
    match available {
        Some(available) if needed > available => Err(Error::Memory { maximum, needed, available }),
        _ => Ok(()),
    }
}

/// `MemAvailable:   12345 kB`, in bytes.
fn available(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ranks_of_the_host_count() {
        let text = "MemTotal:       200 kB\nMemAvailable:   100 kB\n";
        assert_eq!(available(text), Some(102_400));
        assert_eq!(available("MemTotal: 200 kB"), None);
        assert!(compare(51_200, 2, Some(102_400)).is_ok());
        assert!(compare(51_200, 3, Some(102_400)).is_err());
        assert!(compare(51_200, 3, None).is_ok());
    }

    #[test]
    fn a_buffer_the_system_refuses_is_an_error() {
        assert!(buffer::<f64>(usize::MAX / 8).is_err());
        assert_eq!(buffer::<f32>(3).unwrap(), [0.0; 3]);
    }
}
