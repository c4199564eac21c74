//! Downscaling of frames, bit-exact to OpenCV.
//!
//! Only sampled pixels are read: a source returns single columns of single rows, so that a decoder's planes
//! are not converted as a whole.
//!
//! Source: OpenCV 4.x, `modules/imgproc/src/resize.cpp`: `resizeGeneric_` with `HResizeLinear` and
//! `VResizeLinear` of 8 bits (weights of 11 bits, no antialiasing), and `resizeAreaFast_`, which
//! replaces `INTER_LINEAR` if both sides are halved exactly.

use opensora_video::{picks::Picks, vectors::vectorized};

/// A frame from which single pixels are read.
pub trait Source {
    /// Returns width and height in pixels.
    fn size(&self) -> (usize, usize);

    /// Writes red, green and blue of these columns of a row to `out`, whose slices have the length of
    /// `columns`. Columns are ascending; as many columns as the frame's width are all columns.
    fn gather(&self, row: usize, columns: &[usize], out: [&mut [u8]; 3]);
}

/// The weight 1 in OpenCV's fixed-point numbers.
const ONE: i32 = 1 << 11;

/// Two neighbours and their weights, which sum to [`ONE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tap {
    /// Positions of the neighbours; equal if the weight of the second is 0.
    at: [usize; 2],
    weights: [i32; 2],
}

impl Tap {
    /// Returns the neighbours in the large frame of a pixel of the small one.
    fn new(index: usize, from: usize, to: usize) -> Self {
        let scale = 1.0 / (to as f64 / from as f64);
        let centre = ((index as f64 + 0.5) * scale - 0.5) as f32;
        let floor = centre.floor();
        let last = from - 1;
        let (first, fraction) = match floor {
            low if low < 0.0 => (0, 0.0),
            high if high as usize >= last => (last, 0.0),
            inner => (inner as usize, centre - inner),
        };
        let weight = |part: f32| (part * ONE as f32).round_ties_even() as i32;
        let weights = [weight(1.0 - fraction), weight(fraction)];
        let second = if weights[1] == 0 { first } else { first + 1 };
        Self { at: [first, second], weights }
    }
}

/// Red, green and blue of some pixels as planes, so that loops over them are vectorized.
type Pixels = [Vec<u8>; 3];

/// How pixels are computed.
#[derive(Debug, Clone)]
enum Method {
    /// Copied.
    Keep,
    /// Means of 2x2 pixels.
    Halve,
    /// Weighted means of 2x2 pixels.
    Linear {
        /// Weights of the left and right columns.
        weights: [Vec<i16>; 2],
        rows: Vec<Tap>,
    },
}

/// Scales frames of one size down.
#[derive(Debug, Clone)]
pub(crate) struct Downscale {
    width: usize,
    height: usize,
    method: Method,
    /// Left and right columns of the large frame for each column of the small one; the right ones are empty if
    /// only the left ones are used.
    columns: [Vec<usize>; 2],
    /// Pixels of these columns.
    pixels: [Pixels; 2],
    /// Two rows after the horizontal pass.
    lines: [Line; 2],
}

/// A row of the large frame after the horizontal pass.
#[derive(Debug, Clone, Default)]
struct Line {
    row: Option<usize>,
    /// Weighted sums in units of 16, from which the vertical pass starts, and which fit 16 bits.
    sums: [Vec<i16>; 3],
}

impl Downscale {
    /// Plans the scaling from `from` to `to`, widths and heights above 0.
    pub(crate) fn new(from: (usize, usize), to: (usize, usize)) -> Self {
        let (width, height) = to;
        let (method, columns) = if from == to {
            (Method::Keep, [(0..width).collect(), vec![]])
        } else if from == (2 * width, 2 * height) {
            let every_second = |first| (first..2 * width).step_by(2).collect();
            (Method::Halve, [0, 1].map(every_second))
        } else {
            let taps = |from, to| (0..to).map(move |i| Tap::new(i, from, to));
            let side = |i: usize| taps(from.0, width).map(move |tap| tap.at[i]).collect();
            let weights = |i: usize| taps(from.0, width).map(move |tap| tap.weights[i] as i16);
            let weights = [0, 1].map(|i| weights(i).collect());
            let mut columns: [Vec<usize>; 2] = [0, 1].map(side);
            if columns[0] == columns[1] {
                columns[1].clear();
            }
            (Method::Linear { weights, rows: taps(from.1, height).collect() }, columns)
        };
        let pixels = [(); 2].map(|()| [(); 3].map(|()| vec![0; width]));
        let lines = [(); 2].map(|()| Line { row: None, sums: [(); 3].map(|()| vec![0; width]) });
        Self { width, height, method, columns, pixels, lines }
    }

