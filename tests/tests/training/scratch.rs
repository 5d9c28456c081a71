//! A folder for data and checkpoints.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A folder of a test's own, removed at its end.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("allfold-training-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// The path of something in it; of the folder itself where that has no name.
    pub(crate) fn path(&self, name: &str) -> String {
        let path = if name.is_empty() { self.0.clone() } else { self.0.join(name) };
        path.to_str().unwrap().to_string()
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.0.join(name), bytes).unwrap();
    }

    /// MNIST's four files with images of 28x28, not hard to tell apart.
    pub(crate) fn write_mnist(&self, train: u32, test: u32) {
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
