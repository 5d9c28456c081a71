//! nccl-tests' options about threads, CUDA and NCCL's own inside: their defaults are taken and change
//! nothing, so that a script's line works; anything else is refused with what to do instead. `-z` has
//! a meaning on GPUs.

use clap::Args;

use crate::Error;
use crate::choices::DeviceKind;

/// What only nccl-tests have.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Foreign {
    #[arg(short = 't', long, value_name = "N", hide = true, allow_hyphen_values = true)]
    nthreads: Option<String>,
    #[arg(
        short = 'p',
        long = "parallel_init",
        alias = "parallel-init",
        value_name = "0/1",
        hide = true,
        allow_hyphen_values = true
    )]
    parallel_init: Option<String>,
    #[arg(short = 'z', long, value_name = "0-3", hide = true, allow_hyphen_values = true)]
    blocking: Option<String>,
    #[arg(
        short = 'y',
        long = "stream_null",
        alias = "stream-null",
        value_name = "0/1",
        hide = true,
        allow_hyphen_values = true
    )]
    stream_null: Option<String>,
    #[arg(short = 'G', long, value_name = "N", hide = true, allow_hyphen_values = true)]
    cudagraph: Option<String>,
    #[arg(
        short = 'R',
        long = "local_register",
        alias = "local-register",
        value_name = "0-2",
        hide = true,
        allow_hyphen_values = true
    )]
    local_register: Option<String>,
    #[arg(
        short = 'x',
        long = "cta_policy",
        alias = "cta-policy",
        value_name = "N",
        hide = true,
        allow_hyphen_values = true
    )]
    cta_policy: Option<String>,
    #[arg(
        short = 'D',
        long = "device_implementation",
        alias = "device-implementation",
        value_name = "N",
        hide = true,
        allow_hyphen_values = true
    )]
    device_implementation: Option<String>,
    #[arg(
        short = 'V',
        long = "device_cta_count",
        alias = "device-cta-count",
        value_name = "N",
        hide = true,
        allow_hyphen_values = true
    )]
    device_cta_count: Option<String>,
    #[arg(short = 'M', long, value_name = "0/1", hide = true, allow_hyphen_values = true)]
    memory: Option<String>,
}

/// nccl-tests' `-z`: what a call on a GPU is followed by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Blocking {
    /// The next call, on the same stream.
    #[default]
    No,
    /// The wait for its data and a meeting of all ranks.
    WaitAndMeet,
    /// The wait for its data.
    Wait,
}

impl Foreign {
    /// Refuses the first one that is given another value than its default.
    pub(crate) fn check(&self, device: DeviceKind) -> Result<(), Error> {
        let given = [
            (&self.nthreads, NTHREADS),
            (&self.parallel_init, PARALLEL_INIT),
            (&self.blocking, BLOCKING),
            (&self.stream_null, STREAM_NULL),
            (&self.cudagraph, CUDAGRAPH),
            (&self.local_register, LOCAL_REGISTER),
            (&self.cta_policy, CTA_POLICY),
            (&self.device_implementation, DEVICE_IMPLEMENTATION),
            (&self.device_cta_count, DEVICE_CTA_COUNT),
            (&self.memory, MEMORY),
        ];
        for (value, Refusal { option, default, on_cpu, on_gpu }) in given {
            let is_taken = |value: &str| match device {
                DeviceKind::Gpu if option == BLOCKING.option => blocking(value).is_some(),
                DeviceKind::Cpu | DeviceKind::Gpu => default == Some(value),
            };
            if let Some(value) = value
                && !is_taken(value)
            {
                let (why, help) = match device {
                    DeviceKind::Cpu => on_cpu,
                    DeviceKind::Gpu => on_gpu,
                };
                return Err(Error::Foreign { option, value: value.clone(), why, help });
            }
        }
        Ok(())
    }

    /// What `-z` says.
    pub(crate) fn blocking(&self) -> Blocking {
        self.blocking.as_deref().and_then(blocking).unwrap_or_default()
    }
}

fn blocking(value: &str) -> Option<Blocking> {
    match value {
        "0" => Some(Blocking::No),
        "1" => Some(Blocking::WaitAndMeet),
        "2" => Some(Blocking::Wait),
        _ => None,
    }
}

/// Why an option has no meaning here, and what to do instead.
struct Refusal {
    option: &'static str,
    /// The value that changes nothing.
    default: Option<&'static str>,
    on_cpu: (&'static str, &'static str),
    on_gpu: (&'static str, &'static str),
}

const fn refusal(
    option: &'static str,
    default: Option<&'static str>,
    on_cpu: (&'static str, &'static str),
    on_gpu: (&'static str, &'static str),
) -> Refusal {
    Refusal { option, default, on_cpu, on_gpu }
}

