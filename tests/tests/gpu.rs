//! Calls on GPUs by whole processes, with what stands in for driver and NCCL (tests/gpu): right
//! results, and the promises of calls on the host. With `ALLFOLD_TEST_GPU=real` the machine's own
//! libraries are used, by ranks that share its first GPU; what only a stand-in can do is skipped.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use allfold_tests::gpu::{FakeGpus, Recipe};
use allfold_tests::{CAP, Ended, Folder, Job, Process, machine_lock, skipped};
use rustix::process::Signal;

const RANK: &str = env!("CARGO_BIN_EXE_rank-under-test");

/// A machine's libraries.
enum Machine {
    Real,
    Fake(FakeGpus),
}

impl Machine {
    fn new() -> Self {
        match is_real() {
            true => Self::Real,
            false => Self::Fake(FakeGpus::new()),
        }
    }

    /// The ranks, each with a GPU of its own or what NCCL takes for one, and with these variables.
    fn start(&self, size: usize, words: &[&str], variables: &[(&str, &str)]) -> Vec<Process> {
        self.start_by(&vec![&[RANK][..]; size], words, variables)
    }

    /// As [`start`](Self::start), each rank by way of its own command.
    fn start_by(
        &self,
        commands: &[&[&str]],
        words: &[&str],
        variables: &[(&str, &str)],
    ) -> Vec<Process> {
        let size = commands.len();
        let job = Job::new(size);
        let start = |rank: usize| {
            let (program, before) = commands[rank].split_first().unwrap();
            let words = [before, &["gpu"], words].concat();
            let mut command = job.rank(rank, program, &words);
            command.env("ALLFOLD_LOCAL_RANK", rank.to_string());
            command.env("ALLFOLD_LOCAL_WORLD_SIZE", size.to_string());
            command.env("NCCL_HOSTID", format!("host-{rank}"));
            match self {
                Self::Real => command
                    .env("NCCL_SOCKET_IFNAME", "lo")
                    .env("NCCL_NET", "Socket")
                    .env_remove("NCCL_DEBUG"),
                Self::Fake(fake) => {
                    fake.lend(&mut command);
                    command.env("FAKE_CUDA_DEVICES", "2").env("FAKE_NCCL_MISMATCH_HANGS", "1")
                }
            };
            command.envs(variables.iter().copied());
            Process::start(&mut command)
        };
        (0..size).map(start).collect()
    }

    /// Of three ranks in the middle of calls one has a signal: how the others end.
    fn others_after(
        &self,
        way: &str,
        variables: &[(&str, &str)],
        (rank, signal): (usize, Signal),
    ) -> Vec<Ended> {
        let mut ranks = self.start(3, &["forever", way], variables);
        ranks.iter_mut().for_each(|rank| drop(rank.wait_for_line("started")));
        let lost = ranks.remove(rank);
        lost.signal(signal);
        // The lost one is there, if only stopped, until they have ended.
        let ended = ranks.into_iter().map(Process::wait).collect();
        drop(lost);
        ended
    }

    fn run(&self, size: usize, words: &[&str], variables: &[(&str, &str)]) -> Vec<Ended> {
        // Ranks that share one GPU take turns on it.
        let limit = if is_real() { CAP * 10 } else { CAP };
        let ranks = self.start(size, words, variables).into_iter();
        ranks.map(|rank| rank.wait_within(limit)).collect()
    }
}

fn is_real() -> bool {
    std::env::var("ALLFOLD_TEST_GPU").is_ok_and(|value| value == "real")
}

/// The stand-in, or the reason why there is nothing to test.
fn stand_in(test: &str) -> Option<Machine> {
    if is_real() {
        skipped(test, "only the stand-in for NCCL can be told to do that");
        return None;
    }
    Some(Machine::new())
}

#[test]
fn every_collective_type_and_operation_is_right() {
    let _one_at_a_time = machine_lock();
    let machine = Machine::new();
    for (size, variables) in [
        (1, &[][..]),
        (2, &[]),
        // Larger worlds have no GPU for each rank here, and the comparison goes by way of QUIC.
        (4, &[("ALLFOLD_TRANSPORT", "quic")]),
    ] {
        for ended in machine.run(size, &["kinds"], variables) {
            assert_eq!(ended.code(), 0, "{size} ranks: {ended:#?}");
            let last = ended.output().last().copied().unwrap_or_default();
            assert!(last.starts_with("closed gpu "), "{ended:#?}");
            let counted = "all_reduce nccl 1240";
            assert_eq!(ended.output().contains(&counted), size > 1, "{ended:#?}");
        }
    }
}

