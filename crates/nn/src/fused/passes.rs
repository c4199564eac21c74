//! One pass over values, on all cores.
//!
//! Sums over rows are taken over chunks of a fixed number of rows and then over the chunks in order,
//! so that they do not depend on the number of threads.

#[cfg(feature = "autodiff")]
use crate::host::TASK;
use crate::host::{fold, vectorized};
use rayon::prelude::*;

/// Rows that one task works on.
const ROWS: usize = 64;

/// Rows `[N, C]` of one sample after the other.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    /// Rows of a sample.
    pub(super) per_sample: usize,
    /// Values of a row.
    pub(super) width: usize,
}

impl Rows {
    /// Rows of one task: never of two samples.
    fn per_task(self) -> usize {
        ROWS.min(self.per_sample).max(1)
    }

    /// Tasks of a sample.
    #[cfg(feature = "autodiff")]
    fn tasks(self) -> usize {
        self.per_sample.div_ceil(self.per_task())
    }

    /// `f(sample, first row, rows)` for chunks of `out`'s rows; returns what each found.
    fn each<R: Send>(
        self,
        out: &mut [f32],
        f: impl Fn(usize, usize, &mut [f32]) -> R + Sync,
    ) -> Vec<R> {
        out.par_chunks_mut(self.per_sample * self.width)
            .enumerate()
            .flat_map(|(sample, out)| {
                let first = sample * self.per_sample;
                let step = self.per_task();
                let f = &f;
                out.par_chunks_mut(step * self.width).enumerate().map(move |(task, rows)| {
                    vectorized(
                        #[inline(always)]
                        || f(sample, first + task * step, rows),
                    )
                })
            })
            .collect()
    }

    /// Sums of each sample, `[B, C]`, of what each of its tasks found.
    #[cfg(feature = "autodiff")]
    fn sums(self, found: Vec<Vec<f32>>) -> Vec<f32> {
        let add = |mut sum: Vec<f32>, part: Vec<f32>| {
            sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            sum
        };
        let mut found = found.into_iter();
        let mut sums = Vec::new();
        while found.len() > 0 {
            sums.extend(found.by_ref().take(self.tasks()).reduce(add).unwrap_or_default());
        }
        sums
    }
}

/// Mean and the inverse of the deviation of a row.
#[inline(always)]
fn moments(row: &[f32], epsilon: f32) -> (f32, f32) {
    let count = row.len() as f32;
    let mean = fold(row, 0.0, |x| x, |a, b| a + b) / count;
    let variance = fold(row, 0.0, |x| (x - mean) * (x - mean), |a, b| a + b) / count;
    (mean, 1.0 / (variance + epsilon).sqrt())
}

/// `norm(x) * (1 + scale) + shift` in the place of `x`.
pub(super) fn norm_and_modulate(
    rows: Rows,
    x: &mut [f32],
    scale: &[f32],
    shift: &[f32],
    epsilon: f32,
) {
    let width = rows.width;
    rows.each(
        x,
        #[inline(always)]
        |sample, _, x| {
            let [scale, shift] = [scale, shift].map(|of| &of[sample * width..][..width]);
            for x in x.chunks_mut(width) {
                let (mean, inverse) = moments(x, epsilon);
                for ((x, scale), shift) in x.iter_mut().zip(scale).zip(shift) {
                    *x = (*x - mean) * inverse * (1.0 + scale) + shift;
                }
            }
        },
    );
}

