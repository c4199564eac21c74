//! The denoiser of a request, loaded once for any number of batches.

use super::{Conditioning, Conditions, Observer, PipelineError, SamplerStep, finite, shared::Core};
use crate::{
    diffusion::{FiniteGuard, PredictionType, SampleError, Sampler, StepInfo},
    nn::{
        device::is_host,
        noise::{Purpose, normal_batch},
    },
    request::SampleRequest,
    stdit::{DenoiserWork, keys},
};
use burn::tensor::{FloatDType, Tensor};
use std::{ops::ControlFlow, sync::Arc};

/// A denoiser with the sampler and the sizes of one request.
///
/// `C` is what the model is conditioned on: [`Conditioning`] for prompts, `[usize]` for class labels.
#[derive(Debug)]
pub struct LoadedDenoiser<'a, C: Conditions + ?Sized = Conditioning> {
    core: &'a Core,
    request: SampleRequest,
    model: Arc<C::Model>,
    prediction_type: PredictionType,
    sampler: Arc<dyn Sampler>,
    /// `[T, h, w]`
    size: [usize; 3],
    work: DenoiserWork,
}

impl<'a, C: Conditions + ?Sized> LoadedDenoiser<'a, C> {
    /// Returns a denoiser for latents of `size`, `[T, h, w]`.
    pub(super) fn new(
        core: &'a Core,
        model: Arc<C::Model>,
        prediction_type: PredictionType,
        request: &SampleRequest,
        size: [usize; 3],
    ) -> Result<Self, PipelineError> {
        let (sampler, request) = (request.sampler()?, request.clone());
        let work = DenoiserWork::default();
        Ok(Self { core, request, model, prediction_type, sampler, size, work })
    }

    /// Returns the shape of the latents of `clips` clips, `[B, C, T, h, w]`.
    pub fn latents_shape(&self, clips: usize) -> [usize; 5] {
        let [frames, height, width] = self.size;
        [clips, self.core.in_channels, frames, height, width]
    }

    /// Returns the standard normal noise that [`sample`](Self::sample) starts from, `[B, C, T, h, w]`, for
    /// `clips` clips, the first of which is the `first`th of the request: its noise index is
    /// `request.noise_index + first`.
    pub fn initial_latents(&self, clips: usize, first: usize) -> Tensor<5> {
        self.noise(Purpose::InitialLatents, first, 0, self.latents_shape(clips))
    }

    /// Samples latents `[B, C, T, h, w]` for `B` clips, from
    /// [`initial_latents`](Self::initial_latents).
    ///
    /// # Errors
    /// Returns an error if the conditions do not fit the model, streamed weights cannot be
    /// read, the latents are not finite after a step, or the observer stops the sampling.
    pub fn sample(
        &mut self,
        conditions: &C,
        first: usize,
        observer: &mut dyn Observer,
    ) -> Result<Tensor<5>, PipelineError> {
        let start = self.initial_latents(conditions.clips(), first);
        self.sample_from(start, conditions, first, observer)
    }

    /// Samples latents as [`sample`](Self::sample) does, from given latents `[B, C, T, h, w]` in place of the
    /// initial noise. They should be standard normal, such as a mixture of two seeds' noise, or the noised
    /// latents of a clip for a sampler that starts at a later step (such as
    /// [`DpmSolver::starting_at`](crate::diffusion::DpmSolver::starting_at)). `first` selects the noise of later
    /// steps.
    ///
    /// # Errors
    /// Returns the errors of [`sample`](Self::sample), and one if the latents have another shape than
    /// [`latents_shape`](Self::latents_shape).
    pub fn sample_from(
        &mut self,
        latents: Tensor<5>,
        conditions: &C,
        first: usize,
        observer: &mut dyn Observer,
    ) -> Result<Tensor<5>, PipelineError> {
        self.sample_batch(latents, conditions, first, [0, 1], observer)
    }

    /// Samples as [`sample_from`](Self::sample_from) does, for batch `batch` of `batches`.
    pub(super) fn sample_batch(
        &mut self,
        latents: Tensor<5>,
        conditions: &C,
        first: usize,
        batches: [usize; 2],
        observer: &mut dyn Observer,
    ) -> Result<Tensor<5>, PipelineError> {
        let (found, expected) = (latents.dims(), self.latents_shape(conditions.clips()));
        if found != expected {
            return Err(PipelineError::Parts(format!(
                "initial latents have the shape {found:?}, expected {expected:?} (clips, channels, \
                 frames, height, width)"
            )));
        }
        let device = &self.core.device;
        let mut guard =
            FiniteGuard::new(device, if is_host(device) { 1 } else { finite::READ_EVERY });
        let mut watched = Ok(None);
        let (sampled, work) = {
            let denoiser = conditions
                .denoiser(&*self.model, &self.request)?
                .with_prediction_type(self.prediction_type)
                .with_guidance_ranks(self.core.ranks.guidance().cloned());
            let sampled = self.sampler.sample(
                &denoiser,
                &self.request.guidance(),
                latents.cast(FloatDType::F32),
                &mut |step| self.noise(Purpose::SamplerStep, first, step, expected),
                &mut |info: &StepInfo<'_>| {
                    watched = guard.watch(info);
                    if !matches!(watched, Ok(None)) {
                        return ControlFlow::Break(());
                    }
                    self.core.ranks.agree(observer.sampler_step(&SamplerStep::new(info, batches)))
                },
            );
            (sampled, denoiser.work())
        };
        // An error of this rank alone is returned before the next collective: the other ranks are in one of
        // another group.
        let watched = watched?;
        let is_common = matches!(&sampled, Ok(_) | Err(SampleError::Interrupted { .. }));
        // Without guidance, the ranks make the same prediction.
        let is_divided = is_common && self.request.guidance().needs_null();
        self.work += if is_divided { self.core.ranks.whole_work(work) } else { work };
        match (sampled, watched) {
            (Err(SampleError::Interrupted { total, .. }), Some(step)) => {
                let scale = Some(self.request.guidance_scale);
                let unwrap = |file| keys::unwrapped(&file);
                let cause =
                    finite::cause(&self.core.denoiser, unwrap, self.core.options.dtype, scale);
                Err(PipelineError::NonFiniteLatents { step, total, cause })
            }
            (sampled, _) => Ok(sampled?),
        }
    }

    /// Returns noise for clips, the first of which has the noise index `request.noise_index + first`.
    fn noise(&self, purpose: Purpose, first: usize, step: usize, shape: [usize; 5]) -> Tensor<5> {
        let index = self.request.noise_index + first as u64;
        normal_batch(self.request.seed, purpose, index, step as u64, shape, &self.core.device)
    }

    /// Returns the denoiser's counts of samples, attentions and FLOPs so far.
    pub fn work(&self) -> DenoiserWork {
        self.work
    }

    /// Returns the number of clips that are sampled at once.
    pub(super) fn batch_size(&self) -> usize {
        self.request.batch_size.max(1)
    }
}