#[test]
fn a_killed_rank_is_named_by_all_others() {
    let _one_at_a_time = machine_lock();
    let machine = Machine::new();
    for way in ["blocking", "queued", "grouped"] {
        for ended in machine.others_after(way, &[], (1, Signal::KILL)) {
            ended.assert_error(75, &["rank 1 (", "is gone: its process ended"]);
        }
    }
}

#[test]
fn a_stopped_rank_is_named_by_all_others() {
    let _one_at_a_time = machine_lock();
    for ended in Machine::new().others_after("queued", &[], (1, Signal::STOP)) {
        ended.assert_error(75, &["rank 1 (", "stopped answering", "process is stopped"]);
    }
}

#[test]
fn a_rank_that_fails_itself_is_named_by_all() {
    let _one_at_a_time = machine_lock();
    for ended in Machine::new().run(3, &["fail", "1"], &[]) {
        ended.assert_error(75, &["rank 1 (", "failed: out of memory"]);
    }
}

#[test]
fn a_lost_rank_is_named_and_not_who_noticed_it_first() {
    let _one_at_a_time = machine_lock();
    let Some(machine) = stand_in("a_lost_rank_is_named_and_not_who_noticed_it_first") else {
        return;
    };
    // NCCL itself sees at once that its peer is gone, and does not say who.
    let sees = [("FAKE_NCCL_REMOTE_ERROR", "1")];
    for ended in machine.others_after("blocking", &sees, (2, Signal::KILL)) {
        ended.assert_error(75, &["rank 2 (", "is gone"]);
    }
}

#[test]
fn ranks_that_disagree_are_told() {
    let _one_at_a_time = machine_lock();
    let machine = Machine::new();
    for way in ["blocking", "queued"] {
        for ended in machine.run(3, &["differ", "1", way], &[]) {
            let (op, place) = match way {
                "queued" => ("max", "on GPUs, tests"),
                _ => ("sum", "on GPUs, blocking, tests"),
            };
            let words = [1000, 1001].map(|count| format!("({op} of f32 x {count}, {place}"));
            ended.assert_error(3, &[&words[0], &words[1]]);
        }
    }
}

/// What the two ranks say of a third call that differs, with so many alike calls behind it.
fn found_behind(count: &str, way: &str, transport: &str) -> [String; 2] {
    let machine = Machine::new();
    // Where ranks wait, the wait is to find it, and not a heartbeat before.
    let heartbeat = if way == "wait" { "20s" } else { "500ms" };
    let variables = [
        ("ALLFOLD_TRANSPORT", transport),
        ("ALLFOLD_HEARTBEAT", heartbeat),
        ("ALLFOLD_DEAD_AFTER", "60s"),
    ];
    let ended = machine.run(2, &["ahead", "1", count, way], &variables);
    let lines = ended.iter().map(|ended| {
        ended.assert_error(3, &["ranks disagree on call #"]);
        let errors = ended.errors();
        errors.iter().find(|line| line.starts_with("error: ")).unwrap().to_string()
    });
    lines.collect::<Vec<_>>().try_into().unwrap()
}

/// The source lines that an error shows.
fn source_lines(error: &str) -> Vec<&str> {
    let parts = error.split("tests/src/rank/gpu.rs:").skip(1);
    parts.map(|part| part.split(')').next().unwrap()).collect()
}

#[test]
fn a_call_that_differs_is_found_behind_many_that_do_not() {
    let _one_at_a_time = machine_lock();
    for transport in ["auto", "quic"] {
        for (count, way) in [("200", "wait"), ("900", "wait"), ("200", "no-wait")] {
            let [first, second] = found_behind(count, way, transport);
            assert_eq!(first, second, "{transport}, {way}");
            let calls = ["rank 0 called all_reduce #", "sum of f32 x 1000, on GPUs, tests"];
            let others = ["but rank 1 called all_reduce #", "sum of f32 x 1001, on GPUs, tests"];
            for words in calls.iter().chain(&others) {
                assert!(first.contains(words), "{transport}, {way}: `{words}` not in: {first}");
            }
            let lines = source_lines(&first);
            assert!(lines.len() == 2 && lines[0] != lines[1], "{transport}, {way}: {first}");
        }
    }
}

