//! nccl-tests' options about GPUs, threads and NCCL's own inside: their defaults are taken and
//! change nothing, so that a script's line works; anything else is refused with what to do instead.

use clap::Args;

use crate::Error;

/// What only nccl-tests have.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Foreign {
    #[arg(short = 't', long, value_name = "N", hide = true, allow_hyphen_values = true)]
    nthreads: Option<String>,
    #[arg(short = 'g', long, value_name = "N", hide = true, allow_hyphen_values = true)]
    ngpus: Option<String>,
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

impl Foreign {
    /// Refuses the first one that is given another value than its default.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let given = [
            (&self.nthreads, NTHREADS),
            (&self.ngpus, NGPUS),
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
        for (value, Refusal { option, default, why, help }) in given {
            if let Some(value) = value
                && default != Some(value.as_str())
            {
                return Err(Error::Foreign { option, value: value.clone(), why, help });
            }
        }
        Ok(())
    }
}

/// Why an option has no meaning here.
struct Refusal {
    option: &'static str,
    /// The value that changes nothing.
    default: Option<&'static str>,
    why: &'static str,
    help: &'static str,
}

const fn refusal(
    option: &'static str,
    default: Option<&'static str>,
    why: &'static str,
    help: &'static str,
) -> Refusal {
    Refusal { option, default, why, help }
}

const LEAVE_OUT: &str = "leave it out";
const NTHREADS: Refusal = refusal(
    "-t",
    Some("1"),
    "a rank is a process here, not a thread of one",
    "use --ranks for the number of ranks",
);
const NGPUS: Refusal = refusal(
    "-g",
    Some("1"),
    "a rank computes on the processor, and has no GPUs",
    "use --ranks for the number of ranks",
);
const PARALLEL_INIT: Refusal = refusal(
    "-p",
    Some("0"),
    "a rank has no threads to initialise; ranks always start in parallel",
    LEAVE_OUT,
);
const BLOCKING: Refusal = refusal(
    "-z",
    Some("0"),
    "every call waits for its data already, as with nccl-tests' -z 2",
    "leave it out; -m N starts N calls and then waits",
);
const STREAM_NULL: Refusal =
    refusal("-y", Some("0"), "there are no CUDA streams on a processor", LEAVE_OUT);
const CUDAGRAPH: Refusal = refusal(
    "-G",
    Some("0"),
    "there are no CUDA graphs on a processor",
    "leave it out; -m N starts N calls and then waits",
);
const LOCAL_REGISTER: Refusal =
    refusal("-R", Some("0"), "buffers are not registered with NCCL here", LEAVE_OUT);
const CTA_POLICY: Refusal = refusal("-x", None, "no blocks of GPU threads run here", LEAVE_OUT);
const DEVICE_IMPLEMENTATION: Refusal = refusal(
    "-D",
    Some("0"),
    "there are no device-side implementations to choose from",
    "use --algorithm for allfold's own",
);
const DEVICE_CTA_COUNT: Refusal =
    refusal("-V", Some("16"), "no blocks of GPU threads run here", LEAVE_OUT);
const MEMORY: Refusal = refusal(
    "-M",
    Some("0"),
    "it reports the memory of GPUs",
    "leave it out; /usr/bin/time -v shows a process's memory",
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

    fn check(line: &str) -> Result<(), Error> {
        let words = format!("bench {line}");
        Line::try_parse_from(words.split_whitespace()).unwrap().foreign.check()
    }

    #[test]
    fn defaults_of_nccl_tests_change_nothing() {
        check("").unwrap();
        check("-t 1 -g 1 -p 0 -z 0 -y 0 -G 0 -R 0 -D 0 -V 16 -M 0").unwrap();
        check("--nthreads 1 --ngpus=1 --stream_null 0 --local-register 0").unwrap();
    }

    #[test]
    fn others_say_why_and_what_to_use() {
        for option in ["-t", "-g", "-p", "-z", "-y", "-G", "-R", "-x", "-D", "-V", "-M"] {
            for value in ["2", "-1", "x"] {
                let error = check(&format!("{option} {value}")).unwrap_err();
                let begin = format!("{option} {value}: ");
                assert!(error.to_string().starts_with(&begin), "{error}");
                assert_eq!(error.exit_code(), 2);
                assert!(error.help().is_some_and(|help| !help.is_empty()), "{error}");
            }
        }
        let error = check("--ngpus 8").unwrap_err();
        assert!(error.help().unwrap().contains("--ranks"));
    }
}
