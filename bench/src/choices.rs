//! What a benchmark is repeated for: element types, operations and roots by nccl-tests' names, one
//! of them or all.

use allfold::ReduceOp;
use clap::ValueEnum;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

/// One value, or all there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice<T> {
    /// This one.
    One(T),
    /// `all`.
    All,
}

/// The element type, by nccl-tests' name.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DataType {
    /// 8 bits, signed.
    #[value(help = None)]
    Int8,
    /// 8 bits.
    #[value(help = None)]
    Uint8,
    /// 32 bits, signed.
    #[value(help = None)]
    Int32,
    /// 32 bits.
    #[value(help = None)]
    Uint32,
    /// 64 bits, signed.
    #[value(help = None)]
    Int64,
    /// 64 bits.
    #[value(help = None)]
    Uint64,
    /// IEEE 754 binary16.
    #[value(help = None)]
    Half,
    /// 32 bits.
    #[default]
    #[value(help = None)]
    Float,
    /// 64 bits.
    #[value(help = None)]
    Double,
    /// The upper half of a float.
    #[value(help = None)]
    Bfloat16,
}

/// How data is combined, by nccl-tests' name.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Op {
    /// The sum over all ranks.
    #[default]
    #[value(help = None)]
    Sum,
    /// The product over all ranks.
    #[value(help = None)]
    Prod,
    /// The largest of all ranks.
    #[value(help = None)]
    Max,
    /// The smallest of all ranks.
    #[value(help = None)]
    Min,
    /// The sum divided by the number of ranks.
    #[value(help = None)]
    Avg,
}

/// Where the data lies and is combined.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceKind {
    /// In the host's memory, by allfold.
    #[default]
    #[value(help = None)]
    Cpu,
    /// In a GPU's memory for each rank, by NCCL.
    #[value(help = None)]
    Gpu,
}

/// What carries the data, by the name of `ALLFOLD_TRANSPORT`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Transport {
    /// Shared memory where all ranks have it, else QUIC.
    #[value(help = None)]
    Auto,
    /// QUIC, within a host too.
    #[value(help = None)]
    Quic,
    /// An error where not all ranks share memory.
    #[value(help = None)]
    SharedMemory,
}

/// The algorithm that is taken wherever a collective has it, by the name of `ALLFOLD_ALGORITHM`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Algorithm {
    /// The one that is predicted to be fastest.
    #[value(help = None)]
    Auto,
    /// Neighbours pass on chunks.
    #[value(help = None)]
    Ring,
    /// Up a tree and down again.
    #[value(help = None)]
    Tree,
    /// Everything to a partner at twice the distance each round.
    #[value(help = None)]
    RecursiveDoubling,
    /// Halves to a partner each round.
    #[value(help = None)]
    HalvingDoubling,
}

/// The unit of the bandwidth columns.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unit {
    /// 10^9 bytes a second, nccl-tests' unit.
    #[default]
    #[value(name = "GB/s", alias = "GB", help = None)]
    Giga,
    /// 10^6 bytes a second.
    #[value(name = "MB/s", alias = "MB", help = None)]
    Mega,
    /// 10^3 bytes a second.
    #[value(name = "KB/s", alias = "KB", help = None)]
    Kilo,
}

/// Whose time a row shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Average {
    /// That of rank 0.
    Rank0,
    /// The mean of all ranks.
    Mean,
    /// The shortest of all ranks.
    Min,
    /// The longest of all ranks.
    Max,
}

/// nccl-tests' `<0/1>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch(bool);

impl<T: ValueEnum> Choice<T> {
    /// The values, in nccl-tests' order.
    pub(crate) fn values(&self) -> &[T] {
        match self {
            Self::One(value) => std::slice::from_ref(value),
            Self::All => T::value_variants(),
        }
    }
}

impl Choice<usize> {
    /// The ranks, of so many.
    pub(crate) fn ranks(self, ranks: usize) -> std::ops::Range<usize> {
        match self {
            Self::One(rank) => rank..rank + 1,
            Self::All => 0..ranks,
        }
    }
}

/// Reads a name of a value of `T`, or `all`.
pub(crate) fn one_or_all<T>() -> impl TypedValueParser<Value = Choice<T>>
where
    T: ValueEnum + Send + Sync + 'static,
{
    let names = T::value_variants().iter().filter_map(ValueEnum::to_possible_value);
    let names: Vec<_> = names.chain([PossibleValue::new(ALL)]).collect();
    // What the parser lets through is a name, or the word that is none.
    PossibleValuesParser::new(names)
        .map(|name| T::from_str(&name, false).map_or(Choice::All, Choice::One))
}

