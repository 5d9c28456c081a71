//! The table for people and for the scripts that read nccl-tests' output: the same lines, columns
//! and widths. What a host without GPUs does not have is said in its place, in our words.

use std::fmt::Write;

use crate::choices::Op;
use crate::number::{cell, general};
use crate::options::Options;

/// A rank, as the header lists it.
pub(crate) struct Device {
    pub(crate) rank: usize,
    pub(crate) pid: u32,
    pub(crate) host: String,
    /// Counts the ranks of one host.
    pub(crate) device: usize,
    /// In place of the name of a GPU.
    pub(crate) transport: String,
}

/// One half of a row: out of place, or in place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Half {
    pub(crate) time_us: f64,
    /// GB/s, of 10^9 bytes.
    pub(crate) alg_bw: f64,
    /// GB/s, of 10^9 bytes.
    pub(crate) bus_bw: f64,
    /// None where nothing was checked.
    pub(crate) wrong: Option<u64>,
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
        Self { time_us: seconds * 1e6, alg_bw, bus_bw: alg_bw * bus_factor, wrong }
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

/// All lines above the rows.
pub(crate) fn header(options: &Options, security: &str, devices: &[Device]) -> String {
    let algorithm =
        options.forced_algorithm().map_or(String::new(), |name| format!(" algorithm: {name}"));
    let mut text = format!(
        "# allfold version {} ranks={} security: {security}{algorithm}\n\
         # Collective test starting: {}\n\
         # nThread 1 nGpus 0 minBytes {} maxBytes {} step: {}(factor) warmup iters: {} iters: {} \
         agg iters: 1 validation: {} graph: 0 unalign: 0\n",
        env!("CARGO_PKG_VERSION"),
        devices.len(),
        options.collective.program(),
        options.minbytes,
        options.maxbytes,
        options.stepfactor,
        options.warmup_iters,
        options.iters,
        options.check,
    );
    if let Some(remark) = options.collective.remark() {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "# {remark} ");
    }
    text += "#\n# Using devices\n";
    for device in devices {
        text += &device_line(device);
    }
    text += "#\n";
    text += &heading();
    text
}

/// One line of the table.
pub(crate) fn row(row: &Row) -> String {
    format!(
        "{:12}  {:12}  {:>8}  {:>6}  {}{}{}\n",
        row.bytes,
        row.count,
        row.datatype,
        row.op_name(),
        row.root_text(),
        row.out_of_place.as_ref().map_or(BLANK.into(), half),
        row.in_place.as_ref().map_or(BLANK.into(), half),
    )
}

/// All lines below the rows.
pub(crate) fn footer(options: &Options, failed: usize, average: f64) -> String {
    format!(
        "# {:<20} : {failed} {}\n\
         # {:<20} : {} \n\
         #\n\
         # Collective test concluded: {}\n\
         #\n\
         \n",
        "Out of bounds values",
        if failed == 0 { "OK" } else { "FAILED" },
        "Avg bus bandwidth",
        general(average),
        options.collective.program(),
    )
}

fn device_line(device: &Device) -> String {
    format!(
        "#  Rank {:2} Group  0 Pid {:6} on {:>10} device {:2} [{NO_BUS}] {}\n",
        device.rank, device.pid, device.host, device.device, device.transport,
    )
}

fn heading() -> String {
    let mut text = format!(
        "# {:>10}  {:>12}  {:>8}  {:>6}  {:>6}           out-of-place                       \
         in-place          \n",
        "", "", "", "", ""
    );
    let titles = ["size", "count", "type", "redop", "root"];
    let units = ["(B)", "(elements)", "", "", ""];
    let half_titles = ["time", "algbw", "busbw", "#wrong"];
    let half_units = ["(us)", "(GB/s)", "(GB/s)", ""];
    for (left, right) in [(titles, half_titles), (units, half_units)] {
        let [size, count, datatype, op, root] = left;
        // Writing to a string cannot fail.
        let _ = write!(text, "# {size:>10}  {count:>12}  {datatype:>8}  {op:>6}  {root:>6}");
        for [time, alg_bw, bus_bw, wrong] in [right, right] {
            let _ = write!(text, "  {time:>7}  {alg_bw:>6}  {bus_bw:>6}  {wrong:>6}");
        }
        text += " \n";
    }
    text
}

fn half(half: &Half) -> String {
    format!(
        "  {}  {}  {}  {:>6}",
        cell(half.time_us, 7),
        cell(half.alg_bw, 6),
        cell(half.bus_bw, 6),
        half.wrong.map_or("N/A".into(), |wrong| general(wrong as f64)),
    )
}

