//! `allfold train` and `allfold eval` from end to end: data of one's own, checkpoints, stops, and
//! what a user sees of mistakes.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use allfold_tests::{CAP, Ended, Job, Process, clean_command, machine_lock, skipped};
use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::process::{Pid, Signal, kill_process};

const ALLFOLD: &str = env!("CARGO_BIN_EXE_allfold-under-test");

#[test]
fn the_classic_run_and_its_second_half() {
    let _one_at_a_time = machine_lock();
    let folder = Scratch::new();
    folder.write_mnist(700, 100);
    let data = folder.path("");
    let line = |steps, checkpoints| {
        format!(
            "train -n 2 --data {data} --model mlp --hidden 100 --optimizer adagrad --lr 0.01 \
             --batch-size 100 --steps {steps} --eval-every 20 --validation 100 \
             --checkpoint {} --checkpoint-every 600s --resume",
            folder.path(checkpoints)
        )
    };
    let first = ends_well(&line(30, "checkpoints"));
    for words in [
        &*format!("  data   {data} (idx): 600 train, 100 validation, 100 test, 28x28"),
        "  model  mlp, 79,510 parameters · adagrad, lr 0.01 · seed 1",
        "  batch  100 a step, 50 a rank, 6 steps an epoch",
        "  resume no checkpoint yet: starts fresh",
        "epoch=4 step=20 loss=",
        " validation_loss=",
        " images_per_second=",
        "epoch=5 step=30 loss=",
        ", 5 epochs, 30 steps, ",
    ] {
        assert!(first.contains(words), "`{words}` is missing: {first}");
    }
    let halfway = folder.path("checkpoints/step-00000030.safetensors");
    assert!(first.contains(&format!("\ncheckpoint {halfway}\n")), "{first}");

    let second = ends_well(&line(60, "checkpoints"));
    for words in [
        &*format!("  resume step 30 of {halfway}"),
        "epoch=7 step=40 loss=",
        "epoch=10 step=60 loss=",
        ", 10 epochs, 60 steps, ",
    ] {
        assert!(second.contains(words), "`{words}` is missing: {second}");
    }
    assert!(!second.contains(" step=20 "), "{second}");

    let whole = ends_well(&line(60, "others"));
    assert_eq!(digest(&second), digest(&whole));
    assert!(digest(&whole).starts_with("parameters identical on all 2 ranks, digest "));
    assert_eq!(accuracy(&second), accuracy(&whole));

    // A saved model is as good as it was said to be.
    let newest = folder.path("checkpoints/step-00000060.safetensors");
    let tried = ends_well(&format!("eval --checkpoint {newest} --data {data}"));
    assert_eq!(accuracy(&tried), accuracy(&second));
    assert!(accuracy(&tried).ends_with(" of 100)"), "{tried}");
    let percent: f64 = accuracy(&tried).split_whitespace().nth(2).unwrap().parse().unwrap();
    assert!(percent > 50.0, "ten classes, and it has learnt: {tried}");
}

