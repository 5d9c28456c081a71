//! Cuts a rank's bytes into whole lines and puts the time and the rank before each.

use crate::clock;

/// One stream of one rank.
pub(crate) struct Lines {
    prefix: Vec<u8>,
    is_stamped: bool,
    /// The line that has no end yet.
    partial: Vec<u8>,
}

impl Lines {
    /// Lines that begin with `[rank] `, all prefixes of the job equally wide.
    pub(crate) fn of_rank(rank: usize, ranks: usize) -> Self {
        let width = ranks.saturating_sub(1).to_string().len();
        Self::with_prefix(format!("[{rank:>width$}] ").into_bytes())
    }

    /// Lines as they are.
    pub(crate) fn plain() -> Self {
        Self::with_prefix(Vec::new())
    }

    fn with_prefix(prefix: Vec<u8>) -> Self {
        Self { prefix, is_stamped: false, partial: Vec::new() }
    }

    /// The same with the time at which each was complete, before all else.
    pub(crate) fn stamped(self, is_stamped: bool) -> Self {
        Self { is_stamped, ..self }
    }

    /// Appends to `out` every line that `bytes` completes, byte for byte, and keeps the rest.
    pub(crate) fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        // They have arrived together.
        let head = self.head();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.partial.is_empty() && piece.ends_with(b"\n") {
                out.extend_from_slice(&head);
                out.extend_from_slice(piece);
                continue;
            }
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.partial.len() >= MAX_LINE {
                self.end_line(&head, out);
            }
        }
    }

    /// Appends the last line where it has no newline, and ends it, so that no other rank's text
    /// lands on it.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) {
        if !self.partial.is_empty() {
            let head = self.head();
            self.end_line(&head, out);
        }
    }

    fn end_line(&mut self, head: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(head);
        out.append(&mut self.partial);
        if !out.ends_with(b"\n") {
            out.push(b'\n');
        }
    }

    /// What stands before a line that is complete now.
    fn head(&self) -> Vec<u8> {
        let mut head = Vec::with_capacity(self.prefix.len() + STAMP);
        if self.is_stamped {
            head.extend_from_slice(clock::now().as_bytes());
            head.push(b' ');
        }
        head.extend_from_slice(&self.prefix);
        head
    }
}

/// A rank that never ends its line must not fill the memory: from here on the line is broken.
const MAX_LINE: usize = 64 << 20;
/// `2026-01-31T23:59:58.123Z` and a space.
const STAMP: usize = 25;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torn_lines_come_out_whole() {
        let mut lines = Lines::of_rank(2, 4);
        let mut out = Vec::new();
        lines.push(b"one\ntw", &mut out);
        assert_eq!(out, b"[2] one\n");
        lines.push(b"o", &mut out);
        lines.push(b"\n\nthree", &mut out);
        assert_eq!(out, b"[2] one\n[2] two\n[2] \n");
        lines.finish(&mut out);
        lines.finish(&mut out);
        assert_eq!(out, b"[2] one\n[2] two\n[2] \n[2] three\n");
    }

    #[test]
    fn every_cut_gives_the_same_lines() {
        let text = b"a\r\n\xff\xfe\x00b\n\nlast";
        let whole = b"[ 3] a\r\n[ 3] \xff\xfe\x00b\n[ 3] \n[ 3] last\n";
        for first in 0..text.len() {
            for second in first..text.len() {
                let mut lines = Lines::of_rank(3, 11);
                let mut out = Vec::new();
                lines.push(&text[..first], &mut out);
                lines.push(&text[first..second], &mut out);
                lines.push(&text[second..], &mut out);
                lines.finish(&mut out);
                assert_eq!(out, whole);
            }
        }
    }

    #[test]
    fn prefixes_are_equally_wide() {
        let mut out = Vec::new();
        for (rank, ranks) in [(0, 1), (9, 10), (9, 11), (10, 11), (7, 101)] {
            Lines::of_rank(rank, ranks).push(b"x\n", &mut out);
        }
        assert_eq!(out, b"[0] x\n[9] x\n[ 9] x\n[10] x\n[  7] x\n");
    }

    #[test]
    fn the_time_stands_before_the_rank() {
        let mut lines = Lines::of_rank(2, 4).stamped(true);
        let mut out = Vec::new();
        lines.push(b"one\ntwo", &mut out);
        lines.finish(&mut out);
        let text = String::from_utf8(out).unwrap();
        let (times, rest): (Vec<&str>, Vec<&str>) =
            text.lines().map(|line| line.split_at(STAMP)).unzip();
        assert_eq!(rest, ["[2] one", "[2] two"]);
        assert!(times.iter().all(|time| time.ends_with("Z ")), "{times:?}");
    }

    #[test]
    fn a_line_without_end_is_broken_but_not_lost() {
        let mut lines = Lines::of_rank(0, 1);
        let mut out = Vec::new();
        let piece = vec![b'x'; 1 << 20];
        for _ in 0..65 {
            lines.push(&piece, &mut out);
        }
        lines.finish(&mut out);
        assert_eq!(out.iter().filter(|byte| **byte == b'x').count(), 65 << 20);
        assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 2);
    }
}
