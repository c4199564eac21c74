//! Clips and captions to what a denoiser is trained on: posteriors of latents, prompt states.
//!
//! One clip and one caption at a time, so that the numbers do not depend on how samples are
//! batched, and a cache holds what would have been computed along the way.

use crate::{ClipDataset, ClipSample, DataError, Source};
use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use opensora_checkpoint::Checkpoint;
use opensora_t5::TextEncoder;
use opensora_vae::{AutoencoderKl, VaeConfig};
use std::{fmt::Display, path::Path, sync::Mutex};

/// One training sample behind VAE and text encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedSample {
    /// The row it comes from.
    pub row: usize,
    /// Mean of the posterior, of shape [`latent_shape`](Self::latent_shape); not scaled.
    pub mean: Vec<f32>,
    /// Its log variance, clamped.
    pub logvar: Vec<f32>,
    /// `[C, T, h, w]`.
    pub latent_shape: [usize; 4],
    /// States of the caption's tokens up to the last one that counts, `[tokens, width]`.
    pub states: Vec<f32>,
    /// Which of these tokens count.
    pub mask: Vec<bool>,
    /// Width of a state.
    pub width: usize,
}

/// A caption's part of a sample.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedCaption {
    /// `[tokens, width]`.
    pub states: Vec<f32>,
    /// Which tokens count.
    pub mask: Vec<bool>,
    /// Width of a state.
    pub width: usize,
}

/// A clip's part of a sample.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedClip {
    /// Mean of the posterior.
    pub mean: Vec<f32>,
    /// Its log variance.
    pub logvar: Vec<f32>,
    /// `[C, T, h, w]`.
    pub shape: [usize; 4],
}

/// VAE and text encoder on one device, in f32.
pub struct ClipEncoder {
    vae: AutoencoderKl,
    text: TextEncoder,
    micro_batch: Option<usize>,
    device: Device,
}

impl ClipEncoder {
    /// Loads both from their folders. Captions are cut to `max_length` tokens; the VAE takes
    /// `micro_batch` frames at once (all of a clip without).
    ///
    /// # Errors
    /// Where one of them cannot be loaded.
    pub fn load(
        vae: &Path,
        t5: &Path,
        max_length: usize,
        micro_batch: Option<usize>,
        device: &Device,
    ) -> Result<Self, DataError> {
        let fail = |path: &Path| {
            let what = path.display().to_string();
            move |error: &dyn Display| DataError::Encode { what, reason: error.to_string() }
        };
        let config = VaeConfig::beside(vae).map_err(|error| fail(vae)(&error))?;
        let checkpoint = Checkpoint::open(vae).map_err(|error| fail(vae)(&error))?;
        let (vae, _) = AutoencoderKl::load(&config, &checkpoint, FloatDType::F32, device)
            .map_err(|error| fail(vae)(&error))?;
        let (text, _) = TextEncoder::load(t5, max_length, FloatDType::F32, device)
            .map_err(|error| fail(t5)(&error))?;
        Ok(Self { vae, text, micro_batch, device: device.clone() })
    }

    /// The posterior of a clip.
    ///
    /// # Errors
    /// Where the VAE cannot have such a size.
    pub fn clip(&self, sample: &ClipSample) -> Result<EncodedClip, DataError> {
        let fail = |reason: String| DataError::Encode {
            what: format!("the clip of row {}", sample.row + 1),
            reason,
        };
        let [channels, frames, height, width] = sample.shape;
        self.vae
            .config()
            .latent_size([frames, height, width])
            .map_err(|error| fail(error.to_string()))?;
        let data = TensorData::new(sample.pixels.clone(), [1, channels, frames, height, width]);
        let clip = Tensor::<5>::from_data(data, &self.device);
        let posterior = self.vae.encode(clip, self.micro_batch);
        let [_, channels, frames, height, width] = posterior.mean().dims();
        let host = |x: Tensor<5>| {
            x.into_data().try_into_vec::<f32>().map_err(|error| fail(error.to_string()))
        };
        Ok(EncodedClip {
            mean: host(posterior.mean())?,
            logvar: host(posterior.logvar())?,
            shape: [channels, frames, height, width],
        })
    }

    /// The states of a caption.
    ///
    /// # Errors
    /// Where it cannot be tokenized.
    pub fn caption(&self, caption: &str) -> Result<EncodedCaption, DataError> {
        let fail =
            |reason: String| DataError::Encode { what: format!("the caption '{caption}'"), reason };
        let encoded = self.text.encode(&[caption]).map_err(|error| fail(error.to_string()))?;
        let mask = encoded.mask.trim().rows()[0].clone();
        let width = encoded.states.dims()[2];
        // [1, L, C] -> [tokens, C]
        let states = encoded.states.narrow(1, 0, mask.len()).into_data();
        let states = states.try_into_vec::<f32>().map_err(|error| fail(error.to_string()))?;
        Ok(EncodedCaption { states, mask, width })
    }
}

impl EncodedSample {
    /// A sample from its parts.
    pub fn new(row: usize, clip: EncodedClip, caption: EncodedCaption) -> Self {
        Self {
            row,
            mean: clip.mean,
            logvar: clip.logvar,
            latent_shape: clip.shape,
            states: caption.states,
            mask: caption.mask,
            width: caption.width,
        }
    }
}

/// Clips that are encoded when they are read.
pub struct OnTheFly {
    dataset: ClipDataset,
    /// One at a time: a device has its own parallelism.
    encoder: Mutex<ClipEncoder>,
}

impl OnTheFly {
    /// The clips of `dataset` behind `encoder`.
    pub fn new(dataset: ClipDataset, encoder: ClipEncoder) -> Self {
        Self { dataset, encoder: Mutex::new(encoder) }
    }
}

impl Source for OnTheFly {
    type Item = EncodedSample;

    fn len(&self) -> usize {
        Source::len(&self.dataset)
    }

    fn read(&self, row: usize, epoch: u64) -> Result<EncodedSample, DataError> {
        let sample = self.dataset.read(row, epoch)?;
        let gone = |_| DataError::Worker { reason: "an encoder panicked before".into() };
        let encoder = self.encoder.lock().map_err(gone)?;
        let (clip, caption) = (encoder.clip(&sample)?, encoder.caption(&sample.caption)?);
        Ok(EncodedSample::new(row, clip, caption))
    }

    fn describe(&self, row: usize) -> String {
        self.dataset.describe(row)
    }
}
