//! Conversion of RGB to YUV 4:2:0 and back.
//!
//! Written files state their colour matrix, which is also the default of players: BT.601 below 720 rows, else
//! BT.709, both in limited range. Players that ignore the statement show the same colours.

use crate::{sps::Colour, yuv::ToRgb};

/// A colour matrix, by the luma weights of red and blue.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Matrix {
    pub(crate) red: f32,
    pub(crate) blue: f32,
    /// Luma of black, and steps from black to white and of half a colour difference.
    pub(crate) black: f32,
    pub(crate) luma: f32,
    pub(crate) chroma: f32,
}

/// Planes of 4:2:0 video.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Planes {
    /// Columns of the luma plane, even.
    pub(crate) width: usize,
    /// Rows of the luma plane, even.
    pub(crate) height: usize,
    /// Luma, `[height, width]`.
    pub(crate) y: Vec<u8>,
    /// Blue difference, `[height / 2, width / 2]`.
    pub(crate) u: Vec<u8>,
    /// Red difference, `[height / 2, width / 2]`.
    pub(crate) v: Vec<u8>,
}

impl Matrix {
    /// `matrix_coefficients` of BT.709, of nothing in particular and of BT.601 (H.264, table E-5).
    const BT709: u8 = 1;
    pub(crate) const UNSTATED: u8 = 2;
    const BT601: u8 = 6;

    /// Returns the matrix code (H.264, table E-5) of written files with `height` rows.
    pub(crate) fn code_for(height: usize) -> u8 {
        if height < 720 { Self::BT601 } else { Self::BT709 }
    }

    /// Returns the matrix of written files with `height` rows.
    pub(crate) fn assumed_for(height: usize) -> Self {
        let (red, blue) =
            if Self::code_for(height) == Self::BT601 { (0.299, 0.114) } else { (0.2126, 0.0722) };
        Self { red, blue, black: 16.0, luma: 219.0, chroma: 112.0 }
    }

    /// Returns the matrix of a colour description; `None` if the matrix does not consist of luma weights. An
    /// unspecified matrix is BT.601 at every size, as in FFmpeg's `swscale`, so that colours equal those of
    /// `ffmpeg`, OpenCV and PyAV.
    pub(crate) fn stated(colour: Option<Colour>) -> Option<Self> {
        let unstated = Colour { matrix: Self::UNSTATED, full_range: false };
        let Colour { matrix, full_range } = colour.unwrap_or(unstated);
        let (red, blue) = match matrix {
            Self::BT709 => (0.2126, 0.0722),
            4 => (0.30, 0.11),
            Self::UNSTATED | 5 | Self::BT601 => (0.299, 0.114),
            7 => (0.212, 0.087),
            9 => (0.2627, 0.0593),
            _ => return None,
        };
        let (black, luma, chroma) =
            if full_range { (0.0, 255.0, 127.5) } else { (16.0, 219.0, 112.0) };
        Some(Self { red, blue, black, luma, chroma })
    }

    /// Returns luma and colour differences (centred at 128), not rounded.
    fn to_yuv(self, [r, g, b]: [f32; 3]) -> [f32; 3] {
        let luma = self.red * r + (1.0 - self.red - self.blue) * g + self.blue * b;
        let scale = |difference: f32, weight: f32| {
            128.0 + difference * (self.chroma / 255.0) / (1.0 - weight)
        };
        [
            self.black + luma * (self.luma / 255.0),
            scale(b - luma, self.blue),
            scale(r - luma, self.red),
        ]
    }

