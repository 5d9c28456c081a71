//! The table for people and for the scripts that read nccl-tests' output: the same lines, columns
//! and widths. What a benchmark without GPUs does not have is said in its place, in our words.

use std::fmt::Write;

use crate::beside::Beside;
use crate::choices::{Op, Unit};
use crate::foreign::Blocking;
use crate::latencies::PerIteration;
use crate::number::{bandwidth_cell, cell, general};
use crate::options::Options;
use crate::size::Step;

/// A rank, as the header lists it.
pub(crate) struct Device {
    pub(crate) rank: usize,
    pub(crate) pid: u32,
    pub(crate) host: String,
    /// Counts the ranks of one host, or says which of the GPUs that its process sees.
    pub(crate) device: usize,
    /// The GPU's address on the PCI bus, or [`NO_BUS`].
    pub(crate) bus: String,
    /// What the GPU calls itself, or in its place what carries the data.
    pub(crate) info: String,
}

/// One half of a row: out of place, or in place.
#[derive(Clone, Debug)]
pub(crate) struct Half {
    /// Of one call.
    pub(crate) time_us: f64,
    /// Which time it is.
    pub(crate) shown: Shown,
    /// GB/s, of 10^9 bytes.
    pub(crate) alg_bw: f64,
    /// GB/s, of 10^9 bytes.
    pub(crate) bus_bw: f64,
    /// None where nothing was checked.
    pub(crate) wrong: Option<u64>,
    pub(crate) per_iteration: Option<PerIteration>,
    /// On GPUs.
    pub(crate) beside: Option<Beside>,
}

/// What the time of a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    Duration,
    /// Of all threads of a rank.
    ProcessorTime,
}

/// One size.
pub(crate) struct Row {
    pub(crate) bytes: usize,
    pub(crate) count: usize,
    pub(crate) datatype: &'static str,
    /// None where nothing is combined.
    pub(crate) op: Option<Op>,
    /// None where all ranks are alike.
    pub(crate) root: Option<usize>,
    pub(crate) out_of_place: Option<Half>,
    pub(crate) in_place: Option<Half>,
}

impl Half {
    /// By nccl-tests' formulas; each byte crosses a link `bus_factor` times.
    pub(crate) fn new(bytes: usize, seconds: f64, bus_factor: f64, wrong: Option<u64>) -> Self {
        let alg_bw = bytes as f64 / 1e9 / seconds;
        let (time_us, shown) = (seconds * 1e6, Shown::Duration);
        let bus_bw = alg_bw * bus_factor;
        Self { time_us, shown, alg_bw, bus_bw, wrong, per_iteration: None, beside: None }
    }

    /// The same with the processor's time in place of the clock's.
    pub(crate) fn show_processor_time(&mut self, seconds: f64) {
        self.time_us = seconds * 1e6;
        self.shown = Shown::ProcessorTime;
    }
}

impl Row {
    /// nccl-tests' name of the operation.
    pub(crate) fn op_name(&self) -> &'static str {
        self.op.map_or(NO_OP, Op::name)
    }

    /// The root as nccl-tests write it, padded.
    pub(crate) fn root_text(&self) -> String {
        self.root.map_or_else(|| format!("{NO_ROOT:6}"), |root| format!("{root:6}"))
    }
}

/// All lines above the rows. `nccl`: its version's number, where it moves the data.
pub(crate) fn header(
    options: &Options,
    security: &str,
    nccl: Option<u32>,
    devices: &[Device],
) -> String {
    let nccl = nccl.map_or(String::new(), |number| format!(" nccl-library={number}"));
    let algorithm =
        options.forced_algorithm().map_or(String::new(), |name| format!(" algorithm: {name}"));
    let (step, kind) = match options.step() {
        Step::Factor(factor) => (factor, "factor"),
        Step::Bytes(bytes) => (bytes, "bytes"),
    };
    let mut text = format!(
        "# allfold version {} ranks={} security: {security}{algorithm}{nccl}\n\
         # Collective test starting: {}\n\
         # nThread 1 nGpus {} minBytes {} maxBytes {} step: {step}({kind}) warmup iters: {} \
         iters: {} agg iters: {} validation: {} graph: 0 unalign: {}\n",
        env!("CARGO_PKG_VERSION"),
        devices.len(),
        options.collective.program(),
        u32::from(options.is_on_gpu()),
        options.minbytes,
        options.maxbytes,
        options.warmup_iters,
        options.iters,
        options.agg_iters,
        options.check,
        options.unalign,
    );
    // Writing to a string cannot fail.
    if let Some(remark) = options.collective.remark(options.device(), options.agg_iters > 1) {
        let _ = writeln!(text, "# {remark} ");
    }
    text += match options.foreign.blocking() {
        Blocking::WaitAndMeet if options.is_on_gpu() => {
            "# Blocking Enabled: wait for completion and barrier after each collective \n"
        }
        Blocking::Wait if options.is_on_gpu() => {
            "# Blocking Enabled: wait for completion after each collective \n"
        }
        _ => "",
    };
    if options.per_iter_timing.is_on() {
        let clock = if options.is_on_gpu() { "CUDA event" } else { "wall-clock" };
        let rows = "i_* uses max over process rows";
        let _ = write!(text, "# Per-Iteration Report: {clock} timing; {rows}");
        if options.per_iter_skip > 0 {
            let _ = write!(text, "; summary skips first {} iterations", options.per_iter_skip);
        }
        text += " \n";
    }
    text += "#\n# Using devices\n";
    for device in devices {
        text += &device_line(device);
    }
    text += "#\n";
    text += &heading(options);
    text
}