/// Reads a rank, or `all`.
pub(crate) fn rank_or_all(text: &str) -> Result<Choice<usize>, String> {
    if text == ALL {
        return Ok(Choice::All);
    }
    text.parse().map(Choice::One).map_err(|_| "a root is a rank, counted from 0, or all".into())
}

impl DataType {
    /// nccl-tests' name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Uint8 => "uint8",
            Self::Int32 => "int32",
            Self::Uint32 => "uint32",
            Self::Int64 => "int64",
            Self::Uint64 => "uint64",
            Self::Half => "half",
            Self::Float => "float",
            Self::Double => "double",
            Self::Bfloat16 => "bfloat16",
        }
    }
}

impl Op {
    /// nccl-tests' name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Prod => "prod",
            Self::Max => "max",
            Self::Min => "min",
            Self::Avg => "avg",
        }
    }
}

impl From<Op> for ReduceOp {
    fn from(op: Op) -> Self {
        match op {
            Op::Sum => Self::Sum,
            Op::Prod => Self::Prod,
            Op::Max => Self::Max,
            Op::Min => Self::Min,
            Op::Avg => Self::Avg,
        }
    }
}

impl DeviceKind {
    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Gpu => "gpu",
        }
    }
}

impl Transport {
    /// Its name on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Quic => "quic",
            Self::SharedMemory => "shared-memory",
        }
    }
}

impl Algorithm {
    /// The value of `ALLFOLD_ALGORITHM`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Ring => "ring",
            Self::Tree => "tree",
            Self::RecursiveDoubling => "recursive-doubling",
            Self::HalvingDoubling => "halving-doubling",
        }
    }
}

impl Unit {
    /// As the column says it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Giga => "GB/s",
            Self::Mega => "MB/s",
            Self::Kilo => "KB/s",
        }
    }

    /// In this unit, what is `gigabytes` in GB/s.
    pub(crate) fn of(self, gigabytes: f64) -> f64 {
        match self {
            Self::Giga => gigabytes,
            Self::Mega => gigabytes * 1e3,
            Self::Kilo => gigabytes * 1e6,
        }
    }
}

impl Average {
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        match text {
            "0" => Ok(Self::Rank0),
            "1" => Ok(Self::Mean),
            "2" => Ok(Self::Min),
            "3" => Ok(Self::Max),
            _ => Err("0 is rank 0's time, 1 the average, 2 the shortest, 3 the longest"),
        }
    }
}

impl Switch {
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        match text {
            "0" => Ok(Self(false)),
            "1" => Ok(Self(true)),
            _ => Err("0 is off, 1 is on"),
        }
    }

    /// Whether it is 1.
    pub fn is_on(self) -> bool {
        self.0
    }
}

/// nccl-tests' word for every value there is.
const ALL: &str = "all";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_goes_in_nccl_tests_order() {
        let names = |values: &[Op]| values.iter().map(|op| op.name()).collect::<Vec<_>>();
        assert_eq!(names(Choice::All.values()), ["sum", "prod", "max", "min", "avg"]);
        assert_eq!(names(Choice::One(Op::Min).values()), ["min"]);
        assert_eq!(Choice::All.ranks(3), 0..3);
        assert_eq!(Choice::One(2).ranks(3), 2..3);
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        let same = |value: PossibleValue, name: &str| assert_eq!(value.get_name(), name);
        for datatype in DataType::value_variants() {
            same(datatype.to_possible_value().unwrap(), datatype.name());
        }
        for op in Op::value_variants() {
            same(op.to_possible_value().unwrap(), op.name());
        }
        for transport in Transport::value_variants() {
            same(transport.to_possible_value().unwrap(), transport.name());
        }
        for device in DeviceKind::value_variants() {
            same(device.to_possible_value().unwrap(), device.name());
        }
        for algorithm in Algorithm::value_variants() {
            same(algorithm.to_possible_value().unwrap(), algorithm.name());
        }
    }

    #[test]
    fn a_root_is_a_rank_or_all() {
        assert_eq!(rank_or_all("3"), Ok(Choice::One(3)));
        assert_eq!(rank_or_all("all"), Ok(Choice::All));
        for text in ["", "-1", "x", "1.5", "ALL"] {
            assert!(rank_or_all(text).is_err(), "{text}");
        }
    }
}