    /// Converts one frame `[height, width, 3]` with even sides to planes. A colour difference is the mean of its
    /// four pixels.
    pub(crate) fn planes(self, rgb: &[u8], height: usize, width: usize) -> Planes {
        debug_assert!(height.is_multiple_of(2) && width.is_multiple_of(2));
        let pixel = |row: usize, column: usize| {
            let at = 3 * (row * width + column);
            self.to_yuv([rgb[at] as f32, rgb[at + 1] as f32, rgb[at + 2] as f32])
        };
        let mut planes = Planes {
            width,
            height,
            y: Vec::with_capacity(height * width),
            u: Vec::with_capacity(height * width / 4),
            v: Vec::with_capacity(height * width / 4),
        };
        for row in 0..height {
            planes.y.extend((0..width).map(|column| round(pixel(row, column)[0])));
        }
        for row in (0..height).step_by(2) {
            for column in (0..width).step_by(2) {
                let four =
                    [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(r, c)| pixel(row + r, column + c));
                let mean = |i: usize| round(four.iter().map(|yuv| yuv[i]).sum::<f32>() / 4.0);
                planes.u.push(mean(1));
                planes.v.push(mean(2));
            }
        }
        planes
    }

    /// Converts planes to one frame `[height, width, 3]`. Each colour difference is used for its four pixels.
    pub(crate) fn rgb(self, planes: &Planes) -> Vec<u8> {
        let to_rgb = ToRgb::new(self);
        let &Planes { width, height, .. } = planes;
        let mut rgb = vec![0; 3 * height * width];
        for (row, line) in rgb.chunks_exact_mut(3 * width).enumerate() {
            let chroma = (row / 2) * (width / 2)..(row / 2 + 1) * (width / 2);
            let luma = planes.y[row * width..][..width].as_chunks::<2>().0;
            let differences = planes.u[chroma.clone()].iter().zip(&planes.v[chroma]);
            let pairs = line.as_chunks_mut::<6>().0.iter_mut();
            for ((pair, luma), (u, v)) in pairs.zip(luma).zip(differences) {
                let shift = to_rgb.shift(*u, *v);
                let [[a, b, c], [d, e, f]] = luma.map(|y| to_rgb.shifted(y, shift));
                *pair = [a, b, c, d, e, f];
            }
        }
        rgb
    }
}

fn round(x: f32) -> u8 {
    (x + 0.5).clamp(0.0, 255.0) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_colours_have_their_known_codes() {
        let sd = Matrix::assumed_for(256);
        // BT.601 limited range: white, black, red, green, blue.
        for (rgb, yuv) in [
            ([255, 255, 255], [235, 128, 128]),
            ([0, 0, 0], [16, 128, 128]),
            ([255, 0, 0], [81, 90, 240]),
            ([0, 255, 0], [145, 54, 34]),
            ([0, 0, 255], [41, 240, 110]),
        ] {
            assert_eq!(sd.to_yuv(rgb.map(|c| c as f32)).map(round), yuv);
        }
        let hd = Matrix::assumed_for(720);
        assert_eq!(hd.to_yuv([255.0, 0.0, 0.0]).map(round), [63, 102, 240]);
    }

    #[test]
    fn colours_come_back_within_rounding() {
        for height in [256, 1080] {
            let matrix = Matrix::assumed_for(height);
            for r in (0..=255).step_by(15) {
                for g in (0..=255).step_by(15) {
                    for b in (0..=255).step_by(15) {
                        let rgb: Vec<u8> = [r as u8, g as u8, b as u8].repeat(4);
                        let back = matrix.rgb(&matrix.planes(&rgb, 2, 2));
                        for (got, want) in back.iter().zip(&rgb) {
                            assert!(got.abs_diff(*want) <= 3, "{rgb:?} {back:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_a_stream_states_counts() {
        let stated = |matrix, full_range| Matrix::stated(Some(Colour { matrix, full_range }));
        assert_eq!(Matrix::stated(None), Some(Matrix::assumed_for(256)));
        assert_eq!(stated(2, false), Some(Matrix::assumed_for(256)));
        assert_eq!(stated(1, false), Some(Matrix::assumed_for(720)));
        assert_eq!(stated(Matrix::code_for(720), false), Some(Matrix::assumed_for(720)));
        assert_eq!(stated(8, false), None);
        // Full range, as in JPEG: red is 76, 85, 255 there.
        let full = stated(5, true).unwrap();
        assert_eq!(full.to_yuv([255.0, 0.0, 0.0]).map(round), [76, 85, 255]);
        assert_eq!(ToRgb::new(full).pixel(255, 128, 128), [255; 3]);
    }
}
