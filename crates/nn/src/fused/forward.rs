//! The operations on burn's flex backend.

use super::{
    Fused,
    heads::Heads,
    passes::{self, Rows},
};
use crate::activation::gelu_tanh_of;
use burn::{
    backend::{Flex, flex::FlexTensor, ops::FloatTensorOps, tensor::FloatTensor},
    tensor::{Shape, TensorData},
};
use opensora_gemm::{MatRef, multiply, profitable};

impl Fused for Flex {
    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        linear(&x, &weight, &bias, |x| x)
    }

    fn fused_linear_gelu(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        linear(&x, &weight, &bias, gelu_tanh_of)
    }

    fn fused_norm_and_modulate(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        let rows = rows_of(&x);
        let (scale, shift) = (contiguous(scale), contiguous(shift));
        change(x, |x| {
            passes::norm_and_modulate(rows, x, values(&scale), values(&shift), epsilon as f32);
        })
    }

    fn fused_gated_sum(
        x: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        y: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let rows = rows_of(&x);
        let (gate, y) = (contiguous(gate), contiguous(y));
        change(x, |x| passes::gated_sum(rows, x, values(&gate), values(&y)))
    }

    fn fused_cross_attention(
        query: FloatTensor<Self>,
        key_value: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        heads: usize,
    ) -> FloatTensor<Self> {
        let (heads, bias) = (Heads::of_cross(query, key_value, heads), contiguous(bias));
        heads.attention(Some(values(&bias)))
    }

    fn fused_self_attention(
        qkv: FloatTensor<Self>,
        axis: usize,
        heads: usize,
    ) -> FloatTensor<Self> {
        Heads::of_self(qkv, axis, heads).attention(None)
    }
}

/// The last axis and all before it.
pub(super) fn rows_and_width(x: &FlexTensor) -> (usize, usize) {
    let shape = x.layout().shape();
    let width = shape[shape.num_dims() - 1];
    (shape.num_elements() / width.max(1), width)
}

/// The rows of `[B, N, C]`.
pub(super) fn rows_of(x: &FlexTensor) -> Rows {
    let shape = x.layout().shape();
    Rows { per_sample: shape[1], width: shape[2] }
}

/// In one piece, the last axis fastest.
pub(super) fn contiguous(x: FlexTensor) -> FlexTensor {
    if x.as_slice::<f32>().is_some() { x } else { x.to_contiguous() }
}

/// The values of a tensor in one piece.
pub(super) fn values(x: &FlexTensor) -> &[f32] {
    x.as_slice().expect("f32 in one piece")
}

/// A tensor of these values.
pub(super) fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape.into()))
}

/// `x` with its values changed by `f`: where they lie if nothing else holds them, else in a copy.
pub(super) fn change(x: FlexTensor, f: impl FnOnce(&mut [f32])) -> FlexTensor {
    let mut data = contiguous(x).into_data();
    f(data.as_mut_slice().expect("f32"));
    FlexTensor::from_data(data)
}

/// `finish(x weight + bias)`.
#[allow(clippy::needless_range_loop, reason = "compiled well in whatever it becomes a part of")]
fn linear(
    x: &FlexTensor,
    weight: &FlexTensor,
    bias: &FlexTensor,
    finish: impl Fn(f32) -> f32 + Sync,
) -> FlexTensor {
    let bias = contiguous(bias.clone());
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
                    run[i] = finish(run[i] + bias[i]);
                }
            },
        );
        return tensor(y, shape);
    }
    let y = Flex::float_matmul(x.reshape(Shape::from([rows, inputs])), weight.clone());
    change(y.reshape(shape), |y| passes::add_to_rows(y, bias, finish))
}

/// A matrix of any layout.
pub(super) fn matrix(x: &FlexTensor) -> MatRef<'_> {
    let layout = x.layout();
    let stride = |axis: usize| usize::try_from(layout.strides()[axis]).expect("no flipped weights");
    let [rows, columns] = [layout.shape()[0], layout.shape()[1]];
    let values = &x.storage()[layout.start_offset()..];
    MatRef::with_strides(values, [rows, columns], [stride(0), stride(1)])
}