#[test]
fn of_a_call_that_is_kept_no_more_the_ranks_say_so() {
    let _one_at_a_time = machine_lock();
    for transport in ["auto", "quic"] {
        let [first, second] = found_behind("2000", "wait", transport);
        assert_eq!(first, second, "{transport}");
        for words in [
            "rank 0 called wait #",
            "(on GPUs, tests/src/rank/gpu.rs:",
            "but rank 1 called the same, after another call before #",
            "of which no more is known",
        ] {
            assert!(first.contains(words), "{transport}: `{words}` not in: {first}");
        }
    }
}

#[test]
fn three_ranks_show_the_call_that_differs() {
    let _one_at_a_time = machine_lock();
    for (transport, culprit) in [("auto", "1"), ("auto", "2"), ("quic", "1"), ("quic", "2")] {
        let variables = [("ALLFOLD_TRANSPORT", transport)];
        for ended in Machine::new().run(3, &["ahead", culprit, "200", "wait"], &variables) {
            let culprit = format!("rank {culprit} called all_reduce #");
            let words = [&culprit, "f32 x 1000, on GPUs", "f32 x 1001, on GPUs"];
            ended.assert_error(3, &words);
        }
    }
}

#[test]
fn a_call_on_the_host_is_another_one() {
    let _one_at_a_time = machine_lock();
    for ended in Machine::new().run(2, &["on-host", "1"], &[]) {
        ended
            .assert_error(3, &["ranks disagree on call #", "x 1000, on GPUs", "f32 x 1000, tests"]);
    }
}

#[test]
fn a_rank_that_closes_too_early_disagrees() {
    let _one_at_a_time = machine_lock();
    for ended in Machine::new().run(3, &["close", "1"], &[]) {
        ended.assert_error(
            3,
            &["ranks disagree on call #", "all_reduce #", "rank 1 called close #"],
        );
    }
}

#[test]
fn sends_that_need_each_other_are_a_deadlock() {
    let _one_at_a_time = machine_lock();
    for ended in Machine::new().run(2, &["cross"], &[("ALLFOLD_LATE_AFTER", "2s")]) {
        ended.assert_error(3, &["deadlock: ", "send #0 (f32 x 10, on GPUs"]);
    }
}

#[test]
fn communicators_in_opposite_order_are_a_deadlock() {
    let _one_at_a_time = machine_lock();
    let machine = Machine::new();
    // NCCL connects ranks at their first call, and does not look at a clock meanwhile.
    for ended in machine.run(2, &["opposite"], &[("ALLFOLD_LATE_AFTER", "1s")]) {
        ended.assert_error(3, &["deadlock: rank 0 waits in all_reduce #", "on split 0"]);
        let late = "for NCCL to begin all_reduce #";
        assert!(is_real() || ended.lines.iter().any(|line| line.contains(late)), "{ended:#?}");
    }
    for ended in machine.run(2, &["opposite"], &[("ALLFOLD_TIMEOUT", "1s")]) {
        ended.assert_error(75, &["all_reduce #", "did not end within 1 s"]);
    }
}

#[test]
fn one_end_of_a_message_may_wait_and_the_other_not() {
    let _one_at_a_time = machine_lock();
    for ended in Machine::new().run(2, &["scatter"], &[]) {
        assert_eq!(ended.code(), 0, "{ended:#?}");
    }
}

#[test]
fn a_call_that_blocks_is_another_one() {
    let _one_at_a_time = machine_lock();
    for transport in ["auto", "quic"] {
        let variables = [("ALLFOLD_TRANSPORT", transport)];
        for ended in Machine::new().run(2, &["ways"], &variables) {
            ended.assert_error(3, &["f32 x 1000, on GPUs, tests", "f32 x 1000, on GPUs, blocking"]);
        }
    }
}

#[test]
fn all_streams_are_waited_for_at_once() {
    let _one_at_a_time = machine_lock();
    for ended in Machine::new().run(2, &["two-streams"], &[]) {
        assert_eq!(ended.code(), 0, "{ended:#?}");
    }
}

#[test]
fn what_is_dropped_is_closed() {
    let _one_at_a_time = machine_lock();
    for ended in Machine::new().run(2, &["drop"], &[]) {
        assert_eq!((ended.code(), ended.output().last()), (0, Some(&"dropped")), "{ended:#?}");
    }
}

