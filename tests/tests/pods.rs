//! A StatefulSet's pods, made from the manifest that is shipped: they meet, whatever their start
//! and their network are like, and training ends with the digest of an undisturbed run, whatever
//! is deleted meanwhile.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use allfold_tests::pods::{Cluster, Families, StatefulSet, Unknown};
use allfold_tests::{machine_lock, skipped};

const ALLFOLD: &str = env!("CARGO_BIN_EXE_allfold-under-test");

#[test]
fn pods_deleted_in_the_middle_of_training_change_nothing() {
    let _machine = machine();
    let test = "pods_deleted_in_the_middle_of_training_change_nothing";
    let Some(mut undisturbed) = four_pods(test, LONG, Cluster::default()) else { return };
    undisturbed.create_all();
    let digest = digest(&undisturbed);
    drop(undisturbed);

    // With time to end well and without, the first rank and another, one and two; where pods have a
    // name once they exist, and where they have one only while they run.
    let cases: [(bool, [Lost; 2]); 3] = [
        (false, [(Loss::Delete, &[2]), (Loss::DeleteAtOnce, &[0])]),
        (true, [(Loss::Delete, &[0]), (Loss::DeleteAtOnce, &[3])]),
        (false, [(Loss::DeleteAtOnce, &[0, 1]), (Loss::Crash, &[2])]),
    ];
    for (names_ready_only, losses) in cases {
        let cluster = Cluster { names_ready_only, ..Cluster::default() };
        let Some(mut set) = four_pods(test, LONG, cluster) else { return };
        set.create_all();
        set.wait_for_line(0, " step=200 ");
        assert_eq!(set.readiness(3), Some(200), "{}", set.story());
        let mut starts = [1; 4];
        for (loss, ordinals) in losses {
            set.wait_for_line(0, " step=");
            lose(&mut set, loss, ordinals);
            ordinals.iter().for_each(|ordinal| starts[*ordinal] += 1);
            let resumed = set.wait_for_line(0, "  resume step ");
            assert!(!resumed.contains("step 3000 "), "it was not lost in the middle: {resumed}");
        }
        assert_eq!(self::digest(&set), digest, "{losses:?}: {}", set.story());
        all_wait(&set);
        // Whoever was not deleted has not even started again.
        assert_eq!([0, 1, 2, 3].map(|pod| set.starts(pod)), starts, "{losses:?}: {}", set.story());
    }
}

