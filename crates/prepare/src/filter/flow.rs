//! Optical flow between two frames.
//!
//! The pyramidal method of Lucas and Kanade: around each point of a grid, the displacement that best
//! explains the change is searched from coarse to fine. A small ridge term in the equations gives areas
//! without texture no motion, so that noise in a flat sky does not count; areas with texture in one direction
//! move along that direction.
//!
//! Source: J.-Y. Bouguet, "Pyramidal implementation of the affine Lucas Kanade feature tracker:
//! description of the algorithm", Intel, 2001.

use super::grey::Grey;

/// Distance of two points of the grid in pixels of the grey image.
const STEP: usize = 8;
/// Pixels from a window's centre to its edge.
const RADIUS: isize = 4;
/// Shorter side below which there is no coarser level.
const COARSEST: usize = 16;
/// Maximum number of refinements on a level, and the step in pixels at which they end.
const ITERATIONS: usize = 6;
const CONVERGED: f32 = 0.01;
/// Ridge term: the sum over a window of the squared luma gradients (luma in [0, 1]) that codec noise
/// causes in an area without texture.
const RIDGE: f32 = 0.01;

/// An image at full size, half size, quarter size and so on.
pub(crate) struct Pyramid(Vec<Grey>);

impl Pyramid {
    pub(crate) fn new(grey: Grey) -> Self {
        let mut levels = vec![grey];
        while let Some(last) = levels.last()
            && last.width.min(last.height) >= 2 * COARSEST
        {
            levels.push(last.halved());
        }
        Self(levels)
    }
}

/// Returns the mean length of the displacements from one image to another of the same size, as a fraction
/// of the shorter side.
pub(crate) fn magnitude(from: &Pyramid, to: &Pyramid) -> f64 {
    let Some(Grey { width, height, .. }) = from.0.first() else { return 0.0 };
    let (mut sum, mut points) = (0.0, 0);
    for y in (STEP.min(*height) / 2..*height).step_by(STEP) {
        for x in (STEP.min(*width) / 2..*width).step_by(STEP) {
            let [dx, dy] = displacement(from, to, [x as f32, y as f32]);
            sum += f64::from(dx.hypot(dy));
            points += 1;
        }
    }
    sum / f64::from(points.max(1)) / (*width).min(*height) as f64
}

/// Returns the displacement of the point (x, y) in pixels.
fn displacement(from: &Pyramid, to: &Pyramid, point: [f32; 2]) -> [f32; 2] {
    let mut moved = [0.0; 2];
    for (level, (from, to)) in from.0.iter().zip(&to.0).enumerate().rev() {
        // Centres of pixels are at halves on every level.
        let scale = (1 << level) as f32;
        let at = point.map(|coordinate| (coordinate + 0.5) / scale - 0.5);
        moved = refine(from, to, at, moved);
        if level > 0 {
            moved = moved.map(|length| 2.0 * length);
        }
    }
    moved
}

/// Returns the displacement of the window around `at`, refined from a first guess.
fn refine(from: &Grey, to: &Grey, at: [f32; 2], guess: [f32; 2]) -> [f32; 2] {
    const SIDE: usize = 2 * RADIUS as usize + 1;
    // Luma and its gradient along x and y.
    let mut window = [[0.0f32; 3]; SIDE * SIDE];
    let (mut xx, mut xy, mut yy) = (RIDGE, 0.0, RIDGE);
    for (sample, [x, y]) in window.iter_mut().zip(offsets()) {
        let (x, y) = (at[0] + x, at[1] + y);
        let gx = (sampled(from, x + 1.0, y) - sampled(from, x - 1.0, y)) / 2.0;
        let gy = (sampled(from, x, y + 1.0) - sampled(from, x, y - 1.0)) / 2.0;
        *sample = [sampled(from, x, y), gx, gy];
        (xx, xy, yy) = (xx + gx * gx, xy + gx * gy, yy + gy * gy);
    }
    // At least the square of the ridge, as the matrix of gradients is positive semidefinite.
    let determinant = xx * yy - xy * xy;

    let mut moved = guess;
    for _ in 0..ITERATIONS {
        let target = [at[0] + moved[0], at[1] + moved[1]];
        let inside = (0.0..to.width as f32).contains(&target[0])
            && (0.0..to.height as f32).contains(&target[1]);
        if !inside {
            break;
        }
        let (mut x_error, mut y_error) = (0.0, 0.0);
        for ([luma, gx, gy], [x, y]) in window.iter().zip(offsets()) {
            let error = luma - sampled(to, target[0] + x, target[1] + y);
            (x_error, y_error) = (x_error + error * gx, y_error + error * gy);
        }
        let limit = |step: f32| step.clamp(-(RADIUS as f32), RADIUS as f32);
        let step = [
            limit((yy * x_error - xy * y_error) / determinant),
            limit((xx * y_error - xy * x_error) / determinant),
        ];
        moved = [moved[0] + step[0], moved[1] + step[1]];
        if step[0].hypot(step[1]) < CONVERGED {
            break;
        }
    }
    moved
}

