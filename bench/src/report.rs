//! The JSON report of `-J`: the keys of nccl-tests' version 3, so that what reads theirs reads ours.
//!
//! Four differences. `env` holds only allfold's settings, and never the secret. Without `-I`
//! `out_of_place_per_iter` and `in_place_per_iter` are there too, as statistics without the list of
//! all times. `allfold_version` stands beside `nccl_version`, which is null without GPUs. On GPUs a
//! half has `raw_time` and `raw_ratio` too.

use std::env;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use allfold::config::is_setting;
use serde::{Serialize, Serializer};

use crate::beside::Beside;
use crate::destination::{self, plain};
use crate::explain::Explanation;
use crate::foreign::Blocking;
use crate::latencies::PerIteration;
use crate::options::Options;
use crate::size::Step;
use crate::table::{Device, Half, Row, Shown};
use crate::{Error, timestamp};

/// A report under way: the file is there, and is written once at the end.
pub(crate) struct Report {
    path: PathBuf,
    file: File,
    document: Document,
}

/// Whether the report could be written, without leaving a trace.
pub(crate) fn check(path: &Path) -> Result<(), Error> {
    destination::check(OPTION, path)
}

impl Report {
    /// Creates the file; one that exists is kept, and `.0`, `.1`, ... is appended to the name.
    pub(crate) fn create(path: &Path) -> Result<Self, Error> {
        let mut candidate = path.to_path_buf();
        let mut attempt = 0_u64;
        loop {
            match OpenOptions::new().write(true).create_new(true).open(&candidate) {
                Ok(file) => {
                    return Ok(Self { path: candidate, file, document: Document::begin() });
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    let mut name = path.as_os_str().to_owned();
                    name.push(format!(".{attempt}"));
                    candidate = name.into();
                    attempt += 1;
                }
                Err(error) => {
                    return Err(Error::Report {
                        option: OPTION,
                        problem: plain(&error),
                        path: candidate,
                    });
                }
            }
        }
    }

    /// The file's name, with what was appended.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What is measured, and where.
    pub(crate) fn configure(&mut self, options: &Options, nccl: Option<u32>, devices: &[Device]) {
        self.document.nccl_version = nccl;
        self.document.config = Some(Config::new(options, devices));
    }

    /// One row.
    pub(crate) fn add(&mut self, row: Row, iterations: u32) {
        self.document.results.push(Entry {
            size: row.bytes,
            count: row.count,
            r#type: row.datatype,
            redop: row.op_name(),
            root: row.root_text(),
            out_of_place: row.out_of_place.as_ref().map(Cells::from),
            in_place: row.in_place.as_ref().map(Cells::from),
            out_of_place_per_iter: row.out_of_place.and_then(|half| half.per_iteration),
            in_place_per_iter: row.in_place.and_then(|half| half.per_iteration),
            actual_iterations: iterations,
            experiment_name: "",
        });
    }

    /// Writes what was measured, up to `error` if there was one.
    pub(crate) fn write(
        mut self,
        failed: usize,
        average: f64,
        is_fast: Option<bool>,
        explanation: Option<Explanation>,
        error: Option<&Error>,
    ) -> Result<(), Error> {
        self.document.out_of_bounds.count = failed;
        self.document.out_of_bounds.okay = failed == 0;
        self.document.average_bus_bandwidth.bandwidth = average;
        self.document.average_bus_bandwidth.okay = match is_fast {
            None => "unchecked",
            Some(true) => "true",
            Some(false) => "false",
        };
        self.document.explanation = explanation;
        self.document.errors.extend(error.map(Error::to_string));
        self.document.end_time = timestamp::now();
        let written =
            serde_json::to_vec(&self.document).map_err(io::Error::from).and_then(|mut text| {
                text.push(b'\n');
                self.file.write_all(&text)
            });
        written.map_err(|error| Error::Report {
            option: OPTION,
            path: self.path,
            problem: plain(&error),
        })
    }
}

#[derive(Serialize)]
struct Document {
    version: u32,
    start_time: String,
    args: Vec<String>,
    env: Vec<String>,
    /// None without GPUs.
    nccl_version: Option<u32>,
    allfold_version: &'static str,
    config: Option<Config>,
    results: Vec<Entry>,
    out_of_bounds: OutOfBounds,
    average_bus_bandwidth: AverageBusBandwidth,
    /// Not nccl-tests'.
    #[serde(skip_serializing_if = "Option::is_none")]
    explanation: Option<Explanation>,
    errors: Vec<String>,
    end_time: String,
}

impl Document {
    fn begin() -> Self {
        Self {
            version: VERSION,
            start_time: timestamp::now(),
            args: env::args_os().map(|a| a.to_string_lossy().into()).collect(),
            env: env::vars_os()
                .map(|(name, value)| (name.to_string_lossy().into(), value))
                .filter(|(name, _): &(String, _)| may_be_told(name))
                .map(|(name, value)| format!("{name}={}", value.to_string_lossy()))
                .collect(),
            nccl_version: None,
            allfold_version: env!("CARGO_PKG_VERSION"),
            config: None,
            results: Vec::new(),
            out_of_bounds: OutOfBounds { count: 0, okay: true },
            average_bus_bandwidth: AverageBusBandwidth { bandwidth: 0.0, okay: "unchecked" },
            explanation: None,
            errors: Vec::new(),
            end_time: String::new(),
        }
    }
}