#[test]
fn data_between_hosts_is_said_to_be_open() {
    let test = "data_between_hosts_is_said_to_be_open";
    let _one_at_a_time = machine_lock();
    let Some(machine) = stand_in(test) else { return };
    let elsewhere = ["unshare", "--uts", "sh", "-c", "hostname elsewhere && exec \"$@\"", "sh"];
    let tried = std::process::Command::new(elsewhere[0]).args(&elsewhere[1..]).arg("true").output();
    if !tried.is_ok_and(|output| output.status.success()) {
        return skipped(test, "a name of its own for the host needs root and unshare");
    }
    let commands = [&[RANK][..], &[&elsewhere[..], &[RANK]].concat()];
    let open = "NCCL moves data between hosts without encryption";
    for (rank, process) in machine.start_by(&commands, &["calls", "1"], &[]).into_iter().enumerate()
    {
        let ended = process.wait();
        assert_eq!(ended.code(), 0, "{ended:#?}");
        let said = ended.lines.iter().filter(|line| line.contains(open)).count();
        assert_eq!(said, usize::from(rank == 0), "{ended:#?}");
    }
    let within = [("ALLFOLD_NCCL", "same-host")];
    for ended in machine.start_by(&commands, &["calls", "1"], &within) {
        ended.wait().assert_error(2, &["rank 0 (", "these ranks are on 2 hosts"]);
    }
}

#[test]
fn a_send_that_nobody_receives_is_found_when_ranks_close() {
    let _one_at_a_time = machine_lock();
    for ended in Machine::new().run(2, &["unmatched"], &[("ALLFOLD_LATE_AFTER", "2s")]) {
        ended.assert_error(3, &["send #0 (f32 x 10, on GPUs", "rank 1"]);
    }
}

#[test]
fn a_context_of_the_programs_own_will_do() {
    let _one_at_a_time = machine_lock();
    let own = [("NCCL_HOSTID", "")];
    let Some(machine) = stand_in("a_context_of_the_programs_own_will_do") else { return };
    for (rank, ended) in machine.run(2, &["own-context"], &own).into_iter().enumerate() {
        assert_eq!(ended.code(), 0, "{ended:#?}");
        assert_eq!(ended.output(), [format!("closed gpu {rank}")]);
    }
}

#[test]
fn a_stream_may_be_far_ahead() {
    let _one_at_a_time = machine_lock();
    for ended in Machine::new().run(2, &["queue", "3000"], &[]) {
        assert_eq!(ended.code(), 0, "{ended:#?}");
    }
}

#[test]
fn arguments_that_cannot_be_are_refused_and_harm_nothing() {
    let _one_at_a_time = machine_lock();
    for (rank, ended) in Machine::new().run(2, &["mistakes"], &[]).into_iter().enumerate() {
        assert_eq!(ended.code(), 0, "{ended:#?}");
        let refused = [
            "refused: all_reduce: the input has 7 elements, the output 3".into(),
            "refused: reduce_scatter: the input of 7 elements must be 2 times the output of 3, once \
             for each rank"
                .into(),
            "refused: broadcast from rank 2, but there are 2 ranks".into(),
            "refused: reduce to rank 2, but there are 2 ranks".into(),
            format!("refused: send to rank {rank}, which is this rank itself"),
        ];
        assert_eq!(ended.output()[..5], refused, "{ended:#?}");
        let foreign = "refused: the buffer was made with another CudaContext of this GPU";
        assert!(ended.output()[5].starts_with(foreign), "{ended:#?}");
        let captured = "refused: the stream is being captured into a CUDA graph";
        assert!(ended.output()[6].starts_with(captured), "{ended:#?}");
    }
}

#[test]
fn calls_of_two_threads_and_within_a_group_are_refused() {
    let _one_at_a_time = machine_lock();
    for ended in Machine::new().run(2, &["nested"], &[]) {
        assert_eq!(ended.code(), 0, "{ended:#?}");
        let refused = ended.output().into_iter().filter(|line| {
            line.starts_with(
                "refused: two calls at once on one communicator: tests/src/rank/gpu.rs",
            )
        });
        // Blocking, on a stream, as another group, waiting, and from another thread.
        assert_eq!(refused.count(), 5, "{ended:#?}");
    }
}

