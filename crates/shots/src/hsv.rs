//! Hue, saturation and value of 8-bit pixels, bit-exact to OpenCV.
//!
//! Source: OpenCV 4.x, `modules/imgproc/src/color_hsv.simd.hpp`, `RGB2HSV_b`: divisions by tables
//! with 12 fractional bits, hue in steps of two degrees.

use opensora_video::vectors::vectorized;

/// Fractional bits.
const SHIFT: u32 = 12;
/// One half, added before the fractional bits are dropped.
const HALF: i32 = 1 << (SHIFT - 1);
/// Hue steps of a full circle.
const CIRCLE: i32 = 180;

/// 255 and 180 / 6 in units of 2^-12.
const FULL: f32 = (255 << SHIFT) as f32;
const SIXTH: f32 = ((CIRCLE / 6) << SHIFT) as f32;

/// Returns [`FULL`] or [`SIXTH`] divided by a byte, rounded to the nearest integer, ties to even; finite for
/// 0. These are the values of the reference's tables, but computed, which vectorizes unlike lookups.
#[inline(always)]
fn quotient(dividend: f32, divisor: i32) -> i32 {
    /// Floats of this size have no fractional bits: a number that is added to it is rounded and in the lower
    /// bits.
    const LARGE: f32 = (3 << 22) as f32;
    (dividend / divisor as f32 + LARGE).to_bits() as i32 & 0x003f_ffff
}

/// Converts planes of red, green and blue to hue in 0..180, saturation and value. Stops at the end of the
/// shortest slice.
pub(crate) fn hsv([red, green, blue]: [&[u8]; 3], [hue, saturation, value]: [&mut [u8]; 3]) {
    let from = red.iter().zip(green).zip(blue);
    let to = hue.iter_mut().zip(saturation).zip(value);
    vectorized(|| {
        for (((r, g), b), ((hue, saturation), value)) in from.zip(to) {
            [*hue, *saturation, *value] = of_pixel([*r, *g, *b]);
        }
    });
}

/// Branchless, so that the compiler vectorizes it.
#[inline(always)]
fn of_pixel([r, g, b]: [u8; 3]) -> [u8; 3] {
    let value = r.max(g).max(b);
    let range = i32::from(value - r.min(g).min(b));
    let [r, g, b] = [r, g, b].map(i32::from);
    let peak = i32::from(value);
    let saturation = (range * quotient(FULL, peak) + HALF) >> SHIFT;
    let after_red = if peak == g { b - r + 2 * range } else { r - g + 4 * range };
    let sixths = if peak == r { g - b } else { after_red };
    let hue = (sixths * quotient(SIXTH, range) + HALF) >> SHIFT;
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
            // Just below a full circle.
            ([255, 0, 10], [179, 255, 255]),
            ([128, 64, 64], [0, 128, 128]),
        ] {
            assert_eq!(of_pixel(rgb), expected, "{rgb:?}");
        }
    }

    /// The checksum is of `cv2.cvtColor` of OpenCV 4.14 over all colours.
    #[test]
    fn all_colours_match_opencv() {
        let mut sum = 0u64;
        let blue: Vec<u8> = (0..=255).collect();
        for red_and_green in 0..1u32 << 16 {
            let [green, red, ..] = red_and_green.to_le_bytes();
            let mut planes = [[0; 256]; 3];
            let [h, s, v] = &mut planes;
            hsv([&[red; 256], &[green; 256], &blue], [h, s, v]);
            for i in 0..256 {
                let [h, s, v] = planes.map(|plane| u64::from(plane[i]));
                let packed = h | s << 8 | v << 16;
                sum = sum.wrapping_mul(31).wrapping_add(packed);
            }
        }
        assert_eq!(sum, 14_933_477_645_777_020_459);
    }
}
