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

#[cfg(test)]
mod tests {
    use super::*;
    use opensora_video::yuv::Colour;

    /// Returns the pixels of columns of a row.
    fn pixels(frame: &impl Source, row: usize, columns: &[usize]) -> Vec<[u8; 3]> {
        let mut planes = [(); 3].map(|()| vec![0; columns.len()]);
        frame.gather(row, columns, planes.each_mut().map(|plane| &mut plane[..]));
        (0..columns.len()).map(|i| [0, 1, 2].map(|plane| planes[plane][i])).collect()
    }

    fn conversions() -> [ToRgb; 2] {
        [ToRgb::NONE, ToRgb::stated(Colour { matrix: 1, full_range: false }).unwrap()]
    }

    #[test]
    fn rgb_frames_are_rows_of_pixels() {
        let data: Vec<u8> = (0..18).collect();
        let frame = Rgb::new(&data, 3, 2).unwrap();
        assert_eq!(frame.size(), (3, 2));
        assert_eq!(pixels(&frame, 1, &[0, 2]), [[9, 10, 11], [15, 16, 17]]);
        assert!(Rgb::new(&data, 3, 3).is_none() && Rgb::new(&data, 2, 2).is_none());
    }

    #[test]
    fn two_by_two_pixels_share_the_colour_of_420_frames() {
        // 5x3 of luma, then 3x2 of each difference.
        let data: Vec<u8> =
            (0..15).map(|i| 60 + 7 * i).chain((0..12).map(|i| 90 + 5 * i)).collect();
        let (blue, red) = (&data[15..21], &data[21..]);
        for to_rgb in conversions() {
            let frame = Yuv420::new(&data, 5, 3, to_rgb).unwrap();
            assert_eq!(frame.size(), (5, 3));
            for columns in [&[0, 1, 2, 3, 4][..], &[1, 4], &[3]] {
                for row in 0..3 {
                    let expected = columns.iter().map(|&column| {
                        let at = row / 2 * 3 + column / 2;
                        to_rgb.pixel(data[row * 5 + column], blue[at], red[at])
                    });
                    assert_eq!(pixels(&frame, row, columns), expected.collect::<Vec<_>>());
                }
            }
        }
        assert!(Yuv420::new(&data[1..], 5, 3, ToRgb::NONE).is_none());
    }

    #[test]
    fn each_pixel_of_444_frames_has_its_colour() {
        let data: Vec<u8> = (0..24).map(|i| 40 + 8 * i).collect();
        for to_rgb in conversions() {
            let frame = Yuv444::new(&data, 4, 2, to_rgb).unwrap();
            assert_eq!(frame.size(), (4, 2));
            for columns in [&[0, 1, 2, 3][..], &[1, 3], &[2]] {
                for row in 0..2 {
                    let expected = columns.iter().map(|&column| {
                        let [y, u, v] = [0, 8, 16].map(|plane| data[plane + row * 4 + column]);
                        to_rgb.pixel(y, u, v)
                    });
                    assert_eq!(pixels(&frame, row, columns), expected.collect::<Vec<_>>());
                }
            }
        }
        assert!(Yuv444::new(&data[1..], 4, 2, ToRgb::NONE).is_none());
    }
}