/// Where all ranks are alike.
const NO_ROOT: i32 = -1;
/// Where nothing is combined.
const NO_OP: &str = "none";
/// Where nccl-tests put the GPU's address on the PCI bus.
pub(crate) const NO_BUS: &str = "cpu";
/// As wide as a half, so that the other one stands below its title.
const BLANK: &str = "                                 ";

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn options(line: &str) -> Options {
        Line::parse_from(format!("bench {line}").split_whitespace()).options
    }

    fn full(bytes: usize, microseconds: f64, wrong: Option<u64>) -> Row {
        let half = Half::new(bytes, microseconds / 1e6, 1.0, wrong);
        Row {
            bytes,
            count: bytes / 4,
            datatype: "float",
            op: Some(Op::Sum),
            root: None,
            out_of_place: Some(half),
            in_place: Some(half),
        }
    }

    #[test]
    fn the_table_is_nccl_tests_own() {
        let device = |rank: usize, host: &str| Device {
            rank,
            pid: 4711 + rank as u32,
            host: host.into(),
            device: 0,
            transport: "quic on 10.0.0.1".into(),
        };
        let options = options("-b 1024 -e 1M -f 1024");
        let rows = [full(1024, 31.02, Some(0)), full(1 << 20, 1.2e7, Some(0))];
        let mean = rows.iter().filter_map(|r| r.in_place).map(|h| h.bus_bw).sum::<f64>() / 2.0;
        let mut text = header(
            &options,
            "mutual TLS, secret 3f9a12c4",
            &[device(0, "node-a"), device(1, "node-b")],
        );
        text.extend(rows.iter().map(row));
        text += &footer(&options, 0, mean);
        let version = env!("CARGO_PKG_VERSION");
        let blank = " ";
        let expected = format!(
            "\
# allfold version {version} ranks=2 security: mutual TLS, secret 3f9a12c4
# Collective test starting: all_reduce_perf
# nThread 1 nGpus 0 minBytes 1024 maxBytes 1048576 step: 1024(factor) warmup iters: 1 iters: 20 agg iters: 1 validation: 1 graph: 0 unalign: 0
#
# Using devices
#  Rank  0 Group  0 Pid   4711 on     node-a device  0 [cpu] quic on 10.0.0.1
#  Rank  1 Group  0 Pid   4712 on     node-b device  0 [cpu] quic on 10.0.0.1
#
#                                                              out-of-place                       in-place         {blank}
#       size         count      type   redop    root     time   algbw   busbw  #wrong     time   algbw   busbw  #wrong{blank}
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)             (us)  (GB/s)  (GB/s)        {blank}
        1024           256     float     sum      -1    31.02    0.03    0.03       0    31.02    0.03    0.03       0
     1048576        262144     float     sum      -1  1.2e+07    0.00    0.00       0  1.2e+07    0.00    0.00       0
# Out of bounds values : 0 OK
# Avg bus bandwidth    : 0.0165492{blank}
#
# Collective test concluded: all_reduce_perf
#

"
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn an_empty_half_keeps_the_columns() {
        let mut line = full(8, 12.5, None);
        let with = row(&line);
        line.out_of_place = None;
        let without = row(&line);
        line.out_of_place = line.in_place.take();
        let other = row(&line);
        let columns = "           8             2     float     sum      -1";
        let cells = "    12.50    0.00    0.00     N/A";
        assert_eq!(without, format!("{columns}{BLANK}{cells}\n"));
        assert_eq!(other, format!("{columns}{cells}{BLANK}\n"));
        assert_eq!(BLANK.len(), cells.len());
        assert_eq!(with.len(), without.len());
        let title = heading().lines().nth(1).unwrap().rfind("time").unwrap() + "time".len();
        assert_eq!(without.find("12.50").unwrap() + "12.50".len(), title);
    }

    #[test]
    fn a_row_names_operation_and_root() {
        let mut line = full(8, 1.0, Some(0));
        line.root = Some(3);
        assert!(row(&line).contains("     float     sum       3  "), "{}", row(&line));
        line.op = None;
        assert!(row(&line).contains("     float    none       3  "), "{}", row(&line));
    }

    #[test]
    fn the_header_says_what_is_forced_and_what_stays_empty() {
        let text = |line| header(&options(line), "mutual TLS, secret 3f9a12c4", &[]);
        let first = |line| text(line).lines().next().unwrap_or_default().to_string();
        assert!(first("--algorithm ring").ends_with(" secret 3f9a12c4 algorithm: ring"));
        assert!(first("--algorithm auto").ends_with(" secret 3f9a12c4"));
        assert!(text("sendrecv").contains("# Out of place only: "));
        assert!(text("barrier").contains("# Time only: "));
        assert!(!text("alltoall").contains(" only: "));
    }

    #[test]
    fn many_wrong_elements_keep_their_cell() {
        let line = row(&full(8, 1.0, Some(12)));
        assert!(line.ends_with("    0.01    0.01      12\n"), "{line}");
        let line = row(&full(8, 1.0, Some(16_777_216)));
        assert!(line.ends_with("  1.67772e+07\n"), "{line}");
        assert!(footer(&options(""), 3, 1.5).contains("# Out of bounds values : 3 FAILED\n"));
    }

    #[test]
    fn bandwidths_follow_the_formulas() {
        let half = Half::new(1_000_000_000, 0.5, 1.5, Some(0));
        assert_eq!((half.time_us, half.alg_bw, half.bus_bw), (5e5, 2.0, 3.0));
        assert_eq!(Half::new(8, 1.0, 0.0, None).bus_bw, 0.0);
    }
}
