//! Gradients of the flex kernels, as operations of burn's autodiff graph.

use super::{
    attention::{Attention, SavedWeights},
    contiguous,
    elementwise::{gelu_tanh, gelu_tanh_derivative, map_parallel, zip_parallel},
    matrix, rows, rows_and_width, rows_of, tensor, update, values,
};
use crate::kernels::FusedOps;
use burn::{
    backend::{
        Autodiff, Flex,
        autodiff::{
            checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
        flex::FlexTensor,
        ops::FloatTensorOps,
        tensor::FloatTensor,
    },
    tensor::Shape,
};
use opensora_gemm::{MatRef, multiply, profitable};

/// Runs the operation `$forward`, and saves `$state` for backward if an input requires a gradient.
macro_rules! tracked {
    ($step:ident, $nodes:expr, $state:expr, $forward:expr) => {
        match $step.prepare::<C>($nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let state = $state;
                prep.finish(state, $forward)
            }
            OpsKind::UnTracked(prep) => prep.finish($forward),
        }
    };
}

impl<C: CheckpointStrategy> FusedOps for Autodiff<Flex, C> {
    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), weight.node(), bias.node()];
        let [x, weight, bias] = [x, weight, bias].map(|x| x.into_primitive());
        tracked!(Linear, nodes, (x.clone(), weight.clone()), Flex::fused_linear(x, weight, bias))
    }

    fn fused_linear_gelu(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let x = Self::fused_linear(x, weight, bias);
        let nodes = [x.node()];
        let x = x.into_primitive();
        tracked!(GeluTanh, nodes, x.clone(), update(x, |x| map_parallel(x, gelu_tanh)))
    }

    fn fused_norm_and_modulate(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), scale.node(), shift.node()];
        let [x, scale, shift] = [x, scale, shift].map(|x| x.into_primitive());
        tracked!(
            NormAndModulate,
            nodes,
            (x.clone(), scale.clone(), epsilon),
            Flex::fused_norm_and_modulate(x, scale, shift, epsilon)
        )
    }

    fn fused_gated_sum(
        x: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        y: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), gate.node(), y.node()];
        let [x, gate, y] = [x, gate, y].map(|x| x.into_primitive());
        tracked!(GatedSum, nodes, (gate.clone(), y.clone()), Flex::fused_gated_sum(x, gate, y))
    }

    fn fused_cross_attention(
        query: FloatTensor<Self>,
        key_value: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        heads: usize,
    ) -> FloatTensor<Self> {
        let nodes = [query.node(), key_value.node()];
        let [query, key_value, bias] = [query, key_value, bias].map(|x| x.into_primitive());
        let attention = Attention::cross_attention(query, key_value, heads);
        let bias = contiguous(bias);
        match CrossAttention.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (output, weights) = attention.forward_saving(Some(values(&bias)));
                prep.finish((attention, weights, bias), output)
            }
            OpsKind::UnTracked(prep) => prep.finish(attention.forward(Some(values(&bias)))),
        }
    }

    fn fused_self_attention(
        qkv: FloatTensor<Self>,
        axis: usize,
        heads: usize,
    ) -> FloatTensor<Self> {
        let nodes = [qkv.node()];
        let attention = Attention::self_attention(qkv.into_primitive(), axis, heads);
        match SelfAttention.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (output, weights) = attention.forward_saving(None);
                prep.finish((attention, weights), output)
            }
            OpsKind::UnTracked(prep) => prep.finish(attention.forward(None)),
        }
    }
}

/// Registers the gradient `$gradient` of an input that requires one.
macro_rules! register {
    ($grads:ident, $parent:expr, $gradient:expr) => {
        if let Some(parent) = $parent {
            $grads.register::<Flex>(parent.id, $gradient);
        }
    };
}

#[derive(Debug)]
struct Linear;

