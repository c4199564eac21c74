//! The PNG sheet: one clip below the other.

use super::{Entry, PLACES, THUMBNAIL};
use crate::PrepareError;
use opensora_chart::{ChartError, text::Paragraph};
use opensora_video::{Frames, VideoError, png};
use std::path::Path;

/// Maximum number of rows: each has at most about 400 lines of pixels, and images at most 16384.
pub(super) const MOST: usize = 40;
/// Pixels around the sheet, and between two clips.
const MARGIN: usize = 12;
/// Width of the sheet: three thumbnails, their gaps and the margins.
pub(super) const WIDTH: usize = PLACES.len() * (THUMBNAIL[1] + 2) + 2 + 2 * MARGIN;
/// Font sizes of a clip's name and caption in pixels.
const LETTERS: [u32; 2] = [13, 16];
/// Maximum number of lines of a caption.
const LINES: usize = 8;

/// Draws the entries and writes the file.
pub(super) fn save(entries: &[Entry<'_, Frames>], path: &Path) -> Result<(), PrepareError> {
    let words = |text: &str, size: u32, most_lines: usize| {
        Paragraph { text, size, width: (WIDTH - 2 * MARGIN) as u32, most_lines }.render()
    };
    let mut sheet = vec![255; 3 * WIDTH * MARGIN];
    for entry in entries {
        paste(&mut sheet, &words(&entry.headline(), LETTERS[0], 1)?);
        match &entry.look {
            Ok((strip, _)) => paste(&mut sheet, strip),
            Err(reason) => {
                let reason = format!("cannot be read: {reason}");
                paste(&mut sheet, &words(&reason, LETTERS[1], 2)?);
            }
        }
        paste(&mut sheet, &words(entry.caption, LETTERS[1], LINES)?);
        sheet.resize(sheet.len() + 3 * WIDTH * MARGIN, 255);
    }
    let shape = [1, sheet.len() / (3 * WIDTH), WIDTH];
    let image = |source| ChartError::Image(VideoError::Frames { path: path.into(), source });
    let still = Frames::from_rgb(sheet, shape).map_err(image)?;
    Ok(png::write(path, &still).map_err(ChartError::Image)?)
}

/// Appends an image below the sheet.
fn paste(sheet: &mut Vec<u8>, picture: &Frames) {
    let rest = WIDTH - MARGIN - picture.width();
    for row in picture.data().chunks_exact(3 * picture.width()) {
        sheet.resize(sheet.len() + 3 * MARGIN, 255);
        sheet.extend(row);
        sheet.resize(sheet.len() + 3 * rest, 255);
    }
}
