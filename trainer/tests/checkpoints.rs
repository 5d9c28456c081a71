//! Checkpoints on real file systems: whole or not there, also after `kill -9`.

#![allow(clippy::unwrap_used, reason = "a test says by a panic that it failed")]

mod python;
mod skipped;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use allfold_trainer::checkpoint::{Checkpoint, Folder, News, State, Writer};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Module, VarBuilder, VarMap};
use python::python_has;
use rustix::fs::{CWD, Mode, mkfifoat};
use skipped::skip;

/// What a training has at a step, in `elements` numbers that tell the step.
struct Training {
    model: Vec<(String, String)>,
    settings: Vec<(String, String)>,
    parameters: Vec<(String, Var)>,
    optimizer: Vec<(String, Tensor)>,
}

impl Training {
    fn at(step: u64, elements: usize) -> Self {
        let pair = |name: &str, value: &str| (name.to_string(), value.to_string());
        let numbers = Tensor::full(step as f32, elements, &Device::Cpu).unwrap();
        Self {
            model: vec![pair("kind", "mlp"), pair("hidden", "100")],
            settings: vec![pair("lr", "0.01")],
            parameters: vec![("dense.weight".into(), Var::from_tensor(&numbers).unwrap())],
            optimizer: vec![("adam.m".into(), numbers)],
        }
    }

    fn state(&self, step: u64) -> State<'_> {
        State {
            step,
            model: &self.model,
            settings: &self.settings,
            parameters: &self.parameters,
            optimizer: &self.optimizer,
        }
    }
}

/// Saves steps and waits for each; what went wrong, in words.
fn save(folder: &Folder, steps: impl IntoIterator<Item = u64>, elements: usize) -> Vec<String> {
    let mut writer = Writer::start(folder.clone(), 3).unwrap();
    for step in steps {
        writer.save(&Training::at(step, elements).state(step)).unwrap();
    }
    let failed = |news| match news {
        News::Failed(problem) => Some(problem.to_string()),
        News::Written(_) => None,
    };
    writer.finish().into_iter().filter_map(failed).collect()
}

fn fresh(name: &str) -> Folder {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("checkpoints").join(name);
    let _ = fs::remove_dir_all(&path);
    Folder::new(path)
}

fn prepared(name: &str) -> Folder {
    let folder = fresh(name);
    folder.prepare().unwrap();
    folder
}