/// Which pods are lost, and how.
type Lost = (Loss, &'static [usize]);

/// How pods are lost, to come back at once.
#[derive(Clone, Copy, Debug)]
enum Loss {
    Delete,
    DeleteAtOnce,
    Crash,
}

fn lose(set: &mut StatefulSet, loss: Loss, ordinals: &[usize]) {
    for &ordinal in ordinals {
        match loss {
            Loss::Delete => set.delete(ordinal),
            Loss::DeleteAtOnce => set.delete_at_once(ordinal),
            Loss::Crash => set.crash(ordinal),
        }
    }
    for &ordinal in ordinals {
        let code = if matches!(loss, Loss::Delete) { 143 } else { 137 };
        assert_eq!(set.wait_for_end(ordinal), code, "{}", set.story());
        if !matches!(loss, Loss::Crash) {
            set.create(ordinal);
        }
    }
}

#[test]
fn pods_meet_in_whatever_network_they_have() {
    let _machine = machine();
    let test = "pods_meet_in_whatever_network_they_have";
    let fine = Cluster::default();
    let families = |families| Cluster { families, ..Cluster::default() };
    let clusters = [
        ("both families", fine.clone()),
        ("IPv4 alone", families(Families::OnlyV4)),
        ("IPv6 alone", families(Families::OnlyV6)),
        ("IPv4 is dead", families(Families::DeadV4)),
        ("IPv6 is dead", families(Families::DeadV6)),
        ("addresses that all have", Cluster { duplicates: true, ..fine.clone() }),
        ("an MTU of 1,300 between them", Cluster { path_mtu: Some(1300), ..fine.clone() }),
        (
            "all of it",
            Cluster {
                families: Families::DeadV4,
                duplicates: true,
                path_mtu: Some(1300),
                names_ready_only: true,
                unknown: Unknown::Failure,
                ..fine
            },
        ),
    ];
    let mut digests = Vec::new();
    for (name, cluster) in clusters {
        let Some(mut set) = four_pods(test, SHORT, cluster) else { return };
        set.create_all();
        digests.push((name, digest(&set)));
        all_wait(&set);
        assert!((0..set.replicas()).all(|pod| set.starts(pod) == 1), "{name}: {}", set.story());
    }
    assert!(digests.iter().all(|(_, digest)| *digest == digests[0].1), "{digests:#?}");
}

/// Else the test above might pass in a network that is fine.
#[test]
fn the_networks_of_pods_are_as_bad_as_they_say() {
    let _machine = machine();
    let test = "the_networks_of_pods_are_as_bad_as_they_say";
    let between = (0, 1);
    let with = |families, path_mtu| {
        let mut set = four_pods(test, SHORT, Cluster { families, path_mtu, ..Cluster::default() })?;
        [0, 1].into_iter().for_each(|ordinal| set.create(ordinal));
        Some(set)
    };
    let (v4, v6) = (false, true);
    for (families, alive, dead) in [(Families::DeadV4, v6, v4), (Families::DeadV6, v4, v6)] {
        let Some(set) = with(families, None) else { return };
        assert_eq!(set.arrives(between, dead, 100, alive), Ok(false), "{families:?}");
        assert_eq!(set.arrives(between, alive, 1400, alive), Ok(true), "{families:?}");
    }
    let Some(set) = with(Families::Both, Some(1300)) else { return };
    for (family, headers) in [(v4, 28), (v6, 48)] {
        assert_eq!(set.arrives(between, family, 1300 - headers, family), Ok(true));
        assert_eq!(set.arrives(between, family, 1301 - headers, family), Ok(false));
    }
}

/// Real times: this test waits, beside the others, about as long as the longest of its parts.
#[test]
fn pods_start_far_apart_crash_and_stay() {
    let _machine = machine();
    let test = "pods_start_far_apart_crash_and_stay";
    if let Err(reason) = StatefulSet::new(ALLFOLD, 4, &["train"], Cluster::default()) {
        return skipped(test, &reason);
    }
    thread::scope(|scope| {
        // Rank 0 last, and in the middle; where a name that does not exist yet is an error of the
        // server, and where it does not exist.
        scope.spawn(|| start_far_apart(test, [3, 1, 2, 0], Unknown::NoSuchName));
        scope.spawn(|| start_far_apart(test, [2, 0, 3, 1], Unknown::Failure));
        scope.spawn(|| crash_in_rendezvous(test));
        scope.spawn(|| restart_out_of_phase(test));
        scope.spawn(|| stay_after_the_end(test));
    });
}

/// 30 s apart, none of which has a name before it runs.
fn start_far_apart(test: &str, order: [usize; 4], unknown: Unknown) {
    let cluster = Cluster { names_ready_only: true, unknown, ..Cluster::default() };
    let Some(mut set) = four_pods(test, SHORT, cluster) else { return };
    for (number, ordinal) in order.into_iter().enumerate() {
        if number > 0 {
            thread::sleep(APART);
        }
        set.create(ordinal);
    }
    all_wait(&set);
    assert!((0..set.replicas()).all(|pod| set.starts(pod) == 1), "{}", set.story());
}

/// Rank 2, and rank 0, while the others wait for rank 3; rank 1 is replaced, and rank 0.
fn crash_in_rendezvous(test: &str) {
    let cluster = Cluster { names_ready_only: true, ..Cluster::default() };
    let Some(mut set) = four_pods(test, SHORT, cluster) else { return };
    (0..3).for_each(|ordinal| set.create(ordinal));
    let waits = |set: &StatefulSet| {
        set.wait_for_line(0, "waiting for rank 3 at ");
    };
    waits(&set);
    set.crash(2);
    assert_eq!(set.wait_for_end(2), 137, "{}", set.story());
    set.wait_for_start(2);
    set.crash(0);
    assert_eq!(set.wait_for_end(0), 137, "{}", set.story());
    waits(&set);
    for ordinal in [1, 0] {
        set.delete_at_once(ordinal);
        set.create(ordinal);
    }
    waits(&set);
    assert_eq!(set.readiness(0), Some(503), "{}", set.story());
    set.create(3);
    all_wait(&set);
    assert_eq!([0, 1, 2, 3].map(|pod| set.starts(pod)), [3, 2, 2, 1], "{}", set.story());
}

/// Ranks 1, 2 and 3 crash together, so often that they come back 10, 20 and 40 s after the last
/// time.
fn restart_out_of_phase(test: &str) {
    let cluster = Cluster { back_off: Duration::from_secs(10), ..Cluster::default() };
    let Some(mut set) = four_pods(test, SHORT, cluster) else { return };
    set.create_all();
    for crashes in 1..5 {
        for ordinal in crashes.max(2) - 1..4 {
            set.wait_for_start(ordinal);
            set.crash(ordinal);
            assert_eq!(set.wait_for_end(ordinal), 137, "{}", set.story());
        }
    }
    all_wait(&set);
    assert_eq!([0, 1, 2, 3].map(|pod| set.starts(pod)), [1, 3, 4, 5], "{}", set.story());
}

/// Nothing ends after the training, and nothing turns; who is started again later stays, too.
fn stay_after_the_end(test: &str) {
    let Some(mut set) = four_pods(test, SHORT, Cluster::default()) else { return };
    set.create_all();
    let digest = digest(&set);
    all_wait(&set);
    assert_eq!([0, 1, 2, 3].map(|pod| set.readiness(pod)), [Some(503); 4], "{}", set.story());
    let before = [0, 1, 2, 3].map(|pod| set.processor_time(pod));
    thread::sleep(AFTER_THE_END);
    let starts = [0, 1, 2, 3].map(|pod| set.starts(pod));
    assert_eq!(starts, [1; 4], "{}", set.story());
    for (ordinal, before) in before.into_iter().enumerate() {
        let used = set.processor_time(ordinal) - before;
        assert!(used < AFTER_THE_END / 100, "rank {ordinal} uses a processor: {used:?}");
    }

    set.crash(3);
    assert_eq!(set.wait_for_end(3), 137, "{}", set.story());
    set.wait_for_line(3, COMPLETE);
    for ordinal in [2, 0, 1] {
        set.delete(ordinal);
        assert_eq!(set.wait_for_end(ordinal), 0, "{}", set.story());
        set.create(ordinal);
        if ordinal == 0 {
            assert_eq!(self::digest(&set), digest, "{}", set.story());
        }
        set.wait_for_line(ordinal, COMPLETE);
    }
    assert_eq!([0, 1, 2, 3].map(|pod| set.starts(pod)), [2; 4], "{}", set.story());
}

#[test]
fn mistakes_in_a_manifest_are_told_where_they_are() {
    let _machine = machine();
    let test = "mistakes_in_a_manifest_are_told_where_they_are";
    // No second start of a container gets in between.
    let calm = || Cluster { back_off: Duration::from_secs(300), ..Cluster::default() };
    let told = |set: &StatefulSet, ordinal: usize, code: i32, error: &str, help: &str| {
        let said = set.wait_for_line(ordinal, "! error: ");
        assert!(said.contains(error), "`{error}` is missing: {}", set.story());
        let said = set.wait_for_line(ordinal, "! help: ");
        assert!(said.contains(help), "`{help}` is missing: {}", set.story());
        assert_eq!(set.wait_for_end(ordinal), code, "{}", set.story());
    };

    let no_service = Cluster { has_service: false, ..calm() };
    let Some(mut set) = four_pods(test, SHORT, no_service) else { return };
    set.create(1);
    let error = "this pod has no name in a headless Service";
    told(&set, 1, 2, error, "as serviceName in the StatefulSet");

    // Replicas other than the world size: one too many, and one too few.
    let with_size = |size: &str| {
        let variables = [("ALLFOLD_WORLD_SIZE", size), ("ALLFOLD_CONNECT_TIMEOUT", "3s")];
        let environment = variables.map(|(name, value)| (name.to_string(), value.to_string()));
        Cluster { environment: environment.into(), ..calm() }
    };
    let Some(mut set) = four_pods(test, SHORT, with_size("3")) else { return };
    set.create(3);
    let help =
        "ALLFOLD_WORLD_SIZE in the container's env and spec.replicas must be the same number";
    told(&set, 3, 2, "ALLFOLD_RANK=3: must be below the world size, 3", help);
    let Some(mut set) = four_pods(test, SHORT, with_size("5")) else { return };
    set.create_all();
    told(&set, 0, 75, "rank 4 did not come to trainer-0.", "the world size is 4, not 5");

    let Some(mut set) = four_pods(test, SHORT, calm()) else { return };
    set.create(0);
    // It has read the secret when it shows that it waits.
    set.wait_for_line(0, "waiting for ranks 1, 2, 3 at ");
    set.change_secret().unwrap();
    set.create(3);
    told(&set, 3, 2, " on rank 0", "all ranks need one secret");
}

/// Four pods that train, and wait after the end; or says why not.
fn four_pods(test: &str, arguments: &str, cluster: Cluster) -> Option<StatefulSet> {
    let arguments: Vec<&str> = arguments.split(' ').collect();
    match StatefulSet::new(ALLFOLD, 4, &arguments, cluster) {
        Ok(set) => Some(set),
        Err(reason) => {
            skipped(test, &reason);
            None
        }
    }
}

/// What rank 0 says of the parameters at the end.
fn digest(set: &StatefulSet) -> String {
    let line = set.wait_for_line(0, ", digest ");
    line.rsplit_once(' ').unwrap().1.to_string()
}

/// Until all pods have said that they have nothing left to do.
fn all_wait(set: &StatefulSet) {
    (0..set.replicas()).for_each(|ordinal| _ = set.wait_for_line(ordinal, COMPLETE));
}

/// The machine, for all tests of this file at once: they mostly wait.
fn machine() -> Arc<File> {
    static HELD: Mutex<Weak<File>> = Mutex::new(Weak::new());
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    held.upgrade().unwrap_or_else(|| {
        let lock = Arc::new(machine_lock());
        *held = Arc::downgrade(&lock);
        lock
    })
}

const COMPLETE: &str = "training complete, waiting to be deleted";
/// Some seconds, with a checkpoint every few moments.
const LONG: &str = "train --model mlp --hidden 16 --steps 3000 --eval-every 100 \
                    --checkpoint /checkpoints --checkpoint-every 50steps --resume";
/// A moment.
const SHORT: &str = "train --model mlp --hidden 16 --steps 40 --eval-every 20 \
                     --checkpoint /checkpoints --resume";
/// Between starts of pods.
const APART: Duration = Duration::from_secs(30);
/// So long the pods are watched when all is done.
const AFTER_THE_END: Duration = Duration::from_secs(60);
