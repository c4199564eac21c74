//! Gradients of an STDiT, with or without keeping every block's activations.
//!
//! burn's autodiff keeps what a backward pass needs of every operation. Activation checkpointing
//! keeps only the tokens that enter each block: the blocks run once without a graph, and on the way
//! back each is run again on a graph of its own, whose gradient is that of `sum(y * dy)`.
//!
//! Source of the scheme: `torch.utils.checkpoint`, as hpcaitech/Open-Sora v1.0.0 applies it with
//! `auto_grad_checkpoint` around every block.

use crate::parameters::{FlatTensors, Graph};
use burn::{
    module::Module,
    tensor::{Gradients, Tensor},
};
use opensora_nn::mask::TokenMask;
use opensora_stdit::{StDit, stdit::StDitConditioning};

/// What a forward pass of an STDiT takes; see [`StDit::forward`].
pub(crate) struct Inputs<'a> {
    pub(crate) latents: Tensor<5>,
    pub(crate) timesteps: &'a [f32],
    pub(crate) prompt: Tensor<3>,
    pub(crate) mask: &'a TokenMask,
}

/// Runs the model on `inputs`, hands its prediction `[B, C_out, T, H, W]` to `loss`, which returns
/// the number to minimise `[1]` and whatever else it found, and returns that with the gradients.
pub(crate) fn gradients<R, E>(
    graph: &Graph<StDit>,
    inputs: Inputs<'_>,
    recompute: bool,
    loss: impl FnOnce(Tensor<5>) -> Result<(Tensor<1>, R), E>,
) -> Result<(R, FlatTensors), E> {
    if recompute { recomputing(graph, inputs, loss) } else { keeping(graph, inputs, loss) }
}

fn keeping<R, E>(
    graph: &Graph<StDit>,
    inputs: Inputs<'_>,
    loss: impl FnOnce(Tensor<5>) -> Result<(Tensor<1>, R), E>,
) -> Result<(R, FlatTensors), E> {
    let Inputs { latents, timesteps, prompt, mask } = inputs;
    let (loss, found) = loss(graph.model.forward(latents, timesteps, prompt, Some(mask)))?;
    Ok((found, graph.backward(loss)))
}

fn recomputing<R, E>(
    graph: &Graph<StDit>,
    inputs: Inputs<'_>,
    loss: impl FnOnce(Tensor<5>) -> Result<(Tensor<1>, R), E>,
) -> Result<(R, FlatTensors), E> {
    let Inputs { latents, timesteps, prompt, mask } = inputs;
    let mut sum = FlatTensors::new();

    // Forward, keeping the tokens that enter each block and nothing else of the blocks.
    let (embedded, c) = graph.model.embed(latents, timesteps, prompt, Some(mask));
    let plain = graph.model.valid();
    let constants = map_conditioning(&c, Tensor::inner, Tensor::inner);
    let mut entering = vec![embedded.clone().inner()];
    for index in 0..plain.blocks.len() {
        let x = entering[index].clone();
        entering.push(plain.block(index, x, &constants));
    }
    drop(plain);

    // The head. Leaves stand for what the parts hand to each other.
    let leaves = map_conditioning(&constants, leaf, leaf);
    let last = leaf(entering.pop().unwrap_or_else(|| embedded.clone().inner()));
    let (loss, found) = loss(graph.model.head(last.clone(), &leaves))?;
    let mut grads = loss.backward();
    graph.collect(&mut grads, &mut sum);
    let mut d_tokens = gradient_of(&last, &mut grads);
    let mut d_c = ConditioningGradient::default();
    d_c.add(&leaves, &mut grads);

    // The blocks, the last one first.
    for (index, x) in entering.into_iter().enumerate().rev() {
        let leaves = map_conditioning(&constants, leaf, leaf);
        let x = leaf(x);
        let y = graph.model.block(index, x.clone(), &leaves);
        let mut grads = dot(y, d_tokens).backward();
        graph.collect(&mut grads, &mut sum);
        d_tokens = gradient_of(&x, &mut grads);
        d_c.add(&leaves, &mut grads);
    }

    // The embeddings.
    let mut ends = dot(embedded, d_tokens);
    for (value, gradient) in [
        (c.prompted.t.unsqueeze::<3>(), d_c.t.map(|t| t.unsqueeze::<3>())),
        (c.prompted.t6, d_c.t6),
        (c.prompted.prompt, d_c.prompt),
    ] {
        if let Some(gradient) = gradient {
            ends = ends + dot(value, gradient);
        }
    }
    graph.collect(&mut ends.backward(), &mut sum);
    Ok((found, sum))
}

/// What reaches timestep and prompt embeddings from all the parts that they steer.
#[derive(Default)]
struct ConditioningGradient {
    t: Option<Tensor<2>>,
    t6: Option<Tensor<3>>,
    prompt: Option<Tensor<3>>,
}

impl ConditioningGradient {
    fn add(&mut self, leaves: &StDitConditioning, grads: &mut Gradients) {
        fn add<const D: usize>(
            sum: &mut Option<Tensor<D>>,
            leaf: &Tensor<D>,
            grads: &mut Gradients,
        ) {
            if let Some(gradient) = leaf.grad_remove(grads) {
                *sum = Some(match sum.take() {
                    Some(before) => before + gradient,
                    None => gradient,
                });
            }
        }
        add(&mut self.t, &leaves.prompted.t, grads);
        add(&mut self.t6, &leaves.prompted.t6, grads);
        add(&mut self.prompt, &leaves.prompted.prompt, grads);
    }
}

/// The conditioning with its differentiable tensors mapped.
fn map_conditioning(
    c: &StDitConditioning,
    two: impl Fn(Tensor<2>) -> Tensor<2>,
    three: impl Fn(Tensor<3>) -> Tensor<3>,
) -> StDitConditioning {
    let mut mapped = c.clone();
    let prompted = &mut mapped.prompted;
    prompted.t = two(c.prompted.t.clone());
    prompted.t6 = three(c.prompted.t6.clone());
    prompted.prompt = three(c.prompted.prompt.clone());
    mapped
}

fn leaf<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_inner(x).require_grad()
}

/// The gradient that arrived at a leaf; zero where nothing depends on it.
fn gradient_of<const D: usize>(leaf: &Tensor<D>, grads: &mut Gradients) -> Tensor<D> {
    leaf.grad_remove(grads).unwrap_or_else(|| leaf.clone().inner().zeros_like())
}

/// `sum(y * dy)`, whose gradient for `y` is `dy`.
fn dot(y: Tensor<3>, dy: Tensor<3>) -> Tensor<1> {
    (y * dy).sum()
}
