//! Inside a rank: whether its buffer stays as it is after an error, whatever a rank that wakes does.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;

use allfold::{Communicator, ReduceOp, Result};

use super::victim::{GATE, Part, mark};

impl Part {
    /// Makes calls on one buffer until one fails, on this thread or `started` ones; says what is in
    /// the buffer then, and once more when the gate opens. The rank under test only says its error.
    ///
    /// # Errors
    /// That of the call.
    pub fn keep_a_buffer(self, started: bool) -> Result<()> {
        let world = Communicator::from_env()?;
        // Where ranks share memory, the one that wakes has it mapped.
        let mut buffer = world.alloc::<f32>(ELEMENTS);
        loop {
            (0..)
                .zip(buffer.iter_mut())
                .for_each(|(index, element)| *element = (index % 251) as f32);
            let result = match started {
                false => world.all_reduce(&mut buffer, ReduceOp::Sum),
                true => {
                    let result;
                    (buffer, result) = world.start_all_reduce(buffer, ReduceOp::Sum)?.finish();
                    result
                }
            };
            let Err(error) = result else { continue };
            if self.rank != self.case.victim {
                mark(self.rank, format_args!("first {:x}", hash(&buffer)));
                if let Some(path) = std::env::var_os(GATE) {
                    let _ = File::open(path).and_then(|mut gate| gate.read_exact(&mut [0]));
                }
                mark(self.rank, format_args!("second {:x}", hash(&buffer)));
            }
            return Err(error);
        }
    }
}

fn hash(buffer: &[f32]) -> u64 {
    let mut hasher = DefaultHasher::new();
    buffer.iter().for_each(|element| element.to_bits().hash(&mut hasher));
    hasher.finish()
}

/// 4 MiB: the ranks are at different places of it when one stops.
const ELEMENTS: usize = 1 << 20;