const LEAVE_OUT: &str = "leave it out";
const NO_THREADS: (&str, &str) = (
    "a rank is a process here, not a thread of one",
    "use --ranks for the number of ranks, or -g for that of GPUs",
);
const NTHREADS: Refusal = refusal("-t", Some("1"), NO_THREADS, NO_THREADS);
const ALWAYS_PARALLEL: (&str, &str) =
    ("a rank has no threads to initialise; ranks always start in parallel", LEAVE_OUT);
const PARALLEL_INIT: Refusal = refusal("-p", Some("0"), ALWAYS_PARALLEL, ALWAYS_PARALLEL);
const BLOCKING: Refusal = refusal(
    "-z",
    Some("0"),
    (
        "every call waits for its data already, as with nccl-tests' -z 2",
        "leave it out; -m N starts N calls and then waits",
    ),
    (
        "0 queues the calls, 1 waits for each and meets the other ranks, 2 waits for each",
        "give 1 or 2, or leave it out",
    ),
);
const STREAM_NULL: Refusal = refusal(
    "-y",
    Some("0"),
    ("there are no CUDA streams on a processor", LEAVE_OUT),
    ("calls are made on a stream of the rank's own", LEAVE_OUT),
);
const CUDAGRAPH: Refusal = refusal(
    "-G",
    Some("0"),
    ("there are no CUDA graphs on a processor", "leave it out; -m N starts N calls and then waits"),
    (
        "the ranks' calls are compared by the hosts, which a CUDA graph leaves out",
        "leave it out; -m N makes N calls in one group",
    ),
);
const NOT_REGISTERED: (&str, &str) = ("buffers are not registered with NCCL here", LEAVE_OUT);
const LOCAL_REGISTER: Refusal = refusal("-R", Some("0"), NOT_REGISTERED, NOT_REGISTERED);
const NO_BLOCKS: (&str, &str) = ("no blocks of GPU threads run here", LEAVE_OUT);
const LEFT_TO_NCCL: (&str, &str) = ("NCCL chooses its blocks of GPU threads by itself", LEAVE_OUT);
const CTA_POLICY: Refusal = refusal("-x", None, NO_BLOCKS, LEFT_TO_NCCL);
const DEVICE_IMPLEMENTATION: Refusal = refusal(
    "-D",
    Some("0"),
    (
        "there are no device-side implementations to choose from",
        "use --algorithm for allfold's own",
    ),
    ("calls are made by the host, not by kernels of the benchmark's own", LEAVE_OUT),
);
const DEVICE_CTA_COUNT: Refusal = refusal("-V", Some("16"), NO_BLOCKS, LEFT_TO_NCCL);
const MEMORY: Refusal = refusal(
    "-M",
    Some("0"),
    ("it reports the memory of GPUs", "leave it out; /usr/bin/time -v shows a process's memory"),
    ("no report of memory is made", "leave it out; `nvidia-smi` shows a GPU's memory"),
);

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    #[command(disable_version_flag = true)]
    struct Line {
        #[command(flatten)]
        foreign: Foreign,
    }

    fn parse(line: &str) -> Foreign {
        let words = format!("bench {line}");
        Line::try_parse_from(words.split_whitespace()).unwrap().foreign
    }

    const DEVICES: [DeviceKind; 2] = [DeviceKind::Cpu, DeviceKind::Gpu];

    #[test]
    fn defaults_of_nccl_tests_change_nothing() {
        for device in DEVICES {
            for line in [
                "",
                "-t 1 -p 0 -z 0 -y 0 -G 0 -R 0 -D 0 -V 16 -M 0",
                "--nthreads 1 --stream_null 0 --local-register 0",
            ] {
                let foreign = parse(line);
                foreign.check(device).unwrap();
                assert_eq!(foreign.blocking(), Blocking::No);
            }
        }
    }

    #[test]
    fn others_say_why_and_what_to_use() {
        for device in DEVICES {
            for option in ["-t", "-p", "-z", "-y", "-G", "-R", "-x", "-D", "-V", "-M"] {
                for value in ["3", "-1", "x"] {
                    let error = parse(&format!("{option} {value}")).check(device).unwrap_err();
                    let begin = format!("{option} {value}: ");
                    assert!(error.to_string().starts_with(&begin), "{error}");
                    assert_eq!(error.exit_code(), 2);
                    assert!(error.help().is_some_and(|help| !help.is_empty()), "{error}");
                }
            }
            let error = parse("--nthreads 8").check(device).unwrap_err();
            assert!(error.help().unwrap().contains("--ranks"));
        }
    }

    #[test]
    fn calls_on_gpus_may_be_waited_for() {
        for (line, blocking) in [("-z 1", Blocking::WaitAndMeet), ("-z 2", Blocking::Wait)] {
            let foreign = parse(line);
            assert!(foreign.check(DeviceKind::Cpu).is_err());
            foreign.check(DeviceKind::Gpu).unwrap();
            assert_eq!(foreign.blocking(), blocking);
        }
    }
}
