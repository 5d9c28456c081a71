use super::*;
use clap::Parser;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    options: Options,
}

fn parse(line: &str) -> Result<Options, clap::Error> {
    Line::try_parse_from(format!("bench {line}").split_whitespace()).map(|l| l.options)
}

fn refused(line: &str) -> Error {
    parse(line).unwrap().check(2, None, Presence::find).unwrap_err()
}

#[test]
fn defaults_and_names_are_nccl_tests() {
    let options = parse("").unwrap();
    assert_eq!((options.minbytes, options.maxbytes), (8, 64 << 20));
    assert_eq!((options.step(), options.iters), (Step::Factor(2), 20));
    assert_eq!((options.warmup_iters, options.check), (1, 1));
    assert_eq!(
        (options.datatype, options.op),
        (Choice::One(DataType::Float), Choice::One(Op::Sum))
    );
    assert_eq!((options.ranks, options.output_file.is_none()), (None, true));
    assert!(options.check(2, None, Presence::find).is_ok());

    let short = parse(
        "--ranks 4 -b 1K -e 16M -f 4 -n 5 -w 2 -c 3 -d double -o avg -r 3 -J a.json -i 1M \
               -m 2 -N 3 -a 2 -I 1 -K 1 -C 1 -S 1 -u 1 -T 9",
    );
    let long = parse(
        "all_reduce_perf --ranks=4 --minbytes 1K --maxbytes 16M --stepfactor 4 --iters 5 \
         --warmup_iters 2 --check 3 --datatype double --op avg --root 3 --output_file a.json --stepbytes 1M \
         --agg_iters 2 --run_cycles 3 --average 2 --per_iter_timing 1 --per_iter_skip 1 \
         --report_cputime 1 --report_timestamps 1 --unalign 1 --timeout 9",
    );
    assert_eq!(format!("{:?}", short.unwrap()), format!("{:?}", long.unwrap()));
    assert!(parse("--warmup-iters 2 --output-file a.json").is_ok());
}

#[test]
fn every_name_of_a_collective_is_known_and_others_are_refused() {
    for (names, collective) in [
        ("all_reduce all-reduce allreduce", Collective::AllReduce),
        ("all_gather all-gather", Collective::AllGather),
        ("reduce_scatter reduce-scatter", Collective::ReduceScatter),
        ("broadcast", Collective::Broadcast),
        ("reduce_perf", Collective::Reduce),
        ("alltoall all_to_all all-to-all", Collective::AllToAll),
        ("gather", Collective::Gather),
        ("scatter", Collective::Scatter),
        ("sendrecv send_recv send-recv", Collective::SendRecv),
        ("all_gather_v", Collective::AllGatherV),
        ("barrier", Collective::Barrier),
    ] {
        for name in names.split(' ').chain([collective.program()]) {
            assert_eq!(parse(name).unwrap().collective, collective, "{name}");
        }
    }
    for line in ["all-shout", "-d f8e4m3", "-o mulsum", "-b 8X", "-b -1K", "-n -3", "-f x"] {
        assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
    }
    for line in ["-a 4", "-I 2", "-C yes", "-S -1", "-i -1", "-T 1.5", "--unit TB/s", "-N -1"] {
        assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
    }
    for line in ["--min-bandwidth 0", "--min-bandwidth -1", "--min-bandwidth nan"] {
        assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
    }
    for line in ["-r -1", "-r x", "--algorithm measured", "-d all,float"] {
        assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
    }
}

#[test]
fn all_is_a_choice() {
    let options = parse("reduce_perf -d all -o all -r all").unwrap();
    assert_eq!((options.datatype, options.op), (Choice::All, Choice::All));
    assert_eq!(options.root, Choice::All);
    let options = parse("-d bfloat16 -o prod").unwrap();
    assert_eq!(options.datatype, Choice::One(DataType::Bfloat16));
    assert_eq!(options.op, Choice::One(Op::Prod));
}

#[test]
fn an_algorithm_is_put_into_the_configuration() {
    for name in ["ring", "tree", "recursive-doubling", "halving-doubling"] {
        let options = parse(&format!("--algorithm {name}")).unwrap();
        assert_eq!(options.forced_algorithm().as_deref(), Some(name));
        let config = Config::new(0, 1, "127.0.0.1:1").unwrap();
        let expected = config.clone().algorithm(name).unwrap();
        let config = options.configure(config).unwrap();
        assert_eq!(format!("{config:?}"), format!("{expected:?}"));
    }
    assert_eq!(parse("--algorithm auto").unwrap().forced_algorithm(), None);
}