#[derive(Serialize)]
struct Config {
    /// Not nccl-tests': where the data lies.
    device: &'static str,
    nthreads: u32,
    ngpus: u32,
    minimum_bytes: u64,
    maximum_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    step_factor: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    step_bytes: Option<u64>,
    warmup_iters: u32,
    iterations: u32,
    aggregated_iterations: u32,
    validation: u32,
    graph: u32,
    #[serde(serialize_with = "word")]
    blocking_collectives: bool,
    #[serde(serialize_with = "word")]
    per_iter_timing: bool,
    per_iter_skip: u32,
    /// Not nccl-tests': elements by which buffers are misaligned.
    unalign: u32,
    #[serde(serialize_with = "word")]
    parallel_init: bool,
    devices: Vec<DeviceEntry>,
}

impl Config {
    fn new(options: &Options, devices: &[Device]) -> Self {
        let (step_factor, step_bytes) = match options.step() {
            Step::Factor(factor) => (Some(factor), None),
            Step::Bytes(bytes) => (None, Some(bytes)),
        };
        Self {
            device: options.device().name(),
            nthreads: 1,
            ngpus: u32::from(options.is_on_gpu()),
            minimum_bytes: options.minbytes,
            maximum_bytes: options.maxbytes,
            step_factor,
            step_bytes,
            warmup_iters: options.warmup_iters,
            iterations: options.iters,
            aggregated_iterations: options.agg_iters,
            validation: options.check,
            graph: 0,
            blocking_collectives: match options.is_on_gpu() {
                true => options.foreign.blocking() != Blocking::No,
                // A call returns when its data is there.
                false => options.agg_iters == 1,
            },
            per_iter_timing: options.per_iter_timing.is_on(),
            per_iter_skip: options.per_iter_skip,
            unalign: options.unalign,
            parallel_init: false,
            devices: devices
                .iter()
                .map(|device| DeviceEntry {
                    rank: device.rank,
                    group: 0,
                    pid: device.pid,
                    hostname: device.host.clone(),
                    device: device.device,
                    device_hex: device.bus.clone(),
                    device_info: device.info.clone(),
                })
                .collect(),
        }
    }
}

#[derive(Serialize)]
struct DeviceEntry {
    rank: usize,
    group: u32,
    pid: u32,
    hostname: String,
    device: usize,
    device_hex: String,
    device_info: String,
}

#[derive(Serialize)]
struct Entry {
    size: usize,
    count: usize,
    r#type: &'static str,
    redop: &'static str,
    root: String,
    out_of_place: Option<Cells>,
    in_place: Option<Cells>,
    // NVIDIA's script takes a key that is there for one that holds something.
    #[serde(skip_serializing_if = "Option::is_none")]
    out_of_place_per_iter: Option<PerIteration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    in_place_per_iter: Option<PerIteration>,
    actual_iterations: u32,
    experiment_name: &'static str,
}

/// The exact values of what the table rounds.
#[derive(Serialize)]
struct Cells {
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_time: Option<f64>,
    alg_bw: f64,
    bus_bw: f64,
    nwrong: Option<u64>,
    /// Not nccl-tests': of the same call straight to NCCL, and allfold's by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    raw_time: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    raw_ratio: Option<f64>,
}

impl From<&Half> for Cells {
    fn from(half: &Half) -> Self {
        let (time, cpu_time) = match half.shown {
            Shown::Duration => (Some(half.time_us), None),
            Shown::ProcessorTime => (None, Some(half.time_us)),
        };
        Self {
            time,
            cpu_time,
            alg_bw: half.alg_bw,
            bus_bw: half.bus_bw,
            nwrong: half.wrong,
            raw_time: half.beside.map(|beside| beside.raw_us),
            raw_ratio: half.beside.map(Beside::ratio),
        }
    }
}

#[derive(Serialize)]
struct OutOfBounds {
    count: usize,
    #[serde(serialize_with = "word")]
    okay: bool,
}

#[derive(Serialize)]
struct AverageBusBandwidth {
    bandwidth: f64,
    okay: &'static str,
}

/// nccl-tests write a boolean as a string.
fn word<S: Serializer>(value: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(if *value { "true" } else { "false" })
}

/// nccl-tests write the whole environment; a report that is passed on must not hold secrets, not
/// those either that stand under a name that is none of allfold's.
fn may_be_told(name: &str) -> bool {
    is_setting(name) && !name.starts_with("ALLFOLD_SECRET") && name != "ALLFOLD_TLS_KEY"
}

/// Its letter.
const OPTION: &str = "-J";
/// Of the file's layout.
const VERSION: u32 = 3;

#[cfg(test)]
mod tests;
