//! Histograms with bins of equal width and round edges, drawn in a grid.

use crate::{
    ChartError,
    axis::{Axis, round_steps},
    canvas::{self, Area, COLORS, Medium, OVERSAMPLING, Page, text},
    text::plain,
};
use plotters::prelude::*;
use std::path::Path;

/// Approximate number of bins; edges are round.
const BINS: f64 = 30.0;
/// At either end, one in this many values may be outside the bins.
const RARE: usize = 200;
/// Number of columns of the grid.
const COLUMNS: usize = 3;
/// Width and height of a histogram in pixels.
const CELL: (u32, u32) = (480, 300);
/// Maximum number of histograms: images have at most 16384 rows.
const MOST: usize = COLUMNS * 54;
/// Maximum number of characters of a title.
const TITLE: usize = 40;

/// Counts of values in bins of equal width.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    /// Title.
    pub title: String,
    /// Label of the horizontal axis, such as a unit; may be empty.
    pub x_label: String,
    /// Lower edge of the first bin.
    pub start: f64,
    /// Width of a bin.
    pub width: f64,
    /// Number of values in each bin, which contains its lower edge. The last bin also contains its upper edge.
    pub counts: Vec<usize>,
    /// Number of values below the first bin: outliers.
    pub below: usize,
    /// Number of values above the last bin: outliers.
    pub above: usize,
}

/// Labels of a histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Labels<'a> {
    /// Title above the histogram.
    pub title: &'a str,
    /// Label of the horizontal axis, such as a unit; may be empty.
    pub x_label: &'a str,
}

impl Histogram {
    /// Counts values in about 30 bins. Values that are not finite or exceed 1e100 are ignored. If each integer
    /// has its own bin, the bin is centred on it. Rare values so far from the others that they would dominate
    /// the scale are counted in [`below`](Self::below) and [`above`](Self::above).
    ///
    /// ```
    /// use opensora_chart::{Histogram, Labels};
    ///
    /// let labels = Labels { title: "frames", x_label: "" };
    /// let histogram = Histogram::of(labels, &[1.0, 1.0, 3.0])?;
    /// assert_eq!((histogram.start, histogram.width, &histogram.counts[..]), (0.5, 1.0, &[2, 0, 1][..]));
    /// # Ok::<(), opensora_chart::ChartError>(())
    /// ```
    ///
    /// # Errors
    /// Returns [`ChartError::Empty`] if there are no values.
    pub fn of(labels: Labels<'_>, values: &[f64]) -> Result<Self, ChartError> {
        let Labels { title, x_label } = labels;
        let mut values: Vec<f64> =
            values.iter().copied().filter(|value| value.abs() <= 1e100).collect();
        values.sort_unstable_by(f64::total_cmp);
        let Some((low, high)) = shown(&values) else {
            return Err(ChartError::Empty { title: title.into(), log: false });
        };
        let whole = values.iter().all(|value| value.fract() == 0.0);
        let width = bin_width(low, high, whole);
        let shift = if whole && width == 1.0 { 0.5 } else { 0.0 };
        // A small tolerance: 0.3 / 0.1 is below 3.
        let place = |value: f64| ((value + shift) / width + 1e-9).floor();
        let first = place(low);
        let mut bins = (place(high) - first) as usize + 1;
        if !whole && bins > 1 && (high / width - place(high)).abs() < 1e-9 {
            // The last value is an edge and belongs to the bin below.
            bins -= 1;
        }
        let edge = (first + bins as f64) * width - shift;
        let (mut counts, mut below, mut above) = (vec![0; bins], 0, 0);
        for value in values {
            match place(value) - first {
                bin if bin < 0.0 => below += 1,
                bin if (bin as usize) < bins => counts[bin as usize] += 1,
                _ if value <= high.max(edge) => counts[bins - 1] += 1,
                _ => above += 1,
            }
        }
        let start = first * width - shift;
        Ok(Self {
            title: title.into(),
            x_label: x_label.into(),
            start,
            width,
            counts,
            below,
            above,
        })
    }

    /// Returns the upper edge of the last bin.
    fn end(&self) -> f64 {
        self.edge(self.counts.len())
    }

    /// Returns the lower edge of a bin.
    fn edge(&self, bin: usize) -> f64 {
        self.start + bin as f64 * self.width
    }

    /// Returns the label of the horizontal axis with the numbers of outliers.
    fn x_description(&self) -> String {
        let mut parts = Vec::new();
        if !self.x_label.is_empty() {
            parts.push(plain(&self.x_label, TITLE));
        }
        for (count, side) in [(self.below, "below"), (self.above, "above")] {
            if count > 0 {
                parts.push(format!("{count} more {side}"));
            }
        }
        parts.join(", ")
    }
}

