//! A denoiser with its prompts: what samplers see of STDiT.

use crate::{
    diffusion::{Condition, DenoiseError, Denoiser, PredictionType},
    stdit::{AttentionCache, AttentionReuse, DenoiserWork, PromptModel},
    t5::PromptStates,
};
use burn::tensor::Tensor;
use opensora_nn::mask::TokenMask;
use std::{cell::RefCell, fmt::Debug};

/// STDiT for a batch of prompts, and for the null prompt beside each.
///
/// Quirk of the reference, kept: the null prompt is seen through the mask of the prompt that it
/// stands beside, so row `k` of the learnt table counts where token `k` of the prompt does.
#[derive(Debug)]
pub struct PromptedDenoiser<'a> {
    model: &'a dyn PromptModel,
    prompt: Tensor<3>,
    null: Tensor<3>,
    mask: TokenMask,
    /// The null prompt's own mask, if it has one.
    null_mask: Option<TokenMask>,
    prediction_type: PredictionType,
    /// Samplers hold a denoiser by reference and know nothing of what it keeps.
    caches: RefCell<Caches>,
}

/// One cache for each way of asking, so that no condition is answered with another's attention.
#[derive(Debug)]
struct Caches {
    prompt: AttentionCache,
    null: AttentionCache,
    both: AttentionCache,
}

impl Caches {
    fn new(reuse: AttentionReuse) -> Self {
        let cache = || AttentionCache::new(reuse);
        Self { prompt: cache(), null: cache(), both: cache() }
    }
}

impl<'a> PromptedDenoiser<'a> {
    /// For the states of `B` prompts, `[B, L, C]`, whose `L` is that of the model's null prompt.
    ///
    /// # Panics
    /// Where the states are of another length or width than the model's null prompt.
    pub fn new(model: &'a dyn PromptModel, prompt: &PromptStates) -> Self {
        let [batch, tokens, width] = prompt.states.dims();
        let null = model.null_prompt();
        assert_eq!([tokens, width], null.dims(), "prompt states do not fit the model");
        Self {
            model,
            prompt: prompt.states.clone().cast(null.dtype()),
            // [L, C] -> [B, L, C]
            null: null.unsqueeze::<3>().expand([batch, tokens, width]),
            mask: prompt.mask.clone(),
            null_mask: None,
            prediction_type: PredictionType::Epsilon,
            caches: RefCell::new(Caches::new(AttentionReuse::OFF)),
        }
    }

    /// The same with the states of a negative prompt, `[1, L, C]` or `[B, L, C]`, in place of the null
    /// prompt; they are seen through their own mask.
    ///
    /// # Panics
    /// Panics if the states are of another length or width than the prompts', or of another batch size.
    pub fn with_negative(self, negative: &PromptStates) -> Self {
        let null = negative.states.clone().cast(self.null.dtype()).expand(self.null.dims());
        let null_mask = Some(negative.mask.repeat_to(self.mask.batch()));
        Self { null, null_mask, ..self }
    }

    /// The mask of `[prompt, null]`, a batch of `2B`; `B` rows stand for both halves.
    fn mask_of_both(&self) -> TokenMask {
        let Some(null) = &self.null_mask else { return self.mask.clone() };
        let rows = [self.mask.rows(), null.rows()].concat();
        TokenMask::new(rows).unwrap_or_else(|| self.mask.clone())
    }

    /// The same with attention outputs used again in neighbouring steps.
    pub fn with_reuse(self, reuse: AttentionReuse) -> Self {
        Self { caches: RefCell::new(Caches::new(reuse)), ..self }
    }

    /// Returns the denoiser of a model with another prediction target than the noise.
    pub fn with_prediction_type(self, prediction_type: PredictionType) -> Self {
        Self { prediction_type, ..self }
    }

    /// The work done so far.
    pub fn work(&self) -> DenoiserWork {
        let caches = self.caches.borrow();
        caches.prompt.work() + caches.null.work() + caches.both.work()
    }

    /// The null prompt beside each prompt, `[B, L, C]`.
    pub fn null_states(&self) -> Tensor<3> {
        self.null.clone()
    }
}

impl Denoiser for PromptedDenoiser<'_> {
    fn denoise(
        &self,
        latents: Tensor<5>,
        timestep: f32,
        condition: Condition,
    ) -> Result<Tensor<5>, DenoiseError> {
        let timesteps = vec![timestep; latents.dims()[0]];
        let caches = &mut *self.caches.borrow_mut();
        let (states, mask, cache) = match condition {
            Condition::Prompt => (&self.prompt, &self.mask, &mut caches.prompt),
            Condition::Null => {
                let mask = self.null_mask.as_ref().unwrap_or(&self.mask);
                (&self.null, mask, &mut caches.null)
            }
        };
        Ok(self.model.forward_cached(latents, &timesteps, states.clone(), Some(mask), cache)?)
    }

    /// One forward pass over twice the batch.
    fn denoise_both(
        &self,
        latents: Tensor<5>,
        timestep: f32,
    ) -> Result<(Tensor<5>, Tensor<5>), DenoiseError> {
        let batch = latents.dims()[0];
        let both = Tensor::cat(vec![latents.clone(), latents], 0);
        let states = Tensor::cat(vec![self.prompt.clone(), self.null.clone()], 0);
        let timesteps = vec![timestep; 2 * batch];
        let cache = &mut self.caches.borrow_mut().both;
        let mask = self.mask_of_both();
        let out = self.model.forward_cached(both, &timesteps, states, Some(&mask), cache)?;
        Ok((out.clone().narrow(0, 0, batch), out.narrow(0, batch, batch)))
    }
    fn prediction_type(&self) -> PredictionType {
        self.prediction_type
    }
}
