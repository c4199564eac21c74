//! Panels of curves: raw values in a faint colour, smoothed values in a strong colour.

use crate::{
    ChartError, Curve,
    axis::Axis,
    canvas::{self, Area, COLORS, Medium, OVERSAMPLING, Page, text},
    curve::{smooth, thin},
};
use plotters::{coord::cartesian::Cartesian2d, prelude::*};
use std::path::Path;

/// Number of segments to which a curve is decimated.
const PIECES: usize = 1000;

/// One diagram: curves of one quantity.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// Title: the name of the quantity.
    pub title: String,
    /// The curves, one for each run.
    pub curves: Vec<Curve>,
}

/// Options of drawing panels.
#[derive(Debug, Clone, PartialEq)]
pub struct Style {
    /// Weight of the past in the smoothed curve, from 0 (no smoothing) to below 1, as in TensorBoard.
    pub smooth: f64,
    /// Logarithmic vertical axis. Values that are not positive are not drawn.
    pub log: bool,
    /// Label of the horizontal axis.
    pub x_label: String,
    /// Width of a panel in pixels.
    pub width: u32,
    /// Height of a panel in pixels.
    pub height: u32,
}

impl Default for Style {
    fn default() -> Self {
        Self { smooth: 0.98, log: false, x_label: "step".into(), width: 960, height: 480 }
    }
}

/// Writes panels to `path` in one column, as SVG or PNG by the extension.
///
/// # Errors
/// Returns an error if a panel has no values, if the style is invalid, or if the file cannot be written. An
/// existing file stays on failure.
pub fn save(panels: &[Panel], style: &Style, path: &Path) -> Result<(), ChartError> {
    style.validate(panels.len())?;
    canvas::save(&Column { panels, style }, path)
}

impl Style {
    fn validate(&self, panels: usize) -> Result<(), ChartError> {
        if !(0.0..1.0).contains(&self.smooth) {
            let text = format!("smooth is {}, expected 0 to below 1", self.smooth);
            return Err(ChartError::Style(text));
        }
        for (name, side) in [("width", self.width), ("height", self.height)] {
            if !(160..=4096).contains(&side) {
                let text = format!("{name} is {side}, expected 160 to 4096 pixels");
                return Err(ChartError::Style(text));
            }
        }
        let rows = 4096 / self.height as usize;
        if panels == 0 || panels > rows {
            let text = format!("{panels} columns, expected 1 to {rows} of this height");
            return Err(ChartError::Style(text));
        }
        Ok(())
    }
}

/// A page of panels.
struct Column<'a> {
    panels: &'a [Panel],
    style: &'a Style,
}

impl Page for Column<'_> {
    fn size(&self) -> (u32, u32) {
        (self.style.width, self.style.height)
    }

    fn rows(&self) -> usize {
        self.panels.len()
    }

    fn draw_row<Backend>(
        &self,
        row: usize,
        area: &Area<Backend>,
        medium: Medium,
    ) -> Result<(), ChartError>
    where
        Backend: DrawingBackend<ErrorType: 'static>,
    {
        let (panel, style) = (&self.panels[row], self.style);
        let lines = lines(panel, style);
        let (x, y) = axes(&lines, style.log)
            .ok_or_else(|| ChartError::Empty { title: panel.title.clone(), log: style.log })?;
        let drawing = Drawing { panel, style, lines: &lines, x, y };
        drawing.draw(area, medium).map_err(ChartError::draw(&panel.title))
    }
}

/// A curve with its smoothed values.
struct Lines {
    name: String,
    color: RGBColor,
    raw: Vec<(f64, f64)>,
    smoothed: Vec<(f64, f64)>,
}

fn lines(panel: &Panel, style: &Style) -> Vec<Lines> {
    // Within this range, arithmetic does not overflow.
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

/// Returns the horizontal and vertical axis of curves, or `None` without points. Rare peaks far above
/// all other values are clipped.
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

/// Light grey of grid lines.
const FAINT: RGBColor = RGBColor(225, 225, 225);

/// A panel with its axes.
struct Drawing<'a> {
    panel: &'a Panel,
    style: &'a Style,
    lines: &'a [Lines],
    x: Axis,
    y: Axis,
}

