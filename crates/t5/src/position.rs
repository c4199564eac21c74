//! Buckets of relative positions, which widen with the distance.
//!
//! Source: transformers, `models/t5/modeling_t5.py`, `T5Attention._relative_position_bucket`
//! (bidirectional).

/// Returns the bucket of `relative_position` = key position - query position.
///
/// Half of the buckets are for keys before the query, half for keys after it. In each half, one half of the buckets
/// is for single distances, and the other half grows logarithmically up to `max_distance`. The logarithm is
/// computed in f32, as in the reference. The first bucket of the second half is never used.
pub fn relative_bucket(relative_position: i64, num_buckets: usize, max_distance: usize) -> usize {
    let half = num_buckets / 2;
    let base = if relative_position > 0 { half } else { 0 };
    let distance = relative_position.unsigned_abs() as usize;
    let exact = half / 2;
    if distance < exact {
        return base + distance;
    }
    let ratio = (distance as f32 / exact as f32).ln()
        / (max_distance as f64 / exact as f64).ln() as f32
        * (half - exact) as f32;
    base + (exact + ratio as usize).min(half - 1)
}

/// Returns the buckets of all pairs of `length` positions, `[query, key]` row-major.
pub fn bucket_table(length: usize, num_buckets: usize, max_distance: usize) -> Vec<usize> {
    let pairs = (0..length as i64).flat_map(|query| (0..length as i64).map(move |key| key - query));
    pairs.map(|distance| relative_bucket(distance, num_buckets, max_distance)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_positions_have_separate_buckets() {
        assert_eq!([-7, -1, 0, 1, 7].map(|d| relative_bucket(d, 32, 128)), [7, 1, 0, 17, 23]);
    }

    #[test]
    fn far_positions_share_the_last_bucket() {
        assert_eq!(
            [-128, -100_000, 128, 5000].map(|d| relative_bucket(d, 32, 128)),
            [15, 15, 31, 31]
        );
    }

    #[test]
    fn the_table_is_row_major_over_queries() {
        assert_eq!(bucket_table(2, 32, 128), [0, 17, 1, 0]);
    }
}