fn names(folder: &Folder) -> Vec<String> {
    let entries = fs::read_dir(folder.path()).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The newest whole one; it must hold the numbers of its step.
fn newest(folder: &Folder) -> Option<u64> {
    let checkpoint = folder.latest().unwrap().newest?.decode().unwrap();
    for tensor in [&checkpoint.parameters["dense.weight"], &checkpoint.optimizer["adam.m"]] {
        let numbers = tensor.to_vec1::<f32>().unwrap();
        assert!(numbers.iter().all(|number| *number == checkpoint.step as f32));
    }
    Some(checkpoint.step)
}

fn skipped_reasons(folder: &Folder) -> Vec<String> {
    folder.latest().unwrap().skipped.iter().map(ToString::to_string).collect()
}

fn model_file(folder: &Folder, step: u64) -> PathBuf {
    folder.path().join(format!("step-{step:08}.safetensors"))
}

fn optimizer_file(folder: &Folder, step: u64) -> PathBuf {
    folder.path().join(format!("step-{step:08}.optimizer.safetensors"))
}

#[test]
fn what_was_saved_is_read() {
    let folder = prepared("read");
    assert_eq!(folder.latest().unwrap(), Default::default());
    let training = Training::at(300, 10);
    let mut writer = Writer::start(folder.clone(), 3).unwrap();
    writer.save(&training.state(300)).unwrap();
    // The next step changes the parameters in place while they are being written.
    let zeros = Tensor::zeros(10, DType::F32, &Device::Cpu).unwrap();
    training.parameters[0].1.set(&zeros).unwrap();
    let news = writer.finish();
    let [News::Written(written)] = &news[..] else { panic!("{news:?}") };
    assert_eq!((written.step, &written.path), (300, &model_file(&folder, 300)));
    assert_eq!(
        written.bytes,
        [model_file(&folder, 300), optimizer_file(&folder, 300)]
            .map(|path| fs::metadata(path).unwrap().len())
            .iter()
            .sum::<u64>()
    );
    assert_eq!(newest(&folder), Some(300));

    let whole = folder.latest().unwrap().newest.unwrap().decode().unwrap();
    assert_eq!(whole.model, [("hidden".into(), "100".into()), ("kind".into(), "mlp".into())]);
    assert_eq!(whole.settings, training.settings);
    whole.fits(&training.model).unwrap();
    whole.restore(&training.parameters).unwrap();
    assert_eq!(training.parameters[0].1.to_vec1::<f32>().unwrap(), [300.; 10]);
    // `eval` needs the model's file alone.
    fs::remove_file(optimizer_file(&folder, 300)).unwrap();
    let model = Checkpoint::read(&model_file(&folder, 300)).unwrap();
    assert_eq!((model.step, model.optimizer.len()), (300, 0));
    model.restore(&training.parameters).unwrap();
}

#[test]
fn what_is_no_checkpoint_is_refused_with_its_name() {
    let folder = prepared("refused");
    assert_eq!(save(&folder, [300], 10), [""; 0]);
    let text = folder.path().join("notes.txt");
    fs::write(&text, "no checkpoint at all, as anybody can see").unwrap();
    for (path, expected) in [
        (optimizer_file(&folder, 300), "holds the optimiser's state, not the model's"),
        (text, "damaged, or no safetensors file: its header is too long"),
        (folder.path().join("none"), "No such file or directory (os error 2)"),
        (folder.path().into(), "is no regular file"),
    ] {
        let error = Checkpoint::read(&path).unwrap_err();
        assert_eq!(error.to_string(), format!("checkpoint {}: {expected}", path.display()));
        assert_eq!(error.exit_code(), 2);
        assert!(error.help().is_some());
    }
}

#[test]
fn candle_loads_the_model() {
    let folder = prepared("candle");
    let dense = |vars: &VarMap| {
        let builder = VarBuilder::from_varmap(vars, DType::F32, &Device::Cpu);
        candle_nn::linear(3, 2, builder.pp("dense")).unwrap()
    };
    let ours = VarMap::new();
    let model = dense(&ours);
    let parameters: Vec<(String, Var)> =
        ours.data().lock().unwrap().iter().map(|(n, v)| (n.clone(), v.clone())).collect();
    let others = Training::at(0, 0);
    let state = State { parameters: &parameters, ..others.state(7) };
    let mut writer = Writer::start(folder.clone(), 1).unwrap();
    writer.save(&state).unwrap();
    writer.finish();

    let input = Tensor::new(&[[1f32, -2., 0.5]], &Device::Cpu).unwrap();
    let output = |model: &dyn Module| model.forward(&input).unwrap().to_vec2::<f32>().unwrap();
    let mut theirs = VarMap::new();
    let loaded = dense(&theirs);
    theirs.load(model_file(&folder, 7)).unwrap();
    assert_eq!(output(&loaded), output(&model));
    let bytes = fs::read(model_file(&folder, 7)).unwrap();
    let builder = VarBuilder::from_buffered_safetensors(bytes, DType::F32, &Device::Cpu).unwrap();
    let loaded = candle_nn::linear(3, 2, builder.pp("dense")).unwrap();
    assert_eq!(output(&loaded), output(&model));
    let tensors = candle_core::safetensors::load(model_file(&folder, 7), &Device::Cpu).unwrap();
    assert_eq!(tensors.len(), parameters.len(), "the parameters and nothing else");
}

#[test]
fn python_loads_the_model() {
    if !python_has("python_loads_the_model", &["safetensors", "numpy"]) {
        return;
    }
    let folder = prepared("python");
    assert_eq!(save(&folder, [300], 10), [""; 0]);
    let program = "
import sys
from safetensors import safe_open
from safetensors.numpy import load_file
tensors = load_file(sys.argv[1])
print({name: (str(t.dtype), t.tolist()) for name, t in tensors.items()})
with safe_open(sys.argv[1], 'numpy') as file:
    notes = file.metadata()
print(notes['format'], notes['allfold.step'], notes['allfold.model.hidden'])
print(notes['allfold.settings.lr'], list(load_file(sys.argv[2])))
";
    let output = Command::new("python3")
        .args(["-c", program])
        .args([model_file(&folder, 300), optimizer_file(&folder, 300)])
        .output()
        .unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap().lines().collect::<Vec<_>>(),
        [
            format!("{{'dense.weight': ('float32', {:?})}}", [300f32; 10]),
            "pt 300 100".into(),
            "0.01 ['adam.m']".into(),
        ],
        "{errors}"
    );
}