/// The chart of a panel, to which curves are added.
type Chart<'a, Backend> = ChartContext<'a, Backend, Cartesian2d<Axis, Axis>>;
/// An error of the drawing library.
type DrawError<Backend> = DrawingAreaErrorKind<<Backend as DrawingBackend>::ErrorType>;

impl Drawing<'_> {
    fn draw<Backend: DrawingBackend>(
        &self,
        area: &Area<Backend>,
        medium: Medium,
    ) -> Result<(), DrawError<Backend>> {
        let scale = OVERSAMPLING;
        let mut chart = ChartBuilder::on(area)
            .caption(&self.panel.title, text(24))
            .margin(12 * scale)
            .margin_right(24 * scale)
            .x_label_area_size(50 * scale)
            .y_label_area_size(76 * scale)
            .build_cartesian_2d(self.x.clone(), self.y.clone())?;
        self.draw_mesh(&mut chart)?;
        self.draw_curves(&mut chart, medium)?;
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .margin(10 * scale)
            .legend_area_size(20 * scale)
            .label_font(text(17))
            .background_style(WHITE.mix(0.85))
            .border_style(FAINT.stroke_width(scale))
            .draw()
    }

    /// Draws axes, labels and grid lines.
    fn draw_mesh<Backend: DrawingBackend>(
        &self,
        chart: &mut Chart<'_, Backend>,
    ) -> Result<(), DrawError<Backend>> {
        let (scale, x, y) = (OVERSAMPLING, &self.x, &self.y);
        let x_count = (self.style.width / 90) as usize;
        let y_count = (self.style.height / 50) as usize;
        let (x_ticks, y_ticks) = (x.ticks(x_count), y.ticks(y_count));
        chart
            .configure_mesh()
            .x_labels(x_count)
            .y_labels(y_count)
            .x_label_formatter(&|value| x.label(*value, &x_ticks))
            .y_label_formatter(&|value| y.label(*value, &y_ticks))
            .x_desc(&self.style.x_label)
            .axis_desc_style(text(18))
            .label_style(text(17))
            .axis_style(RGBColor(80, 80, 80).stroke_width(scale))
            .bold_line_style(FAINT.stroke_width(scale))
            .light_line_style(TRANSPARENT)
            .set_all_tick_mark_size(4 * scale)
            .draw()
    }

    fn draw_curves<Backend: DrawingBackend>(
        &self,
        chart: &mut Chart<'_, Backend>,
        medium: Medium,
    ) -> Result<(), DrawError<Backend>> {
        let scale = OVERSAMPLING;
        let path =
            |stroke: ShapeStyle| move |points: Vec<(f64, f64)>| PathElement::new(points, stroke);
        // All raw curves come first, so that none hides a smoothed one.
        for line in self.lines {
            let stroke = line.color.mix(0.2).stroke_width(scale);
            chart.draw_series(self.paths(&line.raw, medium).into_iter().map(path(stroke)))?;
        }
        for line in self.lines {
            let stroke = line.color.stroke_width(2 * scale);
            let dot = (line.smoothed.len() == 1).then(|| line.smoothed[0]);
            let half = 12 * scale as i32;
            chart
                .draw_series(self.paths(&line.smoothed, medium).into_iter().map(path(stroke)))?
                .label(&line.name)
                .legend(move |(x, y)| PathElement::new([(x - half / 3, y), (x + half, y)], stroke));
            // A single value has no line.
            let dots = dot.map(|at| Circle::new(at, 3 * scale, line.color.filled()));
            chart.draw_series(dots)?;
        }
        Ok(())
    }

    /// Returns the paths of a curve, within the vertical axis.
    fn paths(&self, points: &[(f64, f64)], medium: Medium) -> Vec<Vec<(f64, f64)>> {
        let points: Vec<_> =
            thin(points, PIECES).into_iter().map(|(px, py)| (px, self.y.clamp(py))).collect();
        match medium {
            Medium::Svg => vec![points],
            // plotters draws joints of sharp angles as endless spikes: each segment is a path.
            Medium::Pixels => points.windows(2).map(<[_]>::to_vec).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(run: usize, y: Vec<f64>) -> Panel {
        let x = (1..=y.len()).map(|step| step as f64).collect();
        let curve = Curve { name: format!("run <{run}>"), run, x, y };
        Panel { title: "loss".into(), curves: vec![curve] }
    }

    #[test]
    fn files_show_axes_curves_and_names() {
        let folder = tempfile::tempdir().unwrap();
        let values: Vec<f64> = (1..=500).map(|i| 1.0 / f64::from(i).sqrt()).collect();
        let panels = [panel(0, values)];
        let style = Style::default();
        let svg = folder.path().join("a.svg");
        save(&panels, &style, &svg).unwrap();
        let text = std::fs::read_to_string(svg).unwrap();
        // Raw curve, smoothed curve and legend; title, round ticks, and escaped names.
        assert_eq!(text.matches("stroke=\"#0072B2\"").count(), 3, "{text}");
        assert!(text.starts_with("<svg width=\"960\" height=\"480\""), "{text}");
        for word in ["loss", "step", "run &lt;0&gt;", "0.2", "100", "500"] {
            assert!(text.contains(word), "{word}");
        }
        let png = folder.path().join("a.PNG");
        save(&panels, &style, &png).unwrap();
        let image = opensora_video::png::read(&png).unwrap();
        assert_eq!((image.height(), image.width()), (480, 960));
        let dark = |rgb: &&[u8]| rgb.iter().all(|&byte| byte < 110);
        // Text and axes are dark, and most of the image is white.
        let pixels: Vec<&[u8]> = image.data().chunks_exact(3).collect();
        assert!(pixels.iter().filter(|rgb| dark(rgb)).count() > 500);
        assert!(pixels.iter().filter(|rgb| ***rgb == [255; 3]).count() > pixels.len() / 2);
    }

    #[test]
    fn odd_values_are_drawn_or_refused_but_never_panic() {
        let folder = tempfile::tempdir().unwrap();
        let nan = f64::NAN;
        for (log, good, values) in [
            (false, true, vec![1.0]),
            (false, true, vec![3.0; 4]),
            (false, true, vec![nan, 1.0, f64::INFINITY, -2.0]),
            (false, true, vec![1e300, -1e300, 1e99, -1e100]),
            (false, true, vec![1e-320, 0.0]),
            (true, true, vec![1.0, -1.0, 0.0, 1e-300, 1e-99, 1e99]),
            (true, true, vec![5.0; 3]),
            (true, false, vec![-1.0, 0.0]),
            (false, false, vec![nan; 3]),
            (false, false, vec![]),
        ] {
            let style = Style { log, width: 320, height: 200, ..Style::default() };
            for name in ["a.svg", "a.png"] {
                let saved = save(&[panel(1, values.clone())], &style, &folder.path().join(name));
                assert_eq!(saved.is_ok(), good, "{values:?} {saved:?}");
                if let Err(error) = saved {
                    assert!(matches!(error, ChartError::Empty { .. }), "{error}");
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let style = Style::default();
        let path = Path::new("a.svg");
        let save = |panels: &[Panel], style: &Style, path: &Path| {
            super::save(panels, style, path).unwrap_err().to_string()
        };
        assert!(save(&[], &style, path).contains("0 columns"));
        let one = [panel(0, vec![1.0, 2.0])];
        assert!(save(&one, &style, Path::new("a.pdf")).contains("a.pdf: unknown format"));
        assert!(save(&one, &Style { smooth: 1.0, ..style.clone() }, path).contains("smooth is 1"));
        assert!(save(&one, &Style { width: 3, ..style.clone() }, path).contains("width is 3"));
        assert!(save(&one, &style, Path::new("/none/a.svg")).contains("/none/a.svg"));
    }
}
