//! Panels, axes, legend: the same drawing for SVG and for pixels.

use super::{
    Panel, PlotError, Style,
    axis::Axis,
    curve::{smooth, thin},
};
use plotters::{
    coord::Shift,
    prelude::*,
    style::{FontStyle, register_font},
};

/// plotters knows whole pixels only. So everything is drawn so much larger: pixels are averaged
/// then, and SVG has a size that is smaller than its coordinates.
const OVERSAMPLING: u32 = 3;
/// Stretches of a curve of which more could not be told apart.
const PIECES: usize = 1000;
/// The family in SVG files; in pixels it is the font that this crate carries.
const FONT: &str = "sans-serif";

/// Colours that are told apart with any colour vision (Okabe and Ito), a run each.
const COLORS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
];

/// The panels as SVG.
pub(super) fn svg(panels: &[Panel], style: &Style) -> Result<String, PlotError> {
    style.validate(panels.len())?;
    let (width, height) = (style.width, style.height * panels.len() as u32);
    let large = (width * OVERSAMPLING, height * OVERSAMPLING);
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, large).into_drawing_area();
        draw(&root, panels, style, Joints::Drawn)?;
    }
    let size = |(width, height)| format!("<svg width=\"{width}\" height=\"{height}\"");
    // The viewBox keeps the large coordinates.
    Ok(text.replacen(&size(large), &size((width, height)), 1))
}

/// The panels as RGB `[height, width, 3]`, and `[height, width]`.
pub(super) fn rgb(panels: &[Panel], style: &Style) -> Result<(Vec<u8>, [usize; 2]), PlotError> {
    style.validate(panels.len())?;
    let (width, height) = (style.width, style.height * panels.len() as u32);
    let size = (width * OVERSAMPLING, height * OVERSAMPLING);
    let mut large = vec![0; 3 * size.0 as usize * size.1 as usize];
    {
        let root = BitMapBackend::with_buffer(&mut large, size).into_drawing_area();
        draw(&root, panels, style, Joints::Left)?;
    }
    let size = [height as usize, width as usize];
    Ok((average(&large, size, OVERSAMPLING as usize), size))
}

/// What is done where the lines of a curve meet.
#[derive(Clone, Copy, PartialEq)]
enum Joints {
    /// One path a curve.
    Drawn,
    /// One path a line: as pixels, plotters draws joints of sharp angles as endless spikes.
    Left,
}

/// Means of squares of `factor` pixels; `size` is that of the result.
fn average(large: &[u8], [height, width]: [usize; 2], factor: usize) -> Vec<u8> {
    let mut small = Vec::with_capacity(3 * height * width);
    for y in 0..height {
        for x in 0..width {
            for channel in 0..3 {
                let mut sum = 0;
                for row in y * factor..(y + 1) * factor {
                    for column in x * factor..(x + 1) * factor {
                        sum += usize::from(large[3 * (row * width * factor + column) + channel]);
                    }
                }
                small.push((sum / (factor * factor)) as u8);
            }
        }
    }
    small
}

/// A curve as it is drawn.
struct Lines {
    name: String,
    color: RGBColor,
    raw: Vec<(f64, f64)>,
    smoothed: Vec<(f64, f64)>,
}

fn lines(panel: &Panel, style: &Style) -> Vec<Lines> {
    // No loss lies beyond, and arithmetic within has no overflow.
    let shown = |value: f64| match style.log {
        true => (1e-100..=1e100).contains(&value),
        false => value.abs() <= 1e100,
    };
    panel
        .curves
        .iter()
        .map(|curve| {
            let points: Vec<(f64, f64)> = curve
                .x
                .iter()
                .zip(&curve.y)
                .filter(|(x, y)| x.is_finite() && shown(**y))
                .map(|(&x, &y)| (x, y))
                .collect();
            let values: Vec<f64> = points.iter().map(|point| point.1).collect();
            let smoothed = points.iter().zip(smooth(&values, style.smooth)).map(|(p, y)| (p.0, y));
            Lines {
                name: curve.name.clone(),
                color: COLORS[curve.run % COLORS.len()],
                smoothed: smoothed.filter(|point| shown(point.1)).collect(),
                raw: points,
            }
        })
        .collect()
}

