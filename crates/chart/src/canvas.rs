//! The same drawing for SVG and for pixels.

use crate::ChartError;
use opensora_files::write_atomically;
use opensora_video::{Frames, VideoError, png};
use plotters::{
    coord::Shift,
    prelude::*,
    style::{FontStyle, register_font},
};
use std::path::Path;

/// plotters knows whole pixels only. So everything is drawn so much larger: pixels are averaged
/// then, and SVG has a size that is smaller than its coordinates.
pub(crate) const OVERSAMPLING: u32 = 3;
/// The family in SVG files; in pixels it is the font that this crate carries.
const FONT: &str = "sans-serif";
/// Text, axes.
const INK: RGBColor = RGBColor(30, 30, 30);

/// Colours that are told apart with any colour vision (Okabe and Ito).
pub(crate) const COLORS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
];

/// Where plotters draws.
pub(crate) type Area<Backend> = DrawingArea<Backend, Shift>;

/// What is drawn on.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Medium {
    /// Lines stay lines.
    Svg,
    /// Lines become pixels.
    Pixels,
}

/// Something that can be drawn: rows of one size.
pub(crate) trait Page {
    /// Width of the page and height of a row, in pixels.
    fn size(&self) -> (u32, u32);
    /// Rows there are.
    fn rows(&self) -> usize;
    /// Draws one of them; the area is [`OVERSAMPLING`] times as large.
    fn draw_row<Backend>(
        &self,
        row: usize,
        area: &Area<Backend>,
        medium: Medium,
    ) -> Result<(), ChartError>
    where
        Backend: DrawingBackend<ErrorType: 'static>;
}

/// The style of text of so many pixels.
pub(crate) fn text(size: u32) -> TextStyle<'static> {
    // Again and again the same font: the registry has no other way to ask.
    let _ = register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT);
    (FONT, size * OVERSAMPLING).into_font().color(&INK)
}

/// Writes a page as SVG or PNG, by the path's ending; what was at `path` stays where that fails.
pub(crate) fn save(page: &impl Page, path: &Path) -> Result<(), ChartError> {
    let ending = path.extension().map(|ending| ending.to_ascii_lowercase());
    match ending.as_ref().and_then(|ending| ending.to_str()) {
        Some("svg") => {
            let svg = svg(page)?;
            write_atomically(path, |temporary| std::fs::write(temporary, svg))
                .map_err(|source| ChartError::Io { path: path.into(), source })
        }
        Some("png") => {
            let (rgb, [height, width]) = rgb(page)?;
            let image = Frames::from_rgb(rgb, [1, height, width])
                .map_err(|source| VideoError::Frames { path: path.into(), source })?;
            Ok(png::write(path, &image)?)
        }
        _ => Err(ChartError::Format { path: path.into() }),
    }
}

/// A page as SVG.
fn svg(page: &impl Page) -> Result<String, ChartError> {
    let (width, height) = (page.size().0, page.size().1 * page.rows() as u32);
    let large = (width * OVERSAMPLING, height * OVERSAMPLING);
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, large).into_drawing_area();
        for (row, area) in root.split_evenly((page.rows(), 1)).iter().enumerate() {
            area.fill(&WHITE).map_err(ChartError::draw("file"))?;
            page.draw_row(row, area, Medium::Svg)?;
        }
        root.present().map_err(ChartError::draw("file"))?;
    }
    let size = |(width, height)| format!("<svg width=\"{width}\" height=\"{height}\"");
    // The viewBox keeps the large coordinates.
    Ok(text.replacen(&size(large), &size((width, height)), 1))
}

/// A page as RGB `[height, width, 3]`, and `[height, width]`. (Row by row: the large picture of a
/// whole page may take much memory.)
pub(crate) fn rgb(page: &impl Page) -> Result<(Vec<u8>, [usize; 2]), ChartError> {
    let (width, height) = page.size();
    let size = (width * OVERSAMPLING, height * OVERSAMPLING);
    let mut large = vec![0; 3 * size.0 as usize * size.1 as usize];
    let [height, width] = [height as usize, width as usize];
    let mut small = Vec::with_capacity(3 * page.rows() * height * width);
    for row in 0..page.rows() {
        {
            let root = BitMapBackend::with_buffer(&mut large, size).into_drawing_area();
            root.fill(&WHITE).map_err(ChartError::draw("file"))?;
            page.draw_row(row, &root, Medium::Pixels)?;
            root.present().map_err(ChartError::draw("file"))?;
        }
        average(&large, [height, width], OVERSAMPLING as usize, &mut small);
    }
    Ok((small, [page.rows() * height, width]))
}

/// Appends the means of squares of `factor` pixels; `size` is that of the result.
fn average(large: &[u8], [height, width]: [usize; 2], factor: usize, small: &mut Vec<u8>) {
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
}