/// Returns the range of sorted values without outliers; `None` if there are no values.
fn shown(values: &[f64]) -> Option<(f64, f64)> {
    let (min, max) = (*values.first()?, *values.last()?);
    let rare = values.len() / RARE;
    let (low, high) = (values[rare], values[values.len() - 1 - rare]);
    let near = (high - low) / 2.0;
    if near == 0.0 {
        return Some((min, max));
    }
    Some((if low - min > near { low } else { min }, if max - high > near { high } else { max }))
}

/// Returns a round width of the bins over `low` to `high`, at least 1 if `whole` (all values are
/// integers).
fn bin_width(low: f64, high: f64, whole: bool) -> f64 {
    let size = low.abs().max(high.abs());
    let least = match high - low {
        length if length > 1e-9 * size && length > 1e-100 => length / BINS,
        // All values are equal.
        _ if size > 1e-100 => 0.1 * size,
        _ => 0.1,
    };
    let steps = round_steps(least);
    let width = steps.into_iter().find(|step| *step >= least).unwrap_or(least);
    match whole {
        true if low == high => 1.0,
        true => width.max(1.0),
        false => width,
    }
}

/// Writes histograms to `path` in rows of three, as SVG or PNG by the extension.
///
/// # Errors
/// Returns an error if there are no histograms or too many for an image, or if the file cannot be written. An
/// existing file stays on failure.
pub fn save(histograms: &[Histogram], path: &Path) -> Result<(), ChartError> {
    if histograms.is_empty() || histograms.len() > MOST {
        let text = format!("{} histograms, expected 1 to {MOST}", histograms.len());
        return Err(ChartError::Style(text));
    }
    canvas::save(&Grid { histograms, columns: histograms.len().min(COLUMNS) }, path)
}

/// A page of histograms.
struct Grid<'a> {
    histograms: &'a [Histogram],
    columns: usize,
}

impl Page for Grid<'_> {
    fn size(&self) -> (u32, u32) {
        (CELL.0 * self.columns as u32, CELL.1)
    }

    fn rows(&self) -> usize {
        self.histograms.len().div_ceil(self.columns)
    }

    fn draw_row<Backend>(
        &self,
        row: usize,
        area: &Area<Backend>,
        _: Medium,
    ) -> Result<(), ChartError>
    where
        Backend: DrawingBackend<ErrorType: 'static>,
    {
        let histograms = self.histograms.iter().skip(row * self.columns);
        for (histogram, cell) in histograms.zip(area.split_evenly((1, self.columns))) {
            draw(histogram, &cell).map_err(ChartError::draw(&histogram.title))?;
        }
        Ok(())
    }
}

