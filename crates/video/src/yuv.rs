//! Conversion of YUV to RGB in integers, bit-exact with FFmpeg.
//!
//! Results equal those of FFmpeg's `swscale` without `accurate_rnd`, and therefore those of `ffmpeg`, OpenCV and
//! PyAV. Products are truncated, so that colours are up to three steps too dark, but measures that depend on
//! exact colours, such as hues of nearly grey pixels, equal those of these tools.
//!
//! Source: FFmpeg, `libswscale/yuv2rgb.c` (`ff_yuv2rgb_c_init_tables`) and
//! `libswscale/x86/yuv_2_rgb.asm`.

pub use crate::sps::Colour;
use crate::{color::Matrix, vectors::vectorized};

/// A conversion from luma and colour differences to RGB, or of planes that are RGB already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ToRgb {
    /// Luma of black, times 8.
    black: i32,
    /// Factor of luma, times 2^13, as the other factors.
    luma: i32,
    red: i32,
    blue: i32,
    green: [i32; 2],
    /// Planes are red, green and blue already.
    is_done: bool,
}

impl ToRgb {
    /// Returns the conversion for a stream with this colour description; `None` for a matrix that does not
    /// consist of luma weights.
    ///
    /// ```
    /// use opensora_video::yuv::{Colour, ToRgb};
    ///
    /// let bt709 = Colour { matrix: 1, full_range: false };
    /// let to_rgb = ToRgb::stated(bt709).ok_or("not supported")?;
    /// assert_eq!(to_rgb.pixel(16, 128, 128), [0, 0, 0]);
    /// # Ok::<(), &str>(())
    /// ```
    pub fn stated(colour: Colour) -> Option<Self> {
        Matrix::stated(Some(colour)).map(Self::new)
    }

    /// The identity, for planes that are red, green and blue already.
    pub const NONE: Self =
        Self { black: 0, luma: 0, red: 0, blue: 0, green: [0; 2], is_done: true };

    /// Returns RGB of luma, blue and red difference.
    #[inline]
    pub fn pixel(self, y: u8, u: u8, v: u8) -> [u8; 3] {
        if self.is_done { [y, u, v] } else { self.shifted(y, self.shift(u, v)) }
    }

    /// Converts luma, blue and red differences to red, green and blue in place, up to the length of the shortest
    /// slice. Equal to [`pixel`](Self::pixel).
    pub fn in_place(self, [y, u, v]: [&mut [u8]; 3]) {
        if self.is_done {
            return;
        }
        // In 16 bits, so that a vector holds as many values as possible.
        let product = |c: i16, factor: i16| ((i32::from(c) * i32::from(factor)) >> 16) as i16;
        let narrow = |factor: i32| factor as i16;
        let [black, luma, red, blue] = [self.black, self.luma, self.red, self.blue].map(narrow);
        let green = self.green.map(narrow);
        vectorized(|| {
            for ((y, u), v) in y.iter_mut().zip(u).zip(v) {
                let grey = product(8 * i16::from(*y) - black, luma);
                let [cu, cv] = [*u, *v].map(|c| 8 * i16::from(c) - 1024);
                let byte = |x: i16| x.clamp(0, 255) as u8;
                *y = byte(grey + product(cv, red));
                *u = byte(grey + (product(cu, green[0]) + product(cv, green[1])));
                *v = byte(grey + product(cu, blue));
            }
        });
    }

    pub(crate) fn new(matrix: Matrix) -> Self {
        let (red, blue) = (f64::from(matrix.red), f64::from(matrix.blue));
        let green = 1.0 - red - blue;
        let scale = 127.5 / f64::from(matrix.chroma);
        // Rounded to 16 fractional bits first, as in the tables of swscale, then to 13.
        let factor = |x: f64| ((x * 65536.0).round() / 8.0).round() as i32;
        let (red_shift, blue_shift) = (2.0 * (1.0 - red) * scale, 2.0 * (1.0 - blue) * scale);
        Self {
            black: 8 * matrix.black as i32,
            luma: factor(255.0 / f64::from(matrix.luma)),
            red: factor(red_shift),
            blue: factor(blue_shift),
            green: [factor(-blue * blue_shift / green), factor(-red * red_shift / green)],
            is_done: false,
        }
    }

    /// Returns the terms that colour differences add to red, green and blue.
    #[inline]
    pub(crate) fn shift(self, u: u8, v: u8) -> [i32; 3] {
        let [u, v] = [u, v].map(|c| 8 * i32::from(c) - 1024);
        let product = |c: i32, factor: i32| (c * factor) >> 16;
        let green = product(u, self.green[0]) + product(v, self.green[1]);
        [product(v, self.red), green, product(u, self.blue)]
    }

    /// Returns RGB of a luma and the terms of [`shift`](Self::shift).
    #[inline]
    pub(crate) fn shifted(self, y: u8, shift: [i32; 3]) -> [u8; 3] {
        let luma = ((8 * i32::from(y) - self.black) * self.luma) >> 16;
        shift.map(|shift| (luma + shift).clamp(0, 255) as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_at_once_are_as_one_by_one() {
        for (matrix, full_range) in [(1, false), (2, false), (4, false), (7, true), (9, true)] {
            let to_rgb = ToRgb::stated(Colour { matrix, full_range }).unwrap();
            for u in 0..=255u8 {
                let all = || (0..=255u8).flat_map(|y| (0..=255).map(move |v| (y, v)));
                let mut planes = [
                    all().map(|(y, _)| y).collect(),
                    vec![u; 1 << 16],
                    all().map(|(_, v)| v).collect(),
                ];
                to_rgb.in_place(planes.each_mut().map(|plane: &mut Vec<u8>| &mut plane[..]));
                for (i, (y, v)) in all().enumerate() {
                    let found = planes.each_ref().map(|plane| plane[i]);
                    assert_eq!(found, to_rgb.pixel(y, u, v), "{matrix} {y} {u} {v}");
                }
            }
        }
    }

    #[test]
    fn finished_planes_stay_as_they_are() {
        assert_eq!(ToRgb::NONE.pixel(1, 2, 255), [1, 2, 255]);
        let mut planes = [[1], [2], [255]];
        ToRgb::NONE.in_place(planes.each_mut().map(|plane| &mut plane[..]));
        assert_eq!(planes, [[1], [2], [255]]);
    }

    /// Of `swscale`, worked out by hand from its tables.
    #[test]
    fn factors_are_those_of_ffmpeg() {
        let (black, luma) = (128, 9539);
        let of = |red, blue, green| ToRgb { black, luma, red, blue, green, is_done: false };
        let bt601 = of(13075, 16525, [-3209, -6660]);
        let bt709 = of(14686, 17305, [-1747, -4366]);
        for (matrix, expected) in [(1, Some(bt709)), (2, Some(bt601)), (6, Some(bt601)), (8, None)]
        {
            assert_eq!(ToRgb::stated(Colour { matrix, full_range: false }), expected, "{matrix}");
        }
    }
}
