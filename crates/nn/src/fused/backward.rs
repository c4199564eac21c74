//! The operations' gradients.

use super::{
    Fused,
    forward::{change, contiguous, matrix, rows_and_width, rows_of, tensor, values},
    heads::{Heads, Weights},
    passes,
};
use crate::{
    activation::{gelu_tanh_of, gelu_tanh_slope},
    host::map_on_all,
};
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

/// Runs an operation, and keeps what its gradient needs where one can be asked for.
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

impl<C: CheckpointStrategy> Fused for Autodiff<Flex, C> {
    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), weight.node(), bias.node()];
        let [x, weight, bias] = [x, weight, bias].map(|of| of.into_primitive());
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
        tracked!(GeluTanh, nodes, x.clone(), change(x, |x| map_on_all(x, gelu_tanh_of)))
    }

    fn fused_norm_and_modulate(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), scale.node(), shift.node()];
        let [x, scale, shift] = [x, scale, shift].map(|of| of.into_primitive());
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
        let [x, gate, y] = [x, gate, y].map(|of| of.into_primitive());
        tracked!(GatedSum, nodes, (gate.clone(), y.clone()), Flex::fused_gated_sum(x, gate, y))
    }

    fn fused_cross_attention(
        query: FloatTensor<Self>,
        key_value: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        heads: usize,
    ) -> FloatTensor<Self> {
        let nodes = [query.node(), key_value.node()];
        let [query, key_value, bias] = [query, key_value, bias].map(|of| of.into_primitive());
        let (heads, bias) = (Heads::of_cross(query, key_value, heads), contiguous(bias));
        match CrossAttention.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (output, weights) = heads.attention_keeping(Some(values(&bias)));
                prep.finish((heads, weights), output)
            }
            OpsKind::UnTracked(prep) => prep.finish(heads.attention(Some(values(&bias)))),
        }
    }

    fn fused_self_attention(
        qkv: FloatTensor<Self>,
        axis: usize,
        heads: usize,
    ) -> FloatTensor<Self> {
        let nodes = [qkv.node()];
        let heads = Heads::of_self(qkv.into_primitive(), axis, heads);
        match SelfAttention.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (output, weights) = heads.attention_keeping(None);
                prep.finish((heads, weights), output)
            }
            OpsKind::UnTracked(prep) => prep.finish(heads.attention(None)),
        }
    }
}

/// Sends the gradient `$found` to a parent that asks for one.
macro_rules! register {
    ($grads:ident, $parent:expr, $found:expr) => {
        if let Some(parent) = $parent {
            $grads.register::<Flex>(parent.id, $found);
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
        let [of_x, of_weight, of_bias] = ops.parents;
        let (_, outputs) = rows_and_width(&dy);
        let inputs = rows_and_width(&x).1;
        let two = |x: &FlexTensor| {
            let (rows, width) = rows_and_width(x);
            x.reshape(Shape::from([rows, width]))
        };
        register!(grads, of_bias, tensor(passes::sum_of_rows(outputs, values(&dy)), [outputs]));
        register!(grads, of_weight, {
            // dW = xᵀ dy
            let x = contiguous(x.clone());
            if profitable(inputs, outputs) {
                let x = MatRef::row_major(values(&x), inputs);
                let dy = MatRef::row_major(values(&dy), outputs);
                tensor(multiply(x.transposed(), dy, |_, _| ()), [inputs, outputs])
            } else {
                Flex::float_matmul(two(&x).transpose(0, 1), two(&dy))
            }
        });
        register!(grads, of_x, {
            // dx = dy Wᵀ
            let shape = x.layout().shape().clone();
            if profitable(inputs, outputs) {
                let dy = MatRef::row_major(values(&dy), outputs);
                tensor(multiply(dy, matrix(&weight).transposed(), |_, _| ()), shape)
            } else {
                Flex::float_matmul(two(&dy), weight.transpose(0, 1)).reshape(shape)
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
        let [of_x] = ops.parents;
        let x = contiguous(ops.state);
        register!(
            grads,
            of_x,
            change(dy, |dy| passes::zip(dy, values(&x), |dy, x| dy * gelu_tanh_slope(x)))
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
        let [of_x, of_scale, of_shift] = ops.parents;
        let (rows, shape) = (rows_of(&x), scale.layout().shape().clone());
        let scale = contiguous(scale);
        let mut sums = [Vec::new(), Vec::new()];
        let dx = change(x, |x| {
            sums = passes::norm_and_modulate_backward(
                rows,
                x,
                values(&scale),
                values(&dy),
                epsilon as f32,
            );
        });
        let [d_scale, d_shift] = sums.map(|sums| tensor(sums, shape.clone()));
        register!(grads, of_x, dx);
        register!(grads, of_scale, d_scale);
        register!(grads, of_shift, d_shift);
    }
}

#[derive(Debug)]
struct GatedSum;

impl Backward<Flex, 3> for GatedSum {
    /// Gate and what it lets through.
    type State = (FlexTensor, FlexTensor);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let (gate, y) = ops.state;
        let [of_x, of_gate, of_y] = ops.parents;
        let (rows, shape) = (rows_of(&y), gate.layout().shape().clone());
        let gate = contiguous(gate);
        let mut d_gate = Vec::new();
        let d_through = change(y, |y| {
            d_gate = passes::gated_sum_backward(rows, y, values(&gate), values(&dy));
        });
        register!(grads, of_x, dy);
        register!(grads, of_gate, tensor(d_gate, shape));
        register!(grads, of_y, d_through);
    }
}

#[derive(Debug)]
struct CrossAttention;

impl Backward<Flex, 2> for CrossAttention {
    type State = (Heads, Weights);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node);
        let (heads, weights) = ops.state;
        let [of_query, of_key_value] = ops.parents;
        let [d_query, d_key_value] = heads.cross_backward(&weights, dy);
        register!(grads, of_query, d_query);
        register!(grads, of_key_value, d_key_value);
    }
}

#[derive(Debug)]
struct SelfAttention;

impl Backward<Flex, 1> for SelfAttention {
    type State = (Heads, Weights);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node);
        let (heads, weights) = ops.state;
        let [of_qkv] = ops.parents;
        register!(grads, of_qkv, heads.self_backward(&weights, dy));
    }
}
