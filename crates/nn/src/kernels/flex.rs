//! Kernels of burn's flex backend, whose tensors are in host memory.
//!
//! burn's own operations on flex pass over memory once each, mostly on one core and with a call into the
//! mathematical library for every exponential, so that an activation costs as much as the matrix product
//! before it. Here a layer is one pass on all cores, its loops compiled for several widths of vectors, of
//! which the widest of the processor is used; large products use `opensora_gemm`.
//!
//! The layers of the denoiser have gradients (`autodiff`); the others are for inference, where updates are
//! made in place unless something else holds the tensor.
//!
//! | module | contents |
//! |---|---|
//! | `attention` | attention with heads read through strides |
//! | `autodiff` | gradients |
//! | `elementwise` | elementwise loops, `exp` and `sigmoid` |
//! | `group_norm` | group norm and its statistics |
//! | `rows` | loops over rows: adaptive norm, gate, bias |
//! | `softmax` | softmax of attention scores |
//! | `winograd` | 3x3 convolution |

mod attention;
#[cfg(feature = "autodiff")]
mod autodiff;
mod elementwise;
mod group_norm;
mod rows;
mod softmax;
mod winograd;

pub(super) use elementwise::vectorized;

use super::{FusedOps, Operation};
use attention::Attention;
use burn::{
    backend::{Flex, flex::FlexTensor, ops::FloatTensorOps, tensor::FloatTensor},
    tensor::{Shape, TensorData},
};
use elementwise::{gelu_tanh, map_parallel, silu};
use opensora_gemm::{MatRef, multiply, profitable};
use rayon::prelude::*;
use rows::Rows;

/// Returns true if `operation` is implemented here, with gradients if `autodiff`.
pub(super) fn supports(operation: Operation, autodiff: bool) -> bool {
    use Operation::*;
    let has_gradient = matches!(
        operation,
        Linear | LinearGelu | NormAndModulate | GatedSum | SelfAttention | CrossAttention
    );
    !autodiff || (cfg!(feature = "autodiff") && has_gradient)
}

impl FusedOps for Flex {
    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        linear(&x, &weight, bias, |x| x)
    }

    fn fused_linear_gelu(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        linear(&x, &weight, bias, gelu_tanh)
    }

    fn fused_norm_and_modulate(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        let rows = rows_of(&x);
        let (scale, shift) = (contiguous(scale), contiguous(shift));
        update(x, |x| {
            rows::norm_and_modulate(rows, x, values(&scale), values(&shift), epsilon as f32);
        })
    }

    fn fused_gated_sum(
        x: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        y: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let rows = rows_of(&x);
        let (gate, y) = (contiguous(gate), contiguous(y));
        update(x, |x| rows::gated_sum(rows, x, values(&gate), values(&y)))
    }

    fn fused_self_attention(
        qkv: FloatTensor<Self>,
        axis: usize,
        heads: usize,
    ) -> FloatTensor<Self> {
        Attention::self_attention(qkv, axis, heads).forward(None)
    }

    fn fused_cross_attention(
        query: FloatTensor<Self>,
        key_value: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        heads: usize,
    ) -> FloatTensor<Self> {
        let bias = contiguous(bias);
        Attention::cross_attention(query, key_value, heads).forward(Some(values(&bias)))
    }

    fn fused_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        scale: f64,
    ) -> FloatTensor<Self> {
        let bias = contiguous(bias);
        attention::of_heads([query, key, value], values(&bias), scale as f32)
    }

    fn fused_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        update(x, |x| map_parallel(x, gelu_tanh))
    }

    fn fused_silu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        update(x, |x| map_parallel(x, silu))
    }

    fn fused_group_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        groups: usize,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        group_norm::forward(x, [gamma, beta], groups, epsilon, |y| y)
    }

    fn fused_group_norm_silu(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        groups: usize,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        group_norm::forward(x, [gamma, beta], groups, epsilon, silu)
    }

    fn fused_group_moments(
        x: FloatTensor<Self>,
        groups: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let x = contiguous(x);
        let [mean, variance] = group_norm::moments(&x, groups);
        (mean, variance, x)
    }

    fn fused_affine_silu(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        shift: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        group_norm::affine(x, [gain, shift], silu)
    }

    fn fused_conv3x3(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        winograd::conv3x3(x, weight, bias)
    }

    fn fused_upsample_nearest(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let x = contiguous(x);
        let [batch, channels, height, width] = dims(&x);
        let mut y = vec![0.0; 4 * x.layout().num_elements()];
        let rows = y.par_chunks_mut(4 * width).zip(values(&x).par_chunks(width));
        rows.for_each(|(two_rows, row)| {
            let (upper, lower) = two_rows.split_at_mut(2 * width);
            for (pair, &x) in upper.as_chunks_mut::<2>().0.iter_mut().zip(row) {
                *pair = [x, x];
            }
            lower.copy_from_slice(upper);
        });
        tensor(y, [batch, channels, 2 * height, 2 * width])
    }
}