fn draw<Backend: DrawingBackend>(
    histogram: &Histogram,
    area: &Area<Backend>,
) -> Result<(), DrawingAreaErrorKind<Backend::ErrorType>> {
    let scale = OVERSAMPLING;
    let faint = RGBColor(225, 225, 225);
    let most = histogram.counts.iter().copied().max().unwrap_or(0).max(1);
    let x = Axis::over(histogram.start, histogram.end(), 0.03, false);
    let y = Axis { low: 0.0, high: 1.05 * most as f64, log: false };
    // Few ticks for few bins and small counts, so that ticks are integers.
    let (x_count, y_count) = (histogram.counts.len().min(5) + 1, most.min(4) + 1);
    let (x_ticks, y_ticks) = (x.ticks(x_count), y.ticks(y_count));
    let mut chart = ChartBuilder::on(area)
        .caption(plain(&histogram.title, TITLE), text(18))
        .margin(8 * scale)
        .margin_right(16 * scale)
        .x_label_area_size(40 * scale)
        .y_label_area_size(66 * scale)
        .build_cartesian_2d(x.clone(), y.clone())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(x_count)
        .y_labels(y_count)
        .x_label_formatter(&|value| x.label(*value, &x_ticks))
        .y_label_formatter(&|value| y.label(*value, &y_ticks))
        .x_desc(histogram.x_description())
        .y_desc("count")
        .axis_desc_style(text(14))
        .label_style(text(14))
        .axis_style(RGBColor(80, 80, 80).stroke_width(scale))
        .bold_line_style(faint.stroke_width(scale))
        .light_line_style(TRANSPARENT)
        .set_all_tick_mark_size(4 * scale)
        .draw()?;
    let bars = histogram.counts.iter().enumerate().filter(|(_, count)| **count > 0);
    chart.draw_series(bars.map(|(bin, &count)| {
        let corners = [(histogram.edge(bin), count as f64), (histogram.edge(bin + 1), 0.0)];
        let mut bar = Rectangle::new(corners, COLORS[0].mix(0.85).filled());
        // A gap separates adjacent bars.
        bar.set_margin(0, 0, 0, scale);
        bar
    }))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f64]) -> Histogram {
        Histogram::of(Labels { title: "values", x_label: "" }, values).unwrap()
    }

    fn inside(histogram: &Histogram) -> usize {
        histogram.counts.iter().sum()
    }

    #[test]
    fn edges_are_round_and_every_value_has_a_place() {
        let tenths: Vec<f64> = (0..=10).map(|i| f64::from(i) / 10.0).collect();
        let histogram = of(&tenths);
        assert_eq!((histogram.start, histogram.width), (0.0, 0.05));
        // 1.0 is the last edge and belongs to the last bin; 0.3 is not below its edge.
        assert_eq!(histogram.counts.len(), 20);
        assert_eq!(histogram.counts[19], 1);
        assert!((0..10).all(|i| histogram.counts[2 * i] == 1), "{histogram:?}");

        let histogram = of(&[3.0, 5.0, 5.0, 4.0]);
        assert_eq!((histogram.start, histogram.width), (2.5, 1.0));
        assert_eq!(histogram.counts, [1, 1, 2]);

        let frames: Vec<f64> = (0..=120).map(f64::from).collect();
        let histogram = of(&frames);
        assert_eq!((histogram.start, histogram.width, histogram.counts.len()), (0.0, 5.0, 25));
        assert_eq!((histogram.counts[0], histogram.counts[24]), (5, 1));
    }

    #[test]
    fn single_values_far_away_are_counted_outside() {
        let mut durations: Vec<f64> = (0..1000).map(|i| 2.0 + f64::from(i % 83) / 10.0).collect();
        durations.extend([36_000.0, 40_000.0, -9_000.0]);
        let histogram = of(&durations);
        assert_eq!((histogram.below, histogram.above), (1, 2));
        assert_eq!(inside(&histogram), 1000);
        assert!(histogram.end() < 12.0, "{histogram:?}");
        assert_eq!(histogram.x_description(), "1 more below, 2 more above");
        // Few values: all are shown.
        assert_eq!(inside(&of(&[1.0, 2.0, 1e6])), 3);
    }

    #[test]
    fn any_values_become_bins() {
        let many: Vec<f64> = (0..100_000).map(|i| f64::from(i).sin() * 1e-3).collect();
        for values in [
            &[0.0][..],
            &[-3.5; 7],
            &[7.0; 3],
            &[1e15, 1e15 + 0.5],
            &[1e100, -1e100, 0.0],
            &[1e-320, 0.0],
            &[f64::NAN, 1.0, f64::INFINITY, f64::MAX],
            &[0.1, 0.1 + 1e-16],
            &many,
        ] {
            let histogram = of(values);
            let count = values.iter().filter(|value| value.abs() <= 1e100).count();
            let found = inside(&histogram) + histogram.below + histogram.above;
            assert_eq!(found, count, "{histogram:?}");
            assert!((1..=33).contains(&histogram.counts.len()), "{histogram:?}");
            assert!(histogram.width > 0.0, "{histogram:?}");
        }
        let empty = Histogram::of(Labels { title: "loss", x_label: "" }, &[f64::NAN])
            .unwrap_err()
            .to_string();
        assert!(empty.contains("loss: no values"), "{empty}");
    }

    #[test]
    fn sheets_show_bars_and_names() {
        let folder = tempfile::tempdir().unwrap();
        let histograms: Vec<Histogram> = (1..=4)
            .map(|i| {
                let values: Vec<f64> = (0..400).map(|k| f64::from(k % (7 * i))).collect();
                let title = format!("column <{i}>\u{7}");
                Histogram::of(Labels { title: &title, x_label: "pixels" }, &values).unwrap()
            })
            .collect();
        let svg = folder.path().join("a.svg");
        save(&histograms, &svg).unwrap();
        let text = std::fs::read_to_string(&svg).unwrap();
        for word in ["column &lt;1&gt;", "column &lt;4&gt;", "pixels", "count", "20"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert!(!text.contains('\u{7}'));
        let png = folder.path().join("a.png");
        save(&histograms, &png).unwrap();
        let image = opensora_video::png::read(&png).unwrap();
        assert_eq!((image.height(), image.width()), (600, 1440));
        let blue = |rgb: &&[u8]| rgb[2] > 150 && rgb[0] < 80;
        assert!(image.data().chunks_exact(3).filter(blue).count() > 20_000);
        // The grid's last places are empty.
        assert_eq!(image.data()[3 * (599 * 1440 + 1000)..][..3], [255; 3]);
        save(&histograms[..1], &png).unwrap();
        assert_eq!(opensora_video::png::read(&png).unwrap().width(), 480);
        assert!(save(&[], &png).unwrap_err().to_string().contains("0 histograms"));
    }
}
