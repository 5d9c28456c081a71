//! Jobs between hosts over bad networks give right sums or the right error.

use allfold_tests::{machine_lock, networks, skipped};

const RANK: &str = env!("CARGO_BIN_EXE_rank-under-test");

#[test]
fn bad_networks_give_right_sums_or_the_right_error() {
    let _one_at_a_time = machine_lock();
    for case in networks::cases() {
        let run = match case.run(SEED, &[RANK.into()]) {
            Ok(run) => run,
            Err(reason) => {
                return skipped("bad_networks_give_right_sums_or_the_right_error", &reason);
            }
        };
        println!("{}: {} calls, {:.1} s", case.name, run.calls, run.took.as_secs_f64());
        assert_eq!(run.problem, None, "{}, seed {SEED}", case.name);
    }
}

const SEED: u64 = 1;
