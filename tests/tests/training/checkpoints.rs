//! Checkpoints: what goes on from them, and what is said where nothing can, or where none can be
//! written.

use std::fs;

use allfold_tests::machine_lock;
use rustix::process::{Signal, kill_process};

use crate::command::{accuracy, digest, ends_well, pids, refused, run, start};
use crate::scratch::Scratch;

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
