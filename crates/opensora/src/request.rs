//! Requests: size, length, sampler, guidance, seed.

use crate::{
    diffusion::{Guidance, Sampler, SamplerKind, sampler::SamplerError},
    stdit::AttentionReuse,
};
use std::sync::Arc;

/// Maximum number of pixels of a clip, over all frames: far beyond any memory.
const MAX_PIXELS: usize = 1 << 31;

/// Maximum noise index, which leaves room for the indices of all clips of a request.
const MAX_NOISE_INDEX: u64 = u64::MAX >> 1;

/// A custom sampler in a request. Two are equal if they share the same object.
#[derive(Debug, Clone)]
pub struct OwnSampler(Arc<dyn Sampler>);

impl OwnSampler {
    /// Shares a sampler between requests.
    pub fn new(sampler: impl Sampler + 'static) -> Self {
        Self(Arc::new(sampler))
    }
}

impl PartialEq for OwnSampler {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// A request: size, sampler, guidance and seed of the clips to sample.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleRequest {
    /// Frames of a clip; 1 samples an image.
    pub num_frames: usize,
    /// Height and width in pixels.
    pub image_size: [usize; 2],
    /// Frames per second of the output; has no effect on the frames.
    pub fps: f64,
    /// The sampler.
    pub sampler: SamplerKind,
    /// Number of sampler steps; `None`: the published number of the sampler.
    pub steps: Option<usize>,
    /// Custom sampler, in place of `sampler` and `steps`.
    pub own_sampler: Option<OwnSampler>,
    /// Negative prompt: what the clips should not show. It replaces the model's null prompt in guidance and is
    /// seen through its own mask. An empty text is not the same as `None`: it is an encoded prompt without
    /// words, on which published models were not trained.
    pub negative_prompt: Option<String>,
    /// Scale of classifier-free guidance; 1 for no guidance.
    pub guidance_scale: f64,
    /// Number of guided latent channels; `None`: the published number of the sampler.
    pub guided_channels: Option<usize>,
    /// Steps that reuse attention outputs of earlier steps.
    pub attention_reuse: AttentionReuse,
    /// Unit of rows and columns in the position tables; `None`: the model's (see
    /// [`ScaleRule`](crate::model_files::ScaleRule)).
    pub space_scale: Option<f64>,
    /// Unit of frames in the position tables; `None`: the model's.
    pub time_scale: Option<f64>,
    /// Seed of all noise. The noise of a clip depends only on the seed and the noise index.
    pub seed: u64,
    /// Noise index of the first clip; those of the other clips follow. The 7th clip of a list can be sampled
    /// alone with the noise index 6.
    pub noise_index: u64,
    /// Clips that are sampled at once.
    pub batch_size: usize,
}

impl Default for SampleRequest {
    /// Returns the published settings: 16 frames of 256x256 at 8 per second, 100 steps of IDDPM, guidance
    /// scale 7, seed 42.
    fn default() -> Self {
        Self {
            num_frames: 16,
            image_size: [256, 256],
            fps: 24.0 / 3.0,
            sampler: SamplerKind::Iddpm,
            steps: None,
            own_sampler: None,
            negative_prompt: None,
            guidance_scale: Guidance::PUBLISHED_SCALE,
            guided_channels: None,
            attention_reuse: AttentionReuse::OFF,
            space_scale: None,
            time_scale: None,
            seed: 42,
            noise_index: 0,
            batch_size: 1,
        }
    }
}

impl SampleRequest {
    /// Checks what no model can sample.
    ///
    /// # Errors
    /// Returns an error if the batch size is 0, the clip has 2^31 pixels or more, or a number is out of range.
    pub fn validate(&self) -> Result<(), RequestError> {
        if self.batch_size == 0 {
            return Err(RequestError::BatchSize);
        }
        let [height, width] = self.image_size;
        let pixels = [self.num_frames, height, width]
            .into_iter()
            .try_fold(1usize, usize::checked_mul)
            .filter(|&pixels| pixels < MAX_PIXELS);
        if pixels.is_none() {
            let Self { num_frames, image_size, .. } = *self;
            return Err(RequestError::Pixels { num_frames, image_size });
        }
        if self.noise_index > MAX_NOISE_INDEX {
            return Err(RequestError::NoiseIndex { found: self.noise_index });
        }
        if !(0.01..=1000.0).contains(&self.fps) {
            return Err(RequestError::Fps { found: self.fps });
        }
        if !self.guidance_scale.is_finite() {
            return Err(RequestError::GuidanceScale { found: self.guidance_scale });
        }
        Ok(())
    }

    /// Checks that a model which predicts the variance or not (`has_variance`) suits the sampler.
    ///
    /// # Errors
    /// Returns an error if a built-in sampler needs the variance, and the model does not predict it.
    pub(crate) fn check_variance(&self, has_variance: bool) -> Result<(), RequestError> {
        let needs_it = match self.sampler {
            _ if self.own_sampler.is_some() => false,
            SamplerKind::Iddpm | SamplerKind::Ddim => true,
            SamplerKind::DpmSolver => false,
        };
        if needs_it && !has_variance {
            let (setting, model) = ("this sampler", "models that predict no variance");
            return Err(RequestError::Unsupported { setting, model });
        }
        Ok(())
    }

    /// Builds the sampler.
    ///
    /// # Errors
    /// Returns an error if a built-in sampler does not support the number of steps.
    pub fn sampler(&self) -> Result<Arc<dyn Sampler>, SamplerError> {
        if let Some(OwnSampler(sampler)) = &self.own_sampler {
            return Ok(Arc::clone(sampler));
        }
        let steps = self.steps.unwrap_or(self.sampler.default_steps());
        Ok(self.sampler.build(steps)?.into())
    }

    /// Returns the guidance: the scale, and the guided channels of the request or else of the sampler.
    pub fn guidance(&self) -> Guidance {
        let usual = match &self.own_sampler {
            Some(OwnSampler(sampler)) => sampler.guidance(self.guidance_scale),
            None => self.sampler.guidance(self.guidance_scale),
        };
        match self.guided_channels {
            Some(_) => Guidance { guided_channels: self.guided_channels, ..usual },
            None => usual,
        }
    }
}

/// Error for an invalid request.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// A batch without clips.
    #[error("batch size is 0, expected at least 1")]
    BatchSize,
    /// A clip that no memory can hold.
    #[error("{num_frames} frames of {}x{} are too many", image_size[0], image_size[1])]
    Pixels {
        /// Frames of the clip.
        num_frames: usize,
        /// Height and width in pixels.
        image_size: [usize; 2],
    },
    /// A noise index that leaves no room for later clips.
    #[error("noise index is {found}, expected at most 2^63 - 1")]
    NoiseIndex {
        /// The index.
        found: u64,
    },
    /// A frame rate that no file can have.
    #[error("{found} frames per second, expected 0.01 to 1000")]
    Fps {
        /// The frame rate.
        found: f64,
    },
    /// A guidance scale that is NaN or infinite.
    #[error("guidance scale is {found}, expected a finite number")]
    GuidanceScale {
        /// The scale.
        found: f64,
    },
    /// A setting that the model does not support.
    #[error("{setting} is not supported by {model}")]
    Unsupported {
        /// The setting.
        setting: &'static str,
        /// Architecture of the model.
        model: &'static str,
    },
    /// Neither a prompt nor a label.
    #[error("nothing to sample: expected at least one prompt or label")]
    NoClips,
}