/// Returns the offsets of a window's pixels from its centre, row by row.
fn offsets() -> impl Iterator<Item = [f32; 2]> {
    (-RADIUS..=RADIUS).flat_map(|y| (-RADIUS..=RADIUS).map(move |x| [x as f32, y as f32]))
}

/// Returns the interpolated luma at a position; outside, that of the nearest pixel.
fn sampled(grey: &Grey, x: f32, y: f32) -> f32 {
    let x = x.clamp(0.0, (grey.width - 1) as f32);
    let y = y.clamp(0.0, (grey.height - 1) as f32);
    let (left, top) = (x as usize, y as usize);
    let (right, bottom) = ((left + 1).min(grey.width - 1), (top + 1).min(grey.height - 1));
    let (fx, fy) = (x - left as f32, y - top as f32);
    let row = |y: usize| {
        let row = &grey.luma[y * grey.width..];
        row[left] + fx * (row[right] - row[left])
    };
    let (upper, lower) = (row(top), row(bottom));
    upper + fy * (lower - upper)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A soft texture, moved by (dx, dy).
    fn texture(height: usize, width: usize, [dx, dy]: [f32; 2]) -> Pyramid {
        let wave = |x: f32, y: f32| {
            let sum = (0.11 * x + 0.07 * y).sin()
                + (0.23 * x - 0.31 * y).sin()
                + (0.05 * x - 0.13 * y + 1.0).cos()
                + (0.41 * x + 0.37 * y + 2.0).cos();
            0.5 + sum / 8.0
        };
        let luma = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
        let luma = luma.map(|(x, y)| wave(x as f32 - dx, y as f32 - dy)).collect();
        Pyramid::new(Grey { width, height, luma })
    }

    #[test]
    fn flow_is_the_speed_of_a_moving_image() {
        let still = texture(128, 192, [0.0, 0.0]);
        assert!(magnitude(&still, &still) < 1e-6);
        for (moved, length) in
            [([0.25, 0.0], 0.25f64), ([1.5, -2.0], 2.5), ([6.0, 8.0], 10.0), ([-18.0, 0.0], 18.0)]
        {
            let found = magnitude(&still, &texture(128, 192, moved)) * 128.0;
            assert!((found / length - 1.0).abs() < 0.15, "{moved:?}: {found} pixels");
        }
    }

    #[test]
    fn flat_images_and_noise_have_no_flow() {
        let flat = |seed: u32| {
            let mut state = seed;
            let noise = (0..128 * 128).map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                0.5 + ((state >> 24) as f32 / 255.0 - 0.5) / 128.0
            });
            Pyramid::new(Grey { width: 128, height: 128, luma: noise.collect() })
        };
        let found = magnitude(&flat(1), &flat(2)) * 128.0;
        assert!(found < 0.15, "{found} pixels");
    }

    #[test]
    fn images_of_any_size_are_measured() {
        for (height, width) in [(1, 1), (2, 7), (16, 300), (33, 31)] {
            let pair = [texture(height, width, [0.0, 0.0]), texture(height, width, [0.5, 0.0])];
            let found = magnitude(&pair[0], &pair[1]);
            assert!(found.is_finite() && found <= 1.0, "{height}x{width}: {found}");
        }
    }
}