#[test]
fn bad_input_is_found_before_the_start() {
    assert!(matches!(refused("-b 1K -e 8"), Error::SizeOrder { .. }));
    assert!(matches!(refused("-f 1"), Error::Step { step: Step::Factor(1) }));
    assert!(matches!(refused("-f 0"), Error::Step { step: Step::Factor(0) }));
    assert!(matches!(refused("-b 0"), Error::ZeroSize));
    assert!(matches!(refused("-n 0"), Error::NoIterations));
    assert!(matches!(refused("--ranks 0"), Error::NoRanks));
    assert!(matches!(refused("reduce_perf -r 2"), Error::Root { root: 2, ranks: 2 }));
    assert!(parse("all_reduce -r 2").unwrap().check(2, None, Presence::find).is_ok());
    assert!(matches!(refused("-J out.txt"), Error::Suffix { .. }));
    assert!(matches!(refused("-J json"), Error::Suffix { .. }));
    assert!(matches!(refused("-J /no/such/folder/out.json"), Error::Report { .. }));
    assert!(matches!(refused("-e 1000000G"), Error::Memory { .. }));
    assert!(matches!(
        parse("").unwrap().check(0, None, Presence::find).unwrap_err(),
        Error::NoRanks
    ));
    assert!(parse("-b 1K -e 1K -f 1").unwrap().check(1, None, Presence::find).is_ok());
    assert!(matches!(refused("-i 0"), Error::Step { step: Step::Bytes(0) }));
    assert!(matches!(refused("-m 0"), Error::Aggregated { calls: 0, .. }));
    assert!(matches!(refused("-m 1025"), Error::Aggregated { calls: 1025, most: 1024 }));
    assert!(matches!(refused("-m 2 -u 1"), Error::UnalignedVector));
    assert!(matches!(refused("-K 20"), Error::Skip { skip: 20, iterations: 20 }));
    assert!(matches!(refused("-n 1000001 -I 1"), Error::Recorded { .. }));
    assert!(matches!(refused("-n 1000001 -J out.json"), Error::Recorded { .. }));
    assert!(parse("-n 1000001").unwrap().check(2, None, Presence::find).is_ok());
    assert!(matches!(refused("-u 4097"), Error::Unaligned { elements: 4097, .. }));
    for option in ["-J out.json", "--plot out.svg", "--explain", "--min-bandwidth 1"] {
        let error = refused(&format!("-N 0 {option}"));
        assert!(matches!(error, Error::Endless { .. }), "{error}");
    }
    assert!(matches!(refused("-t 2"), Error::Foreign { option: "-t", .. }));
    assert!(matches!(refused("--plot out.png"), Error::Suffix { suffix: "svg", .. }));
    assert!(matches!(refused("--plot /no/such/out.svg"), Error::Report { option: "--plot", .. }));
    // Each call has its own buffer, on each of two ranks.
    assert!(matches!(refused("-m 1024 -e 1G"), Error::Memory { .. }));
}

#[test]
fn a_picture_of_no_bandwidth_is_refused_before_the_start() {
    let check = |line: &str, ranks| {
        parse(&format!("{line} --plot out.svg")).unwrap().check(ranks, None, Presence::find)
    };
    for (line, ranks, why, help) in [
        ("all_reduce", 1, "with one rank no byte crosses a link", "--ranks 2"),
        ("alltoall", 1, "with one rank no byte crosses a link", "--ranks 2"),
        ("barrier", 1, "a barrier moves no data", "leave --plot out"),
        ("barrier", 2, "a barrier moves no data", "leave --plot out"),
    ] {
        let error = check(line, ranks).unwrap_err();
        let expected = format!("--plot out.svg: no bus bandwidth to draw: {why}");
        assert_eq!((error.to_string(), error.exit_code()), (expected, 2), "{line}");
        assert!(error.help().unwrap().contains(help), "{line}: {:?}", error.help());
    }
    // nccl-tests count a broadcast's bytes also where they go nowhere.
    for (line, ranks) in [("all_reduce", 2), ("broadcast", 1)] {
        assert!(check(line, ranks).is_ok(), "{line}");
    }
}

#[test]
fn the_suffix_is_found_as_nccl_tests_do() {
    for (path, yes) in [
        ("a.json", true),
        ("a.b.JSON", true),
        (".json", true),
        ("json", false),
        ("a.json/b", false),
        ("a.json.txt", false),
        ("a.", false),
    ] {
        assert_eq!(has_suffix(Path::new(path), "json"), yes, "{path}");
    }
}

