//! Models with the conditions of a batch, as samplers see them.
//!
//! [`ConditionedDenoiser`] is the one adapter between a model and a
//! [sampler](crate::diffusion::Sampler): [`PromptedDenoiser`] for prompts, [`LabelledDenoiser`] for class
//! labels.

use crate::{
    diffusion::{Condition, DenoiseError, Denoiser, PredictionType},
    nn::mask::TokenMask,
    parallel::{Group, tensor::all_gather},
    stdit::{AttentionCache, AttentionReuse, ClassModel, DenoiserWork, PromptModel, SizeError},
    t5::PromptStates,
};
use burn::tensor::Tensor;
use std::{cell::RefCell, fmt::Debug};

/// Conditions of the samples of a batch: prompts or class labels.
///
/// The trait is sealed.
pub trait BatchCondition: Debug + sealed::Sealed {
    /// The models that take these conditions.
    type Model: ?Sized + Debug;
    /// State that forward passes of one condition keep, their work included.
    type State: Debug;

    /// Runs a forward pass of `model` over latents `[B, C, T, H, W]`.
    ///
    /// # Errors
    /// Returns an error if the latents cannot be split into patches, or weights that are not in memory
    /// cannot be read.
    fn predict(
        &self,
        model: &Self::Model,
        latents: Tensor<5>,
        timesteps: &[f32],
        state: &mut Self::State,
    ) -> Result<Tensor<5>, DenoiseError>;

    /// Returns the work of all forward passes with this state.
    fn work(state: &Self::State) -> DenoiserWork;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::PromptStates {}
    impl Sealed for Vec<usize> {}
}

impl BatchCondition for PromptStates {
    type Model = dyn PromptModel;
    type State = AttentionCache;

    fn predict(
        &self,
        model: &dyn PromptModel,
        latents: Tensor<5>,
        timesteps: &[f32],
        cache: &mut AttentionCache,
    ) -> Result<Tensor<5>, DenoiseError> {
        let (states, mask) = (self.states.clone(), Some(&self.mask));
        Ok(model.forward_cached(latents, timesteps, states, mask, cache)?)
    }

    fn work(cache: &AttentionCache) -> DenoiserWork {
        cache.work()
    }
}

impl BatchCondition for Vec<usize> {
    type Model = dyn ClassModel;
    type State = DenoiserWork;

    fn predict(
        &self,
        model: &dyn ClassModel,
        latents: Tensor<5>,
        timesteps: &[f32],
        work: &mut DenoiserWork,
    ) -> Result<Tensor<5>, DenoiseError> {
        let [samples, _, frames, height, width] = latents.dims();
        let grid = model.config().grid([frames, height, width])?;
        *work += model.work(samples, grid);
        Ok(model.forward(latents, timesteps, self))
    }

    fn work(work: &DenoiserWork) -> DenoiserWork {
        *work
    }
}

/// A model with the condition of each sample of a batch, and the null condition beside each for guidance.
#[derive(Debug)]
pub struct ConditionedDenoiser<'a, C: BatchCondition> {
    model: &'a C::Model,
    condition: C,
    /// `None` for a model that was trained without a null condition.
    null: Option<Null<C>>,
    prediction_type: PredictionType,
    /// Two ranks, of which the first predicts with the condition and the second without.
    guidance: Option<Group>,
    /// In a cell, since samplers hold a denoiser by shared reference.
    states: RefCell<States<C::State>>,
}

/// The null condition of a batch, alone and joined with the condition.
#[derive(Debug)]
struct Null<C> {
    /// The null condition, for a batch of `B` samples.
    alone: C,
    /// The condition and the null condition, for a batch of `2B` samples.
    both: C,
}

/// One state for each kind of pass, so that no pass reuses attention outputs of another condition.
#[derive(Debug, Default)]
struct States<S> {
    condition: S,
    null: S,
    both: S,
}

impl<C: BatchCondition> ConditionedDenoiser<'_, C> {
    /// Returns the work done so far.
    pub fn work(&self) -> DenoiserWork {
        let States { condition, null, both } = &*self.states.borrow();
        C::work(condition) + C::work(null) + C::work(both)
    }

    /// Sets the prediction target of the model; the default is the noise.
    pub fn with_prediction_type(self, prediction_type: PredictionType) -> Self {
        Self { prediction_type, ..self }
    }

    /// Divides the two predictions of guidance between the two ranks of `group`, which both call it: the first predicts
    /// with the condition, the second with the null condition. `None`: this process computes both in one pass.
    pub fn with_guidance_ranks(self, group: Option<Group>) -> Self {
        Self { guidance: group, ..self }
    }

    fn null(&self) -> Result<&Null<C>, SizeError> {
        self.null.as_ref().ok_or(SizeError::NoNullClass)
    }
}

impl<C: BatchCondition> Denoiser for ConditionedDenoiser<'_, C> {
    fn denoise(
        &self,
        latents: Tensor<5>,
        timestep: f32,
        condition: Condition,
    ) -> Result<Tensor<5>, DenoiseError> {
        let timesteps = vec![timestep; latents.dims()[0]];
        let states = &mut *self.states.borrow_mut();
        let (condition, state) = match condition {
            Condition::Prompt => (&self.condition, &mut states.condition),
            Condition::Null => (&self.null()?.alone, &mut states.null),
        };
        condition.predict(self.model, latents, &timesteps, state)
    }

    /// Returns the predictions with and without the prompt, by one forward pass over twice the batch, or one on each
    /// of two ranks.
    fn denoise_both(
        &self,
        latents: Tensor<5>,
        timestep: f32,
    ) -> Result<(Tensor<5>, Tensor<5>), DenoiseError> {
        let batch = latents.dims()[0];
        let halves =
            |out: Tensor<5>| (out.clone().narrow(0, 0, batch), out.narrow(0, batch, batch));
        if let Some(group) = &self.guidance {
            let condition = if group.rank() == 0 { Condition::Prompt } else { Condition::Null };
            // [B, ...] -> [2B, ...]
            return Ok(halves(all_gather(self.denoise(latents, timestep, condition)?, 0, group)));
        }
        let timesteps = vec![timestep; 2 * batch];
        let both = Tensor::cat(vec![latents.clone(), latents], 0);
        let state = &mut self.states.borrow_mut().both;
        let out = self.null()?.both.predict(self.model, both, &timesteps, state)?;
        Ok(halves(out))
    }

    fn prediction_type(&self) -> PredictionType {
        self.prediction_type
    }
}

