//! Hue, saturation and value of 8-bit pixels, to the last bit as OpenCV has them.
//!
//! Source: OpenCV 4.x, `modules/imgproc/src/color_hsv.simd.hpp`, `RGB2HSV_b`: divisions by tables
//! with 12 bits behind the point, hue in steps of two degrees.

use super::downscale::Pixel;

/// Bits behind the point.
const SHIFT: u32 = 12;
/// A half, before the bits are cut off.
const HALF: i32 = 1 << (SHIFT - 1);
/// Steps of hue in a circle.
const CIRCLE: i32 = 180;

/// 255 / i and 180 / (6 i) in steps of 2^-12, rounded; 0 of 0.
const TABLES: [[i32; 2]; 256] = {
    let mut tables = [[0; 2]; 256];
    let mut i = 1;
    while i < 256 {
        tables[i] = [rounded(255 << SHIFT, i as i32), rounded(CIRCLE << SHIFT, 6 * i as i32)];
        i += 1;
    }
    tables
};

/// A quotient, rounded to the nearest; a half to the even one.
const fn rounded(dividend: i32, divisor: i32) -> i32 {
    let (quotient, rest) = (dividend / divisor, dividend % divisor);
    let up = 2 * rest > divisor || (2 * rest == divisor && quotient % 2 == 1);
    quotient + up as i32
}

/// Hue in 0..180, saturation and value.
#[inline]
pub(crate) fn hsv([r, g, b]: Pixel) -> [u8; 3] {
    let value = r.max(g).max(b);
    let range = i32::from(value - r.min(g).min(b));
    let [r, g, b] = [r, g, b].map(i32::from);
    let peak = i32::from(value);
    let saturation = (range * TABLES[value as usize][0] + HALF) >> SHIFT;
    let sixths = if peak == r {
        g - b
    } else if peak == g {
        b - r + 2 * range
    } else {
        r - g + 4 * range
    };
    let hue = (sixths * TABLES[range as usize][1] + HALF) >> SHIFT;
    let hue = if hue < 0 { hue + CIRCLE } else { hue };
    [hue as u8, saturation as u8, value]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_colours() {
        for (rgb, expected) in [
            ([0, 0, 0], [0, 0, 0]),
            ([255, 255, 255], [0, 0, 255]),
            ([255, 0, 0], [0, 255, 255]),
            ([255, 255, 0], [30, 255, 255]),
            ([0, 255, 0], [60, 255, 255]),
            ([0, 255, 255], [90, 255, 255]),
            ([0, 0, 255], [120, 255, 255]),
            ([255, 0, 255], [150, 255, 255]),
            // Just below the full circle.
            ([255, 0, 10], [179, 255, 255]),
            ([128, 64, 64], [0, 128, 128]),
        ] {
            assert_eq!(hsv(rgb), expected, "{rgb:?}");
        }
    }

    /// The checksum is that of `cv2.cvtColor` of OpenCV 4.14 over all colours.
    #[test]
    fn every_colour_is_as_in_opencv() {
        let mut sum = 0u64;
        for colour in 0..1u32 << 24 {
            let [b, g, r, _] = colour.to_le_bytes();
            let [h, s, v] = hsv([r, g, b]).map(u64::from);
            let packed = h | s << 8 | v << 16;
            sum = sum.wrapping_mul(31).wrapping_add(packed);
        }
        assert_eq!(sum, 14_933_477_645_777_020_459);
    }
}