#[test]
fn pytorch_loads_the_model_by_the_program_in_the_docs() {
    let test = "pytorch_loads_the_model_by_the_program_in_the_docs";
    if !python_has(test, &["torch", "safetensors.torch"]) {
        return;
    }
    let folder = prepared("torch/ck");
    let vars = VarMap::new();
    let builder = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    let layers = [("dense1", 64, 100), ("dense2", 100, 10)];
    let [dense1, dense2] = layers.map(|(name, inputs, outputs)| {
        candle_nn::linear(inputs, outputs, builder.pp(name)).unwrap()
    });
    let parameters: Vec<(String, Var)> =
        vars.data().lock().unwrap().iter().map(|(n, v)| (n.clone(), v.clone())).collect();
    let mut writer = Writer::start(folder.clone(), 1).unwrap();
    let others = Training::at(0, 0);
    writer.save(&State { parameters: &parameters, ..others.state(300) }).unwrap();
    writer.finish();
    let page = include_str!("../../docs/checkpoints.md");
    let (_, program) = page.split_once("```python\n").unwrap();
    let (program, _) = program.split_once("```").unwrap();
    let program = format!("{program}\nprint(*model(torch.ones(1, 1, 8, 8)).flatten().tolist())");
    let output = Command::new("python3")
        .args(["-c", &program])
        .current_dir(folder.path().parent().unwrap())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let theirs: Vec<f32> = text.split_whitespace().map(|it| it.parse().unwrap()).collect();
    assert_eq!(theirs.len(), 10, "{}", String::from_utf8_lossy(&output.stderr));
    let ones = Tensor::ones((1, 64), DType::F32, &Device::Cpu).unwrap();
    let ours = ones.apply(&dense1).and_then(|it| it.relu()?.apply(&dense2)?.flatten_all());
    for (ours, theirs) in ours.unwrap().to_vec1::<f32>().unwrap().into_iter().zip(theirs) {
        assert!((ours - theirs).abs() < 1e-5, "{ours} here, {theirs} in PyTorch");
    }
}

#[test]
fn the_newest_are_kept() {
    let folder = prepared("keep");
    assert_eq!(save(&folder, (1..=5).map(|step| step * 100), 10), [""; 0]);
    assert_eq!(folder.steps().unwrap(), [300, 400, 500]);
    assert_eq!(names(&folder).len(), 6, "{:?}", names(&folder));
    // An optimiser's file whose model was deleted by a run that died then, and foreign files.
    fs::write(optimizer_file(&folder, 200), "left").unwrap();
    for name in ["best.safetensors", "step-best.safetensors", "step-1.safetensors"] {
        fs::write(folder.path().join(name), "not ours").unwrap();
    }
    // A run that resumed at 300 deletes nothing of the steps that it has not reached.
    assert_eq!(save(&folder, [350], 10), [""; 0]);
    assert_eq!(folder.steps().unwrap(), [300, 350, 400, 500]);
    assert!(!optimizer_file(&folder, 200).exists());
    assert_eq!(names(&folder).len(), 8 + 3);

    let mut writer = Writer::start(folder.clone(), 0).unwrap();
    writer.save(&Training::at(600, 10).state(600)).unwrap();
    writer.finish();
    assert_eq!(folder.steps().unwrap(), [600], "never the one just written");
}

#[test]
fn a_fresh_run_does_not_mix_with_an_earlier_one() {
    let folder = prepared("used");
    folder.must_be_unused().unwrap();
    assert_eq!(save(&folder, [100, 200], 10), [""; 0]);
    assert_eq!(
        folder.must_be_unused().unwrap_err().to_string(),
        format!(
            "checkpoint {}: the folder holds checkpoints of an earlier run, up to step 200",
            folder.path().display()
        )
    );
}

