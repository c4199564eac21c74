//! RGB and planar frames as pixel sources.

use crate::downscale::Source;
use opensora_video::yuv::ToRgb;

/// A frame `[H, W, 3]` of bytes: red, green and blue.
#[derive(Debug, Clone, Copy)]
pub struct Rgb<D> {
    data: D,
    width: usize,
    height: usize,
}

impl<D: AsRef<[u8]>> Rgb<D> {
    /// Returns a frame of this size; `None` if the number of bytes does not match.
    pub fn new(data: D, width: usize, height: usize) -> Option<Self> {
        let expected = width.checked_mul(height)?.checked_mul(3)?;
        (data.as_ref().len() == expected).then_some(Self { data, width, height })
    }
}

impl<D: AsRef<[u8]>> Source for Rgb<D> {
    fn size(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    fn gather(&self, row: usize, columns: &[usize], [red, green, blue]: [&mut [u8]; 3]) {
        let line = &self.data.as_ref()[row * self.width * 3..][..self.width * 3];
        let (pixels, _) = line.as_chunks::<3>();
        for (((red, green), blue), &column) in red.iter_mut().zip(green).zip(blue).zip(columns) {
            [*red, *green, *blue] = pixels[column];
        }
    }
}

/// A planar frame of 4:2:0 video: luma, then blue and red differences at half the width and height, rounded
/// up (`yuv420p` of the `ffmpeg` program). Only sampled pixels are converted to RGB.
#[derive(Debug, Clone, Copy)]
pub struct Yuv420<D> {
    data: D,
    width: usize,
    height: usize,
    to_rgb: ToRgb,
}

impl<D: AsRef<[u8]>> Yuv420<D> {
    /// Returns a frame of this size; `None` if the number of bytes does not match.
    pub fn new(data: D, width: usize, height: usize, to_rgb: ToRgb) -> Option<Self> {
        let chroma = width.div_ceil(2).checked_mul(height.div_ceil(2))?.checked_mul(2)?;
        let expected = width.checked_mul(height)?.checked_add(chroma)?;
        (data.as_ref().len() == expected).then_some(Self { data, width, height, to_rgb })
    }
}

impl<D: AsRef<[u8]>> Source for Yuv420<D> {
    fn size(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    fn gather(&self, row: usize, columns: &[usize], mut out: [&mut [u8]; 3]) {
        let half = self.width.div_ceil(2);
        let (luma, chroma) = self.data.as_ref().split_at(self.width * self.height);
        let (blue, red) = chroma.split_at(chroma.len() / 2);
        let luma = &luma[row * self.width..][..self.width];
        let [blue, red] = [blue, red].map(|plane| &plane[row / 2 * half..][..half]);
        let [y, u, v] = out.each_mut();
        for (((y, u), v), &column) in y.iter_mut().zip(&mut **u).zip(&mut **v).zip(columns) {
            (*y, *u, *v) = (luma[column], blue[column / 2], red[column / 2]);
        }
        self.to_rgb.in_place(out);
    }
}

/// A planar frame of 4:4:4 video: luma, blue and red differences at full size (`yuv444p`).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Yuv444<D> {
    data: D,
    width: usize,
    height: usize,
    to_rgb: ToRgb,
}

impl<D: AsRef<[u8]>> Yuv444<D> {
    /// Returns a frame of this size; `None` if the number of bytes does not match.
    pub(crate) fn new(data: D, width: usize, height: usize, to_rgb: ToRgb) -> Option<Self> {
        let expected = width.checked_mul(height)?.checked_mul(3)?;
        (data.as_ref().len() == expected).then_some(Self { data, width, height, to_rgb })
    }
}

impl<D: AsRef<[u8]>> Source for Yuv444<D> {
    fn size(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    fn gather(&self, row: usize, columns: &[usize], mut out: [&mut [u8]; 3]) {
        let plane = self.width * self.height;
        for (index, out) in out.iter_mut().enumerate() {
            let line = &self.data.as_ref()[index * plane + row * self.width..][..self.width];
            if columns.len() == line.len() {
                out[..line.len()].copy_from_slice(line);
            } else {
                out.iter_mut().zip(columns).for_each(|(out, &column)| *out = line[column]);
            }
        }
        self.to_rgb.in_place(out);
    }
}
