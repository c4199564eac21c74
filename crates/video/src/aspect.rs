//! Sample aspect ratio (SAR): the shape of pixels.

use crate::orientation::Orientation;

/// Sample aspect ratio: width over height of a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PixelAspect {
    /// Width of a pixel.
    pub width: u32,
    /// Height of a pixel.
    pub height: u32,
}

impl PixelAspect {
    /// Square pixels.
    pub const SQUARE: Self = Self { width: 1, height: 1 };

    /// Maximum ratio. Larger ratios are treated as invalid.
    const MOST: u32 = 20;

    /// Returns a reduced ratio; `None` if it is 0 or exceeds 20 to 1.
    pub fn stated(width: u64, height: u64) -> Option<Self> {
        let most = u64::from(Self::MOST);
        if width == 0 || height == 0 || width / most >= height || height / most >= width {
            return None;
        }
        let divisor = gcd(width, height);
        let (mut width, mut height) = (width / divisor, height / divisor);
        // Ratios of measured sizes may not be reducible: 31 bits are more than enough for sizes in pixels.
        while width.max(height) > u64::from(u32::MAX / 2) {
            (width, height) = (width.div_ceil(2), height.div_ceil(2));
        }
        Some(Self { width: width as u32, height: height as u32 })
    }

    /// Returns true for square pixels.
    pub fn is_square(self) -> bool {
        self.width == self.height
    }

    /// Returns the ratio after a stored frame was rotated to the orientation.
    pub(crate) fn upright(self, orientation: Orientation) -> Self {
        let (width, height) = orientation.swap((self.width, self.height));
        Self { width, height }
    }

    /// Returns the width of `width` such pixels in square pixels of the same height, rounded to nearest (halves
    /// up), at least 1.
    ///
    /// ```
    /// let aspect = opensora_video::PixelAspect::stated(4, 3).ok_or("invalid")?;
    /// assert_eq!(aspect.square_width(320), 427);
    /// # Ok::<(), &str>(())
    /// ```
    pub fn square_width(self, width: usize) -> usize {
        let (above, below) = (u128::from(self.width), u128::from(self.height.max(1)));
        let square = (2 * width as u128 * above + below) / (2 * below);
        usize::try_from(square).unwrap_or(usize::MAX).max(1)
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_in_square_pixels() {
        for (aspect, width, expected) in [
            ((4, 3), 320, 427),
            ((1, 1), 320, 320),
            ((8, 9), 720, 640),
            ((32, 27), 720, 853),
            ((3, 4), 180, 135),
            ((1, 2), 1, 1),
        ] {
            let aspect = PixelAspect::stated(aspect.0, aspect.1).unwrap();
            assert_eq!(aspect.square_width(width), expected, "{aspect:?}");
        }
    }

    #[test]
    fn absurd_statements_do_not_count() {
        for (width, height) in [(0, 1), (1, 0), (0, 0), (21, 1), (1, u64::MAX), (u64::MAX, 1)] {
            assert_eq!(PixelAspect::stated(width, height), None, "{width}:{height}");
        }
        assert_eq!(PixelAspect::stated(40, 30), Some(PixelAspect { width: 4, height: 3 }));
        let long = PixelAspect::stated(u64::MAX, u64::MAX - 1).unwrap();
        assert_eq!(long.square_width(320), 320);
    }
}