#[test]
fn a_panic_within_a_group_is_one_of_the_rank() {
    let _one_at_a_time = machine_lock();
    let mut ended = Machine::new().run(2, &["panic-in-group", "1"], &[]);
    let panicked = ended.remove(1);
    // It was caught: later calls are errors, not parts of a group that never ends.
    panicked.assert_error(75, &["rank 1 (", "panicked"]);
    ended[0].assert_error(75, &["rank 1 (", "panicked"]);
}

#[test]
fn settings_that_would_make_nccl_hang_are_refused() {
    let _one_at_a_time = machine_lock();
    let machine = Machine::new();
    for (name, value) in [("NCCL_COMM_BLOCKING", "1"), ("NCCL_COMM_SPLIT_SHARE_RESOURCES", "0")] {
        for ended in machine.run(2, &["calls", "1"], &[(name, value)]) {
            ended.assert_error(2, &["rank 0 (", &format!("{name}={value} takes from allfold")]);
        }
    }
    let folder = Folder::new("nccl-settings");
    let file = folder.write("nccl.conf", "#\nNCCL_DEBUG=WARN\nNCCL_COMM_BLOCKING=0\n", 0o600);
    for ended in machine.run(2, &["calls", "1"], &[("NCCL_CONF_FILE", &file)]) {
        let problem = format!("NCCL_COMM_BLOCKING=0 (in {file}) takes from allfold");
        ended.assert_error(2, &["rank 0 (", &problem]);
    }
    for set in [("NCCL_COMM_SPLIT_SHARE_RESOURCES", "1"), ("NCCL_CONF_FILE", "/dev/null")] {
        for ended in machine.run(2, &["calls", "1"], &[set]) {
            assert_eq!(ended.code(), 0, "{ended:#?}");
        }
    }
}

#[test]
fn errors_of_nccl_end_all_ranks() {
    let _one_at_a_time = machine_lock();
    let Some(machine) = stand_in("errors_of_nccl_end_all_ranks") else { return };
    // An unhandled CUDA error that NCCL's own threads find, and a call that is refused.
    for variable in [("FAKE_NCCL_ASYNC_ERROR", "1:1:20"), ("FAKE_NCCL_CALL_ERROR", "1:5:20")] {
        for ended in machine.run(3, &["forever", "queued"], &[variable]) {
            let number =
                if variable.0.contains("ASYNC") { "(NCCL result 1)" } else { "(NCCL result 5)" };
            ended.assert_error(75, &["rank 1 (", "failed: NCCL: ", number, variable.0]);
        }
    }
}

#[test]
fn nccl_that_does_not_connect_is_given_up() {
    let _one_at_a_time = machine_lock();
    let Some(machine) = stand_in("nccl_that_does_not_connect_is_given_up") else { return };
    for hangs in ["FAKE_NCCL_INIT_HANGS", "FAKE_NCCL_SPLIT_HANGS"] {
        let limit = ("ALLFOLD_CONNECT_TIMEOUT", "3s");
        for ended in machine.run(2, &["calls", "1"], &[(hangs, "1"), limit]) {
            ended
                .assert_error(75, &["failed: NCCL does not connect within 3 s", "NCCL_DEBUG=INFO"]);
        }
    }
}

#[test]
fn a_rank_that_dies_while_nccl_connects_is_named() {
    let _one_at_a_time = machine_lock();
    let Some(machine) = stand_in("a_rank_that_dies_while_nccl_connects_is_named") else { return };
    let mut ranks = machine.start(2, &["calls", "1"], &[("FAKE_NCCL_INIT_HANGS", "1")]);
    // It is in NCCL once the thread is there that stands by it.
    let lost = ranks.remove(1);
    while !threads(lost.id()).iter().any(|name| name == "allfold-nccl") {
        std::thread::yield_now();
    }
    lost.signal(Signal::KILL);
    for ended in ranks.into_iter().map(Process::wait) {
        ended.assert_error(75, &["rank 1 (", "is gone"]);
    }
}

