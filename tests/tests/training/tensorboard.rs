//! The values of a training, as TensorBoard reads them.

use std::process::Command;

use allfold_tests::{machine_lock, skipped};

use crate::command::ends_well;
use crate::scratch::Scratch;

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
