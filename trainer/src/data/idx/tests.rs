use super::*;
use crate::data::file::{Scratch, gzip};
use proptest::prelude::*;

/// A file of the format with these sizes.
fn file(sizes: &[u32], bytes: &[u8]) -> Vec<u8> {
    let mut file = vec![0, 0, 8, sizes.len() as u8];
    file.extend(sizes.iter().flat_map(|size| size.to_be_bytes()));
    file.extend(bytes);
    file
}

fn three() -> [Vec<u8>; 2] {
    let pixels: Vec<u8> = (0..3 * 4 * 5).collect();
    [file(&[3, 4, 5], &pixels), file(&[3], &[7, 0, 9])]
}

fn read_both(images: &[u8], labels: &[u8]) -> Result<Images> {
    let folder = Scratch::new("idx");
    read(&folder.write("images", images), &folder.write("labels", labels))
}

/// The message of the error, without the folder.
fn told(images: &[u8], labels: &[u8]) -> String {
    let error = read_both(images, labels).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.help().is_some());
    let text = error.to_string();
    let folder = text.split_inclusive('/').take(3).collect::<String>();
    text.replace(&folder, "")
}

#[test]
fn what_is_in_the_files_comes_out() {
    let [images, labels] = three();
    let gz = [gzip(&images), gzip(&labels)];
    for images in [&images, &gz[0]] {
        for labels in [&labels, &gz[1]] {
            let read = read_both(images, labels).unwrap();
            assert_eq!(read.size(), (4, 5));
            assert_eq!(read.parts()[0], &three()[0][16..]);
            assert_eq!(read.parts()[1], [7, 0, 9]);
        }
    }
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let [images, labels] = three();
    assert_eq!(
        told(&images[..60], &labels),
        "images: truncated: 3 images of 4x5 take 76 bytes, the file has 60"
    );
    assert_eq!(told(&images[..9], &labels), "images: truncated: 9 bytes, less than a header");
    assert_eq!(
        told(&[&images[..], &[1]].concat(), &labels),
        "images: too long: 3 images of 4x5 take 76 bytes, but more follow"
    );
    assert_eq!(
        told(&gzip(&[&images[..], &[1]].concat()), &labels),
        "images: too long: 3 images of 4x5 take 76 bytes, but more follow"
    );
    assert_eq!(
        told(&gzip(&images[..60]), &labels),
        "images: truncated: 3 images of 4x5 take 76 bytes, found 60"
    );
    let packed = gzip(&images);
    assert_eq!(
        told(&packed[..packed.len() / 2], &labels),
        "images: truncated: its gzip data ends early"
    );
    let mut damaged = packed.clone();
    let checksum = damaged.len() - 8;
    damaged[checksum] ^= 1;
    assert!(told(&damaged, &labels).starts_with("images: its gzip data is damaged ("));
    assert_eq!(
        told(&labels, &images),
        "images: byte 0: expected 00 00 08 03 (images), found 00 00 08 01 (labels)"
    );
    assert_eq!(
        told(b"<html>", &labels),
        "images: byte 0: expected 00 00 08 03 (images), found 3c 68 74 6d (a web page?)"
    );
    assert_eq!(told(b"", &labels), "images: the file is empty");
    assert_eq!(
        told(&gzip(b""), &labels),
        "images: byte 0: expected 00 00 08 03 (images), found nothing"
    );
    let text = told(&images, &file(&[4], &[0; 4]));
    assert!(text.starts_with("labels: 4 labels, but 3 images in "), "{text}");
    assert_eq!(
        told(&images, &file(&[3], &[0, 10, 1])),
        "labels: byte 9, the label of sample 1: 10, expected 0 to 9"
    );
    assert_eq!(told(&file(&[0, 4, 5], &[]), &labels), "images: byte 4: holds 0 samples");
    assert_eq!(
        told(&file(&[3, 4, 5000], &[]), &labels),
        "images: byte 12: images with a side of 5000 pixels, expected 1 to 4096"
    );
}

#[test]
fn sizes_are_checked_before_memory_is_taken() {
    let labels = &three()[1];
    let huge = file(&[u32::MAX, 4096, 4096], &[]);
    assert_eq!(
        told(&huge, labels),
        "images: 4294967295 images of 4096x4096 take 72057594021150720 bytes: more than \
         8589934592 bytes"
    );
    // Below the limit, but not in the file.
    let forged = file(&[500, 4096, 1024], &[]);
    let takes = "truncated: 500 images of 4096x1024 take 2097152016 bytes";
    assert_eq!(told(&forged, labels), format!("images: {takes}, the file has 16"));
    assert_eq!(
        told(&gzip(&forged), labels),
        format!("images: {takes}, more than can be packed in it")
    );
}

proptest! {
    /// Damage of any kind is an error or other pixels, never a panic.
    #[test]
    fn damaged_files_are_errors(
        packed in any::<bool>(),
        end in 0usize..100,
        flips in prop::collection::vec((0usize..100, any::<u8>()), 0..4),
    ) {
        let [images, labels] = three();
        let mut damaged = if packed { gzip(&images) } else { images.clone() };
        for (at, bits) in flips {
            if let Some(byte) = damaged.get_mut(at) {
                *byte ^= bits;
            }
        }
        damaged.truncate(end);
        if let Ok(read) = read_both(&damaged, &labels) {
            prop_assert_eq!(read.len(), 3);
            prop_assert_eq!(read.parts()[0].len(), 3 * read.size().0 * read.size().1);
        }
    }
}
