//! A StatefulSet's pods, made from the manifest that is shipped: they meet, whatever their start
//! and their network are like, and training ends with the digest of an undisturbed run, whatever
//! is deleted meanwhile.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use allfold_tests::pods::{Cluster, StatefulSet};
use allfold_tests::skipped;

const ALLFOLD: &str = env!("CARGO_BIN_EXE_allfold-under-test");

#[test]
fn first() {
    let line = "train --model mlp --hidden 16 --steps 40 --eval-every 20 --checkpoint /checkpoints --resume --when-done wait";
    let arguments: Vec<&str> = line.split(' ').collect();
    let set = StatefulSet::new(ALLFOLD, 4, &arguments, Cluster::default());
    let mut set = match set {
        Ok(set) => set,
        Err(reason) => return skipped("first", &reason),
    };
    set.create_all();
    set.wait_for_line(0, "training complete");
    println!("{}", set.story());
    for i in 0..4 {
        println!("{:?} {:?}", set.readiness(i), set.processor_time(i));
    }
    for i in 0..4 {
        set.delete(i);
    }
    println!("{}", set.story());
}
