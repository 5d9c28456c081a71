//! Bus bandwidth over size as an SVG picture: of the sweep at hand, or of JSON reports.

mod axes;
mod drawing;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value;

use crate::Error;
use crate::console::{Console, State};
use crate::destination::{self, plain};
use crate::options::has_suffix;
use crate::table::Row;

/// The options of `allfold bench plot`.
#[derive(Args, Clone, Debug)]
pub(crate) struct PlotOptions {
    /// Reports of `allfold bench -J` or of nccl-tests, compared in one plot
    #[arg(required = true, value_name = "FILE.json")]
    reports: Vec<PathBuf>,

    /// The picture
    #[arg(long, required = true, value_name = "FILE.svg")]
    plot: PathBuf,
}

/// One line of the picture: sizes in bytes and bus bandwidths in GB/s, or times in microseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// What it is called.
    pub label: String,
    /// Size and value.
    pub points: Vec<(f64, f64)>,
}

/// A picture of times over sizes, as SVG; nothing where there is no point.
///
/// # Errors
/// What the drawing library says.
pub fn times(title: &str, series: &[Series]) -> Result<Option<String>, String> {
    drawing::draw(title, series, drawing::TIMES)
}

/// The lines of a sweep, as its rows come.
pub(crate) struct Lines {
    title: String,
    series: Vec<Series>,
}

/// Draws reports into one picture.
pub(crate) fn run(options: &PlotOptions, out: &mut dyn Write) -> Result<(), Error> {
    check_name(&options.plot)?;
    check(&options.plot)?;
    let mut series = Vec::new();
    for path in &options.reports {
        let problem = |problem: String| Error::Unreadable { path: path.clone(), problem };
        let text = fs::read_to_string(path).map_err(|error| problem(plain(&error)))?;
        let found = read(&text, &name_of(path)).map_err(problem)?;
        if !found.iter().any(Series::has_bandwidth) {
            let subject = path.display().to_string();
            return Err(Error::NothingToDraw { subject, why: NO_BANDWIDTH, help: OTHER_REPORTS });
        }
        series.extend(found);
    }
    write(&options.plot, "Bus bandwidth over size", &series)?;
    let mut console = Console::new(out);
    console.print(&format!("{} lines in {}\n", series.len(), options.plot.display()));
    match console.into_state() {
        State::Failed(error) => Err(Error::Output(error)),
        State::Open | State::Closed => Ok(()),
    }
}

/// What an error about the picture begins with.
pub(crate) fn subject(path: &Path) -> String {
    format!("{OPTION} {}", path.display())
}

/// Refuses a file that cannot be of the one format there is.
pub(crate) fn check_name(path: &Path) -> Result<(), Error> {
    match has_suffix(path, "svg") {
        true => Ok(()),
        false => Err(Error::Suffix { option: OPTION, suffix: "svg", path: path.into() }),
    }
}

/// Whether the picture could be written, without leaving a trace.
pub(crate) fn check(path: &Path) -> Result<(), Error> {
    destination::check(OPTION, path)
}

impl Series {
    fn has_bandwidth(&self) -> bool {
        self.points.iter().any(|(size, bus_bw)| *size > 0.0 && *bus_bw > 0.0)
    }
}

impl Lines {
    pub(crate) fn new(program: &str, ranks: usize) -> Self {
        Self { title: format!("{program}, {ranks} ranks: bus bandwidth over size"), series: vec![] }
    }

    /// The halves of a row are lines of their own.
    pub(crate) fn add(&mut self, row: &Row) {
        let root = row.root.map_or(String::new(), |root| format!(" root {root}"));
        let op = row.op.map_or(String::new(), |op| format!(" {}", op.name()));
        for (half, name) in [(&row.out_of_place, OUT_OF_PLACE), (&row.in_place, IN_PLACE)] {
            if let Some(half) = half {
                let label = format!("{}{op}{root}, {name}", row.datatype);
                add_point(&mut self.series, label, (row.bytes as f64, half.bus_bw));
            }
        }
    }

    pub(crate) fn write(&self, path: &Path) -> Result<(), Error> {
        write(path, &self.title, &self.series)
    }
}

fn write(path: &Path, title: &str, series: &[Series]) -> Result<(), Error> {
    let problem = |problem: String| Error::Report { option: OPTION, path: path.into(), problem };
    let picture = drawing::draw(title, series, drawing::BANDWIDTHS).map_err(problem)?;
    let nothing = || Error::NothingToDraw { subject: subject(path), why: EMPTY, help: LARGER };
    let picture = picture.ok_or_else(nothing)?;
    fs::write(path, picture).map_err(|error| problem(plain(&error)))
}

/// The lines of a report, called `name`. The half that a report has in all rows is enough where
/// several reports are compared: out of place, else in place.
fn read(text: &str, name: &str) -> Result<Vec<Series>, String> {
    let report: Value =
        serde_json::from_str(text).map_err(|error| format!("is no JSON report: {error}"))?;
    let rows = report["results"].as_array().ok_or("has no results")?;
    let mut series = Vec::new();
    for row in rows {
        let word = |key: &str| row[key].as_str().unwrap_or_default().trim().to_string();
        let half = [("out_of_place", OUT_OF_PLACE), ("in_place", IN_PLACE)];
        let found = half.iter().find_map(|(key, name)| Some((row[key]["bus_bw"].as_f64()?, name)));
        let (Some(size), Some((bus_bw, half))) = (row["size"].as_f64(), found) else {
            continue;
        };
        let mut label = format!("{name}: {}", word("type"));
        if word("redop") != "none" {
            label += &format!(" {}", word("redop"));
        }
        if word("root") != "-1" {
            label += &format!(" root {}", word("root"));
        }
        add_point(&mut series, format!("{label}, {half}"), (size, bus_bw));
    }
    match series.is_empty() {
        true => Err("has no row with a size and a bus bandwidth".into()),
        false => Ok(series),
    }
}

/// A size that is measured again, as with `-N`, is drawn as often.
fn add_point(series: &mut Vec<Series>, label: String, point: (f64, f64)) {
    match series.iter_mut().find(|line| line.label == label) {
        Some(line) => line.points.push(point),
        None => series.push(Series { label, points: vec![point] }),
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().trim_end_matches(".json").into()
}

const OPTION: &str = "--plot";
const NO_BANDWIDTH: &str = "all rows are of one rank, of a barrier or of empty calls";
const OTHER_REPORTS: &str = "give reports of two ranks or more and of a collective that moves data";
/// What is left where the options passed.
const EMPTY: &str = "all calls were empty, smaller than one element for each rank";
const LARGER: &str = "give a larger -e";
const OUT_OF_PLACE: &str = "out of place";
const IN_PLACE: &str = "in place";

#[cfg(test)]
mod tests;
