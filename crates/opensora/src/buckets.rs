//! Sizes that PixArt-alpha's multi-scale model was trained for.

/// Height and width of the 40 sizes of about 1024x1024 pixels, from flat to tall.
///
/// Source: PixArt-alpha/PixArt-alpha (commit cac2fd3), `diffusion/data/datasets/utils.py`,
/// `ASPECT_RATIO_1024`.
pub const PIXART_1024: [[usize; 2]; 40] = [
    [512, 2048],
    [512, 1984],
    [512, 1920],
    [512, 1856],
    [576, 1792],
    [576, 1728],
    [576, 1664],
    [640, 1600],
    [640, 1536],
    [704, 1472],
    [704, 1408],
    [704, 1344],
    [768, 1344],
    [768, 1280],
    [832, 1216],
    [832, 1152],
    [896, 1152],
    [896, 1088],
    [960, 1088],
    [960, 1024],
    [1024, 1024],
    [1024, 960],
    [1088, 960],
    [1088, 896],
    [1152, 896],
    [1152, 832],
    [1216, 832],
    [1280, 768],
    [1344, 768],
    [1408, 704],
    [1472, 704],
    [1536, 640],
    [1600, 640],
    [1664, 576],
    [1728, 576],
    [1792, 576],
    [1856, 512],
    [1920, 512],
    [1984, 512],
    [2048, 512],
];

/// Returns the size among `buckets` whose ratio of height to width is nearest to `aspect_ratio`; `None`
/// if there are none.
///
/// Deviation: PixArt-alpha compares with ratios that are rounded or cut to two digits; these are exact.
pub fn nearest(buckets: &[[usize; 2]], aspect_ratio: f64) -> Option<[usize; 2]> {
    let distance =
        |&[height, width]: &[usize; 2]| (height as f64 / width as f64 - aspect_ratio).abs();
    buckets.iter().copied().min_by(|a, b| distance(a).total_cmp(&distance(b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_symmetric_and_of_whole_patches() {
        for [height, width] in PIXART_1024 {
            // Eight pixels a latent and two latents a patch.
            assert!(height.is_multiple_of(16) && width.is_multiple_of(16));
            let pixels = (height * width) as f64 / (1024.0 * 1024.0);
            assert!((0.85..=1.02).contains(&pixels), "{height}x{width}");
        }
        assert!(PIXART_1024.is_sorted_by_key(|[height, width]| 10_000 * height / width));
    }

    #[test]
    fn the_nearest_ratio_is_taken() {
        let at = |height: f64, width: f64| nearest(&PIXART_1024, height / width);
        assert_eq!(at(1.0, 1.0), Some([1024, 1024]));
        assert_eq!(at(9.0, 16.0), Some([768, 1344]));
        assert_eq!(at(16.0, 9.0), Some([1344, 768]));
        assert_eq!(at(1.0, 100.0), Some([512, 2048]));
        assert_eq!(nearest(&[], 1.0), None);
    }
}