#[test]
fn sigterm_to_any_process_stops_all_and_resume_goes_on() {
    let _one_at_a_time = machine_lock();
    for (ranks, target) in [(1, 0), (3, 1), (3, LAUNCHER), (4, TWICE)] {
        let folder = Scratch::new();
        let checkpoints = folder.path("checkpoints");
        let line = |steps: usize| {
            format!(
                "train -n {ranks} --model mlp --hidden 16 --steps {steps} --eval-every 20 \
                 --checkpoint {checkpoints} --checkpoint-every 600s --resume"
            )
        };
        let mut job = start(&line(1_000_000));
        let pids = pids(&job.wait_for_line("  pids  "));
        assert_eq!(pids.len(), ranks);
        job.wait_for_line(" step=20 ");
        match pids.get(target) {
            Some(&pid) => kill_process(pid, Signal::TERM).unwrap(),
            None => job.signal(Signal::TERM),
        }
        if target == TWICE {
            // As `timeout` and systemd do: the process, and then its group.
            std::thread::sleep(Duration::from_millis(20));
            job.signal(Signal::TERM);
        }
        let ended = job.wait();
        assert_eq!(ended.code(), 143, "{ended:#?}");
        let stopped = ended.output().into_iter().find(|line| line.starts_with("stopped by "));
        let stopped = stopped.unwrap_or_else(|| panic!("{ended:#?}"));
        let words = stopped.strip_prefix("stopped by SIGTERM after step ").unwrap();
        let step: usize = words.split(' ').next().unwrap().replace(',', "").parse().unwrap();
        assert!(words.contains(" of 1,000,000, "), "{stopped}");
        let file = format!("{checkpoints}/step-{step:08}.safetensors");
        assert!(ended.output().contains(&&*format!("checkpoint {file}")), "{ended:#?}");
        assert!(Path::new(&file).exists());
        let errors = [
            &*format!("error: stopped by SIGTERM after step {step}"),
            "help: --resume goes on from there",
        ];
        assert_eq!(ended.errors(), errors, "{ended:#?}");

        let resumed = ends_well(&line(step + 5));
        assert!(resumed.contains(&format!(" of {file}\n")), "{resumed}");
        assert!(resumed.contains(&format!(" step={} ", step + 5)), "{resumed}");
    }
}

#[test]
fn a_training_that_was_killed_goes_on_from_its_last_checkpoint() {
    let _one_at_a_time = machine_lock();
    let folder = Scratch::new();
    let line = |steps: usize, checkpoints: &str| {
        format!(
            "train -n 2 --model mlp --hidden 16 --steps {steps} --eval-every 20 --checkpoint {} \
             --checkpoint-every 5steps --keep 2 --resume",
            folder.path(checkpoints)
        )
    };
    let mut job = start(&line(1_000_000, "checkpoints"));
    let pids = pids(&job.wait_for_line("  pids  "));
    job.wait_for_line(" step=20 ");
    kill_process(pids[0], Signal::KILL).unwrap();
    job.wait().assert_error(137, &["rank 0 (", "was killed by signal 9 (SIGKILL)"]);
    let newest = fs::read_dir(folder.path("checkpoints"))
        .unwrap()
        .filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            name.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse::<usize>().ok()
        })
        .max();
    let newest = newest.unwrap();
    let resumed = ends_well(&line(newest + 7, "checkpoints"));
    let file = folder.path(&format!("checkpoints/step-{newest:08}.safetensors"));
    assert!(resumed.contains(&format!(" of {file}\n")), "{resumed}");
    assert_eq!(digest(&resumed), digest(&ends_well(&line(newest + 7, "others"))));
    // What was half written is gone: two checkpoints of two files, and the lock.
    assert_eq!(fs::read_dir(folder.path("checkpoints")).unwrap().count(), 5);
}

