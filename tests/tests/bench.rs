//! The bench as whole processes: its parts, its files, its refusals and exit codes.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use allfold_tests::gpu::FakeGpus;
use allfold_tests::{Ended, Process, clean_command, machine_lock, skipped};

const ALLFOLD: &str = env!("CARGO_BIN_EXE_allfold-under-test");

/// A folder that goes when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("allfold-bench-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn bench(line: &str) -> Ended {
    Process::start(clean_command(ALLFOLD).arg("bench").args(line.split_whitespace())).wait()
}

fn rows(ended: &Ended) -> Vec<Vec<String>> {
    let is_row = |line: &&str| !line.starts_with('#') && !line.trim().is_empty();
    let cells = |line: &str| line.split_whitespace().map(str::to_string).collect();
    ended.output().into_iter().filter(is_row).map(cells).collect()
}

#[test]
fn every_flag_of_nccl_tests_is_taken() {
    let _one_at_a_time = machine_lock();
    let folder = Folder::new("flags");
    let (json, svg) = (folder.file("out.json"), folder.file("out.svg"));
    let ended = bench(&format!(
        "all_reduce_perf --device cpu --ranks 2 -t 1 -g 1 -z 0 -G 0 -b 1K -e 9K -i 4K -n 5 -w 2 -m 2 -N 2 -a 3 \
         -I 1 -K 1 -c 2 -o sum -d float -r 0 -T 50 -C 1 -S 1 -J {json} --plot {svg} --unit MB/s"
    ));
    assert_eq!(ended.code(), 0, "{ended:#?}");
    let rows = rows(&ended);
    assert_eq!(rows.len(), 6, "{ended:#?}");
    for row in &rows {
        // Five, a half with four more, date and time.
        assert_eq!((row.len(), row[8].as_str()), (5 + 8 + 2, "0"), "{ended:#?}");
    }
    let report: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    assert_eq!(report["version"], 3);
    assert_eq!(report["results"].as_array().unwrap().len(), 6);
    assert!(fs::read_to_string(&svg).unwrap().contains("all_reduce_perf, 2 ranks"));
}

#[test]
fn what_is_refused_says_why_before_any_rank_starts() {
    for (line, words) in [
        ("-t 2", "-t 2: a rank is a process here"),
        ("-g 8 --device cpu", "-g 8: with --device cpu no rank has a GPU"),
        ("-g 8 --ranks 4", "-g 8: it is --device gpu --ranks"),
        ("alltoall -g 2", "alltoall_perf with --device gpu: allfold has no such call"),
        ("-G 1", "-G 1: there are no CUDA graphs"),
        ("-i 0", "-i 0: the sizes never grow"),
        ("-K 20", "-K 20 leaves none of the 20 iterations"),
        ("-m 5000", "-m 5000: between 1 and 1024 calls"),
        ("--plot out.png", "--plot out.png: the suffix must be svg"),
        ("--ranks 1 --plot out.svg", "--plot out.svg: no bus bandwidth to draw: with one rank"),
        ("barrier --plot out.svg", "--plot out.svg: no bus bandwidth to draw: a barrier"),
        ("link --ranks 1", "a link needs two ranks"),
        ("reduce --ranks 2", "--ranks 2: `reduce` measures the kernels"),
        ("plot missing.json --plot out.svg", "missing.json: no such file or directory"),
    ] {
        let ended = bench(line);
        ended.assert_error(2, &[words]);
        assert_eq!(ended.errors().len(), 2, "{line}: {ended:#?}");
        assert!(ended.errors()[1].starts_with("help: "), "{line}: {ended:#?}");
        assert!(ended.output().is_empty(), "{line}: {ended:#?}");
    }
}

#[test]
fn a_check_that_fails_is_exit_code_1_and_a_limit_75() {
    let _one_at_a_time = machine_lock();
    let ended = bench("--ranks 2 -b 1K -e 1K --min-bandwidth 1e6");
    ended.assert_error(1, &["too slow: the average bus bandwidth is ", "is 1e+06 GB/s"]);
    let average = ended.output().into_iter().find(|line| line.contains("Avg bus bandwidth"));
    assert!(average.unwrap().ends_with(" FAILED"), "{ended:#?}");
    let ended = bench("--ranks 2 -b 1K -e 1K -n 100000000 -T 1");
    ended.assert_error(75, &["all_reduce_perf of 1024 bytes, float sum took longer than 1 s (-T)"]);
}

