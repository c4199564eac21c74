//! Frames of red, green and blue as a source of pixels.

use super::downscale::Source;

/// A frame `[H, W, 3]` of bytes.
#[derive(Debug, Clone, Copy)]
pub struct Rgb<'a> {
    data: &'a [u8],
    width: usize,
    height: usize,
}

impl<'a> Rgb<'a> {
    /// A frame of this size; `None` where the number of bytes is another.
    pub fn new(data: &'a [u8], width: usize, height: usize) -> Option<Self> {
        let expected = width.checked_mul(height)?.checked_mul(3)?;
        (data.len() == expected).then_some(Self { data, width, height })
    }
}

impl Source for Rgb<'_> {
    fn size(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    fn gather(&self, row: usize, columns: &[usize], out: &mut [[u8; 3]]) {
        let line = &self.data[row * self.width * 3..][..self.width * 3];
        let (pixels, _) = line.as_chunks::<3>();
        for (pixel, &column) in out.iter_mut().zip(columns) {
            *pixel = pixels[column];
        }
    }
}
