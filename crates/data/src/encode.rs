//! Clips and captions to what a denoiser is trained on: posteriors of latents, prompt states.
//!
//! One clip and one caption at a time, so that the numbers do not depend on how samples are
//! batched, and a cache holds what would have been computed along the way.

use crate::{ClipDataset, ClipSample, DataError, Source};
use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use opensora_checkpoint::{Checkpoint, PublishedModel};
use opensora_nn::read::read;
use opensora_t5::TextEncoder;
use opensora_vae::{AutoencoderKl, VaeConfig};
use std::{
    path::Path,
    sync::{Mutex, PoisonError},
};

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
        let config = VaeConfig::beside(vae).map_err(opensora_vae::LoadError::from)?;
        let checkpoint = Checkpoint::open(vae).map_err(opensora_vae::LoadError::from)?;
        let (vae, _) = AutoencoderKl::load(&config, &checkpoint, FloatDType::F32, device)?;
        let (text, _) = TextEncoder::load(t5, max_length, FloatDType::F32, device)?;
        Ok(Self { vae, text, micro_batch, device: device.clone() })
    }

    /// The posterior of a clip.
    ///
    /// # Errors
    /// Where the VAE cannot have such a size, or gives a number that is not finite.
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
            let values = read(x).map_err(DataError::Device)?.try_into_vec::<f32>();
            values.map_err(|error| error.to_string()).and_then(finite).map_err(fail)
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
    /// Where it cannot be tokenized, or the encoder gives a number that is not finite.
    pub fn caption(&self, caption: &str) -> Result<EncodedCaption, DataError> {
        let fail =
            |reason: String| DataError::Encode { what: format!("the caption '{caption}'"), reason };
        let encoded = self.text.encode(&[caption]).map_err(|error| fail(error.to_string()))?;
        let mask = encoded.mask.trim().rows()[0].clone();
        let width = encoded.states.dims()[2];
        // [1, L, C] -> [tokens, C]
        let states = read(encoded.states.narrow(1, 0, mask.len()))?;
        let states = states.try_into_vec::<f32>();
        let states = states.map_err(|error| error.to_string()).and_then(finite).map_err(fail)?;
        Ok(EncodedCaption { states, mask, width })
    }

    /// The states of a row's caption; what is wrong with it is that row's error.
    pub(crate) fn caption_of(
        &self,
        row: usize,
        path: &Path,
        caption: &str,
    ) -> Result<EncodedCaption, DataError> {
        self.caption(caption).map_err(|error| DataError::Row {
            row,
            path: path.into(),
            reason: error.to_string().replace(['\n', '\r'], " "),
        })
    }
}

/// What is not finite would spoil a whole run, and a cache for good.
fn finite(values: Vec<f32>) -> Result<Vec<f32>, String> {
    match values.iter().all(|value| value.is_finite()) {
        true => Ok(values),
        false => Err("the model gives numbers that are not finite".into()),
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
        // Encoding changes nothing in the encoder: one that panicked over a row is good for others.
        let encoder = self.encoder.lock().unwrap_or_else(PoisonError::into_inner);
        let path = &self.dataset.manifest().rows[row].path;
        let clip = encoder.clip(&sample)?;
        let caption = encoder.caption_of(row, path, &sample.caption)?;
        Ok(EncodedSample::new(row, clip, caption))
    }

    fn describe(&self, row: usize) -> String {
        self.dataset.describe(row)
    }
}
