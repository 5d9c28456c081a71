//! What keeps a training from beginning: data, GPUs and ports that are not as they should be.

use std::fs;
use std::net::TcpListener;

use allfold_tests::{Process, clean_command, machine_lock};

use crate::command::{ALLFOLD, is_refusal, refused, run};
use crate::scratch::Scratch;

#[test]
fn ranks_with_other_data_are_told_so() {
    let _one_at_a_time = machine_lock();
    let folders = [Scratch::new(), Scratch::new(), Scratch::new()];
    for (folder, samples) in folders.iter().zip([200, 201, 200]) {
        folder.write_mnist(samples, 20);
    }
    let train = |other: usize| {
        let [zero, one] = [folders[0].path(""), folders[other].path("")];
        let script = "if [ $ALLFOLD_RANK = 0 ]; then data=$1; else data=$2; fi; \
                      exec \"$0\" train --data \"$data\" --model mlp --steps 5";
        let arguments = ["run", "-n", "2", "sh", "-c", script, ALLFOLD, &zero, &one];
        Process::start(clean_command(ALLFOLD).args(arguments)).wait()
    };
    let ended = train(1);
    assert_eq!(ended.code(), 3, "{ended:#?}");
    let words = "ranks disagree on the options: rank 1 has data of sha-256 ";
    // Each rank says it.
    let told =
        |line: &&&str| line.contains(words) && line.contains(", rank 0 has data of sha-256 ");
    assert_eq!(ended.errors().iter().filter(told).count(), 2, "{ended:#?}");
    assert!(!ended.output().join("\n").contains("loss="), "{ended:#?}");
    // The same data in another place is the same.
    let ended = train(2);
    assert_eq!(ended.code(), 0, "{ended:#?}");
}

#[test]
fn bad_data_is_one_line_and_what_to_do() {
    let _one_at_a_time = machine_lock();
    // The usual four files, and one of them replaced by something else.
    let idx = |name: &str, bytes: &dyn Fn(Vec<u8>) -> Vec<u8>, words: &[&str]| {
        let folder = Scratch::new();
        folder.write_mnist(20, 10);
        let file = folder.path(name);
        fs::write(&file, bytes(fs::read(&file).unwrap())).unwrap();
        let mut expected = vec![&*file];
        expected.extend(words);
        refused(&format!("train --model mlp --data {}", folder.path("")), &expected);
    };
    let (images, labels) = ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte");
    let short = |mut bytes: Vec<u8>| {
        bytes.pop();
        bytes
    };
    let long = |bytes: Vec<u8>| [&bytes[..], &[0]].concat();
    let label = |mut bytes: Vec<u8>| {
        bytes[8 + 3] = 10;
        bytes
    };
    idx(images, &short, &["truncated: 20 images of 28x28 take 15696 bytes, the file has 15695"]);
    idx(images, &|bytes| bytes[..7].to_vec(), &["truncated: 7 bytes, less than a header"]);
    idx(images, &long, &["too long: 20 images of 28x28 take 15696 bytes"]);
    idx(images, &|_| b"<html>".to_vec(), &["byte 0: expected 00 00 08 03 (images), found 3c"]);
    idx(images, &|_| Vec::new(), &["the file is empty"]);
    idx(labels, &label, &["byte 11, the label of sample 3: 10, expected 0 to 9"]);

    // Comma-separated values: images of 2x2 behind the label.
    let csv = |lines: &str, words: &[&str]| {
        let folder = Scratch::new();
        folder.write("mnist_train.csv", lines.as_bytes());
        folder.write("mnist_test.csv", b"1,2,3,4,5\n");
        let place = folder.path("mnist_train.csv");
        let place = if words[0].starts_with(':') { place + words[0] } else { place };
        let line = format!("train -n 2 --model mlp --data {}", folder.path(""));
        refused(&line, &[&[&*place], &words[1..]].concat());
    };
    csv("1,2,3,4,5\n1,2,3,4\n", &[":2: ", "4 columns, expected 5 as in line 1"]);
    csv("1,2,3,4,5\n0,2,3,4,5\n9,2,256,4,5\n", &[":3: ", "column 3: 256, expected a pixel from 0"]);
    csv("1,2,3,4,5\n10,2,3,4,5\n", &[":2: ", "column 1: 10, expected a label from 0 to 9"]);
    csv("", &["", "the file is empty"]);

    let folder = Scratch::new();
    let (empty, none) = (folder.path(""), folder.path("none"));
    refused(&format!("train --data {empty}"), &[&empty, "holds no data that is known"]);
    refused(&format!("train --data {none}"), &[&none, "there is no such file or directory"]);
    refused(&format!("train --model lm --data {empty}"), &["it takes a text file, not images"]);
    folder.write("short.txt", b"To be");
    let text = folder.path("short.txt");
    refused(&format!("train --model lm --data {text}"), &[&text]);
}

#[test]
fn a_build_without_cuda_says_so_before_any_rank_starts() {
    for line in [
        "train --device gpu -n 2",
        "train --device gpu",
        // Before the data and the checkpoint are looked at.
        "train --device gpu -n 2 --data none",
        "eval --device gpu --checkpoint none",
    ] {
        let ended = run(line);
        is_refusal(&ended, &["this allfold was built without CUDA"]);
        let help = "cargo build --release -p allfold-launcher --features cuda";
        assert!(ended.errors()[1].contains(help), "{ended:#?}");
    }
}

#[test]
fn a_metrics_port_in_use_is_said_by_a_single_rank() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut command = clean_command(ALLFOLD);
    command.args(["train", "--steps", "2"]).env("ALLFOLD_METRICS", &address);
    let ended = Process::start(&mut command).wait();
    is_refusal(&ended, &[&*format!("cannot serve metrics at {address}: another process")]);
}
