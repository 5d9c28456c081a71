//! `allfold bench reduce`: the reduction kernels by type, operation and size, beside memcpy of as
//! many bytes in the same run.

use std::fmt::Write as _;
use std::hint::black_box;
use std::io::Write;
use std::time::{Duration, Instant};

use allfold::{ReduceOp, bf16, f16, probe};
use clap::Args;

use crate::choices::{Choice, DataType, Op, one_or_all};
use crate::console::{Console, State};
use crate::element::Number;
use crate::link::seconds;
use crate::number::cell;
use crate::shared_sum::ProbeOptions;
use crate::size::{self, binary};
use crate::{Error, memory};

/// The options of `allfold bench reduce`.
#[derive(Args, Clone, Debug)]
pub(crate) struct KernelOptions {
    /// Element type
    #[arg(short = 'd', long, value_name = "TYPE", default_value = "all", value_parser = one_or_all::<DataType>())]
    datatype: Choice<DataType>,

    /// Operation
    #[arg(short = 'o', long, value_name = "OP", default_value = "all", value_parser = one_or_all::<Op>())]
    op: Choice<Op>,

    /// Bytes of each of the two buffers [default: 8K,256K,64M, which fit into a first-level cache,
    /// into a second-level one, and into neither; with --probe 4 to 64M by factors of 4]
    #[arg(long, value_name = "SIZE,..", value_delimiter = ',', value_parser = size::parse)]
    sizes: Vec<u64>,

    /// How long each cell is measured, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "0.02", value_parser = seconds)]
    duration: Duration,

    #[command(flatten)]
    probe: ProbeOptions,

    /// With --probe: how many processes [default: 2]
    #[arg(long, value_name = "N")]
    ranks: Option<String>,

    #[arg(short = 'r', long, hide = true, value_name = "RANK")]
    root: Option<String>,
}

/// Measures every type and operation.
pub(crate) fn run(options: &KernelOptions, out: &mut dyn Write) -> Result<(), Error> {
    if options.probe.is_given() {
        let KernelOptions { probe, ranks, sizes, duration, .. } = options;
        return probe.run(ranks.as_deref(), sizes, *duration, out);
    }
    for (option, value) in [("--ranks", &options.ranks), ("-r", &options.root)] {
        if let Some(value) = value {
            return Err(Error::Foreign {
                option,
                value: value.clone(),
                why: "`reduce` measures the kernels, in one process",
                help: "the collective is `allfold bench reduce_perf`",
            });
        }
    }
    let sizes = if options.sizes.is_empty() { &DEFAULT_SIZES[..] } else { &options.sizes };
    let sizes: Vec<usize> =
        sizes.iter().map(|bytes| usize::try_from(*bytes).unwrap_or(usize::MAX)).collect();
    if let Some(bytes) = sizes.iter().find(|bytes| **bytes == 0 || !bytes.is_multiple_of(WIDEST)) {
        return Err(Error::KernelSize { bytes: *bytes as u64 });
    }
    let largest = sizes.iter().copied().max().unwrap_or_default();
    memory::check(largest as u64, 2)?;
    let (mut local, mut incoming) = (memory::buffer(largest)?, memory::buffer(largest)?);
    let mut console = Console::new(out);
    console.print(&header(&sizes));
    let copied: Vec<f64> = sizes
        .iter()
        .map(|bytes| {
            let (local, incoming) = (&mut local[..*bytes], &incoming[..*bytes]);
            rate(*bytes, options.duration, || local.copy_from_slice(black_box(incoming)))
        })
        .collect();
    console.print(&row("memcpy", "", &copied, &copied));
    for datatype in options.datatype.values() {
        for op in options.op.values() {
            let mut rates = Vec::with_capacity(sizes.len());
            for bytes in &sizes {
                let buffers = (&mut local[..*bytes], &mut incoming[..*bytes]);
                rates.push(kernel_of(*datatype, (*op).into(), buffers, options.duration)?);
            }
            console.print(&row(datatype.name(), op.name(), &rates, &copied));
            if !matches!(console.state(), State::Open) {
                break;
            }
        }
    }
    match console.into_state() {
        State::Failed(error) => Err(Error::Output(error)),
        State::Open | State::Closed => Ok(()),
    }
}

fn kernel_of(
    datatype: DataType,
    op: ReduceOp,
    buffers: (&mut [u8], &mut [u8]),
    duration: Duration,
) -> Result<f64, Error> {
    match datatype {
        DataType::Int8 => kernel::<i8>(op, buffers, duration),
        DataType::Uint8 => kernel::<u8>(op, buffers, duration),
        DataType::Int32 => kernel::<i32>(op, buffers, duration),
        DataType::Uint32 => kernel::<u32>(op, buffers, duration),
        DataType::Int64 => kernel::<i64>(op, buffers, duration),
        DataType::Uint64 => kernel::<u64>(op, buffers, duration),
        DataType::Half => kernel::<f16>(op, buffers, duration),
        DataType::Float => kernel::<f32>(op, buffers, duration),
        DataType::Double => kernel::<f64>(op, buffers, duration),
        DataType::Bfloat16 => kernel::<bf16>(op, buffers, duration),
    }
}

