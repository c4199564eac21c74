//! Layers that treat each row `[C]` of `[B, N, C]` by itself: adaptive norm, gate and bias, and their
//! gradients. Each is one pass on all cores.
//!
//! Sums over rows are first taken over chunks of a fixed number of rows and then over the chunks in order, so
//! that they do not depend on the number of threads.

use super::elementwise::{fold, vectorized};
use rayon::prelude::*;

/// Rows of one task.
const ROWS: usize = 64;

/// The rows of a tensor `[B, N, C]`.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    /// N.
    pub(super) per_sample: usize,
    /// C.
    pub(super) width: usize,
}

impl Rows {
    /// Returns the number of rows of one task, all of one sample.
    fn per_task(self) -> usize {
        ROWS.min(self.per_sample).max(1)
    }

    /// Returns the number of tasks of a sample.
    #[cfg(feature = "autodiff")]
    fn tasks(self) -> usize {
        self.per_sample.div_ceil(self.per_task())
    }

    /// Calls `f(sample, first row, rows)` for chunks of the rows of `x`, and returns its results in order.
    fn for_each_chunk<R: Send>(
        self,
        x: &mut [f32],
        f: impl Fn(usize, usize, &mut [f32]) -> R + Sync,
    ) -> Vec<R> {
        x.par_chunks_mut(self.per_sample * self.width)
            .enumerate()
            .flat_map(|(sample, x)| {
                let first = sample * self.per_sample;
                let step = self.per_task();
                let f = &f;
                x.par_chunks_mut(step * self.width).enumerate().map(move |(task, rows)| {
                    vectorized(
                        #[inline(always)]
                        || f(sample, first + task * step, rows),
                    )
                })
            })
            .collect()
    }

    /// Adds up the sums `[C]` of all tasks of each sample; returns `[B, C]`.
    #[cfg(feature = "autodiff")]
    fn sums(self, of_tasks: Vec<Vec<f32>>) -> Vec<f32> {
        let add = |mut sum: Vec<f32>, part: Vec<f32>| {
            sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            sum
        };
        let mut of_tasks = of_tasks.into_iter();
        let mut sums = Vec::new();
        while of_tasks.len() > 0 {
            sums.extend(of_tasks.by_ref().take(self.tasks()).reduce(add).unwrap_or_default());
        }
        sums
    }
}

/// Returns the mean and the inverse standard deviation of a row.
#[inline(always)]
fn mean_and_inverse_deviation(row: &[f32], epsilon: f32) -> (f32, f32) {
    let count = row.len() as f32;
    let mean = fold(row, 0.0, |x| x, |a, b| a + b) / count;
    let variance = fold(row, 0.0, |x| (x - mean) * (x - mean), |a, b| a + b) / count;
    (mean, 1.0 / (variance + epsilon).sqrt())
}

/// Replaces `x` by `norm(x) * (1 + scale) + shift`.
pub(super) fn norm_and_modulate(
    rows: Rows,
    x: &mut [f32],
    scale: &[f32],
    shift: &[f32],
    epsilon: f32,
) {
    let width = rows.width;
    rows.for_each_chunk(
        x,
        #[inline(always)]
        |sample, _, x| {
            let [scale, shift] = [scale, shift].map(|of| &of[sample * width..][..width]);
            for x in x.chunks_mut(width) {
                let (mean, inverse) = mean_and_inverse_deviation(x, epsilon);
                for ((x, scale), shift) in x.iter_mut().zip(scale).zip(shift) {
                    *x = (*x - mean) * inverse * (1.0 + scale) + shift;
                }
            }
        },
    );
}

