//! Renders scenes to pixels, with anti-aliasing, at any size.

use super::world::{Scene, Shape};
use opensora::video::{Frames, FramesError, frames::MAX_SIDE};

/// Samples per side of a pixel.
const SAMPLES: usize = 3;

/// Renders a scene as a clip of `num_frames` frames of `[height, width]` pixels; a single frame shows the start.
/// Radii are fractions of the shorter side, so that shapes keep their proportions.
///
/// # Errors
/// Returns an error if clips do not support the size.
pub fn render(
    scene: &Scene,
    num_frames: usize,
    image_size: [usize; 2],
) -> Result<Frames, FramesError> {
    let [height, width] = image_size;
    let pixels = height.saturating_mul(width);
    // Sizes that are not supported are rejected before memory is allocated.
    if pixels == 0 || height > MAX_SIDE || width > MAX_SIDE {
        return Frames::from_rgb(Vec::new(), [num_frames, height, width]);
    }
    let mut data = Vec::with_capacity(3 * num_frames * pixels);
    for frame in 0..num_frames {
        let place = scene.at(frame as f64 / (num_frames.max(2) - 1) as f64);
        let radius = place.radius * height.min(width) as f64;
        let centre = [place.x * width as f64, place.y * height as f64];
        let covered = coverage(scene.labels.shape, centre, [radius; 2], image_size);
        for part in covered {
            data.extend(scene.background.iter().zip(scene.object).map(|(&under, over)| {
                (f32::from(under) + part * (f32::from(over) - f32::from(under))).round() as u8
            }));
        }
    }
    Frames::from_rgb(data, [num_frames, height, width])
}

/// Returns the coverage of each pixel of a frame `[height, width]` by a shape, in [0, 1]. `centre` is the centre
/// (x, y) of its bounding box in pixels, `half` half of the width and height of the box.
pub(crate) fn coverage(
    shape: Shape,
    centre: [f64; 2],
    half: [f64; 2],
    [height, width]: [usize; 2],
) -> Vec<f32> {
    let mut covered = vec![0.0; height * width];
    // The pixels that the box touches; casts saturate.
    let first = |axis: usize| (centre[axis] - half[axis]).floor().max(0.0) as usize;
    let behind =
        |axis: usize, side: usize| ((centre[axis] + half[axis]).ceil().max(0.0) as usize).min(side);
    let offset = |sample: usize| (sample as f64 + 0.5) / SAMPLES as f64;
    for y in first(1)..behind(1, height) {
        for x in first(0)..behind(0, width) {
            let mut inside = 0;
            for sample in 0..SAMPLES * SAMPLES {
                let dx = x as f64 + offset(sample % SAMPLES) - centre[0];
                let dy = y as f64 + offset(sample / SAMPLES) - centre[1];
                inside += usize::from(contains(shape, dx / half[0], dy / half[1]));
            }
            covered[y * width + x] = inside as f32 / (SAMPLES * SAMPLES) as f32;
        }
    }
    covered
}

/// Returns true if the shape in the box [-1, 1] x [-1, 1] contains a point; y points downwards.
fn contains(shape: Shape, x: f64, y: f64) -> bool {
    match shape {
        Shape::Circle => x * x + y * y <= 1.0,
        Shape::Square => x.abs() <= 1.0 && y.abs() <= 1.0,
        Shape::Triangle => y <= 1.0 && 2.0 * x.abs() <= y + 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::training_clip;

    #[test]
    fn shapes_cover_their_share_of_the_box() {
        for (shape, share) in [
            (Shape::Circle, std::f32::consts::FRAC_PI_4),
            (Shape::Square, 1.0),
            (Shape::Triangle, 0.5),
        ] {
            let covered = coverage(shape, [31.3, 30.8], [20.0, 20.0], [64, 64]);
            let fill = covered.iter().sum::<f32>() / 1600.0;
            assert!((fill - share).abs() < 0.01, "{shape}: {fill}");
        }
        // The widths of a triangle grow downwards.
        let covered = coverage(Shape::Triangle, [16.0, 16.0], [10.0, 10.0], [32, 32]);
        let row = |y: usize| covered[32 * y..][..32].iter().sum::<f32>();
        assert!(row(8) < row(12) && row(12) < row(20) && row(27) == 0.0);
        // What lies beyond the frame is not drawn.
        assert_eq!(coverage(Shape::Circle, [-50.0, 5.0], [3.0, 3.0], [8, 8]), [0.0; 64]);
    }

    #[test]
    fn the_same_scene_looks_the_same_at_any_size() {
        let scene = training_clip(5, 2).scene;
        let mean = |size: usize| {
            let clip = render(&scene, 4, [size, size]).unwrap();
            clip.data().iter().map(|&byte| f64::from(byte)).sum::<f64>() / clip.data().len() as f64
        };
        assert!((mean(32) - mean(128)).abs() < 1.0, "{} {}", mean(32), mean(128));
        assert!(render(&scene, 0, [32, 32]).is_err());
        assert!(render(&scene, 16, [1 << 20, 32]).is_err());
    }
}