#[test]
fn each_rank_has_a_gpu_of_its_own() {
    let _one_at_a_time = machine_lock();
    let Some(machine) = stand_in("each_rank_has_a_gpu_of_its_own") else { return };
    let own = [("NCCL_HOSTID", "")];
    for (rank, ended) in machine.run(2, &["calls", "2"], &own).into_iter().enumerate() {
        assert_eq!(ended.code(), 0, "{ended:#?}");
        assert_eq!(ended.output(), [format!("closed gpu {rank}")]);
    }
    for ended in machine.run(3, &["calls", "2"], &own) {
        ended.assert_error(2, &["rank 0 and rank 2 would both use GPU 0", "see 2 GPUs"]);
    }
    // Each sees one: the same, which the GPU itself tells.
    let one = [("NCCL_HOSTID", ""), ("CUDA_VISIBLE_DEVICES", "1")];
    for ended in machine.run(2, &["calls", "2"], &one) {
        ended.assert_error(2, &["rank 0 and rank 1 would both use GPU 0", "see 1 GPU"]);
    }
}

#[test]
fn what_is_missing_is_one_error_of_all_ranks() {
    let _one_at_a_time = machine_lock();
    if stand_in("what_is_missing_is_one_error_of_all_ranks").is_none() {
        return;
    }
    let recipe = FakeGpus::recipe;
    let cases: [Case<'_>; 9] = [
        (recipe().without_nccl(), &[], &["there is no NCCL: libnccl.so.2 is not found"]),
        (recipe(), &[("FAKE_NCCL_VERSION", "22501")], &["NCCL 2.25.1 (", "is too old: 2.26.2 is"]),
        (
            recipe().without_symbol("ncclCommSplit"),
            &[],
            &["NCCL 2.28.9 (", "lacks the function ncclCommSplit"],
        ),
        (recipe().without_symbol("ncclGetVersion"), &[], &["lacks the function ncclGetVersion"]),
        (
            recipe().without_symbol("cuStreamCreate"),
            &[],
            &["the CUDA driver lacks the function cuStreamCreate"],
        ),
        (recipe(), &[("FAKE_CUDA_DEVICES", "0")], &["the CUDA driver finds no GPU"]),
        (recipe(), &[("CUDA_VISIBLE_DEVICES", "")], &["CUDA_VISIBLE_DEVICES= shows no GPU"]),
        (
            recipe(),
            &[("FAKE_CUDA_INIT", "803")],
            &["the CUDA driver (13.0) does not start", "(803)"],
        ),
        (
            recipe(),
            &[("FAKE_CUDA_DRIVER", "11080")],
            &["the CUDA driver has CUDA 11.8; 12.0 is the oldest"],
        ),
    ];
    for (recipe, variables, words) in cases {
        for ended in Machine::Fake(recipe.build()).run(2, &["calls", "1"], variables) {
            ended.assert_error(2, &["rank 0 ("]);
            ended.assert_error(2, words);
        }
    }
    // What only the second rank lacks, all say of it.
    let job = Job::new(2);
    let start = |rank: usize, fake: FakeGpus| {
        let mut command = job.rank(rank, RANK, &["gpu", "calls", "1"]);
        fake.lend(&mut command);
        Process::start(&mut command)
    };
    let ranks = [start(0, recipe().build()), start(1, recipe().without_nccl().build())];
    for ended in ranks.map(Process::wait) {
        ended.assert_error(2, &["rank 1 (", "there is no NCCL"]);
    }
}

#[test]
fn the_name_for_developers_is_enough() {
    let _one_at_a_time = machine_lock();
    if stand_in("the_name_for_developers_is_enough").is_none() {
        return;
    }
    let machine = Machine::Fake(FakeGpus::recipe().nccl_without_version().build());
    for ended in machine.run(2, &["calls", "2"], &[]) {
        assert_eq!(ended.code(), 0, "{ended:#?}");
    }
}

#[test]
fn nccl_can_be_forbidden() {
    let _one_at_a_time = machine_lock();
    let machine = Machine::new();
    for ended in machine.run(2, &["calls", "1"], &[("ALLFOLD_NCCL", "off")]) {
        ended.assert_error(2, &["ALLFOLD_NCCL=off keeps this rank from NCCL"]);
    }
    for ended in machine.run(2, &["calls", "1"], &[("ALLFOLD_NCCL", "same-host")]) {
        assert_eq!(ended.code(), 0, "{ended:#?}");
        assert!(ended.errors().is_empty(), "{ended:#?}");
    }
}

/// Libraries, variables, and what is said.
type Case<'a> = (Recipe, &'a [(&'a str, &'a str)], &'a [&'a str]);

/// The names of a process's threads.
fn threads(pid: u32) -> Vec<String> {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).ok();
    let names = tasks.filter_map(Result::ok).filter_map(name);
    names.map(|name| name.trim().to_string()).collect()
}