    /// Returns the pixels of frames of `from` that are sampled for `to`, if they are evenly spaced, so that a
    /// frame of only these pixels gives the same small frame. This is so for odd factors, where only the
    /// centre column or row is sampled.
    pub(crate) fn picks(from: (usize, usize), to: (usize, usize)) -> Option<Picks> {
        let side = |from: usize, to: usize| -> Vec<usize> {
            let taps: Vec<Tap> = (0..to).map(|i| Tap::new(i, from, to)).collect();
            match to < from && taps.iter().all(|tap| tap.at[0] == tap.at[1]) {
                true => taps.iter().map(|tap| tap.at[0]).collect(),
                false => (0..from).collect(),
            }
        };
        let picks = Picks { columns: side(from.0, to.0), rows: side(from.1, to.1) };
        // A side that is halved stays, so that both sides are halved in the one frame if in the other.
        ((picks.columns.len(), picks.rows.len()) != from).then_some(picks)
    }

    /// Returns width and height of the small frames.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    /// Calls `row` with each row of the small frame: red, green and blue.
    pub(crate) fn rows(&mut self, frame: &impl Source, mut row: impl FnMut(usize, [&[u8]; 3])) {
        let Self { height, method, columns, pixels, lines, .. } = self;
        match method {
            Method::Keep => {
                for y in 0..*height {
                    gather(frame, y, columns, pixels);
                    row(y, planes(&pixels[0]));
                }
            }
            Method::Halve => {
                for y in 0..*height {
                    for (at, line) in (2 * y..).zip(&mut *lines) {
                        gather(frame, at, columns, pixels);
                        line.add(pixels);
                    }
                    let [first, _] = pixels;
                    for (i, out) in first.iter_mut().enumerate() {
                        let [upper, lower] = lines.each_ref().map(|line| &line.sums[i]);
                        for ((out, upper), lower) in out.iter_mut().zip(upper).zip(lower) {
                            *out = ((upper + lower + 2) >> 2) as u8;
                        }
                    }
                    row(y, planes(first));
                }
            }
            Method::Linear { weights, rows } => {
                lines.iter_mut().for_each(|line| line.row = None);
                for (y, tap) in rows.iter().enumerate() {
                    for at in tap.at {
                        // Neighbours are an even and an odd row, so rows of the previous pixel that are
                        // needed again are kept.
                        let line = &mut lines[at % 2];
                        if line.row.replace(at) != Some(at) {
                            gather(frame, at, columns, pixels);
                            line.add_weighted(pixels, weights, columns[1].is_empty());
                        }
                    }
                    let [first, _] = pixels;
                    let [upper, lower] = tap.at.map(|at| &lines[at % 2].sums);
                    let [a, b] = tap.weights.map(|weight| weight as i16);
                    for ((out, upper), lower) in first.iter_mut().zip(upper).zip(lower) {
                        weigh(out, [upper, lower], [a, b]);
                    }
                    row(y, planes(first));
                }
            }
        }
    }
}

/// Reads columns of a row.
fn gather(frame: &impl Source, row: usize, columns: &[Vec<usize>; 2], pixels: &mut [Pixels; 2]) {
    for (columns, pixels) in columns.iter().zip(pixels) {
        if !columns.is_empty() {
            frame.gather(row, columns, pixels.each_mut().map(|plane| &mut plane[..]));
        }
    }
}

fn planes(pixels: &Pixels) -> [&[u8]; 3] {
    pixels.each_ref().map(|plane| &plane[..])
}

/// Computes the vertical pass of one colour: two lines with their weights.
fn weigh(out: &mut [u8], [upper, lower]: [&[i16]; 2], [a, b]: [i16; 2]) {
    let part = |weight: i16, sum: i16| ((i32::from(weight) * i32::from(sum)) >> 16) as i16;
    vectorized(|| {
        for ((out, upper), lower) in out.iter_mut().zip(upper).zip(lower) {
            *out = ((part(a, *upper) + part(b, *lower) + 2) >> 2) as u8;
        }
    });
}

impl Line {
    /// Returns sums of left and right pixels.
    fn add(&mut self, [left, right]: &[Pixels; 2]) {
        for ((sums, left), right) in self.sums.iter_mut().zip(left).zip(right) {
            for ((sum, left), right) in sums.iter_mut().zip(left).zip(right) {
                *sum = i16::from(*left) + i16::from(*right);
            }
        }
    }

