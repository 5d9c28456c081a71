//! The picture itself: a title, the axes, a line with its points for each series, and below it who
//! is who.

use std::fmt::Display;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::Series;
use super::axes::{self, Axis};

/// What the vertical axis shows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Values {
    description: &'static str,
    /// Of a value's logarithm.
    label: fn(&f64) -> String,
}

/// The text of an SVG file, or why there is none; nothing where no series has a value.
pub(super) fn draw(
    title: &str,
    series: &[Series],
    values: Values,
) -> Result<Option<String>, String> {
    // A logarithm has no place for an empty call or a bandwidth of nothing.
    let drawn: Vec<Series> = series
        .iter()
        .map(|line| {
            let points = line.points.iter().filter(|(size, speed)| *size > 0.0 && *speed > 0.0);
            let logs = points.map(|(size, speed)| (size.log2(), speed.log10()));
            Series { label: line.label.clone(), points: logs.collect() }
        })
        .filter(|line| !line.points.is_empty())
        .collect();
    let points = || drawn.iter().flat_map(|line| line.points.iter().copied());
    let axes = axes::sizes(points().map(|(size, _)| size.exp2()))
        .zip(axes::values(points().map(|(_, speed)| 10_f64.powf(speed))));
    let Some((sizes, speeds)) = axes else {
        return Ok(None);
    };
    let mut text = String::new();
    render(&mut text, title, &drawn, values, (&sizes, &speeds))
        .map_err(|error| error.to_string())?;
    Ok(Some(text))
}

fn render(
    text: &mut String,
    title: &str,
    series: &[Series],
    values: Values,
    (sizes, speeds): (&Axis, &Axis),
) -> Result<(), Box<dyn std::error::Error>> {
    let legend = LEGEND_LINE * series.len() as u32 + MARGIN;
    let root = SVGBackend::with_string(text, (WIDTH, HEIGHT + legend)).into_drawing_area();
    root.fill(&WHITE)?;
    let (picture, below) = root.split_vertically(HEIGHT);
    let mut chart = ChartBuilder::on(&picture)
        .caption(title, (FONT, TITLE_PIXELS))
        .margin(MARGIN)
        // Half of the last label.
        .margin_right(44)
        .x_label_area_size(60)
        .y_label_area_size(100)
        .build_cartesian_2d(sizes.clone(), speeds.clone())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor(218, 218, 218))
        .axis_style(BLACK)
        .x_labels(sizes.ticks.len())
        .y_labels(speeds.ticks.len())
        .x_label_formatter(&axes::size_label)
        .y_label_formatter(&values.label)
        .x_desc("size of the larger buffer of a rank (KiB = 1024 bytes)")
        .y_desc(values.description)
        .label_style((FONT, TEXT_PIXELS))
        .axis_desc_style((FONT, TEXT_PIXELS))
        .draw()?;
    for (index, line) in series.iter().enumerate() {
        let style = style(index);
        chart.draw_series(LineSeries::new(line.points.iter().copied(), style))?;
        let points = line.points.iter();
        chart.draw_series(points.map(|point| Circle::new(*point, POINT_PIXELS, style.filled())))?;
    }
    for (index, line) in series.iter().enumerate() {
        let middle = (LEGEND_LINE * index as u32 + LEGEND_LINE / 2) as i32;
        let style = style(index);
        below
            .draw(&PathElement::new([(LEGEND_LEFT, middle), (LEGEND_LEFT + 40, middle)], style))?;
        below.draw(&Circle::new((LEGEND_LEFT + 20, middle), POINT_PIXELS, style.filled()))?;
        let left = TextStyle::from((FONT, TEXT_PIXELS)).pos(Pos::new(HPos::Left, VPos::Center));
        below.draw(&Text::new(short(&line.label), (LEGEND_LEFT + 52, middle), left))?;
    }
    root.present()?;
    Ok(())
}

/// A colour for each of eight lines; beyond them they come again, thinner.
fn style(index: usize) -> ShapeStyle {
    let (red, green, blue) = COLOURS[index % COLOURS.len()];
    let width = if index < COLOURS.len() { 2 } else { 1 };
    RGBColor(red, green, blue).stroke_width(width)
}

/// As much of a label as the picture is wide.
fn short(label: &impl Display) -> String {
    let label = label.to_string();
    match label.char_indices().nth(LABEL_CHARACTERS) {
        Some((end, _)) => format!("{}...", &label[..end]),
        None => label,
    }
}

/// In GB/s.
pub(super) const BANDWIDTHS: Values =
    Values { description: "bus bandwidth (GB/s = 10^9 bytes/s)", label: axes::bandwidth_label };
/// In microseconds.
pub(super) const TIMES: Values = Values { description: "time of a call", label: axes::time_label };
const FONT: &str = "sans-serif";
const WIDTH: u32 = 960;
/// Without the legend.
const HEIGHT: u32 = 540;
const MARGIN: u32 = 16;
/// In em boxes: the letters come out a fifth smaller, and are read at 12 pixels and more.
const TITLE_PIXELS: u32 = 24;
const TEXT_PIXELS: u32 = 17;
const POINT_PIXELS: u32 = 3;
/// One and a half lines of text.
const LEGEND_LINE: u32 = 25;
/// Where the axis begins.
const LEGEND_LEFT: i32 = 116;
/// At half a text's height a character.
const LABEL_CHARACTERS: usize = 90;
/// Okabe and Ito's: told apart also by those who see fewer colours; yellow, which white swallows, is
/// replaced by grey.
const COLOURS: [(u8, u8, u8); 8] = [
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
    (86, 180, 233),
    (0, 0, 0),
    (120, 120, 120),
];
