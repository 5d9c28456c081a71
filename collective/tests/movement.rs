//! The collectives that move data without reducing it, in place and out of place, over every link.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

mod worlds;

use allfold::{Communicator, ErrorKind, Result};
use worlds::on_every_link;

/// Elements of one rank's block, around the boundaries of segments (63 KiB) and of the relay.
const BLOCKS: [usize; 7] = [0, 1, 3, 1_000, 16_128, 16_129, 40_000];
const SIZES: [usize; 5] = [1, 2, 3, 5, 8];

#[test]
fn an_all_gather_gives_everybody_everything() {
    on_every_link(&SIZES, |world| {
        for block in BLOCKS {
            let input = from(world.rank(), 0, block);
            let mut output = vec![0; block * world.size()];
            world.all_gather(&input, &mut output)?;
            assert_eq!(output, concat(world, |rank| from(rank, 0, block)));

            let mut buffer = vec![7; block * world.size()];
            buffer[world.rank() * block..][..block].copy_from_slice(&input);
            world.all_gather_in_place(&mut buffer)?;
            assert_eq!(buffer, output);
        }
        Ok(())
    });
}

#[test]
fn an_all_gather_takes_different_counts() {
    on_every_link(&SIZES, |world| {
        for base in [0, 1, 7, 20_000] {
            // Some ranks give nothing.
            let counts: Vec<usize> = (0..world.size()).map(|rank| rank % 3 * base).collect();
            let input = from(world.rank(), 0, counts[world.rank()]);
            let mut output = vec![0; counts.iter().sum()];
            world.all_gather_v(&input, &mut output, &counts)?;
            assert_eq!(output, concat(world, |rank| from(rank, 0, counts[rank])));

            let start: usize = counts[..world.rank()].iter().sum();
            let mut buffer = vec![7; output.len()];
            buffer[start..start + input.len()].copy_from_slice(&input);
            world.all_gather_v_in_place(&mut buffer, &counts)?;
            assert_eq!(buffer, output);
        }
        Ok(())
    });
}

#[test]
fn a_broadcast_comes_from_every_root() {
    on_every_link(&SIZES, |world| {
        for_every_root(world, |root, block| {
            let mut buffer = from(world.rank(), 0, block);
            world.broadcast(&mut buffer, root)?;
            assert_eq!(buffer, from(root, 0, block));

            let input = if world.rank() == root { from(root, 1, block) } else { Vec::new() };
            world.broadcast_into(&input, &mut buffer, root)?;
            assert_eq!(buffer, from(root, 1, block));
            Ok(())
        })
    });
}

#[test]
fn a_gather_reaches_every_root() {
    on_every_link(&SIZES, |world| {
        for_every_root(world, |root, block| {
            let input = from(world.rank(), 0, block);
            let everything = concat(world, |rank| from(rank, 0, block));
            let is_root = world.rank() == root;
            let mut output = vec![0; if is_root { block * world.size() } else { 0 }];
            world.gather(&input, &mut output, root)?;
            if is_root {
                assert_eq!(output, everything);
            }

            let mut buffer = input.clone();
            if is_root {
                buffer = vec![7; block * world.size()];
                buffer[root * block..][..block].copy_from_slice(&input);
            }
            world.gather_in_place(&mut buffer, root)?;
            assert_eq!(buffer, if is_root { everything } else { input });
            Ok(())
        })
    });
}

#[test]
fn a_scatter_comes_from_every_root() {
    on_every_link(&SIZES, |world| {
        for_every_root(world, |root, block| {
            let everything: Vec<u32> =
                (0..world.size()).flat_map(|rank| from(root, rank, block)).collect();
            let is_root = world.rank() == root;
            let input = if is_root { everything.clone() } else { Vec::new() };
            let mut output = vec![0; block];
            world.scatter(&input, &mut output, root)?;
            assert_eq!(output, from(root, world.rank(), block));

            let mut buffer = if is_root { everything.clone() } else { vec![7; block] };
            world.scatter_in_place(&mut buffer, root)?;
            assert_eq!(buffer, if is_root { everything } else { output });
            Ok(())
        })
    });
}

#[test]
fn an_all_to_all_transposes() {
    on_every_link(&SIZES, |world| {
        for block in BLOCKS {
            let input: Vec<u32> =
                (0..world.size()).flat_map(|to| from(world.rank(), to, block)).collect();
            let expected = concat(world, |rank| from(rank, world.rank(), block));
            let mut output = vec![0; input.len()];
            world.all_to_all(&input, &mut output)?;
            assert_eq!(output, expected);

            let mut buffer = input;
            world.all_to_all_in_place(&mut buffer)?;
            assert_eq!(buffer, expected);
        }
        Ok(())
    });
}

#[test]
fn messages_go_round_a_ring_and_between_pairs() {
    on_every_link(&SIZES, |world| {
        let (rank, size) = (world.rank(), world.size());
        let (next, previous) = ((rank + 1) % size, (rank + size - 1) % size);
        for block in BLOCKS {
            let mut output = vec![0; block];
            world.send_recv(&from(rank, 0, block), next, &mut output, previous)?;
            assert_eq!(output, from(previous, 0, block));
        }
        // Several messages to one rank, of different lengths, and collectives in between.
        if size > 1 {
            for round in 0..5 {
                let block = 1 + round * 9_000;
                if rank == 1 {
                    world.send(&from(1, round, block), 0)?;
                } else if rank == 0 {
                    let mut output = vec![0; block];
                    world.recv(&mut output, 1)?;
                    assert_eq!(output, from(1, round, block));
                }
                if round == 2 {
                    world.barrier()?;
                }
            }
        }
        Ok(())
    });
}

#[test]
fn lengths_that_do_not_fit_are_argument_errors_and_harm_nothing() {
    on_every_link(&[2, 3], |world| {
        let size = world.size();
        let mut output = vec![0u8; 2 * size + 1];
        let (rank, other) = (world.rank(), (world.rank() + 1) % size);
        let results = [
            world.all_gather(&[0, 0], &mut output),
            world.all_gather_in_place(&mut output),
            world.all_gather_v(&[], &mut output, &[1]),
            world.all_gather_v(&[0], &mut output, &vec![1; size]),
            world.gather(&[0, 0], &mut output, rank),
            world.scatter(&[0, 0], &mut output, rank),
            world.all_to_all(&[0; 3], &mut [0; 4]),
            world.broadcast_into(&[0], &mut output, rank),
            world.send(&[0], rank),
            world.recv(&mut output, size),
            world.send_recv(&[0], other, &mut output, rank),
        ];
        for result in results {
            let error = result.unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Argument { .. }), "{error}");
            assert!(error.is_communicator_usable());
        }
        world.barrier()
    });
}

/// What `from` gives to `to`.
fn from(from: usize, to: usize, length: usize) -> Vec<u32> {
    (0..length).map(|i| (from * 100_000_000 + to * 1_000_000 + i) as u32).collect()
}

fn concat(world: &Communicator, part: impl Fn(usize) -> Vec<u32>) -> Vec<u32> {
    (0..world.size()).flat_map(part).collect()
}

fn for_every_root(world: &Communicator, body: impl Fn(usize, usize) -> Result<()>) -> Result<()> {
    for root in 0..world.size() {
        for block in BLOCKS {
            body(root, block)?;
        }
    }
    Ok(())
}
