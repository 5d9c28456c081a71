//! What the ranks tell each other between the measurements.

use allfold::{Communicator, ReduceOp, Result};

use crate::choices::Average;

/// The values added up over all ranks.
pub(crate) fn sum<const N: usize>(world: &Communicator, mut values: [f64; N]) -> Result<[f64; N]> {
    world.all_reduce(&mut values, ReduceOp::Sum)?;
    Ok(values)
}

/// One value from those of all ranks.
pub(crate) fn average(world: &Communicator, value: f64, average: Average) -> Result<f64> {
    let mut values = [value];
    match average {
        Average::Rank0 => world.broadcast(&mut values, 0)?,
        Average::Mean => world.all_reduce(&mut values, ReduceOp::Avg)?,
        Average::Min => world.all_reduce(&mut values, ReduceOp::Min)?,
        Average::Max => world.all_reduce(&mut values, ReduceOp::Max)?,
    }
    Ok(values[0])
}

/// Every rank's text in rank order.
pub(crate) fn texts(world: &Communicator, own: &str) -> Result<Vec<String>> {
    // One row of character codes a rank, zero but for its own: the sum holds all, exactly.
    let mut codes = vec![0.0_f64; world.size() * TEXT];
    let row = codes.iter_mut().skip(world.rank() * TEXT).take(TEXT);
    for (code, character) in row.zip(own.chars()) {
        *code = f64::from(u32::from(character));
    }
    world.all_reduce(&mut codes, ReduceOp::Sum)?;
    let text = |row: &[f64]| {
        row.iter()
            .take_while(|code| **code != 0.0)
            .map(|code| char::from_u32(*code as u32).unwrap_or(char::REPLACEMENT_CHARACTER))
            .collect()
    };
    Ok(codes.chunks(TEXT).map(text).collect())
}

/// Characters of a text that reach the header.
const TEXT: usize = 80;