/// Axes over what is to be seen; single peaks far above all others are cut off.
fn axes(lines: &[Lines], log: bool) -> Option<(Axis, Axis)> {
    let range = |values: &mut dyn Iterator<Item = f64>| {
        values.fold(None, |range: Option<(f64, f64)>, value| {
            Some(range.map_or((value, value), |(low, high)| (low.min(value), high.max(value))))
        })
    };
    let x = range(&mut lines.iter().flat_map(|line| &line.raw).map(|point| point.0))?;
    let smoothed = range(&mut lines.iter().flat_map(|line| &line.smoothed).map(|point| point.1))?;
    let mut y: Vec<f64> = lines.iter().flat_map(|line| &line.raw).map(|point| point.1).collect();
    y.sort_unstable_by(f64::total_cmp);
    let rare = y.len() / 200;
    let low = smoothed.0.min(y[rare]);
    let high = smoothed.1.max(y[y.len() - 1 - rare]);
    Some((Axis::over(x.0, x.1, 0.0, false), Axis::over(low, high, 0.05, log)))
}

type Area<Backend> = DrawingArea<Backend, Shift>;

fn draw<Backend: DrawingBackend>(
    root: &Area<Backend>,
    panels: &[Panel],
    style: &Style,
    joints: Joints,
) -> Result<(), PlotError> {
    // Again and again the same font: the registry has no other way to ask.
    let _ = register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT);
    let areas = root.split_evenly((panels.len(), 1));
    for (panel, area) in panels.iter().zip(areas) {
        let title = || panel.title.clone();
        let lines = lines(panel, style);
        let (x, y) = axes(&lines, style.log)
            .ok_or_else(|| PlotError::Empty { title: title(), log: style.log })?;
        draw_panel(&area, panel, style, joints, lines, x, y)
            .map_err(|error| PlotError::Draw { title: title(), reason: error.to_string() })?;
    }
    root.present()
        .map_err(|error| PlotError::Draw { title: "file".into(), reason: error.to_string() })
}

fn draw_panel<Backend: DrawingBackend>(
    area: &Area<Backend>,
    panel: &Panel,
    style: &Style,
    joints: Joints,
    lines: Vec<Lines>,
    x: Axis,
    y: Axis,
) -> Result<(), DrawingAreaErrorKind<Backend::ErrorType>> {
    let scale = OVERSAMPLING;
    let text = |size: u32| (FONT, size * scale).into_font().color(&RGBColor(30, 30, 30));
    let faint = RGBColor(225, 225, 225);
    let (raw_width, smoothed_width) = (scale, 2 * scale);
    let (x_count, y_count) = ((style.width / 90) as usize, (style.height / 50) as usize);
    let (x_ticks, y_ticks) = (x.ticks(x_count), y.ticks(y_count));
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, text(24))
        .margin(12 * scale)
        .margin_right(24 * scale)
        .x_label_area_size(50 * scale)
        .y_label_area_size(76 * scale)
        .build_cartesian_2d(x.clone(), y.clone())?;
    chart
        .configure_mesh()
        .x_labels(x_count)
        .y_labels(y_count)
        .x_label_formatter(&|value| x.label(*value, &x_ticks))
        .y_label_formatter(&|value| y.label(*value, &y_ticks))
        .x_desc(&style.x_label)
        .axis_desc_style(text(18))
        .label_style(text(17))
        .axis_style(RGBColor(80, 80, 80).stroke_width(scale))
        .bold_line_style(faint.stroke_width(scale))
        .light_line_style(TRANSPARENT)
        .set_all_tick_mark_size(4 * scale)
        .draw()?;
    let paths = |points: &[(f64, f64)]| -> Vec<Vec<(f64, f64)>> {
        let points: Vec<_> =
            thin(points, PIECES).into_iter().map(|(px, py)| (px, y.clamp(py))).collect();
        match joints {
            Joints::Drawn => vec![points],
            Joints::Left => points.windows(2).map(<[_]>::to_vec).collect(),
        }
    };
    let path = |stroke: ShapeStyle| move |points: Vec<(f64, f64)>| PathElement::new(points, stroke);
    // All faint curves first, so that none hides a strong one.
    for line in &lines {
        let stroke = line.color.mix(0.2).stroke_width(raw_width);
        chart.draw_series(paths(&line.raw).into_iter().map(path(stroke)))?;
    }
    for line in &lines {
        let stroke = line.color.stroke_width(smoothed_width);
        let dot = (line.smoothed.len() == 1).then(|| line.smoothed[0]);
        let half = 12 * scale as i32;
        chart
            .draw_series(paths(&line.smoothed).into_iter().map(path(stroke)))?
            .label(&line.name)
            .legend(move |(x, y)| PathElement::new([(x - half / 3, y), (x + half, y)], stroke));
        // A single value has no line.
        let dots = dot.map(|at| Circle::new(at, 3 * scale, line.color.filled()));
        chart.draw_series(dots)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .margin(10 * scale)
        .legend_area_size(20 * scale)
        .label_font(text(17))
        .background_style(WHITE.mix(0.85))
        .border_style(faint.stroke_width(scale))
        .draw()
}