/// Returns `activation(x weight + bias)`.
#[allow(
    clippy::needless_range_loop,
    reason = "an indexed loop is vectorised wherever it is inlined"
)]
fn linear(
    x: &FlexTensor,
    weight: &FlexTensor,
    bias: FlexTensor,
    activation: impl Fn(f32) -> f32 + Sync,
) -> FlexTensor {
    let bias = contiguous(bias);
    let bias = values(&bias);
    let mut shape = x.layout().shape().clone();
    let last = shape.num_dims() - 1;
    shape[last] = bias.len();
    let (rows, _) = rows_and_width(x);
    let x = contiguous(x.clone());
    let weight_view = matrix(weight);
    let inputs = weight_view.rows();
    if profitable(inputs, bias.len()) {
        let y = multiply(
            MatRef::row_major(values(&x), inputs),
            weight_view,
            #[inline(always)]
            |column, run| {
                let bias = &bias[column..][..run.len()];
                for i in 0..run.len() {
                    run[i] = activation(run[i] + bias[i]);
                }
            },
        );
        return tensor(y, shape);
    }
    let y = Flex::float_matmul(x.reshape(Shape::from([rows, inputs])), weight.clone());
    update(y.reshape(shape), |y| rows::add_bias(y, bias, activation))
}

/// Returns the number of rows (the product of all axes but the last), and the length of the last axis.
fn rows_and_width(x: &FlexTensor) -> (usize, usize) {
    let shape = x.layout().shape();
    let width = shape[shape.num_dims() - 1];
    (shape.num_elements() / width.max(1), width)
}

/// Returns the rows of `x` `[B, N, C]`.
fn rows_of(x: &FlexTensor) -> Rows {
    let [_, per_sample, width] = dims(x);
    Rows { per_sample, width }
}

/// Returns the lengths of the axes.
///
/// # Panics
/// Panics if `x` does not have `D` axes.
fn dims<const D: usize>(x: &FlexTensor) -> [usize; D] {
    x.layout().shape().dims()
}

/// Returns `x` in row-major order: itself if it is, else a copy.
fn contiguous(x: FlexTensor) -> FlexTensor {
    if x.as_slice::<f32>().is_some() { x } else { x.to_contiguous() }
}

/// Returns the elements of a [`contiguous`] tensor, row-major.
fn values(x: &FlexTensor) -> &[f32] {
    x.as_slice().expect("a contiguous f32 tensor")
}

/// Returns the elements of a [`contiguous`] tensor, without a copy if nothing else holds them.
fn into_values(x: FlexTensor) -> Vec<f32> {
    x.into_data().into_vec().expect("f32")
}

/// Returns a tensor of row-major elements.
fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape.into()))
}

/// Returns `x` with its elements changed by `f`: in place, or in a copy if something else holds them.
fn update(x: FlexTensor, f: impl FnOnce(&mut [f32])) -> FlexTensor {
    let mut data = contiguous(x).into_data();
    f(data.as_mut_slice().expect("f32"));
    FlexTensor::from_data(data)
}

/// Returns a matrix view of a tensor with two axes and strides that are not negative.
fn matrix(x: &FlexTensor) -> MatRef<'_> {
    let layout = x.layout();
    let stride = |axis: usize| usize::try_from(layout.strides()[axis]).expect("a weight as loaded");
    let [rows, columns] = dims(x);
    let values = &x.storage()[layout.start_offset()..];
    MatRef::with_strides(values, [rows, columns], [stride(0), stride(1)])
}
