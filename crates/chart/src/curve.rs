//! Curves: values of one run, smoothing and decimation.

/// A curve: one column of one run.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// Name in the legend.
    pub name: String,
    /// Index of the run, from 0, which determines the colour in every panel.
    pub run: usize,
    /// Horizontal positions, usually steps.
    pub x: Vec<f64>,
    /// Values. Values that are not finite are not drawn.
    pub y: Vec<f64>,
}

/// Returns the exponential moving average with the weight `factor` of the past, with bias correction at the
/// start, as in TensorBoard. Values that are not finite are returned unchanged and do not affect the average.
///
/// ```
/// assert_eq!(opensora_chart::curve::smooth(&[2.0, 2.0, f64::INFINITY], 0.5), [2.0, 2.0, f64::INFINITY]);
/// ```
pub fn smooth(values: &[f64], factor: f64) -> Vec<f64> {
    let (mut mean, mut weight) = (0.0, 0.0);
    values
        .iter()
        .map(|&value| {
            if !value.is_finite() {
                return value;
            }
            mean = factor * mean + (1.0 - factor) * value;
            weight = factor * weight + (1.0 - factor);
            mean / weight
        })
        .collect()
}

/// Returns fewer points that look the same: the minimum and maximum of each of `pieces` segments, in order.
pub(crate) fn thin(points: &[(f64, f64)], pieces: usize) -> Vec<(f64, f64)> {
    if points.len() <= 2 * pieces {
        return points.to_vec();
    }
    let mut kept = Vec::with_capacity(2 * pieces + 2);
    kept.push(points[0]);
    for piece in points.chunks(points.len().div_ceil(pieces)) {
        let (mut low, mut high) = (0, 0);
        for (index, point) in piece.iter().enumerate() {
            if point.1 < piece[low].1 {
                low = index;
            }
            if point.1 > piece[high].1 {
                high = index;
            }
        }
        kept.push(piece[low.min(high)]);
        kept.push(piece[low.max(high)]);
    }
    kept.extend(points.last());
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothing_has_no_start_and_skips_gaps() {
        assert_eq!(smooth(&[3.0, 3.0, 3.0], 0.9).map_to(6), [3.0, 3.0, 3.0]);
        assert_eq!(smooth(&[1.0, 5.0], 0.0), [1.0, 5.0]);
        // Weights 0.5 and 0.25 of value and past: (0.5 * 4 + 0.25 * 1) / 0.75.
        assert_eq!(smooth(&[1.0, 4.0], 0.5).map_to(6), [1.0, 3.0]);
        let gap = smooth(&[1.0, f64::NAN, 4.0], 0.5);
        assert!(gap[1].is_nan() && (gap[2] - 3.0).abs() < 1e-12);
    }

    trait MapTo {
        fn map_to(&self, digits: i32) -> Vec<f64>;
    }

    impl MapTo for Vec<f64> {
        /// Rounded to so many digits behind the point.
        fn map_to(&self, digits: i32) -> Vec<f64> {
            let unit = 10f64.powi(digits);
            self.iter().map(|value| (value * unit).round() / unit).collect()
        }
    }

    #[test]
    fn thinning_keeps_ends_and_peaks() {
        let mut points: Vec<(f64, f64)> = (0..10_000).map(|i| (f64::from(i), 1.0)).collect();
        points[5_432].1 = 9.0;
        points[77].1 = -9.0;
        let thinned = thin(&points, 100);
        assert!(thinned.len() <= 202);
        for kept in [points[0], points[77], points[5_432], points[9_999]] {
            assert!(thinned.contains(&kept), "{kept:?}");
        }
        assert!(thinned.is_sorted_by(|a, b| a.0 <= b.0));
        assert_eq!(thin(&points[..150], 100), points[..150]);
    }
}