#[test]
fn damaged_ones_are_skipped_and_said() {
    let folder = prepared("damaged");
    assert_eq!(save(&folder, [100, 200, 300], 10), [""; 0]);
    let whole: Vec<(PathBuf, Vec<u8>)> = [model_file(&folder, 300), optimizer_file(&folder, 300)]
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .into();
    let [(model, model_bytes), (optimizer, optimizer_bytes)] = &whole[..] else { panic!() };
    let flipped = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        bytes
    };
    let cut = |bytes: &[u8]| bytes[..bytes.len() - 1].to_vec();
    let old = fs::read(optimizer_file(&folder, 200)).unwrap();
    let of_200 = fs::read(model_file(&folder, 200)).unwrap();
    let digest = "damaged: its contents do not match its digest";
    let short = "damaged, cut short: it has 39 bytes of elements where 40 belong";
    for (path, bytes, expected) in [
        (model, Some(flipped(model_bytes)), digest.to_string()),
        (model, Some(cut(model_bytes)), short.to_string()),
        (model, Some(Vec::new()), "damaged: cut short in its header".into()),
        (optimizer, Some(flipped(optimizer_bytes)), format!("its optimiser's file is {digest}")),
        (optimizer, Some(cut(optimizer_bytes)), format!("its optimiser's file is {short}")),
        (optimizer, None, "its optimiser's file is missing".into()),
        (optimizer, Some(old), "its optimiser's file is of another checkpoint".into()),
        (model, Some(of_200), "its optimiser's file is of another checkpoint".into()),
    ] {
        match bytes {
            Some(bytes) => fs::write(path, bytes).unwrap(),
            None => fs::remove_file(path).unwrap(),
        }
        let start = format!("checkpoint {} is not used: ", model.display());
        assert_eq!(skipped_reasons(&folder), [format!("{start}{expected}")]);
        assert_eq!(newest(&folder), Some(200));
        whole.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
        assert_eq!(newest(&folder), Some(300));
    }
    // A pipe that nobody writes to.
    for path in [model, optimizer] {
        fs::remove_file(path).unwrap();
        mkfifoat(CWD, path, Mode::RUSR | Mode::WUSR).unwrap();
        let [reason] = &skipped_reasons(&folder)[..] else { panic!() };
        assert!(reason.ends_with("is no regular file"), "{reason}");
        assert_eq!(newest(&folder), Some(200));
        fs::remove_file(path).unwrap();
        whole.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    }
    // A pair under another name: the step is what it holds, not what it is called.
    fs::copy(model, model_file(&folder, 900)).unwrap();
    fs::copy(optimizer, optimizer_file(&folder, 900)).unwrap();
    let [reason] = &skipped_reasons(&folder)[..] else { panic!() };
    assert!(reason.ends_with("is of step 300, not of step 900 as its name says"), "{reason}");
    assert_eq!(newest(&folder), Some(300));
}

#[test]
fn a_folder_that_cannot_be_made_stops_no_training() {
    let file = fresh("a-file");
    fs::create_dir_all(file.path().parent().unwrap()).unwrap();
    let _ = fs::remove_file(file.path());
    fs::write(file.path(), "in the way").unwrap();
    let folder = Folder::new(file.path().join("below"));
    let place = folder.path().display();
    assert_eq!(
        folder.prepare().unwrap_err().to_string(),
        format!("checkpoints cannot be written: {place}: Not a directory (os error 20)")
    );
    assert_eq!(folder.latest().unwrap(), Default::default());
    assert_eq!(
        save(&folder, [100, 200], 10),
        [100, 200].map(|step| format!(
            "no checkpoint of step {step}: {place}/step-{step:08}.optimizer.safetensors: \
             Not a directory (os error 20)"
        ))
    );
    // The same where the file stands in the folder's own place.
    assert!(file.prepare().is_err());
    assert_eq!(file.steps().unwrap(), [0; 0]);
    fs::remove_file(file.path()).unwrap();
}

#[test]
fn a_full_disk_leaves_what_was_whole() {
    let Some(lines) = in_own_mount("a_full_disk_leaves_what_was_whole", "full", "size=1m") else {
        return;
    };
    let full = "No space left on device (os error 28)";
    assert_eq!(
        lines,
        [
            // 80,000 elements are 320 kB in each of two files: two such steps do not fit.
            "prepared: yes".to_string(),
            "step 1: no problems".into(),
            format!("step 2: no checkpoint of step 2: DIR/step-00000002.safetensors: {full}"),
            "left: step-00000001.optimizer.safetensors step-00000001.safetensors".into(),
            "newest: 1".into(),
            "step 3 of few elements: no problems".into(),
            "newest: 3".into(),
        ]
    );
}

#[test]
fn a_folder_that_cannot_be_written_is_noticed_at_the_start() {
    let test = "a_folder_that_cannot_be_written_is_noticed_at_the_start";
    let Some(lines) = in_own_mount(test, "read-only", "ro") else {
        return;
    };
    let cannot = "Read-only file system (os error 30)";
    assert_eq!(
        lines[..2],
        [
            format!("prepared: checkpoints cannot be written: DIR: {cannot}"),
            format!(
                "step 1: no checkpoint of step 1: DIR/step-00000001.optimizer.safetensors: {cannot}"
            ),
        ]
    );
}

