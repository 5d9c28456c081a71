//! MNIST as comma-separated values: a sample a line, the label first, then the pixels row by row.

use std::io::{self, BufReader, Read};
use std::path::Path;

use ::csv::{ByteRecord, ErrorKind, Position, ReaderBuilder};

use super::file::{GET_AGAIN, Source, bad, bad_line};
use super::idx::SIDE_LIMIT;
use super::images::{CLASSES, Images};
use crate::error::{Error, Result};

/// All samples of a file. Its first line may name the columns.
pub(super) fn read(path: &Path) -> Result<Images> {
    let source = Source::open(path)?;
    let mut reader = ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .buffer_capacity(BUFFER)
        .from_reader(source);
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    let mut first = None;
    let mut record = ByteRecord::new();
    let mut at_start = true;
    loop {
        match reader.read_byte_record(&mut record) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => return Err(failed(reader.get_ref(), error)),
        }
        let start = record.position().map_or(0, Position::byte);
        let is_heading = std::mem::take(&mut at_start) && is_heading(&record);
        if is_heading {
            continue;
        }
        let (columns, first_start) = *first.get_or_insert((record.len(), start));
        if record.len() != columns {
            let first_line = line_of(path, first_start);
            let problem =
                format!("{} columns, expected {columns} as in line {first_line}", record.len());
            return Err(bad_line(path, line_of(path, start), problem, GET_AGAIN));
        }
        if labels.is_empty() && side(columns).is_none() {
            let problem = format!(
                "{columns} columns, expected a label and the pixels of a square image, such as \
                 785 = 1 + 28x28"
            );
            return Err(bad_line(path, line_of(path, start), problem, FORMAT));
        }
        let wrong = |column: usize, expected: String| {
            let found = String::from_utf8_lossy(record.get(column).unwrap_or_default());
            // A field may be as long as the file.
            let found: String = found.chars().take(SHOWN).collect();
            let problem =
                format!("column {}: {}, expected {expected}", column + 1, found.escape_debug());
            bad_line(path, line_of(path, start), problem, FORMAT)
        };
        match record.get(0).and_then(number) {
            Some(label) if usize::from(label) < CLASSES => labels.push(label),
            _ => return Err(wrong(0, format!("a label from 0 to {}", CLASSES - 1))),
        }
        for (column, field) in record.iter().enumerate().skip(1) {
            match number(field) {
                Some(pixel) => pixels.push(pixel),
                None => return Err(wrong(column, "a pixel from 0 to 255".into())),
            }
        }
    }
    match first.and_then(|(columns, _)| side(columns)) {
        Some(side) => Ok(Images::new(pixels, labels, (side, side), u8::MAX)),
        None => Err(bad(path, "no line holds a sample", FORMAT)),
    }
}

/// The line, from 1, of the record that the reader has found at this byte: before it skipped what
/// was left of an end of line, and empty lines.
fn line_of(path: &Path, byte: u64) -> u64 {
    let count = || -> io::Result<u64> {
        let source = Source::open(path).map_err(io::Error::other)?;
        let mut reader = BufReader::with_capacity(BUFFER, source);
        let mut line = 1;
        let (mut left, mut chunk) = (byte, Vec::with_capacity(BUFFER));
        while left > 0 {
            chunk.clear();
            let read = reader.by_ref().take(left.min(BUFFER as u64)).read_to_end(&mut chunk)?;
            if read == 0 {
                break;
            }
            line += chunk.iter().filter(|&&byte| byte == b'\n').count() as u64;
            left -= read as u64;
        }
        for byte in reader.bytes() {
            match byte? {
                b'\n' => line += 1,
                b'\r' => {}
                _ => break,
            }
        }
        Ok(line)
    };
    // It has just been read to there, unless it changes meanwhile.
    count().unwrap_or(0)
}

/// Whether the first line names its columns: its first field is no number.
fn is_heading(record: &ByteRecord) -> bool {
    let field = record.get(0).unwrap_or_default().trim_ascii();
    field.first().is_some_and(|&byte| byte.is_ascii_alphabetic() || byte == b'_')
}

/// The side of the image, from the number of columns.
fn side(columns: usize) -> Option<usize> {
    let pixels = columns.checked_sub(1)?;
    let side = pixels.isqrt();
    (side * side == pixels && (1..=SIDE_LIMIT).contains(&side)).then_some(side)
}

/// A number from 0 to 255 in decimal.
fn number(field: &[u8]) -> Option<u8> {
    let field = field.trim_ascii();
    if field.is_empty() || field.len() > DIGITS {
        return None;
    }
    let mut value = 0u32;
    for &digit in field {
        if !digit.is_ascii_digit() {
            return None;
        }
        value = value * 10 + u32::from(digit - b'0');
    }
    u8::try_from(value).ok()
}

fn failed(source: &Source, error: ::csv::Error) -> Error {
    match error.kind() {
        ErrorKind::Io(error) => source.failed(error),
        _ => bad(source.path(), error.to_string(), FORMAT),
    }
}

/// What a file must look like.
const FORMAT: &str = "each line is a label, 0 to 9, and the pixels of its image, 0 to 255";
/// Read at once from the file.
const BUFFER: usize = 1 << 17;
/// Characters of a wrong field that are shown.
const SHOWN: usize = 20;
/// Of a number, with some zeros in front: a value of more must not overflow.
const DIGITS: usize = 9;

#[cfg(test)]
mod tests;
