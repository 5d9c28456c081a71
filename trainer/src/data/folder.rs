//! Finds the files of the MNIST family in a folder.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::digits::Split;
use super::file::{LOOK_AT_PATH, bad, unreadable};
use super::{csv, idx};
use crate::error::Result;

/// Training and test images, and the name of their format.
pub(super) fn open(folder: &Path) -> Result<(Split, &'static str)> {
    let files = names(folder)?;
    let (train, test, format, files) = match IDX.map(|wanted| find(&files, wanted)) {
        [None, None, None, None] => {
            let (train, test) = csv_names(folder, &files)?;
            let [train, test] = [train, test].map(|name| folder.join(name));
            (csv::read(&train)?, csv::read(&test)?, "csv", [train, test])
        }
        found => {
            let mut paths = <[PathBuf; 4]>::default();
            for ((path, found), (part, kind)) in paths.iter_mut().zip(found).zip(IDX) {
                let Some(found) = found else {
                    let problem = format!("{part}-{kind}-ubyte is missing, with or without .gz");
                    return Err(bad(folder, problem, "copy the missing file beside the others"));
                };
                *path = folder.join(found);
            }
            let [images, labels, test_images, test_labels] = paths;
            let (train, test) =
                (idx::read(&images, &labels)?, idx::read(&test_images, &test_labels)?);
            (train, test, "idx", [images, test_images])
        }
    };
    let [(height, width), (test_height, test_width)] = [train.size(), test.size()];
    if train.size() != test.size() {
        return Err(bad(
            &files[1],
            format!(
                "images of {test_height}x{test_width}, but {height}x{width} in {}",
                files[0].display()
            ),
            "take both files from the same data set",
        ));
    }
    Ok((Split { train, test }, format))
}

/// The names in a folder, sorted, so that every rank chooses alike.
fn names(folder: &Path) -> Result<Vec<String>> {
    let failed = |error| bad(folder, unreadable(&error), LOOK_AT_PATH);
    if !folder.metadata().map_err(failed)?.is_dir() {
        return Err(bad(
            folder,
            "is a file, and images come from a folder",
            "give the folder that the file is in, or train `--model lm` on a text",
        ));
    }
    let mut names = Vec::new();
    for entry in folder.read_dir().map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

/// The file of a part, under one of the names that are in use.
fn find(files: &[String], (part, kind): (&str, &str)) -> Option<String> {
    let (what, rest) = kind.split_once('-')?;
    ['-', '.']
        .iter()
        .map(|dot| format!("{part}-{what}{dot}{rest}-ubyte"))
        .flat_map(|name| [name.clone(), name + ".gz"])
        .find(|name| files.contains(name))
}

/// The names of training and test file.
fn csv_names(folder: &Path, files: &[String]) -> Result<(String, String)> {
    let stems = |part: &str| {
        let end = format!("_{part}.csv");
        let stem = |name: &String| {
            let name = name.strip_suffix(".gz").unwrap_or(name);
            name.strip_suffix(&end).map(str::to_string)
        };
        files.iter().filter_map(stem).collect::<BTreeSet<String>>()
    };
    // Where only test data is there, what it lacks is said below.
    let part = if stems("train").is_empty() { "test" } else { "train" };
    let mut stems: Vec<String> = stems(part).into_iter().collect();
    if stems.iter().any(|stem| stem == "mnist") {
        stems = vec!["mnist".into()];
    }
    let stem = match &stems[..] {
        [stem] => stem,
        [] => {
            return Err(bad(folder, "holds no data that is known", LOOKED_FOR));
        }
        [one, other, ..] => {
            let problem = format!("holds both {one}_{part}.csv and {other}_{part}.csv");
            return Err(bad(folder, problem, "put each data set into a folder of its own"));
        }
    };
    let file = |part: &str| {
        ["", ".gz"]
            .map(|end| format!("{stem}_{part}.csv{end}"))
            .into_iter()
            .find(|name| files.contains(name))
    };
    match (file("train"), file("test")) {
        (Some(train), Some(test)) => Ok((train, test)),
        (train, _) => {
            let missing = if train.is_none() { "train" } else { "test" };
            let problem = format!("{stem}_{missing}.csv is missing");
            Err(bad(folder, problem, "copy the missing file beside the other"))
        }
    }
}

/// Parts and kinds of the IDX files; the last `-` of a kind may be a dot.
const IDX: [(&str, &str); 4] = [
    ("train", "images-idx3"),
    ("train", "labels-idx1"),
    ("t10k", "images-idx3"),
    ("t10k", "labels-idx1"),
];
const LOOKED_FOR: &str = "looked for train-images-idx3-ubyte, train-labels-idx1-ubyte, \
     t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, with or without .gz, and for \
     mnist_train.csv and mnist_test.csv";

#[cfg(test)]
mod tests;