/// The gradients of [`norm_and_modulate`]: that of `x` in the place of `x`, those of `scale` and `shift`
/// `[B, C]`; `dy` is the output's.
#[cfg(feature = "autodiff")]
pub(super) fn norm_and_modulate_backward(
    rows: Rows,
    x: &mut [f32],
    scale: &[f32],
    dy: &[f32],
    epsilon: f32,
) -> [Vec<f32>; 2] {
    let width = rows.width;
    let found = rows.each(
        x,
        #[inline(always)]
        |sample, first, x| {
            let scale = &scale[sample * width..][..width];
            let dy = &dy[first * width..][..x.len()];
            let [mut d_scale, mut d_shift] = [vec![0.0; width], vec![0.0; width]];
            for (x, dy) in x.chunks_mut(width).zip(dy.chunks(width)) {
                let (mean, inverse) = moments(x, epsilon);
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
    let (d_scale, d_shift) = found.into_iter().map(|[scale, shift]| (scale, shift)).unzip();
    [rows.sums(d_scale), rows.sums(d_shift)]
}

/// `x + gate * y` in the place of `x`.
pub(super) fn gated_sum(rows: Rows, x: &mut [f32], gate: &[f32], y: &[f32]) {
    let width = rows.width;
    rows.each(
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

/// The gradients of [`gated_sum`] but that of `x`, which is `dy` itself: that of `y` in the place of `y`,
/// that of `gate` `[B, C]`.
#[cfg(feature = "autodiff")]
pub(super) fn gated_sum_backward(rows: Rows, y: &mut [f32], gate: &[f32], dy: &[f32]) -> Vec<f32> {
    let width = rows.width;
    let found = rows.each(
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
    rows.sums(found)
}

/// The sum over the rows of `x`, `[C]`.
#[cfg(feature = "autodiff")]
pub(super) fn sum_of_rows(width: usize, x: &[f32]) -> Vec<f32> {
    let found = x.par_chunks(ROWS * width).map(|rows| {
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
    let found: Vec<_> = found.collect();
    let rows = Rows { per_sample: x.len() / width, width };
    let sums = rows.sums(found);
    if sums.is_empty() { vec![0.0; width] } else { sums }
}

/// Adds `bias` `[C]` to each row of `x`, and takes `f` of the sum.
pub(super) fn add_to_rows(x: &mut [f32], bias: &[f32], f: impl Fn(f32) -> f32 + Sync) {
    let width = bias.len();
    x.par_chunks_mut(ROWS * width).for_each(|rows| {
        vectorized(
            #[inline(always)]
            || {
                for row in rows.chunks_mut(width) {
                    for (x, bias) in row.iter_mut().zip(bias) {
                        *x = f(*x + bias);
                    }
                }
            },
        );
    });
}

/// Replaces `x` by `f` of it and the value of `y` in the same place.
#[cfg(feature = "autodiff")]
pub(super) fn zip(x: &mut [f32], y: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) {
    x.par_chunks_mut(TASK).zip(y.par_chunks(TASK)).for_each(|(x, y)| {
        vectorized(
            #[inline(always)]
            || {
                for (x, y) in x.iter_mut().zip(y) {
                    *x = f(*x, *y);
                }
            },
        );
    });
}

/// `dp`, the gradient of the softmax `p` of rows of `width`, becomes that of what the softmax was taken
/// of, times `scale`.
#[cfg(feature = "autodiff")]
pub(super) fn softmax_backward(width: usize, dp: &mut [f32], p: &[f32], scale: f32) {
    dp.par_chunks_mut(ROWS * width)
        .zip(p.par_chunks(ROWS * width))
        .for_each(|(dp, p)| softmax_backward_here(width, dp, p, scale));
}

/// [`softmax_backward`] on this thread alone.
#[cfg(feature = "autodiff")]
pub(super) fn softmax_backward_here(width: usize, dp: &mut [f32], p: &[f32], scale: f32) {
    vectorized(
        #[inline(always)]
        || {
            for (dp, p) in dp.chunks_mut(width).zip(p.chunks(width)) {
                for (dp, p) in dp.iter_mut().zip(p) {
                    *dp *= p;
                }
                let sum = fold(dp, 0.0, |x| x, |a, b| a + b);
                for (dp, p) in dp.iter_mut().zip(p) {
                    *dp = (*dp - p * sum) * scale;
                }
            }
        },
    );
}