/// A model with the prompts of a batch, and a null or negative prompt beside each.
///
/// Quirk of the reference, kept: the null prompt is seen through the mask of the prompt that it
/// stands beside, so row `k` of the learned table counts where token `k` of the prompt does.
pub type PromptedDenoiser<'a> = ConditionedDenoiser<'a, PromptStates>;

impl<'a> PromptedDenoiser<'a> {
    /// Returns the denoiser of `B` prompts with states `[B, L, C]`.
    ///
    /// # Errors
    /// Returns an error if the states are of another length or width than the model's null prompt.
    pub fn new(
        model: &'a (dyn PromptModel + 'static),
        prompts: &PromptStates,
    ) -> Result<Self, PromptError> {
        let [batch, tokens, width] = prompts.states.dims();
        let null = model.null_prompt();
        check(prompts, null.dims())?;
        let states = prompts.states.clone().cast(null.dtype());
        // [L, C] -> [B, L, C]
        let null = null.unsqueeze::<3>().expand([batch, tokens, width]);
        let mask = prompts.mask.clone();
        Ok(Self {
            model,
            null: Some(Null {
                alone: PromptStates { states: null.clone(), mask: mask.clone() },
                // `B` rows of the mask stand for both halves.
                both: PromptStates {
                    states: Tensor::cat(vec![states.clone(), null], 0),
                    mask: mask.clone(),
                },
            }),
            condition: PromptStates { states, mask },
            prediction_type: PredictionType::default(),
            guidance: None,
            states: RefCell::default(),
        })
    }

    /// Replaces the null prompt by the states of a negative prompt, `[1, L, C]` or `[B, L, C]`, which are
    /// seen through their own mask.
    ///
    /// # Errors
    /// Returns an error if the states are of another length or width than the model's null prompt.
    ///
    /// # Panics
    /// Panics if the number of negative prompts is neither 1 nor that of the prompts.
    pub fn with_negative(self, negative: &PromptStates) -> Result<Self, PromptError> {
        let PromptStates { states, mask } = &self.condition;
        let [batch, tokens, width] = states.dims();
        check(negative, [tokens, width])?;
        let null = negative.states.clone().cast(states.dtype()).expand([batch, tokens, width]);
        let null_mask = negative.mask.repeat_to(mask.batch());
        let rows = [mask.rows(), null_mask.rows()].concat();
        let both = PromptStates {
            states: Tensor::cat(vec![states.clone(), null.clone()], 0),
            mask: TokenMask::new(rows).unwrap_or_else(|| mask.clone()),
        };
        let alone = PromptStates { states: null, mask: null_mask };
        Ok(Self { null: Some(Null { alone, both }), ..self })
    }

    /// Reuses attention outputs in neighbouring steps.
    pub fn with_reuse(self, reuse: AttentionReuse) -> Self {
        let cache = || AttentionCache::new(reuse);
        let states = States { condition: cache(), null: cache(), both: cache() };
        Self { states: RefCell::new(states), ..self }
    }

    /// Returns the null prompt beside each prompt, `[B, L, C]`.
    pub fn null_states(&self) -> Tensor<3> {
        match &self.null {
            Some(null) => null.alone.states.clone(),
            // Not reached: every model with prompts has a null prompt.
            None => self.condition.states.zeros_like(),
        }
    }
}

/// States of prompts that do not fit a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "prompt states are {} tokens of width {}, the denoiser expects {} of {}",
    found[0], found[1], expected[0], expected[1]
)]
#[non_exhaustive]
pub struct PromptError {
    /// Tokens and width of the states.
    pub found: [usize; 2],
    /// Tokens and width of the model's null prompt.
    pub expected: [usize; 2],
}

fn check(prompts: &PromptStates, expected: [usize; 2]) -> Result<(), PromptError> {
    let [_, tokens, width] = prompts.states.dims();
    let found = [tokens, width];
    if found == expected { Ok(()) } else { Err(PromptError { found, expected }) }
}

/// A model with the class labels of a batch, and the null class beside each.
///
/// Source: hpcaitech/Open-Sora v1.0.0, `opensora/models/text_encoder/classes.py`, class
/// `ClassEncoder`.
pub type LabelledDenoiser<'a> = ConditionedDenoiser<'a, Vec<usize>>;

impl<'a> LabelledDenoiser<'a> {
    /// Returns the denoiser of `labels`, one for each sample of the batch.
    ///
    /// # Errors
    /// Returns an error if a label is not a class of the model.
    pub fn new(model: &'a (dyn ClassModel + 'static), labels: &[usize]) -> Result<Self, SizeError> {
        let config = model.config();
        config.check_labels(labels)?;
        let null = config.null_class().map(|class| {
            let alone = vec![class; labels.len()];
            Null { both: [labels, &alone].concat(), alone }
        });
        Ok(Self {
            model,
            condition: labels.to_vec(),
            null,
            prediction_type: PredictionType::default(),
            guidance: None,
            states: RefCell::default(),
        })
    }
}
