//! Sums gradients while the program computes, and averages over a part of the ranks.
//!
//! `allfold run -n 4 target/release/examples/03_overlap`

use allfold::{Bucket, Communicator, ReduceOp, Result};

fn main() -> Result<()> {
    let world = Communicator::from_env_or_single()?;

    // Two layers of a model in one bucket: one call, however many tensors.
    let mut bucket = Bucket::<f32>::new([3, 2]);
    bucket.view_mut(0).fill(world.rank() as f32);
    bucket.view_mut(1).fill(1.0);
    let pending = bucket.start_all_reduce(&world, ReduceOp::Sum)?;

    // What the program does meanwhile: here, a mean over every second rank.
    let half = world.split(Some((world.rank() % 2) as u32), 0)?;
    let mut loss = [world.rank() as f64];
    if let Some(half) = &half {
        half.all_reduce(&mut loss, ReduceOp::Avg)?;
    }

    let bucket = pending.wait()?;
    println!(
        "rank {}: first layer {:?}, second {:?}, mean of its half {}",
        world.rank(),
        bucket.view(0),
        bucket.view(1),
        loss[0]
    );
    drop(half);
    world.close()
}
