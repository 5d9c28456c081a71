use super::*;
use crate::data::file::{Scratch, gzip};
use rustix::fs::{CWD, FileType, Mode, mknodat};

fn idx(sizes: &[u32], fill: u8) -> Vec<u8> {
    let mut file = vec![0, 0, 8, sizes.len() as u8];
    file.extend(sizes.iter().flat_map(|size| size.to_be_bytes()));
    file.resize(file.len() + sizes.iter().product::<u32>() as usize, fill);
    file
}

fn told(folder: &Scratch) -> String {
    let error = open(folder.path()).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.help().is_some());
    error.to_string().replace(&*folder.path().to_string_lossy(), "DIR")
}

#[test]
fn the_usual_names_are_found() {
    for [dot, end] in [["-", ""], ["-", ".gz"], [".", ""], [".", ".gz"]] {
        let folder = Scratch::new("folder");
        for (part, count) in [("train", 5), ("t10k", 2)] {
            let pack = |bytes: Vec<u8>| if end.is_empty() { bytes } else { gzip(&bytes) };
            let images = pack(idx(&[count, 2, 3], 9));
            folder.write(&format!("{part}-images{dot}idx3-ubyte{end}"), &images);
            let labels = pack(idx(&[count], 1));
            folder.write(&format!("{part}-labels{dot}idx1-ubyte{end}"), &labels);
        }
        let (split, format) = open(folder.path()).unwrap();
        assert_eq!((split.train.len(), split.test.len(), format), (5, 2, "idx"));
    }
    for stem in ["mnist", "fashion-mnist"] {
        let folder = Scratch::new("folder");
        folder.write("notes.txt", b"other files do not disturb");
        folder.write(&format!("{stem}_train.csv"), b"1,2\n3,4\n");
        folder.write(&format!("{stem}_test.csv.gz"), &gzip(b"1,2\n"));
        let (split, format) = open(folder.path()).unwrap();
        assert_eq!((split.train.len(), split.test.len(), format), (2, 1, "csv"));
    }
}

#[test]
fn what_is_missing_is_named() {
    let folder = Scratch::new("folder");
    assert_eq!(told(&folder), "DIR: holds no data that is known");
    let help = open(folder.path()).unwrap_err().help().unwrap();
    assert!(help.contains("train-images-idx3-ubyte") && help.contains("mnist_train.csv"), "{help}");

    folder.write("mnist_test.csv", b"1,2\n");
    assert_eq!(told(&folder), "DIR: mnist_train.csv is missing");
    std::fs::remove_file(folder.path().join("mnist_test.csv")).unwrap();

    folder.write("kmnist_train.csv", b"1,2\n");
    assert_eq!(told(&folder), "DIR: kmnist_test.csv is missing");
    folder.write("fashion_train.csv", b"1,2\n");
    assert_eq!(told(&folder), "DIR: holds both fashion_train.csv and kmnist_train.csv");

    folder.write("train-images-idx3-ubyte", &idx(&[3, 4, 4], 0));
    assert_eq!(told(&folder), "DIR: train-labels-idx1-ubyte is missing, with or without .gz");
    folder.write("train-labels-idx1-ubyte", &idx(&[3], 0));
    folder.write("t10k-images-idx3-ubyte", &idx(&[2, 5, 5], 0));
    folder.write("t10k-labels-idx1-ubyte", &idx(&[2], 0));
    assert_eq!(
        told(&folder),
        "DIR/t10k-images-idx3-ubyte: images of 5x5, but 4x4 in DIR/train-images-idx3-ubyte"
    );
}

#[test]
fn a_pipe_is_not_waited_for() {
    let folder = Scratch::new("folder");
    for (part, kind) in IDX {
        let path = folder.path().join(format!("{part}-{kind}-ubyte"));
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    }
    assert_eq!(told(&folder), "DIR/train-images-idx3-ubyte: is no regular file");
}

#[test]
fn bytes_behind_the_packed_data() {
    let folder = Scratch::new("folder");
    folder.write("mnist_train.csv.gz", &[&gzip(b"1,2\n3,4\n")[..], b"x"].concat());
    folder.write("mnist_test.csv", b"1,2\n");
    let words = "DIR/mnist_train.csv.gz: has bytes behind the end of its gzip data";
    assert_eq!(told(&folder), words);
}

#[test]
fn a_path_that_is_no_folder() {
    let folder = Scratch::new("folder");
    let file = folder.write("mnist.csv", b"1,2\n");
    let error = open(&file).unwrap_err();
    assert!(error.to_string().ends_with("mnist.csv: is a file, and images come from a folder"));
    let error = open(&folder.path().join("none")).unwrap_err();
    assert!(error.to_string().ends_with("none: there is no such file or directory"), "{error}");
}