#[test]
fn a_link_is_measured_with_every_cipher() {
    let _one_at_a_time = machine_lock();
    let ended = bench("link --ranks 2 --duration 0.05 --streams 1,2 --payload auto,1200");
    assert_eq!(ended.code(), 0, "{ended:#?}");
    let rows = rows(&ended);
    assert_eq!(rows.len(), 12, "{ended:#?}");
    for row in rows {
        assert_eq!(row.len(), 9, "{ended:#?}");
        assert!(row[3].parse::<f64>().unwrap() > 0.0, "{ended:#?}");
    }
}

#[test]
fn kernels_are_measured_beside_memcpy() {
    let ended = bench("reduce -d float -o all --duration 0.001");
    assert_eq!(ended.code(), 0, "{ended:#?}");
    let names: Vec<String> = rows(&ended).into_iter().map(|row| row[..2].join(" ")).collect();
    assert_eq!(names[1..], ["float sum", "float prod", "float max", "float min", "float avg"]);
}

#[test]
fn the_probe_of_shared_memory_starts_its_own_ranks() {
    let _one_at_a_time = machine_lock();
    let ended = bench("reduce --probe --ranks 3 --sizes 4,64K --duration 0.001");
    assert_eq!(ended.code(), 0, "{ended:#?}");
    let rows = rows(&ended);
    let found: Vec<_> = rows.iter().map(|row| (row[0].as_str(), row[7].as_str())).collect();
    assert_eq!(found, [("4", "0"), ("65536", "0")], "{ended:#?}");
    for line in ["reduce --probe --ranks 0", "reduce --probe --sizes 6", "reduce --probe -d half"] {
        assert_eq!(bench(line).code(), 2, "{line}");
    }
}

#[test]
fn reports_are_drawn_into_one_picture() {
    let _one_at_a_time = machine_lock();
    let folder = Folder::new("plot");
    let (first, second, svg) = (folder.file("a.json"), folder.file("b.json"), folder.file("c.svg"));
    for (file, algorithm) in [(&first, "ring"), (&second, "tree")] {
        let line = format!("--ranks 3 -b 1K -e 64K -f 8 -n 2 --algorithm {algorithm} -J {file}");
        assert_eq!(bench(&line).code(), 0);
    }
    let ended = bench(&format!("plot {first} {second} --plot {svg}"));
    assert_eq!(ended.code(), 0, "{ended:#?}");
    let picture = fs::read_to_string(&svg).unwrap();
    assert!(picture.contains("a: float sum") && picture.contains("b: float sum"), "{picture}");
}

/// On a machine of so many GPUs, by look-alikes of its libraries.
fn bench_on_gpus(gpus: usize, line: &str) -> Ended {
    let mut command = clean_command(ALLFOLD);
    FakeGpus::new().lend(&mut command);
    command.env("FAKE_CUDA_DEVICES", gpus.to_string()).env_remove("CUDA_VISIBLE_DEVICES");
    Process::start(command.arg("bench").args(line.split_whitespace())).wait()
}

#[test]
fn without_a_gpu_there_is_one_error_line() {
    let _one_at_a_time = machine_lock();
    for line in ["all-reduce --device gpu --ranks 2", "-g 2", "-g 1", "--device gpu"] {
        let mut command = clean_command(ALLFOLD);
        // No GPU is visible, whatever this machine has.
        command.env("CUDA_VISIBLE_DEVICES", "").env("LD_LIBRARY_PATH", "");
        let ended = Process::start(command.arg("bench").args(line.split_whitespace())).wait();
        ended.assert_error(2, &[]);
        let errors = ended.errors();
        assert_eq!(errors.len(), 2, "{line}: {ended:#?}");
        assert!(errors[0].starts_with("error: ") && errors[1].starts_with("help: "), "{ended:#?}");
        assert!(errors[1].ends_with("; --device cpu measures on processors"), "{ended:#?}");
        assert!(ended.output().is_empty(), "{line}: {ended:#?}");
    }
}

#[test]
fn gpus_that_not_all_ranks_have_are_one_error_line() {
    let _one_at_a_time = machine_lock();
    let ended = bench_on_gpus(2, "-g 3 -b 1K -e 1K");
    ended.assert_error(2, &["rank 0 and rank 2 would both use GPU 0", "see 2 GPUs"]);
}

