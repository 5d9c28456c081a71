//! Pooled memory for outgoing segments.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Buffers for outgoing segments, used again once quinn has let go of their bytes.
///
/// Bytes handed to quinn must not change until they are acknowledged, so each segment is copied
/// once into one of these. In steady state nothing is allocated: a buffer whose bytes are all
/// acknowledged is reclaimed in place.
#[derive(Default)]
pub(crate) struct SegmentPool {
    small: VecDeque<BytesMut>,
    large: VecDeque<BytesMut>,
}

impl SegmentPool {
    /// One message of the given parts, in one piece.
    pub(crate) fn message(&mut self, parts: &[&[u8]]) -> Bytes {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let (buffers, capacity) = if length <= SMALL_BYTES {
            (&mut self.small, SMALL_BYTES)
        } else {
            (&mut self.large, length.max(LARGE_BYTES))
        };
        // One that was handed out long ago is free again, unless its flow has stalled.
        let pooled = (0..LOOKS.min(buffers.len())).find_map(|_| {
            let mut oldest = buffers.pop_front()?;
            if oldest.try_reclaim(length) {
                return Some(oldest);
            }
            buffers.push_back(oldest);
            None
        });
        let mut buffer = pooled.unwrap_or_else(|| BytesMut::with_capacity(capacity));
        for part in parts {
            buffer.extend_from_slice(part);
        }
        let message = buffer.split().freeze();
        if buffers.len() < MAX_POOLED {
            buffers.push_back(buffer);
        }
        message
    }
}

/// Headers, contracts and short segments.
const SMALL_BYTES: usize = 4096;
/// A whole segment of 63 KiB with header and contract, in whole pages.
const LARGE_BYTES: usize = 68 * 1024;
/// More than the messages of a few stalled flows within a process; a look takes nanoseconds.
const LOOKS: usize = 16;
/// Large buffers of 8.5 MiB: a full send window.
const MAX_POOLED: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pooled_buffer_comes_back_when_its_message_is_dropped() {
        let mut pool = SegmentPool::default();
        let first = pool.message(&[b"head", &[1; 60_000]]);
        let address = first.as_ptr();
        let second = pool.message(&[b"head", &[2; 60_000]]);
        assert_ne!(second.as_ptr(), address, "a message still in use was overwritten");
        drop(first);
        drop(second);
        let third = pool.message(&[b"head", &[3; 60_000]]);
        assert_eq!(third.as_ptr(), address);
        assert_eq!(&third[..5], b"head\x03");
    }
}
