//! Group norm over `[B, C, H, W]`, and its statistics alone for images that are processed in tiles.

use super::{
    contiguous, dims,
    elementwise::{map, vectorized},
    tensor, update, values,
};
use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

/// Returns `activation` of the group norm of `x` with `gamma` and `beta` `[C]`, computed with one task
/// per group.
pub(super) fn forward(
    x: FlexTensor,
    parameters: [FlexTensor; 2],
    groups: usize,
    epsilon: f64,
    activation: impl Fn(f32) -> f32 + Sync,
) -> FlexTensor {
    let [_, channels, height, width] = dims(&x);
    let [gamma, beta] = parameters.map(contiguous);
    let (gamma, beta) = (values(&gamma), values(&beta));
    let (per_group, pixels) = (channels / groups, height * width);
    update(x, |x| {
        x.par_chunks_mut(per_group * pixels).enumerate().for_each(|(index, group)| {
            let first = index % groups * per_group;
            let (mean, variance) = mean_and_variance(group);
            let inverse = 1.0 / (variance + epsilon).sqrt();
            for (channel, plane) in (first..).zip(group.chunks_mut(pixels)) {
                let gain = inverse * f64::from(gamma[channel]);
                let shift = f64::from(beta[channel]) - mean * gain;
                map_affine(plane, gain as f32, shift as f32, &activation);
            }
        });
    })
}

/// Returns mean and biased variance of each group of contiguous `x`, `[B, groups]` each.
pub(super) fn moments(x: &FlexTensor, groups: usize) -> [FlexTensor; 2] {
    let [batch, channels, height, width] = dims(x);
    let groups_of_x = values(x).par_chunks(channels / groups * height * width);
    let moments = groups_of_x
        .map(|group| {
            let (mean, variance) = mean_and_variance(group);
            (mean as f32, variance as f32)
        })
        .unzip();
    let (mean, variance): (Vec<_>, Vec<_>) = moments;
    [mean, variance].map(|x| tensor(x, [batch, groups]))
}

/// Returns `activation(x * gain + shift)` with `gain` and `shift` `[B, C]`.
pub(super) fn affine(
    x: FlexTensor,
    parameters: [FlexTensor; 2],
    activation: impl Fn(f32) -> f32 + Sync,
) -> FlexTensor {
    let [_, _, height, width] = dims(&x);
    let [gain, shift] = parameters.map(contiguous);
    update(x, |x| {
        let planes = x.par_chunks_mut(height * width);
        planes.zip(values(&gain)).zip(values(&shift)).for_each(|((plane, gain), shift)| {
            map_affine(plane, *gain, *shift, &activation);
        });
    })
}

/// Replaces each `x` by `activation(x * gain + shift)`.
fn map_affine(plane: &mut [f32], gain: f32, shift: f32, activation: &impl Fn(f32) -> f32) {
    map(
        plane,
        #[inline(always)]
        move |x| activation(x * gain + shift),
    );
}

/// Returns mean and biased variance.
fn mean_and_variance(values: &[f32]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = sum(
        values,
        #[inline(always)]
        |x| x,
    ) / count;
    // Around the mean, since the mean of squares minus its square cancels.
    let centre = mean as f32;
    let square = sum(
        values,
        #[inline(always)]
        move |x| (x - centre) * (x - centre),
    ) / count;
    // Rounding must not make it negative: of equal values, `square` can be 0 while `centre` is not the mean.
    (mean, (square - (mean - f64::from(centre)).powi(2)).max(0.0))
}

/// Returns the sum of `f` over `values`: in f32 over short runs of 16 lanes, which compilers vectorise, and
/// in f64 over the runs.
fn sum(values: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    const LANES: usize = 16;
    const RUN: usize = 64 * LANES;
    vectorized(
        #[inline(always)]
        || {
            let mut total = 0.0;
            for run in values.chunks(RUN) {
                let (rows, rest) = run.as_chunks::<LANES>();
                let mut sums = [0.0f32; LANES];
                for row in rows {
                    for (sum, &x) in sums.iter_mut().zip(row) {
                        *sum += f(x);
                    }
                }
                total += sums.iter().map(|&s| f64::from(s)).sum::<f64>();
                total += rest.iter().map(|&x| f64::from(f(x))).sum::<f64>();
            }
            total
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_have_no_negative_variance() {
        for k in 1..200 {
            let (mean, variance) = mean_and_variance(&[1e5 * k as f32 / 7.0; 2000]);
            assert!(mean.is_finite() && variance >= 0.0, "{k}: {mean} {variance}");
        }
    }
}