#[test]
fn the_first_process_of_a_container_stops_too() {
    let test = "the_first_process_of_a_container_stops_too";
    let unshare = || {
        let mut command = clean_command("unshare");
        command.args(["--pid", "--fork", "--kill-child"]);
        command
    };
    if !unshare().arg("true").status().is_ok_and(|status| status.success()) {
        return skipped(test, "no pid namespace can be made here (unshare --pid)");
    }
    let _one_at_a_time = machine_lock();
    let terminate = |job: &Process| {
        let children = format!("/proc/{pid}/task/{pid}/children", pid = job.id());
        let first = fs::read_to_string(children).unwrap().trim().parse().unwrap();
        kill_process(Pid::from_raw(first).unwrap(), Signal::TERM).unwrap();
    };
    let folder = Scratch::new();
    let checkpoints = folder.path("checkpoints");
    let mut command = unshare();
    command.arg(ALLFOLD).args(["train", "--model", "mlp", "--steps", "1000000"]);
    command.args(["--eval-every", "20", "--checkpoint", &checkpoints]);
    let mut job = Process::start(&mut command);
    job.wait_for_line("  pids   1");
    job.wait_for_line(" step=20 ");
    terminate(&job);
    let ended = job.wait();
    ended.assert_error(143, &["stopped by SIGTERM after step "]);
    let saved = format!("checkpoint {checkpoints}/step-");
    assert!(ended.output().iter().any(|line| line.starts_with(&saved)), "{ended:#?}");

    // Also while it waits for another rank: longer than this test would.
    let of_two = Job::new(2);
    let arguments = ["--pid", "--fork", "--kill-child", ALLFOLD, "train", "--steps", "2"];
    let mut command = of_two.rank(0, "unshare", &arguments);
    let waiting = Process::start(command.env("ALLFOLD_CONNECT_TIMEOUT", "10m"));
    let (_, port) = of_two.rendezvous.rsplit_once(':').unwrap();
    let socket = format!(" 0100007F:{:04X} ", port.parse::<u16>().unwrap());
    let begun = Instant::now();
    while !fs::read_to_string("/proc/net/udp").unwrap().contains(&socket) {
        assert!(begun.elapsed() < CAP, "it does not listen for the other");
        std::thread::yield_now();
    }
    terminate(&waiting);
    let ended = waiting.wait();
    assert_eq!(ended.code(), 143, "{ended:#?}");
}

#[test]
fn a_stop_is_heard_while_data_is_read() {
    let test = "a_stop_is_heard_while_data_is_read";
    let folder = Scratch::new();
    let pipe = folder.path("text.txt");
    mkfifoat(CWD, &pipe, Mode::RUSR | Mode::WUSR).unwrap();
    let job = start(&format!("train --model lm --data {pipe}"));
    // Where the kernel says what it waits for: nobody writes to the pipe.
    let wait = || fs::read_to_string(format!("/proc/{}/wchan", job.id())).unwrap_or_default();
    let begun = Instant::now();
    while !wait().contains("wait_for_partner") {
        if begun.elapsed() > CAP / 4 {
            return skipped(test, "/proc does not say what a process waits for");
        }
        std::thread::yield_now();
    }
    job.signal(Signal::TERM);
    assert_eq!(job.wait().code(), 143);
}

#[test]
fn a_resume_says_what_has_changed_and_that_nothing_is_left() {
    let _one_at_a_time = machine_lock();
    let folder = Scratch::new();
    let line = format!("train -n 2 --model mlp --checkpoint {} --resume", folder.path("ck"));
    ends_well(&format!("{line} --steps 15"));
    let ended = run(&format!("{line} --steps 10 --seed 2"));
    assert_eq!(ended.code(), 0, "{ended:#?}");
    let output = ended.output().join("\n");
    for words in [
        "\nnothing left to train: the checkpoint is at step 15, --steps is 10\n",
        "\nstep=15 test_loss=",
        "\ntest accuracy ",
    ] {
        assert_eq!(output.matches(words).count(), 1, "`{words}`: {output}");
    }
    let warnings = ended.errors();
    assert!(warnings.len() == 1, "{ended:#?}");
    assert!(warnings[0].contains("resume: seed was 1, is 2"), "{ended:#?}");
    refused(
        &format!("{line} --optimizer sgd --lr 0.1"),
        &["of another optimizer: adamw there, sgd"],
    );
}

#[test]
fn a_checkpoint_from_which_nothing_can_go_on_is_said_to_be_one() {
    let _one_at_a_time = machine_lock();
    let folder = Scratch::new();
    let line = format!(
        "train -n 2 --model mlp --optimizer sgd --lr 1e38 --steps 40 --eval-every 40 --resume \
         --checkpoint {} --checkpoint-every 1steps",
        folder.path("ck")
    );
    run(&line).assert_error(1, &["the loss is not finite at step 2"]);
    let ended = run(&line);
    ended.assert_error(1, &["the loss is not finite at step 2"]);
    let help = "help: the checkpoint holds it already: delete step-00000001.* and resume with a \
                lower --lr";
    assert_eq!(ended.errors().last(), Some(&help), "{ended:#?}");
    let ended = run(&format!("eval --checkpoint {}", folder.path("ck/step-00000001.safetensors")));
    ended.assert_error(1, &["the loss is not finite at step 1"]);
}