#[test]
fn a_factor_wins_over_bytes_as_in_nccl_tests() {
    let step = |line| parse(line).unwrap().step();
    assert_eq!(step(""), Step::Factor(2));
    assert_eq!(step("-f 4"), Step::Factor(4));
    assert_eq!(step("-i 1M"), Step::Bytes(1 << 20));
    assert_eq!(step("-i 1M -f 4"), Step::Factor(4));
    assert_eq!(step("-i 1M -f 1"), Step::Bytes(1 << 20));
    assert_eq!(step("-f 1"), Step::Factor(1));
    assert!(parse("-b 0 -i 8 -e 64").unwrap().check(2, None, Presence::find).is_ok());
}

#[test]
fn a_limit_is_also_that_of_every_call() {
    let config = || Config::new(0, 1, "127.0.0.1:1").unwrap();
    let configured = parse("-T 7").unwrap().configure(config()).unwrap();
    let expected = config().timeout(Duration::from_secs(7));
    assert_eq!(format!("{configured:?}"), format!("{expected:?}"));
    assert_eq!(parse("").unwrap().limit(), None);
}

#[test]
fn gpus_are_asked_for_by_either_name() {
    let of = |line: &str| {
        let options = parse(line).unwrap();
        options.check_values().unwrap();
        (options.device(), options.given_ranks())
    };
    let (cpu, gpu) = (DeviceKind::Cpu, DeviceKind::Gpu);
    assert_eq!(of(""), (cpu, None));
    assert_eq!(of("--device gpu"), (gpu, None));
    assert_eq!(of("-g 4"), of("--ngpus 4"));
    assert_eq!(of("-g 4"), (gpu, Some((Ranks::Number(4), "-g"))));
    // Who starts the ranks says how many: mpirun, or --ranks.
    assert_eq!(of("-g 1"), (gpu, None));
    assert_eq!(of("-g 1 --ranks 3"), (gpu, Some((Ranks::Number(3), "--ranks"))));
    assert_eq!(of("-g 3 --ranks 3 --device gpu"), (gpu, Some((Ranks::Number(3), "--ranks"))));
    assert_eq!(of("-g 1 --device cpu"), (cpu, None));
    assert_eq!(of("-g 1 -z 2 -m 2 -u 1"), (gpu, None));
    assert_eq!(parse("-g 1").unwrap().implied_ranks(Presence::find), Some(1));
    assert_eq!(parse("").unwrap().implied_ranks(Presence::find), None);
}

#[test]
fn what_gpus_have_not_is_refused_in_one_line() {
    for (line, words) in [
        ("-g 0", "-g 0: a benchmark needs at least one rank"),
        ("-g 2 --device cpu", "-g 2: with --device cpu no rank has a GPU"),
        ("-g 2 --ranks 3", "-g 2: it is --device gpu --ranks, and --ranks says another number"),
        ("-g 1 -z 3", "-z 3: 0 queues the calls, 1 waits for each"),
        ("-g 1 -G 1", "-G 1: the ranks' calls are compared by the hosts"),
        ("--device gpu alltoall", "alltoall_perf with --device gpu: allfold has no such call"),
        ("--device gpu barrier", "barrier_perf with --device gpu: "),
        ("--device gpu --algorithm ring", "--algorithm with --device gpu: NCCL chooses"),
        ("--device gpu --transport quic", "--transport with --device gpu: NCCL carries"),
        ("--device gpu --explain", "--explain with --device gpu: "),
    ] {
        let error = parse(line).unwrap().check_values().unwrap_err();
        assert!(error.to_string().starts_with(words), "{line}: {error}");
        assert_eq!(error.exit_code(), 2, "{line}");
        assert!(error.help().is_some_and(|help| !help.is_empty()), "{line}");
    }
    let alone = |line: &str| parse(line).unwrap().check_neighbour(1);
    assert!(matches!(alone("sendrecv -g 1"), Err(Error::NotOnGpu { .. })));
    assert!(alone("sendrecv").is_ok() && alone("-g 1").is_ok());
    for line in ["--device tpu", "-g x", "-g -1"] {
        assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
    }
}

#[test]
fn calls_on_gpus_have_the_halves_that_they_can_have() {
    let halves = |line: &str| {
        let Halves { out_of_place, in_place } = parse(line).unwrap().halves();
        (out_of_place, in_place)
    };
    for collective in ["all_reduce", "all_gather", "reduce_scatter"] {
        // A group borrows its buffers.
        assert_eq!(halves(&format!("{collective} -g 2 -m 2")), (true, true));
        assert_eq!(halves(&format!("{collective} -m 2")), (false, true));
    }
    assert_eq!(halves("broadcast -g 2"), (false, true));
    assert_eq!(halves("reduce_perf -g 2"), (false, true));
    assert_eq!(halves("sendrecv -g 2"), (true, false));
}
