//! The log lines of this program: short, on stderr, from `ALLFOLD_LOG` up.

use std::fmt;
use std::io;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::error::Error;

/// Starts logging for the whole process.
pub(crate) fn start() -> Result<(), Error> {
    let filter = match std::env::var(VARIABLE) {
        Ok(value) if !value.is_empty() => EnvFilter::try_new(&value).map_err(|_| Error::Usage {
            problem: format!("{VARIABLE}={value}: not a level"),
            help: Some("error, warn, info, debug or trace; or `warn,allfold=debug`".into()),
        })?,
        _ => EnvFilter::new(DEFAULT),
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .event_format(Line)
        .finish();
    // It fails only where a subscriber is set already, and then that one gets the events.
    let _ = tracing::subscriber::set_global_default(subscriber);
    Ok(())
}

/// `warning: text name=value`
struct Line;

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "{}: ", word(*event.metadata().level()))?;
        context.field_format().format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

fn word(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

const VARIABLE: &str = "ALLFOLD_LOG";
const DEFAULT: &str = "warn";
