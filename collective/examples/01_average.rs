//! Every rank contributes its number; all of them get the average.
//!
//! allfold run -n 4 ./target/release/examples/01_average

use allfold::{Communicator, ReduceOp, Result};

fn main() -> Result<()> {
    let world = Communicator::from_env_or_single()?;
    let mut values = [world.rank() as f32; 4];
    world.all_reduce(&mut values, ReduceOp::Avg)?;
    println!("rank {} of {}: the average is {}", world.rank(), world.size(), values[0]);
    world.close()
}