/// Replaces `x` by its gradient through [`norm_and_modulate`], given `dy`, the gradient of the output.
/// Returns the gradients of `scale` and `shift`, `[B, C]` each.
#[cfg(feature = "autodiff")]
pub(super) fn norm_and_modulate_backward(
    rows: Rows,
    x: &mut [f32],
    scale: &[f32],
    dy: &[f32],
    epsilon: f32,
) -> [Vec<f32>; 2] {
    let width = rows.width;
    let sums = rows.for_each_chunk(
        x,
        #[inline(always)]
        |sample, first, x| {
            let scale = &scale[sample * width..][..width];
            let dy = &dy[first * width..][..x.len()];
            let [mut d_scale, mut d_shift] = [vec![0.0; width], vec![0.0; width]];
            for (x, dy) in x.chunks_mut(width).zip(dy.chunks(width)) {
                let (mean, inverse) = mean_and_inverse_deviation(x, epsilon);
                for (((x, dy), d_scale), d_shift) in
                    x.iter_mut().zip(dy).zip(&mut d_scale).zip(&mut d_shift)
                {
                    *x = (*x - mean) * inverse;
                    *d_scale += dy * *x;
                    *d_shift += dy;
                }
                // With n = norm(x) and g = dy (1 + scale): dx = (g - mean(g) - n mean(g n)) / deviation.
                let mut sums = [[0.0f32; 16]; 2];
                let lanes = |values| <[f32]>::chunks(values, 16);
                for ((n, dy), scale) in lanes(x).zip(lanes(dy)).zip(lanes(scale)) {
                    for (lane, ((n, dy), scale)) in n.iter().zip(dy).zip(scale).enumerate() {
                        let g = dy * (1.0 + scale);
                        sums[0][lane] += g;
                        sums[1][lane] += g * n;
                    }
                }
                let [mean, mean_n] = sums.map(|lanes| lanes.iter().sum::<f32>() / width as f32);
                for ((n, dy), scale) in x.iter_mut().zip(dy).zip(scale) {
                    *n = (dy * (1.0 + scale) - mean - *n * mean_n) * inverse;
                }
            }
            [d_scale, d_shift]
        },
    );
    let (d_scale, d_shift) = sums.into_iter().map(|[scale, shift]| (scale, shift)).unzip();
    [rows.sums(d_scale), rows.sums(d_shift)]
}

/// Replaces `x` by `x + gate * y`.
pub(super) fn gated_sum(rows: Rows, x: &mut [f32], gate: &[f32], y: &[f32]) {
    let width = rows.width;
    rows.for_each_chunk(
        x,
        #[inline(always)]
        |sample, first, x| {
            let gate = &gate[sample * width..][..width];
            let y = &y[first * width..][..x.len()];
            for (x, y) in x.chunks_mut(width).zip(y.chunks(width)) {
                for ((x, gate), y) in x.iter_mut().zip(gate).zip(y) {
                    *x += gate * y;
                }
            }
        },
    );
}

/// Replaces `y` by its gradient through [`gated_sum`], given `dy`, the gradient of the output. Returns the
/// gradient of `gate`, `[B, C]`. (The gradient of `x` is `dy`.)
#[cfg(feature = "autodiff")]
pub(super) fn gated_sum_backward(rows: Rows, y: &mut [f32], gate: &[f32], dy: &[f32]) -> Vec<f32> {
    let width = rows.width;
    let sums = rows.for_each_chunk(
        y,
        #[inline(always)]
        |sample, first, y| {
            let gate = &gate[sample * width..][..width];
            let dy = &dy[first * width..][..y.len()];
            let mut d_gate = vec![0.0; width];
            for (y, dy) in y.chunks_mut(width).zip(dy.chunks(width)) {
                for (((y, dy), gate), d_gate) in y.iter_mut().zip(dy).zip(gate).zip(&mut d_gate) {
                    *d_gate += dy * *y;
                    *y = dy * gate;
                }
            }
            d_gate
        },
    );
    rows.sums(sums)
}

/// Returns the sum over the rows of `x`, `[C]`.
#[cfg(feature = "autodiff")]
pub(super) fn sum_of_rows(width: usize, x: &[f32]) -> Vec<f32> {
    let sums = x.par_chunks(ROWS * width).map(|rows| {
        vectorized(
            #[inline(always)]
            || {
                let mut sums = vec![0.0; width];
                for row in rows.chunks(width) {
                    for (sum, x) in sums.iter_mut().zip(row) {
                        *sum += x;
                    }
                }
                sums
            },
        )
    });
    let sums: Vec<_> = sums.collect();
    let rows = Rows { per_sample: x.len() / width, width };
    let sums = rows.sums(sums);
    if sums.is_empty() { vec![0.0; width] } else { sums }
}

/// Replaces each row of `x` by `activation(x + bias)`, with `bias` `[C]`.
pub(super) fn add_bias(x: &mut [f32], bias: &[f32], activation: impl Fn(f32) -> f32 + Sync) {
    let width = bias.len();
    x.par_chunks_mut(ROWS * width).for_each(|rows| {
        vectorized(
            #[inline(always)]
            || {
                for row in rows.chunks_mut(width) {
                    for (x, bias) in row.iter_mut().zip(bias) {
                        *x = activation(*x + bias);
                    }
                }
            },
        );
    });
}