#[test]
fn a_stop_without_checkpoints_says_that_nothing_was_saved() {
    let _one_at_a_time = machine_lock();
    let mut job = start("train -n 2 --model mlp --steps 1000000 --eval-every 20");
    job.wait_for_line(" step=20 ");
    job.signal(Signal::TERM);
    let ended = job.wait();
    ended.assert_error(143, &["stopped by SIGTERM after step "]);
    let help = "help: nothing was saved: --checkpoint DIR saves, --resume goes on";
    assert_eq!(ended.errors()[1..], [help], "{ended:#?}");
}

#[test]
fn a_stop_that_cannot_be_saved_does_not_promise_to_go_on() {
    let _one_at_a_time = machine_lock();
    let folder = Scratch::new();
    folder.write("file", b"in the way");
    let below = folder.path("file/below");
    for ranks in [1, 2] {
        let line = format!("train -n {ranks} --model mlp --steps 1000000 --eval-every 20");
        let mut job = start(&format!("{line} --checkpoint {below} --checkpoint-every 600s"));
        job.wait_for_line(" step=20 ");
        job.signal(Signal::TERM);
        let ended = job.wait();
        ended.assert_error(143, &["stopped by SIGTERM after step "]);
        let help = "help: this step could not be saved: see the warnings";
        assert_eq!(ended.errors().last(), Some(&help), "{ended:#?}");
    }
}

#[test]
fn when_done_a_training_can_wait() {
    let _one_at_a_time = machine_lock();
    for ranks in [1, 2] {
        let line = format!("train -n {ranks} --model mlp --steps 5 --when-done wait");
        let mut job = start(&line);
        job.wait_for_line("digest ");
        job.wait_for_line("training complete, waiting for SIGTERM");
        job.signal(Signal::TERM);
        let ended = job.wait();
        assert_eq!(ended.code(), 0, "{ended:#?}");
        assert!(ended.errors().is_empty(), "{ended:#?}");
    }
}

