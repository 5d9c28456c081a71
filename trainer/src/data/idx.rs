//! MNIST's own format: a magic number, the sizes, then a byte a value, most significant byte first
//! (Y. LeCun, C. Cortes, C. Burges, *The MNIST database of handwritten digits*).

use std::path::Path;

use super::file::{GET_AGAIN, Source, bad};
use super::images::{CLASSES, Images};
use crate::error::Result;

/// Images and their labels, from a file each.
pub(super) fn read(images: &Path, labels: &Path) -> Result<Images> {
    let (sizes, pixels) = read_bytes(images, IMAGES)?;
    let [count, height, width] = [sizes[0], sizes[1], sizes[2]];
    let (sizes, classes) = read_bytes(labels, LABELS)?;
    if sizes[0] != count {
        return Err(bad(
            labels,
            format!("{} labels, but {count} images in {}", sizes[0], images.display()),
            "take both files from the same data set",
        ));
    }
    if let Some(at) = classes.iter().position(|&label| usize::from(label) >= CLASSES) {
        return Err(bad(
            labels,
            format!(
                "byte {}, the label of sample {at}: {}, expected 0 to {}",
                at + header_length(LABELS),
                classes[at],
                CLASSES - 1
            ),
            "the models tell ten classes apart, 0 to 9",
        ));
    }
    Ok(Images::new(pixels, classes, (height, width), u8::MAX))
}

/// What a file of the format holds.
#[derive(Clone, Copy)]
struct Contents {
    name: &'static str,
    /// The number of sizes.
    sizes: usize,
}

/// The sizes and what follows them.
fn read_bytes(path: &Path, contents: Contents) -> Result<(Vec<usize>, Vec<u8>)> {
    let mut source = Source::open(path)?;
    let header = source.read(header_length(contents) as u64)?;
    let magic = [0, 0, UNSIGNED_BYTES, contents.sizes as u8];
    if header.get(..4) != Some(&magic) {
        let found = &header[..header.len().min(4)];
        let is = kind_of(found).map_or(String::new(), |kind| format!(" ({kind})"));
        return Err(bad(
            path,
            format!(
                "byte 0: expected {} ({}), found {}{is}",
                hex(&magic),
                contents.name,
                hex(found)
            ),
            format!("give an IDX file of {} under this name", contents.name),
        ));
    }
    let sizes: Vec<usize> = header[4..]
        .chunks_exact(4)
        .map(|size| u32::from_be_bytes([size[0], size[1], size[2], size[3]]) as usize)
        .collect();
    if sizes.len() != contents.sizes {
        let problem = format!("truncated: {} bytes, less than a header", header.len());
        return Err(bad(path, problem, GET_AGAIN));
    }
    let [count, sides @ ..] = &sizes[..] else { return Ok((sizes, Vec::new())) };
    if *count == 0 {
        return Err(bad(path, "byte 4: holds 0 samples", GET_AGAIN));
    }
    if let Some(at) = sides.iter().position(|side| !(1..=SIDE_LIMIT).contains(side)) {
        let problem = format!(
            "byte {}: images with a side of {} pixels, expected 1 to {SIDE_LIMIT}",
            8 + 4 * at,
            sides[at]
        );
        return Err(bad(path, problem, GET_AGAIN));
    }
    // Cannot overflow: 32 bits and twice 12.
    let length = sizes.iter().map(|&size| size as u64).product::<u64>();
    if length > BYTES_LIMIT {
        let problem = format!("{}: more than {BYTES_LIMIT} bytes", told(&sizes, length));
        return Err(bad(path, problem, "take fewer images: all are held in memory"));
    }
    let expected = header.len() as u64 + length;
    if source.most() < expected {
        let problem = if source.is_packed() {
            format!("truncated: {}, more than can be packed in it", told(&sizes, expected))
        } else {
            format!("truncated: {}, the file has {}", told(&sizes, expected), source.most())
        };
        return Err(bad(path, problem, GET_AGAIN));
    }
    // One byte more than expected would show.
    let bytes = source.read(length + 1)?;
    let found = (header.len() + bytes.len()) as u64;
    if found < expected {
        let problem = format!("truncated: {}, found {found}", told(&sizes, expected));
        return Err(bad(path, problem, GET_AGAIN));
    }
    if found > expected {
        let problem = format!("too long: {}, but more follow", told(&sizes, expected));
        return Err(bad(path, problem, GET_AGAIN));
    }
    Ok((sizes, bytes))
}

/// `60000 images of 28x28 take 47040016 bytes`.
fn told(sizes: &[usize], length: u64) -> String {
    match sizes {
        [count, height, width] => format!("{count} images of {height}x{width} take {length} bytes"),
        _ => format!("{} labels take {length} bytes", sizes.first().unwrap_or(&0)),
    }
}

fn header_length(contents: Contents) -> usize {
    4 + 4 * contents.sizes
}

/// What a file with this start probably is.
fn kind_of(start: &[u8]) -> Option<&'static str> {
    match start {
        [0, 0, UNSIGNED_BYTES, 1] => Some(LABELS.name),
        [0, 0, UNSIGNED_BYTES, 3] => Some(IMAGES.name),
        [0, 0, 0x09 | 0x0b..=0x0e, 1..=9] => Some("IDX of other than unsigned bytes"),
        [b'P', b'K', ..] => Some("a zip archive"),
        [b'<', ..] => Some("a web page?"),
        [0xfd, b'7', b'z', b'X'] => Some("xz"),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    match bytes {
        [] => "nothing".into(),
        _ => bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "),
    }
}

const IMAGES: Contents = Contents { name: "images", sizes: 3 };
const LABELS: Contents = Contents { name: "labels", sizes: 1 };
/// The element type of the whole MNIST family.
const UNSIGNED_BYTES: u8 = 0x08;
/// Pixels along a side: a convolution of larger images would not fit into memory anyway.
pub(super) const SIDE_LIMIT: usize = 4096;
/// Bytes of one file, unpacked: all samples are held in memory.
const BYTES_LIMIT: u64 = 8 << 30;

#[cfg(test)]
mod tests;
