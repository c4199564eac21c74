//! Values for tests.

/// `count` standard normal values, the same for each `index` in every run.
pub(crate) fn normal(index: u64, count: usize) -> Vec<f32> {
    let mut state = index.wrapping_mul(0xd1b5_4a32_d192_ed03);
    let mut uniform = || {
        // SplitMix64: Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom Number Generators".
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        // Box and Muller's transform.
        let radius = (-2.0 * (1.0 - uniform()).ln()).sqrt();
        let angle = std::f64::consts::TAU * uniform();
        values.extend([(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]);
    }
    values.truncate(count);
    values
}