impl Backward<Flex, 3> for Linear {
    /// Input and weight.
    type State = (FlexTensor, FlexTensor);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let (x, weight) = ops.state;
        let [x_parent, weight_parent, bias_parent] = ops.parents;
        let (_, outputs) = rows_and_width(&dy);
        let inputs = rows_and_width(&x).1;
        let as_matrix = |x: &FlexTensor| {
            let (rows, width) = rows_and_width(x);
            x.reshape(Shape::from([rows, width]))
        };
        register!(grads, bias_parent, tensor(rows::sum_of_rows(outputs, values(&dy)), [outputs]));
        register!(grads, weight_parent, {
            // dW = xᵀ dy
            let x = contiguous(x.clone());
            if profitable(inputs, outputs) {
                let x = MatRef::row_major(values(&x), inputs);
                let dy = MatRef::row_major(values(&dy), outputs);
                tensor(multiply(x.transposed(), dy, |_, _| ()), [inputs, outputs])
            } else {
                Flex::float_matmul(as_matrix(&x).transpose(0, 1), as_matrix(&dy))
            }
        });
        register!(grads, x_parent, {
            // dx = dy Wᵀ
            let shape = x.layout().shape().clone();
            if profitable(inputs, outputs) {
                let dy = MatRef::row_major(values(&dy), outputs);
                tensor(multiply(dy, matrix(&weight).transposed(), |_, _| ()), shape)
            } else {
                Flex::float_matmul(as_matrix(&dy), weight.transpose(0, 1)).reshape(shape)
            }
        });
    }
}

#[derive(Debug)]
struct GeluTanh;

impl Backward<Flex, 1> for GeluTanh {
    /// Input.
    type State = FlexTensor;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node);
        let [x_parent] = ops.parents;
        let x = contiguous(ops.state);
        register!(
            grads,
            x_parent,
            update(dy, |dy| zip_parallel(dy, values(&x), |dy, x| dy * gelu_tanh_derivative(x)))
        );
    }
}

#[derive(Debug)]
struct NormAndModulate;

impl Backward<Flex, 3> for NormAndModulate {
    /// Input, scale and epsilon.
    type State = (FlexTensor, FlexTensor, f64);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let (x, scale, epsilon) = ops.state;
        let [x_parent, scale_parent, shift_parent] = ops.parents;
        let (rows, shape) = (rows_of(&x), scale.layout().shape().clone());
        let scale = contiguous(scale);
        let mut sums = [Vec::new(), Vec::new()];
        let dx = update(x, |x| {
            sums = rows::norm_and_modulate_backward(
                rows,
                x,
                values(&scale),
                values(&dy),
                epsilon as f32,
            );
        });
        let [d_scale, d_shift] = sums.map(|sums| tensor(sums, shape.clone()));
        register!(grads, x_parent, dx);
        register!(grads, scale_parent, d_scale);
        register!(grads, shift_parent, d_shift);
    }
}

#[derive(Debug)]
struct GatedSum;

impl Backward<Flex, 3> for GatedSum {
    /// Gate and y.
    type State = (FlexTensor, FlexTensor);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let (gate, y) = ops.state;
        let [x_parent, gate_parent, y_parent] = ops.parents;
        let (rows, shape) = (rows_of(&y), gate.layout().shape().clone());
        let gate = contiguous(gate);
        let mut d_gate = Vec::new();
        let d_y = update(y, |y| {
            d_gate = rows::gated_sum_backward(rows, y, values(&gate), values(&dy));
        });
        register!(grads, x_parent, dy);
        register!(grads, gate_parent, tensor(d_gate, shape));
        register!(grads, y_parent, d_y);
    }
}

#[derive(Debug)]
struct CrossAttention;

impl Backward<Flex, 2> for CrossAttention {
    /// Operands, softmax and bias.
    type State = (Attention, SavedWeights, FlexTensor);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node);
        let (attention, weights, bias) = ops.state;
        let [query_parent, key_value_parent] = ops.parents;
        let [d_query, d_key_value] = attention.cross_backward(&weights, values(&bias), dy);
        register!(grads, query_parent, d_query);
        register!(grads, key_value_parent, d_key_value);
    }
}

#[derive(Debug)]
struct SelfAttention;

impl Backward<Flex, 1> for SelfAttention {
    type State = (Attention, SavedWeights);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node);
        let (attention, weights) = ops.state;
        let [qkv_parent] = ops.parents;
        register!(grads, qkv_parent, attention.self_backward(&weights, dy));
    }
}