/// One line of the table; `now` is what `-S` adds.
pub(crate) fn row(options: &Options, row: &Row, now: &str) -> String {
    let cells = |half: &Option<Half>| half.as_ref().map_or(blank(options), |h| cells(options, h));
    let mut text = format!(
        "{:12}  {:12}  {:>8}  {:>6}  {}{}{}",
        row.bytes,
        row.count,
        row.datatype,
        row.op_name(),
        row.root_text(),
        cells(&row.out_of_place),
        cells(&row.in_place),
    );
    if options.report_timestamps.is_on() {
        let _ = write!(text, "{now:>21}");
    }
    text + "\n"
}

/// All lines below the rows; `average` is in GB/s.
pub(crate) fn footer(options: &Options, failed: usize, average: f64) -> String {
    let shown = general(options.unit.of(average));
    // nccl-tests name no unit here, because there is only one.
    let unit = match options.unit {
        Unit::Giga => String::new(),
        other => format!(" {}", other.name()),
    };
    let verdict = match is_fast(options, average) {
        None => "",
        Some(true) => "OK",
        Some(false) => "FAILED",
    };
    format!(
        "# {:<20} : {failed} {}\n\
         # {:<20} : {shown}{unit} {verdict}\n\
         #\n\
         # Collective test concluded: {}\n\
         #\n\
         \n",
        "Out of bounds values",
        if failed == 0 { "OK" } else { "FAILED" },
        "Avg bus bandwidth",
        options.collective.program(),
    )
}

/// Whether an average in GB/s is at least what was asked for; none where nothing was.
pub(crate) fn is_fast(options: &Options, average: f64) -> Option<bool> {
    options.min_bandwidth.map(|minimum| average >= minimum)
}

fn device_line(device: &Device) -> String {
    format!(
        "#  Rank {:2} Group  0 Pid {:6} on {:>10} device {:2} [{}] {}\n",
        device.rank, device.pid, device.host, device.device, device.bus, device.info,
    )
}

fn heading(options: &Options) -> String {
    let per_iteration = options.per_iter_timing.is_on();
    let halves = match per_iteration {
        false => "         out-of-place                       in-place          ",
        true => {
            "            out-of-place (+ per-iteration)                                in-place \
             (+ per-iteration)"
        }
    };
    let mut text = format!("# {:>10}  {:>12}  {:>8}  {:>6}  {:>6}  {halves}\n", "", "", "", "", "");
    let time = if options.report_cputime.is_on() { "cputime" } else { "time" };
    let unit = format!("({})", options.unit.name());
    let titles = ["size", "count", "type", "redop", "root"];
    let units = ["(B)", "(elements)", "", "", ""];
    let half_titles = [time, "algbw", "busbw", "#wrong"];
    let half_units = ["(us)", &unit, &unit, ""];
    let (iteration_titles, iteration_units) =
        (["i_min", "i_max", "i_p99", "i_cv%"], ["(us)", "(us)", "(us)", "(%)"]);
    let (stamp, format) = match options.report_timestamps.is_on() {
        true => ("          timestamp", "%Y-%m-%d %H:%M:%S"),
        false => ("", ""),
    };
    for (left, right, iterations, last) in [
        (titles, half_titles, iteration_titles, stamp.to_string()),
        (units, half_units, iteration_units, format!("{format:>width$}", width = stamp.len())),
    ] {
        let [size, count, datatype, op, root] = left;
        let _ = write!(text, "# {size:>10}  {count:>12}  {datatype:>8}  {op:>6}  {root:>6}");
        for [time, alg_bw, bus_bw, wrong] in [right, right] {
            let _ = write!(text, "  {time:>7}  {alg_bw:>6}  {bus_bw:>6}  {wrong:>6}");
            for title in iterations.iter().filter(|_| per_iteration) {
                let _ = write!(text, "  {title:>7}");
            }
        }
        let _ = writeln!(text, " {last}");
    }
    text
}

fn cells(options: &Options, half: &Half) -> String {
    let mut text = format!(
        "  {}  {}  {}  {:>6}",
        cell(half.time_us, 7),
        bandwidth_cell(options.unit.of(half.alg_bw)),
        bandwidth_cell(options.unit.of(half.bus_bw)),
        half.wrong.map_or("N/A".into(), |wrong| general(wrong as f64)),
    );
    if let (true, Some(times)) = (options.per_iter_timing.is_on(), &half.per_iteration) {
        for value in [times.min_us, times.max_us, times.p99_us, times.cv_pct] {
            let _ = write!(text, "  {}", cell(value, 7));
        }
    }
    text
}

/// As wide as a half, so that the other one stands below its title.
fn blank(options: &Options) -> String {
    " ".repeat(if options.per_iter_timing.is_on() { 33 + 4 * 9 } else { 33 })
}

/// Where all ranks are alike.
const NO_ROOT: i32 = -1;
/// Where nothing is combined.
const NO_OP: &str = "none";
/// Where nccl-tests put the GPU's address on the PCI bus.
pub(crate) const NO_BUS: &str = "cpu";

#[cfg(test)]
mod tests;