    /// Computes weighted sums of left and right pixels, or of the left ones only.
    fn add_weighted(
        &mut self,
        [left, right]: &[Pixels; 2],
        [a, b]: &[Vec<i16>; 2],
        left_alone: bool,
    ) {
        for ((sums, left), right) in self.sums.iter_mut().zip(left).zip(right) {
            if left_alone {
                for (sum, left) in sums.iter_mut().zip(left) {
                    *sum = i16::from(*left) * (ONE >> 4) as i16;
                }
                continue;
            }
            let taps = left.iter().zip(right).zip(a.iter().zip(b));
            let part = |weight: i16, pixel: u8| i32::from(weight) * i32::from(pixel);
            vectorized(|| {
                for (sum, ((left, right), (a, b))) in sums.iter_mut().zip(taps) {
                    *sum = ((part(*a, *left) + part(*b, *right)) >> 4) as i16;
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Rgb;

    /// Returns the small frame of `[H, W, 3]` bytes.
    fn small(data: &[u8], from: (usize, usize), to: (usize, usize)) -> Vec<u8> {
        let mut out = Vec::new();
        let frame = Rgb::new(data, from.0, from.1).unwrap();
        Downscale::new(from, to).rows(&frame, |_, [red, green, blue]| {
            let pixels = red.iter().zip(green).zip(blue);
            out.extend(pixels.flat_map(|((r, g), b)| [*r, *g, *b]));
        });
        out
    }

    /// Returns pseudo-random bytes.
    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn frames_of_the_target_size_are_copied() {
        let data = noise(5 * 3 * 3);
        assert_eq!(small(&data, (5, 3), (5, 3)), data);
    }

    #[test]
    fn halving_takes_means_of_four() {
        let grey: Vec<u8> = [1, 2, 9, 0, 3, 4, 0, 1].iter().flat_map(|&v| [v; 3]).collect();
        // (1 + 2 + 3 + 4 + 2) / 4 and (9 + 0 + 0 + 1 + 2) / 4, rounded down.
        assert_eq!(small(&grey, (4, 2), (2, 1)), [3, 3, 3, 3, 3, 3]);
    }

    #[test]
    fn centre_columns_of_five_are_copied() {
        // 1280 to 256 and 720 to 144: pixel 5 i + 2.
        let taps: Vec<Tap> = (0..256).map(|i| Tap::new(i, 1280, 256)).collect();
        for (i, tap) in taps.iter().enumerate() {
            assert_eq!(*tap, Tap { at: [5 * i + 2; 2], weights: [ONE, 0] });
        }
        assert!(Downscale::new((1280, 720), (256, 144)).columns[1].is_empty());
    }

    #[test]
    fn frames_of_the_picked_pixels_give_the_same_result() {
        for (from, to, left) in [
            ((1280, 720), (256, 144), Some((256, 144))),
            ((720, 1280), (144, 256), Some((144, 256))),
            ((768, 432), (256, 144), Some((256, 144))),
            ((771, 433), (257, 144), Some((257, 433))),
            // Odd factors on one side only.
            ((1280, 718), (256, 144), Some((256, 718))),
            ((1278, 720), (256, 144), Some((1278, 144))),
            ((1280, 534), (256, 107), Some((256, 534))),
            ((30, 4), (10, 2), Some((10, 4))),
            ((3, 4), (1, 2), Some((1, 4))),
            ((4, 3), (2, 1), Some((4, 1))),
            ((2, 6), (1, 2), Some((2, 2))),
            ((4, 4), (2, 2), None),
            // Even factors, fractional ones, and 1.
            ((1024, 576), (256, 144), None),
            ((640, 360), (256, 144), None),
            ((512, 288), (256, 144), None),
            ((256, 144), (256, 144), None),
            ((3, 3), (4, 4), None),
        ] {
            let picks = Downscale::picks(from, to);
            let size = |picks: &Picks| (picks.columns.len(), picks.rows.len());
            assert_eq!(picks.as_ref().map(size), left, "{from:?}");
            let Some(picks) = picks else { continue };
            let data = noise(from.0 * from.1 * 3);
            let pixel =
                |row: &usize, column: &usize| data[3 * (row * from.0 + column)..][..3].to_vec();
            let row = |row| picks.columns.iter().flat_map(move |column| pixel(row, column));
            let picked: Vec<u8> = picks.rows.iter().flat_map(row).collect();
            assert!(small(&data, from, to) == small(&picked, size(&picks), to), "{from:?}");
        }
    }

    #[test]
    fn fractional_positions_are_interpolated() {
        // 640 to 256: 2.5 i + 0.75.
        assert_eq!(Tap::new(0, 640, 256), Tap { at: [0, 1], weights: [512, 1536] });
        assert_eq!(Tap::new(1, 640, 256), Tap { at: [3, 4], weights: [1536, 512] });
        // Enlarging, as for rounded sizes of narrow frames, stays within the edges.
        assert_eq!(Tap::new(0, 3, 4), Tap { at: [0, 0], weights: [ONE, 0] });
        assert_eq!(Tap::new(3, 3, 4), Tap { at: [2, 2], weights: [ONE, 0] });
    }

    #[test]
    fn slopes_are_interpolated_on_both_sides() {
        // Positions 0.75 and 3.25 of values 16 x + 32 y.
        let grey = (0..25u8).flat_map(|i| [16 * (i % 5) + 32 * (i / 5); 3]);
        let found = small(&grey.collect::<Vec<_>>(), (5, 5), (2, 2));
        assert_eq!(found, [36, 76, 116, 156].map(|value| [value; 3]).concat());
    }

    #[test]
    fn flat_frames_stay_flat() {
        for (from, to) in [((7, 5), (3, 2)), ((640, 360), (256, 144)), ((13, 9), (13, 4))] {
            for value in [0, 1, 127, 254, 255] {
                let data = vec![value; from.0 * from.1 * 3];
                assert!(small(&data, from, to).iter().all(|&v| v == value), "{from:?} {value}");
            }
        }
    }
}
