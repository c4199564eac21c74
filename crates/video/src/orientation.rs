//! The display matrix of a video: rotation and mirroring of stored frames.
//!
//! Phones store frames in the orientation of the sensor and state the rotation in the container. Frames are
//! rotated in this process for both decoders, so that their results are equal.

/// One of the eight orientations of a frame: the stored frame is transposed first, then mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Orientation {
    /// Rows and columns are exchanged.
    pub(crate) transposed: bool,
    /// Left and right are exchanged.
    pub(crate) mirrored_x: bool,
    /// Top and bottom are exchanged.
    pub(crate) mirrored_y: bool,
}

impl Orientation {
    /// Returns the orientation of a display matrix with the 16.16 elements `[a, b, c, d]`, where
    /// `x' = a x + c y` and `y' = b x + d y`, x to the right and y down.
    ///
    /// Rotations by other angles than multiples of 90 degrees are ignored, as in OpenCV.
    /// Source: ISO/IEC 14496-12, 8.3.2 (`tkhd`).
    pub(crate) fn of_matrix([a, b, c, d]: [i32; 4]) -> Self {
        let size = |x: i32| x.unsigned_abs();
        // Within about one degree.
        let counts = |main: i32, other: i32| size(main) / 50 > size(other);
        if counts(a, b) && counts(a, c) && counts(d, b) && counts(d, c) {
            Self { transposed: false, mirrored_x: a < 0, mirrored_y: d < 0 }
        } else if counts(b, a) && counts(b, d) && counts(c, a) && counts(c, d) {
            Self { transposed: true, mirrored_x: c < 0, mirrored_y: b < 0 }
        } else {
            Self::default()
        }
    }

    /// Returns true if frames are shown as stored.
    pub(crate) fn is_as_stored(self) -> bool {
        self == Self::default()
    }

    /// Converts width and height of a stored frame to those of the shown frame, and back.
    pub(crate) fn swap<T>(self, (width, height): (T, T)) -> (T, T) {
        if self.transposed { (height, width) } else { (width, height) }
    }

    /// Converts a stored plane of `N` bytes per pixel to the shown plane.
    pub(crate) fn apply<const N: usize>(
        self,
        stored: &[u8],
        (width, height): (usize, usize),
    ) -> Vec<u8> {
        let (pixels, _) = stored.as_chunks::<N>();
        debug_assert_eq!(pixels.len(), width * height);
        let (shown_width, shown_height) = self.swap((width, height));
        // Strides in the stored plane along a shown row and from row to row.
        let (along, down) = if self.transposed { (width, 1) } else { (1, width) };
        let mut shown = Vec::with_capacity(stored.len());
        for y in 0..shown_height {
            let y = if self.mirrored_y { shown_height - 1 - y } else { y };
            let row = (0..shown_width).map(|x| pixels[y * down + x * along]);
            match self.mirrored_x {
                true => row.rev().for_each(|pixel| shown.extend(pixel)),
                false => row.for_each(|pixel| shown.extend(pixel)),
            }
        }
        shown
    }

    /// Converts three consecutive planes of one byte per pixel: one of `size` and two of `part` (widths and
    /// heights).
    pub(crate) fn apply_to_planes(
        self,
        stored: &[u8],
        size: (usize, usize),
        part: (usize, usize),
    ) -> Vec<u8> {
        let (luma, differences) = stored.split_at(size.0 * size.1);
        let (blue, red) = differences.split_at(part.0 * part.1);
        let mut shown = self.apply::<1>(luma, size);
        shown.extend(self.apply::<1>(blue, part));
        shown.extend(self.apply::<1>(red, part));
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: i32 = 65536;

    /// 3x2 pixels, `abc` over `def`, as they are shown: rows joined by `/`.
    fn shown(matrix: [i32; 4]) -> String {
        let orientation = Orientation::of_matrix(matrix);
        let (width, _) = orientation.swap((3, 2));
        let bytes = orientation.apply::<1>(b"abcdef", (3, 2));
        let rows: Vec<_> = bytes.chunks(width).map(String::from_utf8_lossy).collect();
        rows.join("/")
    }

    #[test]
    fn all_eight_orientations_come_upright() {
        for (matrix, expected) in [
            ([ONE, 0, 0, ONE], "abc/def"),
            ([-ONE, 0, 0, ONE], "cba/fed"),
            ([ONE, 0, 0, -ONE], "def/abc"),
            ([-ONE, 0, 0, -ONE], "fed/cba"),
            // x' = y, y' = x.
            ([0, ONE, ONE, 0], "ad/be/cf"),
            // x' = -y, y' = x: clockwise.
            ([0, ONE, -ONE, 0], "da/eb/fc"),
            // x' = y, y' = -x: counterclockwise.
            ([0, -ONE, ONE, 0], "cf/be/ad"),
            ([0, -ONE, -ONE, 0], "fc/eb/da"),
        ] {
            assert_eq!(shown(matrix), expected, "{matrix:?}");
        }
    }

    #[test]
    fn other_matrices_turn_nothing() {
        for matrix in [[0; 4], [ONE, ONE, -ONE, ONE], [ONE, 0, 0, 0], [i32::MIN; 4]] {
            assert!(Orientation::of_matrix(matrix).is_as_stored(), "{matrix:?}");
        }
        // Rounded and scaled ones do.
        assert_eq!(shown([20, -2 * ONE, 2 * ONE, -9]), "cf/be/ad");
    }

    #[test]
    fn pixels_of_several_bytes_and_planes_stay_whole() {
        let half_turn = Orientation { transposed: false, mirrored_x: true, mirrored_y: true };
        assert_eq!(half_turn.apply::<3>(b"abcdefghijkl", (2, 2)), b"jklghidefabc");
        assert_eq!(half_turn.apply_to_planes(b"abcdefghijkl", (4, 2), (2, 1)), b"hgfedcbajilk");
    }
}
