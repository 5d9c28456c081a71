//! The hooks for tests about faults: moments come as they say, and weather strikes.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

mod worlds;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use allfold::ReduceOp;
use allfold::faults::weather::{self, Felt, Place, Route, Weather};
use allfold::faults::{Moment, unwatch, watch};
use worlds::{each_rank, over_quic};

#[test]
fn every_rank_passes_every_moment() {
    let _alone = alone();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let book = seen.clone();
    watch(move |moment| book.lock().unwrap().push(moment));
    each_rank(over_quic(4), |world| {
        let mut buffer = vec![1u32; 1000];
        world.all_reduce(&mut buffer, ReduceOp::Sum)
    });
    unwatch();
    let seen = seen.lock().unwrap();
    let place = |moment| seen.iter().position(|other| *other == moment);
    for rank in 0..4 {
        let before = place(Moment::BeforeConnect { rank }).unwrap();
        let gathering = place(Moment::Gathering { rank }).unwrap();
        let prepared = place(Moment::Prepared { rank }).unwrap();
        assert!(before < gathering && gathering < prepared, "rank {rank}: {seen:?}");
        let steps = seen.iter().filter_map(|moment| match moment {
            Moment::Step(step) if step.rank == rank && step.sequence == 0 => Some(*step),
            _ => None,
        });
        let steps: Vec<_> = steps.collect();
        let mut indices: Vec<usize> = steps.iter().map(|step| step.index).collect();
        indices.sort_unstable();
        let count = steps[0].count;
        assert_eq!(indices, (0..count).collect::<Vec<_>>(), "rank {rank}");
        assert!(steps.iter().all(|step| step.collective == "all_reduce"));
        assert!(steps.iter().any(|step| step.sends) && steps.iter().any(|step| !step.sends));
    }
}

#[test]
fn sums_are_right_in_all_weathers_but_a_cut() {
    let _alone = alone();
    let before = weather::felt();
    weather::seed(11);
    let shares = Weather::new().loss(0.02).duplicate(0.02).reorder(0.02).corrupt(0.02);
    let slow = Weather::new().delay(Duration::from_millis(2)).jitter(Duration::from_millis(2));
    weather::set(Route::all(), shares);
    weather::set(Route::all().inwards(), slow);
    // What finds out by itself how large packets may be goes on below this.
    weather::set(Route::with(Place::Lane(1)).outwards(), Weather::new().mtu(1_400));
    each_rank(over_quic(3), |world| {
        for round in 0..4u64 {
            let mut buffer: Vec<u64> = (0..20_000).map(|index| index + round).collect();
            world.all_reduce(&mut buffer, ReduceOp::Sum)?;
            assert!((0..20_000).zip(&buffer).all(|(index, sum)| *sum == 3 * (index + round)));
        }
        Ok(())
    });
    weather::clear();
    let felt = weather::felt();
    let grew = |count: fn(&Felt) -> u64| count(&felt) > count(&before);
    assert!(grew(|f| f.lost) && grew(|f| f.duplicated) && grew(|f| f.reordered), "{felt:?}");
    assert!(grew(|f| f.corrupted) && grew(|f| f.delayed) && grew(|f| f.passed), "{felt:?}");
}

#[test]
fn a_cut_stops_everything_on_its_route_and_nothing_else() {
    let _alone = alone();
    let cut = || weather::felt().cut;
    each_rank(over_quic(3), |world| {
        world.barrier()?;
        let before = cut();
        if world.rank() == 1 {
            let none = Weather::new().cut();
            weather::set(Route::with(Place::Lane(2)).at(Place::Lane(1)), none);
            let stopped = world.start_send(vec![7u8; 100], 2)?;
            // What goes elsewhere passes, as long as it takes until the cut is felt.
            while cut() == before {
                world.send(&[1u8], 0)?;
            }
            world.send(&[0u8], 0)?;
            weather::clear();
            stopped.wait()?;
        } else if world.rank() == 2 {
            let mut arrived = [0u8; 100];
            world.recv(&mut arrived, 1)?;
            assert_eq!(arrived, [7; 100]);
        } else {
            let mut more = [1u8];
            while more == [1] {
                world.recv(&mut more, 1)?;
            }
        }
        world.barrier()
    });
}

/// Moments and weather are the process's, and these tests are its threads.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
