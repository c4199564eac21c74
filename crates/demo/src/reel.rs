//! Clips in a grid with their captions: one video, or one image, that shows several clips.

use opensora_chart::{ChartError, text::Paragraph};
use opensora_video::{
    Frames, FramesError,
    frames::MAX_SIDE,
    sheet::{SheetOptions, contact_sheet},
};

/// Prompts of the reel, written before the model was sampled with them.
pub const PROMPTS: [&str; 6] = [
    "a red circle moves to the right on a black background",
    "an orange ball moves up and to the left on a white background",
    "a green triangle grows on a grey background",
    "a blue cube stays still on a brown background",
    "a purple square falls over a white background",
    "a pink disc shrinks on a black background",
];

/// Error for a grid that cannot be drawn.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GridError {
    /// There are no tiles, or an option is 0.
    #[error("{tiles} tiles in {columns} columns, scaled by {scale}: expected at least 1 of each")]
    Empty {
        /// The number of tiles.
        tiles: usize,
        /// [`GridOptions::columns`].
        columns: usize,
        /// [`GridOptions::scale`].
        scale: usize,
    },
    /// A caption cannot be drawn.
    #[error(transparent)]
    Caption(#[from] ChartError),
    /// The result would be too large.
    #[error(transparent)]
    Frames(#[from] FramesError),
}

/// Space between tiles and around them in pixels.
const GAP: usize = 8;
/// Maximum width of a caption in pixels, as [`Paragraph`] allows.
const MAX_LINE: u32 = 4096;
/// Space between a clip and its caption in pixels.
const CAPTION_GAP: usize = 4;

/// A clip of a grid.
#[derive(Debug, Clone, Copy)]
pub struct Tile<'a> {
    /// Text below the clip.
    pub caption: &'a str,
    /// The clip.
    pub clip: &'a Frames,
}

/// Options of [`grid`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GridOptions {
    /// Tiles per row, at least 1.
    pub columns: usize,
    /// Side of the square that each pixel of a clip becomes, at least 1.
    pub scale: usize,
    /// Height of the captions' letters in pixels, 6 to 96.
    pub text_size: u32,
    /// Maximum number of lines of a caption, 1 to 100.
    pub most_lines: usize,
}

impl Default for GridOptions {
    /// Returns three columns, clips of four times their size, captions of at most two lines.
    fn default() -> Self {
        Self { columns: 3, scale: 4, text_size: 14, most_lines: 2 }
    }
}