fn kernel<T: Number>(
    op: ReduceOp,
    (local, incoming): (&mut [u8], &mut [u8]),
    duration: Duration,
) -> Result<f64, Error> {
    // Ones stay what no processor is slow at, however often they are combined.
    let one = T::whole(1).bits().to_le_bytes();
    for buffer in [&mut *local, &mut *incoming] {
        for element in buffer.chunks_exact_mut(size_of::<T>()) {
            element.copy_from_slice(&one[..size_of::<T>()]);
        }
    }
    probe::combine::<T>(local, incoming, op)?;
    Ok(rate(local.len(), duration, || {
        // Refused above, if at all.
        let _ = probe::combine::<T>(local, black_box(incoming), op);
    }))
}

/// Bytes a second, of the fastest of many rounds: whatever else runs on a core only takes away.
fn rate(bytes: usize, duration: Duration, mut once: impl FnMut()) -> f64 {
    let at_once = (BYTES_A_ROUND / bytes).max(1);
    // The first touch of memory and cache is not the kernel's.
    once();
    let begun = Instant::now();
    let (mut fastest, mut rounds) = (Duration::MAX, 0);
    while rounds < FEWEST_ROUNDS || begun.elapsed() < duration {
        let round = Instant::now();
        for _ in 0..at_once {
            once();
        }
        fastest = fastest.min(round.elapsed());
        rounds += 1;
    }
    (at_once * bytes) as f64 / fastest.max(Duration::from_nanos(1)).as_secs_f64()
}

fn header(sizes: &[usize]) -> String {
    let mut text = format!(
        "# allfold version {} reduction kernels on one core: GB/s of one operand in the \
         fastest round, and in percent of memcpy\n\
         # A kernel reads two buffers and writes one; memcpy reads one and writes one.\n\
         #\n\
         # {:>8}  {:>6}",
        env!("CARGO_PKG_VERSION"),
        "type",
        "redop"
    );
    // Writing to a string cannot fail.
    for bytes in sizes {
        let _ = write!(text, "  {:>15}", binary(*bytes as u64));
    }
    let _ = write!(text, "\n# {:>8}  {:>6}", "", "");
    for _ in sizes {
        let _ = write!(text, "  {:>7}  {:>6}", "(GB/s)", "(%)");
    }
    text + "\n"
}

fn row(datatype: &str, op: &str, rates: &[f64], copied: &[f64]) -> String {
    let mut text = format!("  {datatype:>8}  {op:>6}");
    for (rate, copied) in rates.iter().zip(copied) {
        let _ = write!(text, "  {}  {:>6.0}", cell(rate / 1e9, 7), rate / copied * 100.0);
    }
    text + "\n"
}

const DEFAULT_SIZES: [u64; 3] = [8 << 10, 256 << 10, 64 << 20];
/// Bytes of the widest element, of which a buffer holds whole ones.
const WIDEST: usize = 8;
/// Some ten microseconds: looking at the clock does not show.
const BYTES_A_ROUND: usize = 256 * 1024;
/// Of which one is likely to be undisturbed.
const FEWEST_ROUNDS: u32 = 5;

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Parser, ValueEnum};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: KernelOptions,
    }

    fn output(line: &str) -> Result<String, Error> {
        let words = format!("reduce {line} --duration 1e-6");
        let options = Line::parse_from(words.split_whitespace()).options;
        let mut out = Vec::new();
        run(&options, &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn every_type_and_operation_has_a_row_beside_memcpy() {
        let text = output("--sizes 1K,4K").unwrap();
        let rows: Vec<Vec<&str>> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(rows.len(), 1 + DataType::value_variants().len() * Op::value_variants().len());
        assert_eq!((rows[0][0], rows[0][2], rows[0][4]), ("memcpy", "100", "100"));
        for row in &rows[1..] {
            assert_eq!(row.len(), 6, "{text}");
            assert!(row[2].parse::<f64>().unwrap() > 0.0, "{text}");
        }
        let lengths: Vec<_> = text.lines().skip(3).map(str::len).collect();
        assert!(lengths.iter().all(|length| *length == lengths[0]), "{text}");
        assert_eq!(output("-d float -o sum").unwrap().lines().count(), 5 + 2);
    }

    #[test]
    fn a_buffer_holds_whole_elements() {
        for sizes in ["0", "8,12"] {
            let error = output(&format!("--sizes {sizes}")).unwrap_err();
            assert!(matches!(error, Error::KernelSize { .. }), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
        assert!(matches!(output("--sizes 1000000G"), Err(Error::Memory { .. })));
    }
}
