//! SVG and pixel backends of plotters: one drawing for both.

use crate::ChartError;
use opensora_files::{check_writable, write_atomically};
use opensora_video::{Frames, VideoError, png};
use plotters::{
    coord::Shift,
    prelude::*,
    style::{FontStyle, register_font},
};
use std::path::Path;

/// Factor by which everything is drawn larger, because plotters uses integer coordinates. Pixels are averaged
/// afterwards; an SVG file states the smaller size.
pub(crate) const OVERSAMPLING: u32 = 3;
/// Font family in SVG files. Images use the bundled font.
const FONT: &str = "sans-serif";
/// Colour of text and axes.
const INK: RGBColor = RGBColor(30, 30, 30);

/// Colours that people with any colour vision can distinguish (Okabe and Ito).
pub(crate) const COLORS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
];

/// A drawing area of plotters.
pub(crate) type Area<Backend> = DrawingArea<Backend, Shift>;

/// The kind of output.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Medium {
    /// Vector graphics.
    Svg,
    /// An image.
    Pixels,
}

/// A page that consists of rows of equal size.
pub(crate) trait Page {
    /// Returns the width of the page and the height of a row in pixels.
    fn size(&self) -> (u32, u32);
    /// Returns the number of rows.
    fn rows(&self) -> usize;
    /// Draws a row into an area that is [`OVERSAMPLING`] times as large.
    fn draw_row<Backend>(
        &self,
        row: usize,
        area: &Area<Backend>,
        medium: Medium,
    ) -> Result<(), ChartError>
    where
        Backend: DrawingBackend<ErrorType: 'static>;
}

/// Returns the style of text of `size` pixels.
pub(crate) fn text(size: u32) -> TextStyle<'static> {
    // Registered at every call, because the registry cannot be queried.
    let _ = register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT);
    (FONT, size * OVERSAMPLING).into_font().color(&INK)
}

/// Writes a page as SVG or PNG, by the path's extension. An existing file stays on failure.
pub(crate) fn save(page: &impl Page, path: &Path) -> Result<(), ChartError> {
    match medium(path)? {
        Medium::Svg => {
            let svg = svg(page)?;
            write_atomically(path, |temporary| std::fs::write(temporary, svg))
                .map_err(|source| ChartError::Io { path: path.into(), source })
        }
        Medium::Pixels => {
            let (rgb, [height, width]) = rgb(page)?;
            let image = Frames::from_rgb(rgb, [1, height, width])
                .map_err(|source| VideoError::Frames { path: path.into(), source })?;
            Ok(png::write(path, &image)?)
        }
    }
}

/// Checks that a chart can be written to `path`: before long work on its values. Leaves no file.
///
/// # Errors
/// Returns an error if the extension is unknown or no file can be created there.
pub fn check_path(path: &Path) -> Result<(), ChartError> {
    medium(path)?;
    check_writable(path).map_err(|source| ChartError::Io { path: path.into(), source })
}

/// Returns the kind of output by the path's extension.
fn medium(path: &Path) -> Result<Medium, ChartError> {
    let ending = path.extension().map(|ending| ending.to_ascii_lowercase());
    match ending.as_ref().and_then(|ending| ending.to_str()) {
        Some("svg") => Ok(Medium::Svg),
        Some("png") => Ok(Medium::Pixels),
        _ => Err(ChartError::Format { path: path.into() }),
    }
}

/// Returns a page as SVG.
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

/// Returns a page as RGB `[height, width, 3]`, and `[height, width]`. Rows are drawn one by one, because the
/// oversampled image of a whole page may need much memory.
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

/// Appends an image that is reduced by `factor` to `[height, width]`, by averaging.
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
