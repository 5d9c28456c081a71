//! The look-alikes of libcuda and libnccl do what tests of the NCCL code rely on. The checks
//! themselves are in C (tests/gpu/check*.c) and run as several processes.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use allfold_tests::gpu::{FakeGpus, Recipe};
use allfold_tests::{Ended, Process, machine_lock};

#[test]
fn collectives_compute_what_they_should() {
    check(&[1, 2, 3, 4].map(|ranks| ("collectives", ranks)));
    check(&[("rounding", 2)]);
}

#[test]
fn messages_go_between_pairs() {
    check(&[("pairs", 1), ("pairs", 2), ("pairs", 4)]);
}

#[test]
fn streams_and_events_are_asynchronous() {
    check(&[("streams", 1)]);
}

#[test]
fn memory_is_counted_and_bounded() {
    check(&[("memory", 1)]);
}

#[test]
fn the_environment_says_which_devices_there_are() {
    check(&[("visible", 8)]);
}

#[test]
fn what_has_begun_is_in_progress_until_the_peers_come() {
    check(&[("progress", 2)]);
}

#[test]
fn a_stuck_kernel_ends_by_an_abort() {
    check(&[("stuck", 2)]);
}

#[test]
fn a_child_that_shares_ends_with_its_parent() {
    check(&[("share", 2)]);
}

#[test]
fn a_split_makes_one_communicator_of_each_color() {
    check(&[("colors", 4)]);
}

#[test]
fn a_dead_peer_is_waited_for() {
    check(&[("dead", 2)]);
}

#[test]
fn a_dead_peer_is_noticed_where_a_test_asks_for_it() {
    check(&[("noticed", 2)]);
}

#[test]
fn what_never_ends_ends_by_an_abort() {
    check(&[("hangs", 1)]);
}

#[test]
fn errors_come_where_a_test_asks_for_them() {
    check(&[("errors", 2)]);
}

#[test]
fn two_ranks_on_one_gpu_are_refused() {
    check(&[("duplicate", 2)]);
}

#[test]
fn configs_and_arguments_are_checked() {
    check(&[("configs", 1)]);
}

#[test]
fn a_process_with_a_stuck_stream_can_end() {
    check(&[("exit", 2)]);
}

#[test]
fn mistakes_of_the_caller_are_found() {
    check(&[("mistakes", 1), ("mismatch", 2)]);
}

#[test]
fn libraries_can_be_missing_or_old() {
    let _one_at_a_time = machine_lock();
    let whole = FakeGpus::recipe().with_checks().build();
    let said = |recipe: &Recipe| {
        let mut command = whole.check("configs", 1);
        recipe.build().lend(&mut command);
        // Otherwise a missing function is missed only by who calls it.
        let ended = run(command.env("LD_BIND_NOW", "1"));
        assert_ne!(ended.code(), 0, "{ended:#?}");
        ended.lines.join("\n")
    };
    for (recipe, words) in [
        (FakeGpus::recipe().without_cuda(), "libcuda.so.1: cannot open"),
        (FakeGpus::recipe().without_nccl(), "libnccl.so.2: cannot open"),
        (FakeGpus::recipe().nccl_without_version(), "libnccl.so.2: cannot open"),
        (FakeGpus::recipe().without_symbol("ncclCommSplit"), "undefined symbol: ncclCommSplit"),
        (FakeGpus::recipe().without_symbol("cuStreamCreate"), "undefined symbol: cuStreamCreate"),
    ] {
        let said = said(&recipe);
        assert!(said.contains(words), "{recipe:?}: {said}");
    }
}

fn check(checks: &[(&str, usize)]) {
    let _one_at_a_time = machine_lock();
    let gpus = FakeGpus::recipe().with_checks().build();
    for (name, ranks) in checks {
        let mut command = gpus.check(name, *ranks);
        gpus.lend(&mut command);
        let ended = run(&mut command);
        assert_eq!(ended.code(), 0, "{name} {ranks}: {ended:#?}");
        // Nothing is left where it ran, and nothing was said.
        assert_eq!(ended.lines, Vec::<String>::new());
    }
}

fn run(command: &mut Command) -> Ended {
    Process::start(command).wait()
}
