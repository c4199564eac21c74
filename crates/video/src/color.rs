//! RGB to the planes of a video codec and back.
//!
//! Files written here carry no statement of their colour matrix (the encoder writes no VUI), so
//! they use what players assume without one: BT.601 below 720 rows, BT.709 from there on, both in
//! limited range.

/// A colour matrix in limited range, by the luma weights of red and blue.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Matrix {
    red: f32,
    blue: f32,
}

/// Planes of 4:2:0 video.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planes {
    /// Columns of the luma plane, even.
    pub width: usize,
    /// Rows of the luma plane, even.
    pub height: usize,
    /// Luma, `[height, width]`.
    pub y: Vec<u8>,
    /// Blue difference, `[height / 2, width / 2]`.
    pub u: Vec<u8>,
    /// Red difference, `[height / 2, width / 2]`.
    pub v: Vec<u8>,
}

impl Matrix {
    /// What players assume for a picture of so many rows.
    pub fn assumed_for(height: usize) -> Self {
        if height < 720 {
            Self { red: 0.299, blue: 0.114 }
        } else {
            Self { red: 0.2126, blue: 0.0722 }
        }
    }

    /// Luma 16..=235 and colour differences about 128, not rounded.
    fn to_yuv(self, [r, g, b]: [f32; 3]) -> [f32; 3] {
        let luma = self.red * r + (1.0 - self.red - self.blue) * g + self.blue * b;
        let scale =
            |difference: f32, weight: f32| 128.0 + difference * (112.0 / 255.0) / (1.0 - weight);
        [16.0 + luma * (219.0 / 255.0), scale(b - luma, self.blue), scale(r - luma, self.red)]
    }

    fn to_rgb(self, [y, u, v]: [u8; 3]) -> [u8; 3] {
        let luma = (y as f32 - 16.0) * (255.0 / 219.0);
        let scale = |c: u8, weight: f32| (c as f32 - 128.0) * (255.0 / 112.0) * (1.0 - weight);
        let (blue, red) = (luma + scale(u, self.blue), luma + scale(v, self.red));
        let green = (luma - self.red * red - self.blue * blue) / (1.0 - self.red - self.blue);
        [red, green, blue].map(round)
    }

    /// One frame `[height, width, 3]` to planes; an odd side repeats its last row or column.
    pub fn planes(self, rgb: &[u8], height: usize, width: usize) -> Planes {
        let (even_h, even_w) = (height.next_multiple_of(2), width.next_multiple_of(2));
        let pixel = |row: usize, column: usize| {
            let at = 3 * (row.min(height - 1) * width + column.min(width - 1));
            self.to_yuv([rgb[at] as f32, rgb[at + 1] as f32, rgb[at + 2] as f32])
        };
        let mut planes = Planes {
            width: even_w,
            height: even_h,
            y: Vec::with_capacity(even_h * even_w),
            u: Vec::with_capacity(even_h * even_w / 4),
            v: Vec::with_capacity(even_h * even_w / 4),
        };
        for row in 0..even_h {
            planes.y.extend((0..even_w).map(|column| round(pixel(row, column)[0])));
        }
        for row in (0..even_h).step_by(2) {
            for column in (0..even_w).step_by(2) {
                let four =
                    [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(r, c)| pixel(row + r, column + c));
                let mean = |i: usize| round(four.iter().map(|yuv| yuv[i]).sum::<f32>() / 4.0);
                planes.u.push(mean(1));
                planes.v.push(mean(2));
            }
        }
        planes
    }

    /// Planes to one frame `[height, width, 3]`; each colour difference serves its four pixels.
    pub fn rgb(self, planes: &Planes) -> Vec<u8> {
        let mut rgb = Vec::with_capacity(3 * planes.height * planes.width);
        for row in 0..planes.height {
            for column in 0..planes.width {
                let chroma = (row / 2) * (planes.width / 2) + column / 2;
                let y = planes.y[row * planes.width + column];
                rgb.extend(self.to_rgb([y, planes.u[chroma], planes.v[chroma]]));
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
    fn odd_sides_repeat_their_edge() {
        let planes = Matrix::assumed_for(3).planes(&[200; 3 * 3 * 5], 3, 5);
        assert_eq!((planes.height, planes.width), (4, 6));
        assert!(planes.y.iter().all(|&y| y == planes.y[0]) && planes.y.len() == 24);
        assert_eq!((planes.u.len(), planes.v.len()), (6, 6));
    }
}