#[test]
fn collectives_are_measured_on_gpus_beside_raw_nccl() {
    let _one_at_a_time = machine_lock();
    let folder = Folder::new("gpu");
    let json = folder.file("out.json");
    // Both halves of two; of one without the call, an empty half.
    for (line, ranks, cells) in [
        (format!("all-reduce -g 2 -J {json}"), 2, 13),
        ("all-reduce --device gpu -z 1 -m 3".into(), 3, 13),
        ("reduce_scatter -g 3 -I 1".into(), 3, 21),
        ("all_gather -g 2 -z 2 -u 1".into(), 2, 13),
        ("broadcast -g 3 -r 2".into(), 3, 9),
        ("reduce_perf -g 2 -r 1".into(), 2, 9),
        ("sendrecv -g 3 -T 60".into(), 3, 9),
        ("all-reduce -g 1".into(), 1, 13),
    ] {
        let ended = bench_on_gpus(3, &format!("{line} -b 1K -e 1M -f 32 -n 4 -c 2"));
        assert_eq!(ended.code(), 0, "{line}: {ended:#?}");
        let found = rows(&ended);
        assert_eq!(found.len(), 3, "{line}: {ended:#?}");
        for row in &found {
            assert_eq!(row.len(), cells, "{line}: {ended:#?}");
            assert!(row[5].parse::<f64>().unwrap() > 0.0, "{line}: {ended:#?}");
            assert_eq!(row[8], "0", "{line}: {ended:#?}");
        }
        let output = ended.output();
        let devices = output.iter().filter(|line| line.starts_with("#  Rank "));
        let devices: Vec<_> = devices.map(|line| line.contains(" [0000:")).collect();
        assert_eq!(devices, vec![true; ranks], "{line}: {ended:#?}");
        let is_compared =
            output.iter().any(|line| line.starts_with("# Beside raw NCCL      : at most "));
        assert_eq!(is_compared, ranks > 1, "{line}: {ended:#?}");
        let beside = output.iter().skip_while(|line| !line.starts_with("# Beside raw NCCL: "));
        let sizes = beside.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
        assert_eq!(sizes.count(), if ranks > 1 { 3 } else { 0 }, "{line}: {ended:#?}");
    }
    let report: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    assert_eq!(
        (&report["config"]["device"], &report["config"]["ngpus"]),
        (&"gpu".into(), &1.into())
    );
    assert!(report["nccl_version"].as_u64().unwrap() > 20_000, "{report}");
    for half in ["out_of_place", "in_place"] {
        assert!(report["results"][0][half]["raw_ratio"].as_f64().unwrap() > 0.0, "{report}");
    }
}

#[test]
fn every_type_and_operation_is_right_on_gpus() {
    let _one_at_a_time = machine_lock();
    let ended = bench_on_gpus(3, "-g 3 -d all -o all -b 4K -e 4K -n 1 -w 0");
    assert_eq!(ended.code(), 0, "{ended:#?}");
    let rows = rows(&ended);
    assert_eq!(rows.len(), 50, "{ended:#?}");
    assert!(rows.iter().all(|row| row[8] == "0" && row[12] == "0"), "{ended:#?}");
}

#[test]
fn nvidias_script_reads_the_report() {
    let Some(script) = std::env::var_os("NCCL_TESTS_ANALYZE") else {
        let reason = "NCCL_TESTS_ANALYZE does not name nccl-tests' tools/analyze_perf_json.py";
        return skipped("nvidias_script_reads_the_report", reason);
    };
    let _one_at_a_time = machine_lock();
    let folder = Folder::new("script");
    let json = folder.file("out.json");
    for (flags, half) in [("-m 1", "OOP"), ("-m 2", "IP")] {
        let _ = fs::remove_file(&json);
        let ended = bench(&format!("--ranks 3 -b 1K -e 8K -n 10 -I 1 -J {json} {flags}"));
        assert_eq!(ended.code(), 0, "{ended:#?}");
        let mut command = Command::new("python3");
        command.arg(&script).arg(&json).arg("--all");
        if half == "IP" {
            command.arg("--in-place");
        }
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{output:?}");
        assert!(text.contains(&format!("max over process rows, {half}): PASS")), "{text}");
        assert!(text.contains("PER-PROCESS STRAGGLER ANALYSIS"), "{text}");
    }
}