#[test]
fn what_cannot_be_written_ends_no_training() {
    let _one_at_a_time = machine_lock();
    let folder = Scratch::new();
    folder.write("file", b"in the way");
    let below = folder.path("file/below");
    let plain = ends_well("train -n 2 --model mlp --steps 10");
    let options = format!("--checkpoint {below} --checkpoint-every 5steps --tensorboard {below}");
    for ranks in [1, 2] {
        let ended = run(&format!("train -n {ranks} --model mlp --steps 10 {options}"));
        // Steps 5 and 10, not the try at the start; and the values.
        ended.assert_error(1, &["training is done, but 3 files could not be written"]);
        let output = ended.output().join("\n");
        if ranks == 2 {
            assert_eq!(digest(&output), digest(&plain));
        }
        assert!(digest(&output).starts_with("parameters "), "{ended:#?}");
        assert!(!output.contains("\ncheckpoint "), "{ended:#?}");
        let warnings = ended.errors();
        for words in [
            "checkpoints cannot be written: ",
            "no checkpoint of step 5: ",
            "no checkpoint of step 10: ",
            "no values for TensorBoard: ",
        ] {
            let told = warnings.iter().filter(|line| line.contains(words));
            assert_eq!(told.count(), 1, "`{words}`: {ended:#?}");
        }
        // Four warnings, the error and its help.
        assert_eq!(warnings.len(), 6, "{ended:#?}");
    }
    // Also if it waits when it is done.
    let line = format!("train -n 2 --model mlp --steps 10 {options} --when-done wait");
    let mut job = start(&line);
    job.wait_for_line("training complete, waiting for SIGTERM");
    job.signal(Signal::TERM);
    job.wait().assert_error(1, &["training is done, but 3 files could not be written"]);
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_is_used() {
    let _one_at_a_time = machine_lock();
    let folder = Scratch::new();
    let line = |steps| {
        format!(
            "train -n 2 --model mlp --steps {steps} --checkpoint {} --checkpoint-every 4steps \
             --resume=auto",
            folder.path("checkpoints")
        )
    };
    ends_well(&line(8));
    let whole = folder.path("checkpoints/step-00000004.safetensors");
    let damaged = folder.path("checkpoints/step-00000008.safetensors");
    let bytes = fs::read(&damaged).unwrap();
    fs::write(&damaged, &bytes[..bytes.len() - 1]).unwrap();
    let ended = run(&line(12));
    assert_eq!(ended.code(), 0, "{ended:#?}");
    let output = ended.output().join("\n");
    assert!(output.contains(&format!("  resume step 4 of {whole}\n")), "{output}");
    let warnings = ended.errors();
    assert_eq!(warnings.len(), 1, "{ended:#?}");
    assert!(warnings[0].contains(&format!("checkpoint {damaged} is not used: ")), "{ended:#?}");
    let others = line(12).replace("checkpoints", "others");
    assert_eq!(digest(&output), digest(&ends_well(&others)));

    // What cannot go on is one error, whatever the number of ranks.
    let words = "the folder holds checkpoints of an earlier run, up to step 12";
    refused(&line(12).replace("--resume=auto", ""), &[words]);
    let wide = line(12).replace("--model mlp", "--model mlp --hidden 9");
    refused(&wide, &["of another model: hidden is 100 there, 9 here"]);
    let must = line(12).replace("checkpoints", "nowhere").replace("=auto", "=must");
    refused(&must, &["nowhere: there is no checkpoint to go on from"]);
    fs::write(&damaged, &bytes[..bytes.len() / 2]).unwrap();
    refused(&format!("eval --checkpoint {damaged}"), &[&damaged]);
    refused(&format!("eval --checkpoint {}", folder.path("none")), &["No such file"]);
}

#[test]
fn tensorboard_shows_a_training() {
    let test = "tensorboard_shows_a_training";
    let mut python = Command::new("python3");
    if !python.args(["-c", "import tensorboard"]).output().is_ok_and(|it| it.status.success()) {
        return skipped(test, "python3 has no module tensorboard");
    }
    let _one_at_a_time = machine_lock();
    let folder = Scratch::new();
    let values = folder.path("values");
    let line = |steps| {
        format!(
            "train -n 2 --model mlp --eval-every 5 --steps {steps} --tensorboard {values} \
             --checkpoint {} --resume",
            folder.path("checkpoints")
        )
    };
    ends_well(&line(10));
    let resumed = ends_well(&line(15));
    let program = "
import sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1])
events.Reload()
for tag in sorted(events.Tags()['scalars']):
    print(tag, *(f'{it.step}:{it.value:.4f}' for it in events.Scalars(tag)))
";
    let output = Command::new("python3").args(["-c", program, &values]).output().unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let steps = |tag: &str| -> Vec<(usize, f64)> {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{tag} ")));
        let line = line.unwrap_or_else(|| panic!("no {tag}: {output:#?}"));
        let parse = |pair: &str| {
            let (step, value) = pair.split_once(':').unwrap();
            (step.parse().unwrap(), value.parse().unwrap())
        };
        line.split(' ').map(parse).collect()
    };
    for tag in ["loss/train", "gradient/norm"] {
        let values = steps(tag);
        assert!(values.iter().map(|(step, _)| *step).eq(1..=15), "{tag}: {text}");
        assert!(values.iter().all(|(_, value)| *value > 0.0), "{tag}: {text}");
    }
    for tag in [
        "accuracy/test",
        "accuracy/train",
        "communication/share",
        "loss/test",
        "throughput/samples_per_second",
    ] {
        assert!(steps(tag).iter().map(|(step, _)| *step).eq([5, 10, 15]), "{tag}: {text}");
    }
    let share = |(_, value): &(usize, f64)| (0.0..=1.0).contains(value);
    assert!(steps("communication/share").iter().all(share), "{text}");
    assert!(steps("throughput/samples_per_second").iter().all(|(_, it)| *it > 1.0), "{text}");
    let last = steps("accuracy/test")[2].1;
    assert!(resumed.contains(&format!(" test_accuracy={last:.4} ")), "{last}: {resumed}");
}

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

