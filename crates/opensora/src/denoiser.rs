//! A denoiser with its prompts: what samplers see of STDiT.

use crate::{
    diffusion::{Condition, Denoiser},
    stdit::StDit,
    t5::PromptStates,
};
use burn::tensor::Tensor;
use opensora_nn::mask::TokenMask;

/// STDiT for a batch of prompts, and for the null prompt beside each.
///
/// Quirk of the reference, kept: the null prompt is seen through the mask of the prompt that it
/// stands beside, so row `k` of the learnt table counts where token `k` of the prompt does.
#[derive(Debug)]
pub struct PromptedDenoiser<'a> {
    model: &'a StDit,
    prompt: Tensor<3>,
    null: Tensor<3>,
    mask: TokenMask,
}

impl<'a> PromptedDenoiser<'a> {
    /// For the states of `B` prompts, `[B, L, C]`, whose `L` is that of the model's null prompt.
    ///
    /// # Panics
    /// Where the states are of another length or width than the model's null prompt.
    pub fn new(model: &'a StDit, prompt: &PromptStates) -> Self {
        let [batch, tokens, width] = prompt.states.dims();
        let null = model.null_prompt();
        assert_eq!([tokens, width], null.dims(), "prompt states do not fit the model");
        Self {
            model,
            prompt: prompt.states.clone().cast(null.dtype()),
            // [L, C] -> [B, L, C]
            null: null.unsqueeze::<3>().expand([batch, tokens, width]),
            mask: prompt.mask.clone(),
        }
    }

    /// The null prompt beside each prompt, `[B, L, C]`.
    pub fn null_states(&self) -> Tensor<3> {
        self.null.clone()
    }
}

impl Denoiser for PromptedDenoiser<'_> {
    fn denoise(&self, latents: Tensor<5>, timestep: f32, condition: Condition) -> Tensor<5> {
        let timesteps = vec![timestep; latents.dims()[0]];
        let states = match condition {
            Condition::Prompt => &self.prompt,
            Condition::Null => &self.null,
        };
        self.model.forward(latents, &timesteps, states.clone(), Some(&self.mask))
    }

    /// One forward pass over twice the batch.
    fn denoise_both(&self, latents: Tensor<5>, timestep: f32) -> (Tensor<5>, Tensor<5>) {
        let batch = latents.dims()[0];
        let both = Tensor::cat(vec![latents.clone(), latents], 0);
        let states = Tensor::cat(vec![self.prompt.clone(), self.null.clone()], 0);
        let out = self.model.forward(both, &vec![timestep; 2 * batch], states, Some(&self.mask));
        (out.clone().narrow(0, 0, batch), out.narrow(0, batch, batch))
    }
}
