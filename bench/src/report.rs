//! The JSON report of `-J`: the keys of nccl-tests' version 3, so that what reads theirs reads ours.
//!
//! Three differences. `env` holds only allfold's variables, and never the secret.
//! `out_of_place_per_iter` and `in_place_per_iter` are summaries of rank 0's iterations without the
//! list of all. `allfold_version` stands beside a `nccl_version` of null.

use std::env;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};
use serde::{Serialize, Serializer};

use crate::options::Options;
use crate::table::{Device, Half, NO_BUS, Row};
use crate::{Error, timestamp};

/// A report under way: the file is there, and is written once at the end.
pub(crate) struct Report {
    path: PathBuf,
    file: File,
    document: Document,
}

/// Statistics over the iterations of one size, in microseconds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PerIteration {
    pub(crate) skipped_iterations: u32,
    pub(crate) min_us: f64,
    pub(crate) max_us: f64,
    pub(crate) avg_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p95_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) stdev_us: f64,
    pub(crate) cv_pct: f64,
}

/// Whether the report could be written, without leaving a trace.
pub(crate) fn check(path: &Path) -> Result<(), Error> {
    let folder = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let problem = |problem: String| Error::Report { path: path.into(), problem };
    match folder.metadata() {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Err(problem(format!("{} is not a folder", folder.display()))),
        Err(error) => {
            let error = plain(&error);
            return Err(problem(format!("folder {}: {error}", folder.display())));
        }
    }
    access(folder, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| {
        let error = plain(&error.into());
        problem(format!("folder {}: {error}", folder.display()))
    })
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
                    return Err(Error::Report { problem: plain(&error), path: candidate });
                }
            }
        }
    }

    /// The file's name, with what was appended.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What is measured, and where.
    pub(crate) fn configure(&mut self, options: &Options, devices: &[Device]) {
        self.document.config = Some(Config::new(options, devices));
    }

    /// One row, with the summaries of its halves, out of place and in place.
    pub(crate) fn add(
        &mut self,
        row: &Row,
        iterations: u32,
        [out_of_place_per_iter, in_place_per_iter]: [Option<PerIteration>; 2],
    ) {
        self.document.results.push(Entry {
            size: row.bytes,
            count: row.count,
            r#type: row.datatype,
            redop: row.op_name(),
            root: row.root_text(),
            out_of_place: row.out_of_place.as_ref().map(Cells::from),
            in_place: row.in_place.as_ref().map(Cells::from),
            out_of_place_per_iter,
            in_place_per_iter,
            actual_iterations: iterations,
            experiment_name: "",
        });
    }

    /// Writes what was measured, up to `error` if there was one.
    pub(crate) fn write(
        mut self,
        failed: usize,
        average: f64,
        error: Option<&Error>,
    ) -> Result<(), Error> {
        self.document.out_of_bounds.count = failed;
        self.document.out_of_bounds.okay = failed == 0;
        self.document.average_bus_bandwidth.bandwidth = average;
        self.document.errors.extend(error.map(Error::to_string));
        self.document.end_time = timestamp::now();
        let written =
            serde_json::to_vec(&self.document).map_err(io::Error::from).and_then(|mut text| {
                text.push(b'\n');
                self.file.write_all(&text)
            });
        written.map_err(|error| Error::Report { path: self.path, problem: plain(&error) })
    }
}

#[derive(Serialize)]
struct Document {
    version: u32,
    start_time: String,
    args: Vec<String>,
    env: Vec<String>,
    /// There is no NCCL.
    nccl_version: Option<u32>,
    allfold_version: &'static str,
    config: Option<Config>,
    results: Vec<Entry>,
    out_of_bounds: OutOfBounds,
    average_bus_bandwidth: AverageBusBandwidth,
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
            errors: Vec::new(),
            end_time: String::new(),
        }
    }
}

#[derive(Serialize)]
struct Config {
    nthreads: u32,
    ngpus: u32,
    minimum_bytes: u64,
    maximum_bytes: u64,
    step_factor: u64,
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
    #[serde(serialize_with = "word")]
    parallel_init: bool,
    devices: Vec<DeviceEntry>,
}

impl Config {
    fn new(options: &Options, devices: &[Device]) -> Self {
        Self {
            nthreads: 1,
            ngpus: 0,
            minimum_bytes: options.minbytes,
            maximum_bytes: options.maxbytes,
            step_factor: options.stepfactor,
            warmup_iters: options.warmup_iters,
            iterations: options.iters,
            aggregated_iterations: 1,
            validation: options.check,
            graph: 0,
            // A call returns when its data is there.
            blocking_collectives: true,
            per_iter_timing: true,
            per_iter_skip: 0,
            parallel_init: false,
            devices: devices
                .iter()
                .map(|device| DeviceEntry {
                    rank: device.rank,
                    group: 0,
                    pid: device.pid,
                    hostname: device.host.clone(),
                    device: device.device,
                    device_hex: NO_BUS,
                    device_info: device.transport.clone(),
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
    device_hex: &'static str,
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
    out_of_place_per_iter: Option<PerIteration>,
    in_place_per_iter: Option<PerIteration>,
    actual_iterations: u32,
    experiment_name: &'static str,
}

/// The exact values of what the table rounds.
#[derive(Serialize)]
struct Cells {
    time: f64,
    alg_bw: f64,
    bus_bw: f64,
    nwrong: Option<u64>,
}

impl From<&Half> for Cells {
    fn from(half: &Half) -> Self {
        Self { time: half.time_us, alg_bw: half.alg_bw, bus_bw: half.bus_bw, nwrong: half.wrong }
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

/// nccl-tests write the whole environment; a report that is passed on must not hold secrets.
fn may_be_told(name: &str) -> bool {
    name.starts_with("ALLFOLD_") && !name.starts_with("ALLFOLD_SECRET")
}

/// The system's word, in lower case and without its number.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    text.to_lowercase()
}

/// Of the file's layout.
const VERSION: u32 = 3;

#[cfg(test)]
mod tests;
