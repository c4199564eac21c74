//! Gradients of an STDiT, with or without activation checkpointing.
//!
//! burn's autodiff saves the inputs of every operation for the backward pass. Activation
//! checkpointing saves only the tokens that enter each block: the blocks run once without a graph,
//! and the backward pass runs each block again on a separate graph, with the gradient of `sum(y *
//! dy)`.
//!
//! In a layout over ranks the blocks' collectives run again too, in the same order on all ranks: each rank goes
//! through the same blocks.
//!
//! Source: `torch.utils.checkpoint`, as hpcaitech/Open-Sora v1.0.0 applies it with
//! `auto_grad_checkpoint` around every block.

use crate::parameters::{FlatTensors, Graph};
use burn::{
    module::Module,
    tensor::{Gradients, Tensor},
};
use opensora_nn::mask::TokenMask;
use opensora_stdit::{StDit, TokenLayout, stdit::StDitConditioning};

/// Inputs of a forward pass of an STDiT; see [`StDit::forward`].
pub(crate) struct Inputs<'a, L> {
    /// The frames of the clips that this process holds.
    pub(crate) layout: L,
    pub(crate) latents: Tensor<5>,
    pub(crate) timesteps: &'a [f32],
    pub(crate) prompt: Tensor<3>,
    pub(crate) mask: &'a TokenMask,
}

/// Runs the model on `inputs` and returns the gradients of a loss. `loss` maps the prediction
/// `[B, C_out, T, H, W]` to the loss `[1]` and a further result, which is returned too. In a layout over ranks, the
/// gradients are those of the sum of all ranks' losses through this rank's computation: their sum over the ranks is the
/// gradient.
pub(crate) fn gradients<R, E>(
    graph: &Graph<StDit>,
    inputs: Inputs<'_, impl TokenLayout>,
    recompute: bool,
    loss: impl FnOnce(Tensor<5>) -> Result<(Tensor<1>, R), E>,
) -> Result<(R, FlatTensors), E> {
    if recompute { with_recomputation(graph, inputs, loss) } else { direct(graph, inputs, loss) }
}

fn direct<R, E>(
    graph: &Graph<StDit>,
    inputs: Inputs<'_, impl TokenLayout>,
    loss: impl FnOnce(Tensor<5>) -> Result<(Tensor<1>, R), E>,
) -> Result<(R, FlatTensors), E> {
    let Inputs { layout, latents, timesteps, prompt, mask } = inputs;
    let (mut x, c) = graph.model.embed_in(layout, latents, timesteps, prompt, Some(mask));
    for index in 0..graph.model.blocks.len() {
        x = graph.model.block(index, x, &c);
    }
    let (loss, found) = loss(graph.model.head(x, &c))?;
    Ok((found, graph.backward(loss)))
}

fn with_recomputation<R, E>(
    graph: &Graph<StDit>,
    inputs: Inputs<'_, impl TokenLayout>,
    loss: impl FnOnce(Tensor<5>) -> Result<(Tensor<1>, R), E>,
) -> Result<(R, FlatTensors), E> {
    let Inputs { layout, latents, timesteps, prompt, mask } = inputs;
    let mut sum = FlatTensors::new();

    // Forward pass, which saves only the tokens that enter each block.
    let (embedded, c) = graph.model.embed_in(layout, latents, timesteps, prompt, Some(mask));
    let plain = graph.model.valid();
    let constants = map_conditioning(&c, Tensor::inner, Tensor::inner);
    let mut entering = vec![embedded.clone().inner()];
    for index in 0..plain.blocks.len() {
        let x = entering[index].clone();
        entering.push(plain.block(index, x, &constants));
    }
    drop(plain);

    // The head. Leaves are the tensors at the borders between the graphs.
    let leaves = map_conditioning(&constants, leaf, leaf);
    let last = leaf(entering.pop().unwrap_or_else(|| embedded.clone().inner()));
    let (loss, found) = loss(graph.model.head(last.clone(), &leaves))?;
    let mut grads = loss.backward();
    graph.collect(&mut grads, &mut sum);
    let mut d_tokens = gradient_of(&last, &mut grads);
    let mut d_c = ConditioningGradient::default();
    d_c.add(&leaves, &mut grads);

    // The blocks in reverse order.
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
    // If no embedding is trained, nothing before the blocks is on a graph.
    if ends.is_tracked() {
        graph.collect(&mut ends.backward(), &mut sum);
    }
    Ok((found, sum))
}

/// Sum of the gradients of timestep and prompt embeddings over all blocks and the head.
#[derive(Default)]
struct ConditioningGradient {
    t: Option<Tensor<2>>,
    t6: Option<Tensor<3>>,
    prompt: Option<Tensor<3>>,
}

impl ConditioningGradient {
    fn add<L>(&mut self, leaves: &StDitConditioning<L>, grads: &mut Gradients) {
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

/// Maps the differentiable tensors of the conditioning.
fn map_conditioning<L: TokenLayout>(
    c: &StDitConditioning<L>,
    two: impl Fn(Tensor<2>) -> Tensor<2>,
    three: impl Fn(Tensor<3>) -> Tensor<3>,
) -> StDitConditioning<L> {
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

/// Returns the gradient of a leaf, zero if nothing depends on the leaf.
fn gradient_of<const D: usize>(leaf: &Tensor<D>, grads: &mut Gradients) -> Tensor<D> {
    leaf.grad_remove(grads).unwrap_or_else(|| leaf.clone().inner().zeros_like())
}

/// Returns `sum(y * dy)`, whose gradient for `y` is `dy`.
fn dot(y: Tensor<3>, dy: Tensor<3>) -> Tensor<1> {
    (y * dy).sum()
}