fn start(line: &str) -> Process {
    Process::start(clean_command(ALLFOLD).args(line.split_whitespace()))
}

fn run(line: &str) -> Ended {
    start(line).wait()
}

/// Standard output of a command that succeeds and has nothing to complain about.
fn ends_well(line: &str) -> String {
    let ended = run(line);
    assert_eq!(ended.code(), 0, "{line}: {ended:#?}");
    assert!(ended.errors().is_empty(), "{line}: {ended:#?}");
    ended.output().join("\n") + "\n"
}

/// A command that gets no further than to one line with these words.
fn refused(line: &str, words: &[&str]) {
    is_refusal(&run(line), words);
}

fn is_refusal(ended: &Ended, words: &[&str]) {
    ended.assert_error(2, words);
    let errors = ended.errors();
    assert!(errors.len() == 2 && errors[1].starts_with("help: "), "{ended:#?}");
    assert!(ended.output().is_empty(), "{ended:#?}");
}

/// The line of the parameters' digest.
fn digest(output: &str) -> &str {
    let line = output.lines().find(|line| line.contains(", digest "));
    line.unwrap_or_else(|| panic!("no digest: {output}"))
}

/// How good the model is on the test set: `test accuracy 97.1 % (97 of 100)`.
fn accuracy(output: &str) -> &str {
    let line = output.lines().find(|line| line.starts_with("test accuracy "));
    let line = line.unwrap_or_else(|| panic!("no accuracy: {output}"));
    line.split(',').next().unwrap()
}

/// The ranks' processes, from the line that names them.
fn pids(line: &str) -> Vec<Pid> {
    let numbers = line.split_whitespace().skip(1).map_while(|word| word.parse().ok());
    numbers.map(|number| Pid::from_raw(number).unwrap()).collect()
}

/// A folder of a test's own, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("allfold-training-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// The path of something in it; of the folder itself where that has no name.
    fn path(&self, name: &str) -> String {
        let path = if name.is_empty() { self.0.clone() } else { self.0.join(name) };
        path.to_str().unwrap().to_string()
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.0.join(name), bytes).unwrap();
    }

    /// MNIST's four files with images of 28x28, not hard to tell apart.
    fn write_mnist(&self, train: u32, test: u32) {
        let mut random = 1u32;
        for (part, count) in [("train", train), ("t10k", test)] {
            let labels: Vec<u8> = (0..count).map(|sample| (sample % 10) as u8).collect();
            let mut pixels = Vec::new();
            for label in &labels {
                for row in 0..28 {
                    // A bright bar whose place is the label, in noise.
                    let bar = if (row / 2) == label + 2 { 120 } else { 0 };
                    for _ in 0..28 {
                        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        pixels.push(bar + (random >> 25) as u8);
                    }
                }
            }
            let sizes = |magic: u32, sizes: &[u32]| -> Vec<u8> {
                std::iter::once(&magic).chain(sizes).flat_map(|it| it.to_be_bytes()).collect()
            };
            let images = [sizes(0x803, &[count, 28, 28]), pixels].concat();
            self.write(&format!("{part}-images-idx3-ubyte"), &images);
            let labels = [sizes(0x801, &[count]), labels].concat();
            self.write(&format!("{part}-labels-idx1-ubyte"), &labels);
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// No rank's number.
const LAUNCHER: usize = usize::MAX;
/// The launcher, by two signals.
const TWICE: usize = LAUNCHER - 1;
