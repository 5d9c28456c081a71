//! What monitoring sees of a training: the step, its loss, images, the last checkpoint.

use allfold::{Communicator, Counter, Gauge};

/// The trainer's own metrics, beside allfold's; they do nothing where metrics are off.
pub(crate) struct Gauges {
    step: Gauge,
    loss: Gauge,
    images: Counter,
    checkpoint: Gauge,
}

impl Gauges {
    /// Those of this rank, all 0.
    pub(crate) fn new(world: &Communicator) -> Self {
        let metrics = world.metrics();
        let gauge = |name, help| metrics.gauge(name, help);
        Self {
            step: gauge("allfold_train_step", "the last step that was done, from 1"),
            loss: gauge("allfold_train_loss", "mean loss of the last step, over all ranks"),
            images: metrics.counter(
                "allfold_train_images",
                "training samples of all ranks, the same number on each",
            ),
            checkpoint: gauge(
                "allfold_checkpoint_timestamp_seconds",
                "when the last checkpoint was written, in Unix time, on the rank that writes; 0: none",
            ),
        }
    }

    /// A step is done: its number from 1, its mean loss, and the samples of all ranks in it.
    pub(crate) fn step(&self, step: u64, loss: f64, images: u64) {
        self.step.set(step as f64);
        self.loss.set(loss);
        self.images.add(images);
    }

    /// This rank has written a checkpoint, at this Unix time.
    pub(crate) fn checkpoint(&self, unix_seconds: f64) {
        self.checkpoint.set(unix_seconds);
    }
}