/// Returns a clip that shows all tiles at once, row by row on white, with captions below the clips. It is as long as the
/// longest clip; shorter ones hold their last frame. Height and width are even, as H.264 requires.
///
/// ```
/// use opensora_demo::reel::{GridOptions, Tile, grid};
/// use opensora::video::Frames;
///
/// let clip = Frames::from_rgb(vec![200; 3 * 2 * 48 * 48], [2, 48, 48])?;
/// let tile = Tile { caption: "a red circle grows", clip: &clip };
/// let both = grid(&[tile, tile], &GridOptions { columns: 2, ..GridOptions::default() })?;
/// assert_eq!((both.len(), both.width()), (2, 8 + 2 * (4 * 48 + 8)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Returns an error if there are no tiles, an option is outside its range, or the result would be too large.
pub fn grid(tiles: &[Tile<'_>], options: &GridOptions) -> Result<Frames, GridError> {
    let layout = Layout::new(tiles, options)?;
    let captions = tiles
        .iter()
        .map(|tile| layout.caption(tile.caption).render())
        .collect::<Result<Vec<_>, _>>()?;
    let Layout { width, height, frames, .. } = layout;
    let mut page = vec![255; 3 * width * height];
    for (index, caption) in captions.iter().enumerate() {
        let [left, top] = layout.corner(index);
        let top = top + layout.cell[0] + CAPTION_GAP;
        paste(&mut page, width, caption.data(), caption.width(), [left, top, 1]);
    }
    let mut data = Vec::with_capacity(frames * page.len());
    for at in 0..frames {
        for (index, Tile { clip, .. }) in tiles.iter().enumerate() {
            let [left, top] = layout.corner(index);
            let frame = clip.frame(at.min(clip.len() - 1)).unwrap_or_default();
            paste(&mut page, width, frame, clip.width(), [left, top, options.scale]);
        }
        data.extend_from_slice(&page);
    }
    Ok(Frames::from_rgb(data, [frames, height, width])?)
}

/// Returns an image with one row of frames for each clip, evenly spaced from the first to the last, and its caption
/// below.
///
/// # Errors
/// Returns the errors of [`grid`].
pub fn sheet(tiles: &[Tile<'_>], options: &SheetOptions) -> Result<Frames, GridError> {
    let rows = tiles
        .iter()
        .map(|tile| contact_sheet(std::slice::from_ref(tile.clip), options))
        .collect::<Result<Vec<_>, _>>()?;
    let rows: Vec<Tile<'_>> =
        tiles.iter().zip(&rows).map(|(tile, clip)| Tile { caption: tile.caption, clip }).collect();
    grid(&rows, &GridOptions { columns: 1, scale: 1, text_size: 14, most_lines: 1 })
}

/// Positions of a grid, in pixels.
struct Layout {
    options: GridOptions,
    /// Height and width of a tile without its caption.
    cell: [usize; 2],
    /// Height and width of the grid.
    height: usize,
    width: usize,
    /// Frames of the longest clip.
    frames: usize,
}

impl Layout {
    fn new(tiles: &[Tile<'_>], options: &GridOptions) -> Result<Self, GridError> {
        let options = *options;
        let GridOptions { columns, scale, .. } = options;
        if tiles.is_empty() || columns == 0 || scale == 0 {
            return Err(GridError::Empty { tiles: tiles.len(), columns, scale });
        }
        let most = |side: fn(&Frames) -> usize| {
            tiles.iter().map(|tile| side(tile.clip)).max().unwrap_or(0)
        };
        let cell =
            [most(Frames::height), most(Frames::width)].map(|side| side.saturating_mul(scale));
        let mut layout = Self { options, cell, height: 0, width: 0, frames: most(Frames::len) };
        let side = |count: usize, tile: usize| {
            let pixels = count.saturating_mul(tile.saturating_add(GAP)).saturating_add(GAP);
            pixels.saturating_add(pixels % 2)
        };
        let columns = columns.min(tiles.len());
        let rows = tiles.len().div_ceil(columns);
        layout.width = side(columns, cell[1]);
        layout.height = side(rows, layout.tile_height());
        // Rejected before memory is allocated.
        if layout.width > MAX_SIDE || layout.height > MAX_SIDE {
            let shape = [layout.frames, layout.height, layout.width, 3];
            return Err(FramesError::Shape { shape, axes: "[T, H, W, 3]" }.into());
        }
        Ok(layout)
    }

    /// Returns the height of a tile with its caption.
    fn tile_height(&self) -> usize {
        let line = (self.options.text_size as usize).saturating_mul(7) / 5;
        let caption = line.saturating_mul(self.options.most_lines);
        self.cell[0].saturating_add(CAPTION_GAP).saturating_add(caption)
    }

    fn caption<'a>(&self, text: &'a str) -> Paragraph<'a> {
        let GridOptions { text_size: size, most_lines, .. } = self.options;
        // Wider lines than a paragraph can have are not needed.
        let width = u32::try_from(self.cell[1]).unwrap_or(u32::MAX).min(MAX_LINE);
        Paragraph { text, size, width, most_lines }
    }

    /// Returns the upper left corner (left, top) of a tile.
    fn corner(&self, index: usize) -> [usize; 2] {
        let [row, column] = [index / self.options.columns, index % self.options.columns];
        [GAP + column * (self.cell[1] + GAP), GAP + row * (self.tile_height() + GAP)]
    }
}

/// Copies an image of `image_width` to (left, top) of a page, each pixel as a square of side `scale`.
fn paste(
    page: &mut [u8],
    page_width: usize,
    image: &[u8],
    image_width: usize,
    [left, top, scale]: [usize; 3],
) {
    for (y, line) in image.chunks_exact(3 * image_width).enumerate() {
        for row in 0..scale {
            let start = 3 * ((top + y * scale + row) * page_width + left);
            let target = &mut page[start..start + line.len() * scale];
            for (pixels, rgb) in target.chunks_exact_mut(3 * scale).zip(line.chunks_exact(3)) {
                pixels.chunks_exact_mut(3).for_each(|pixel| pixel.copy_from_slice(rgb));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clip(grays: &[u8], side: usize) -> Frames {
        let data = grays.iter().flat_map(|&gray| vec![gray; 3 * side * side]).collect();
        Frames::from_rgb(data, [grays.len(), side, side]).unwrap()
    }

    #[test]
    fn clips_stand_in_rows_above_their_captions() {
        let (long, short) = (clip(&[10, 20, 30], 16), clip(&[40], 16));
        let tile = |clip| Tile { caption: "ab", clip };
        let tiles = [tile(&long), tile(&short), tile(&long)];
        let options = GridOptions { columns: 2, scale: 2, text_size: 10, most_lines: 1 };
        let page = grid(&tiles, &options).unwrap();
        // A tile is 32 wide and 32 + 4 + 14 high.
        assert_eq!([page.len(), page.height(), page.width()], [3, 2 * 58 + 8, 2 * 40 + 8]);
        let pixel = |frame: usize, y: usize, x: usize| {
            page.frame(frame).unwrap()[3 * (y * page.width() + x)]
        };
        assert_eq!([0, 1, 2].map(|frame| pixel(frame, 8, 8)), [10, 20, 30]);
        assert_eq!([0, 1, 2].map(|frame| pixel(frame, 39, 79)), [40, 40, 40]);
        assert_eq!([pixel(1, 66, 8), pixel(1, 7, 8), pixel(1, 66, 48)], [20, 255, 255]);
        let dark = |top: usize, left: usize| {
            let places = (top..top + 14).flat_map(|y| (left..left + 32).map(move |x| (y, x)));
            places.filter(|&(y, x)| pixel(0, y, x) < 220).count()
        };
        // Thin letters have no black pixels.
        assert!(dark(44, 8) > 5, "{}", dark(44, 8));
        assert_eq!([dark(44, 48), dark(102, 8), dark(102, 48)], [dark(44, 8), dark(44, 8), 0]);
    }

    #[test]
    fn impossible_grids_are_rejected() {
        let small = clip(&[0], 16);
        let tile = Tile { caption: "", clip: &small };
        let defaults = GridOptions::default();
        assert!(grid(&[], &defaults).is_err());
        for options in [
            GridOptions { columns: 0, ..defaults },
            GridOptions { scale: 0, ..defaults },
            GridOptions { scale: usize::MAX, ..defaults },
            GridOptions { text_size: 1, ..defaults },
            GridOptions { text_size: u32::MAX, ..defaults },
            GridOptions { most_lines: usize::MAX, ..defaults },
        ] {
            assert!(grid(&[tile], &options).is_err(), "{options:?}");
        }
    }
}
