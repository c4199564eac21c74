//! Contact sheets: several clips in one image.

use crate::{Frames, FramesError, frames::MAX_SIDE};

/// Gap between and around frames in pixels, before scaling.
const GAP: usize = 2;
/// Grey level of gaps, which differs from black and white frames.
const SEPARATOR: u8 = 128;

/// Options of [`contact_sheet`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SheetOptions {
    /// Frames of each clip, evenly spaced from the first to the last; 0 counts as 1.
    pub columns: usize,
    /// Side of the square that each pixel becomes; 0 counts as 1.
    pub scale: usize,
}

impl Default for SheetOptions {
    fn default() -> Self {
        Self { columns: 8, scale: 1 }
    }
}

/// Returns the height or width of a contact sheet of `cells` frames one after another, whose side is `cell`.
pub fn side(cells: usize, cell: usize, scale: usize) -> usize {
    let pixels = cells.saturating_mul(cell.saturating_add(GAP));
    if cells == 0 { 0 } else { pixels.saturating_add(GAP).saturating_mul(scale) }
}

/// Returns an image with one row of frames for each clip. Shorter clips leave cells empty; smaller frames
/// are aligned to the upper left corner of their cell.
///
/// ```
/// use opensora_video::{Frames, sheet::{SheetOptions, contact_sheet}};
///
/// let clip = Frames::from_rgb(vec![200; 3 * 16 * 8 * 8], [16, 8, 8])?;
/// let options = SheetOptions { columns: 4, ..SheetOptions::default() };
/// let sheet = contact_sheet(&[clip.clone(), clip], &options)?;
/// // Gaps of two pixels between frames and around them.
/// assert_eq!((sheet.width(), sheet.height()), (4 * 10 + 2, 2 * 10 + 2));
/// # Ok::<(), opensora_video::FramesError>(())
/// ```
///
/// # Errors
/// Returns an error if there are no clips or the image would be too large.
pub fn contact_sheet(clips: &[Frames], options: &SheetOptions) -> Result<Frames, FramesError> {
    let (columns, scale) = (options.columns.max(1), options.scale.max(1));
    let columns = clips.iter().map(|clip| clip.len().min(columns)).max().unwrap_or(0);
    let cell_width = clips.iter().map(Frames::width).max().unwrap_or(0);
    let cell_height = clips.iter().map(Frames::height).max().unwrap_or(0);
    let (width, height) = (side(columns, cell_width, scale), side(clips.len(), cell_height, scale));
    let possible = |pixels: usize| (1..=MAX_SIDE).contains(&pixels);
    if !possible(width) || !possible(height) {
        let shape = [1, height, width, 3];
        return Err(FramesError::Shape { shape, axes: "[T, H, W, 3]" });
    }

    let mut sheet = vec![SEPARATOR; 3 * width * height];
    for (row, clip) in clips.iter().enumerate() {
        for (column, index) in spaced(clip.len(), columns).into_iter().enumerate() {
            let Some(frame) = clip.frame(index) else { continue };
            let left = (GAP + column * (cell_width + GAP)) * scale;
            let top = (GAP + row * (cell_height + GAP)) * scale;
            for y in 0..clip.height() * scale {
                let line = &frame[3 * (y / scale) * clip.width()..][..3 * clip.width()];
                let start = 3 * ((top + y) * width + left);
                let target = &mut sheet[start..start + line.len() * scale];
                for (pixels, rgb) in target.chunks_exact_mut(3 * scale).zip(line.chunks_exact(3)) {
                    pixels.chunks_exact_mut(3).for_each(|pixel| pixel.copy_from_slice(rgb));
                }
            }
        }
    }
    Frames::from_rgb(sheet, [1, height, width])
}

/// Returns at most `count` evenly spaced indices of `length`, including the first and last.
fn spaced(length: usize, count: usize) -> Vec<usize> {
    let count = count.min(length);
    match count {
        0 | 1 => vec![0; count],
        _ => (0..count).map(|i| (i * (length - 1) + (count - 1) / 2) / (count - 1)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A clip whose frames are of one colour each.
    fn clip(colors: &[u8], [height, width]: [usize; 2]) -> Frames {
        let data = colors.iter().flat_map(|&color| vec![color; 3 * height * width]).collect();
        Frames::from_rgb(data, [colors.len(), height, width]).unwrap()
    }

    #[test]
    fn frames_are_spread_over_the_clip() {
        assert_eq!(spaced(16, 4), [0, 5, 10, 15]);
        assert_eq!(spaced(16, 1), [0]);
        assert_eq!(spaced(3, 8), [0, 1, 2]);
        assert_eq!(spaced(5, 3), [0, 2, 4]);
    }

    #[test]
    fn every_clip_has_a_row() {
        let clips = [clip(&[10, 20, 30], [2, 3]), clip(&[40], [1, 3])];
        let sheet = contact_sheet(&clips, &SheetOptions { columns: 2, scale: 4 }).unwrap();
        assert_eq!((sheet.len(), sheet.height(), sheet.width()), (1, 4 * 10, 4 * 12));
        let pixel = |y: usize, x: usize| sheet.data()[3 * (4 * y * sheet.width() + 4 * x)];
        assert_eq!([pixel(1, 1), pixel(2, 2), pixel(3, 4), pixel(3, 5)], [128, 10, 10, 128]);
        assert_eq!([pixel(2, 7), pixel(4, 2), pixel(6, 4), pixel(7, 4)], [30, 128, 40, 128]);
        assert_eq!(pixel(6, 7), SEPARATOR, "no second frame");
        // Every pixel is a square of four.
        let count = sheet.data().iter().filter(|&&byte| byte == 10).count();
        assert_eq!(count, 3 * 6 * 16);
    }

    #[test]
    fn impossible_sheets_are_refused() {
        assert!(contact_sheet(&[], &SheetOptions { columns: 4, scale: 2 }).is_err());
        let one = [clip(&[1, 2], [8, 8])];
        assert!(contact_sheet(&one, &SheetOptions { columns: 2, scale: usize::MAX }).is_err());
        assert!(contact_sheet(&one, &SheetOptions { columns: 2, scale: 2000 }).is_err());
        assert_eq!(
            contact_sheet(&one, &SheetOptions { columns: 0, scale: 0 }).unwrap().width(),
            12
        );
    }
}