/// Runs [`child_on_a_small_disk`] on a file system of its own, which ends with it; its lines.
fn in_own_mount(test: &str, name: &str, options: &str) -> Option<Vec<String>> {
    let folder = prepared(name);
    let mount = "mount -t tmpfs -o \"$1\" tmpfs \"$2\" && shift 2 && exec \"$@\"";
    let probe = Command::new("unshare")
        .args(["-m", "sh", "-c", mount, "sh", options])
        .arg(folder.path())
        .arg("true")
        .output();
    if !probe.as_ref().is_ok_and(|output| output.status.success()) {
        skip(test, "no mount namespace can be made here (unshare -m, mount -t tmpfs)");
        return None;
    }
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", mount, "sh", options])
        .arg(folder.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "child_on_a_small_disk", "--nocapture"])
        .env(FOLDER, folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let said = |line: &str| line.strip_prefix(SAID).map(str::to_string);
    let place = folder.path().display().to_string();
    Some(text.lines().filter_map(said).map(|line| line.replace(&place, "DIR")).collect())
}

#[test]
#[ignore = "run by other tests, on a small disk"]
fn child_on_a_small_disk() {
    let folder = Folder::new(std::env::var_os(FOLDER).unwrap());
    let say = |line: String| println!("\n{SAID}{line}");
    let in_words = |problems: Vec<String>| match &problems[..] {
        [] => "no problems".to_string(),
        _ => problems.join("; "),
    };
    let prepared = folder.prepare();
    say(format!("prepared: {}", prepared.map_or_else(|it| it.to_string(), |()| "yes".into())));
    say(format!("step 1: {}", in_words(save(&folder, [1], 80_000))));
    say(format!("step 2: {}", in_words(save(&folder, [2], 80_000))));
    say(format!("left: {}", names(&folder).join(" ")));
    say(format!("newest: {:?}", newest(&folder).unwrap_or(0)));
    say(format!("step 3 of few elements: {}", in_words(save(&folder, [3], 100))));
    say(format!("newest: {:?}", newest(&folder).unwrap_or(0)));
}

#[test]
fn after_kill_9_there_is_always_a_whole_one() {
    let folder = prepared("killed");
    let mut last = 0;
    for round in 0..12u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "child_that_is_killed", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said = lines.map(|line| line.unwrap()).filter_map(|line| {
            let (word, step) = line.strip_prefix(SAID)?.split_once(' ')?;
            Some((word.to_string(), step.parse::<u64>().unwrap()))
        });
        let (mut written, mut begun) = (last, 0);
        for (word, step) in said {
            match word.as_str() {
                "written" => written = step,
                _ => begun += 1,
            }
            // Then the thread is somewhere within a write; where, differs from round to round.
            if begun > round % 4 + 1 {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let found = newest(&folder);
        assert!(found >= Some(written).filter(|step| *step > 0), "round {round}: {found:?}");
        last = found.unwrap_or(0);
        assert!(written > 0, "round {round}: nothing was written");
        // Not found by passing over half a file: there is none.
        assert_eq!(skipped_reasons(&folder), [""; 0], "round {round}");
    }
}

#[test]
fn what_the_dead_left_half_written_is_removed() {
    let folder = prepared("leftovers");
    let half = |name: &str| {
        let path = folder.path().join(name);
        fs::write(&path, "half").unwrap();
        path
    };
    // Of a dead process in another container, whose pid is taken here.
    let dead = half(".allfold-step-00000009.safetensors.1.tmp");
    let living = half(".allfold-step-00000010.safetensors.7.tmp");
    let file = fs::File::open(&living).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let foreign = half(".nfs0001.tmp");
    folder.prepare().unwrap();
    assert_eq!([dead, living, foreign].map(|path| path.exists()), [false, true, true]);
    assert_eq!(names(&folder).len(), 2, "{:?}", names(&folder));
}

#[test]
#[ignore = "run by another test, and killed"]
fn child_that_is_killed() {
    let folder = Folder::new(std::env::var_os(FOLDER).unwrap());
    let say = |line: String| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "\n{SAID}{line}").and_then(|()| out.flush()).unwrap();
    };
    folder.prepare().unwrap();
    let mut writer = Writer::start(folder.clone(), 2).unwrap();
    let start = newest(&folder).unwrap_or(0);
    for step in start + 1.. {
        // Half a megabyte in each file: a write has a middle.
        writer.save(&Training::at(step, 1 << 17).state(step)).unwrap();
        for news in writer.news() {
            let News::Written(written) = news else { panic!("{news:?}") };
            say(format!("written {}", written.step));
        }
        say(format!("begun {step}"));
    }
}

/// In the environment of children: where to write.
const FOLDER: &str = "ALLFOLD_TEST_FOLDER";
/// What the lines of children begin with, among those of the test runner.
const SAID: &str = "child: ";
