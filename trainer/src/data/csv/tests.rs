use super::*;
use crate::data::file::{Scratch, gzip};
use proptest::prelude::*;

fn read_text(text: &[u8]) -> Result<Images> {
    let folder = Scratch::new("csv");
    read(&folder.write("a_train.csv", text))
}

/// The message of the error, without the folder.
fn told(text: &str) -> String {
    let error = read_text(text.as_bytes()).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.help().is_some());
    let text = error.to_string();
    text.split_inclusive('/').skip(3).collect()
}

#[test]
fn what_is_in_the_file_comes_out() {
    for text in [
        "7,0,1,2,255\n0,4,5,6,7\n",
        "label,1x1,1x2,2x1,2x2\n7,0,1,2,255\n0,4,5,6,7",
        "\u{feff}label,a,b,c,d\r\n7, 0, 1, 2, 255\r\n\r\n0,4,5,6,7\r\n",
        "\"7\",\"000\",1,2,255\n0,4,5,6,7\n",
    ] {
        for bytes in [text.as_bytes().to_vec(), gzip(text.as_bytes())] {
            let images = read_text(&bytes).unwrap();
            assert_eq!(images.size(), (2, 2));
            assert_eq!(images.parts(), [&[0, 1, 2, 255, 4, 5, 6, 7][..], &[7, 0]]);
        }
    }
}

#[test]
fn what_is_wrong_is_said_with_its_line() {
    assert_eq!(
        told("label,a,b,c,d\n7,0,1,2,3\n1,0,1,2\n"),
        "a_train.csv:3: 4 columns, expected 5 as in line 2"
    );
    assert_eq!(
        told("7,0,1,2,3\n1,0,1,2,3,4\n"),
        "a_train.csv:2: 6 columns, expected 5 as in line 1"
    );
    assert_eq!(
        told("7,0,1,2,3\n1,0,256,2,3\n"),
        "a_train.csv:2: column 3: 256, expected a pixel from 0 to 255"
    );
    assert_eq!(
        told("7,0,1,2,3\n1,0,1,2,-3\n"),
        "a_train.csv:2: column 5: -3, expected a pixel from 0 to 255"
    );
    assert_eq!(
        told("7,0,1,2,3\n1,0,1,,3\n"),
        "a_train.csv:2: column 4: , expected a pixel from 0 to 255"
    );
    assert_eq!(
        told("7,0,1,2,3\n10,0,1,2,3\n"),
        "a_train.csv:2: column 1: 10, expected a label from 0 to 9"
    );
    assert_eq!(
        told("7,0,1,2,3\nlabel,a,b,c,d\n"),
        "a_train.csv:2: column 1: label, expected a label from 0 to 9"
    );
    assert_eq!(
        told("7,0,1,2\n"),
        "a_train.csv:1: 4 columns, expected a label and the pixels of a square image, such as \
         785 = 1 + 28x28"
    );
    assert_eq!(told("label,a,b,c,d\n"), "a_train.csv: no line holds a sample");
    assert_eq!(told(""), "a_train.csv: the file is empty");
    let long = format!("7,0,1,2,{}\n", "9".repeat(1000));
    assert_eq!(
        told(&long),
        "a_train.csv:1: column 5: 99999999999999999999, expected a pixel from 0 to 255"
    );
}

#[test]
fn lines_are_counted_as_an_editor_does() {
    let problem = "column 3: 256, expected a pixel from 0 to 255";
    for (text, line) in [
        ("7,0,1,2,3\r\n1,0,256,2,3\r\n", 2),
        ("label,a,b,c,d\r\n7,0,1,2,3\r\n1,0,256,2,3", 3),
        ("7,0,1,2,3\n\n\n1,0,256,2,3\n", 4),
        ("\n\r\n7,0,1,2,3\r\n\r\n1,0,256,2,3\r\n", 5),
        ("\n7,0,256,2,3\n", 2),
    ] {
        let expected = format!("a_train.csv:{line}: {problem}");
        assert_eq!(told(text), expected, "{text:?}");
        let folder = Scratch::new("csv");
        let error = read(&folder.write("a_train.csv", &gzip(text.as_bytes()))).unwrap_err();
        assert!(error.to_string().ends_with(&expected), "{text:?}: {error}");
    }
    assert_eq!(
        told("\r\n7,0,1,2,3\r\n\r\n1,0,1,2\r\n"),
        "a_train.csv:4: 4 columns, expected 5 as in line 2"
    );
}

proptest! {
    /// Damage of any kind is an error or other samples, never a panic.
    #[test]
    fn damaged_files_are_errors(
        packed in any::<bool>(),
        end in 0usize..80,
        flips in prop::collection::vec((0usize..80, any::<u8>()), 0..4),
    ) {
        let text = b"label,a,b,c,d\n7,0,1,2,255\n0,4,5,6,7\n3,14,15,16,17\n4,0,0,0,0\n";
        let mut damaged = if packed { gzip(text) } else { text.to_vec() };
        for (at, bits) in flips {
            if let Some(byte) = damaged.get_mut(at) {
                *byte ^= bits;
            }
        }
        damaged.truncate(end);
        if let Ok(images) = read_text(&damaged) {
            let (height, width) = images.size();
            prop_assert!(!images.is_empty());
            prop_assert_eq!(images.parts()[0].len(), images.len() * height * width);
        }
    }
}
