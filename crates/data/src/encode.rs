//! Encoding of clips and captions for the training of a denoiser: posteriors of latents, prompt states.
//!
//! One clip and one caption are encoded at a time, so that the numbers do not depend on batches,
//! and a cache holds the same numbers as encoding during training gives.

use crate::{ClipDataset, ClipSample, ClipSpec, DataError, Source};
use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use opensora_checkpoint::{BoxedError, Checkpoint, PublishedModel};
use opensora_files::one_line;
use opensora_nn::read::read;
use opensora_t5::TextEncoder;
use opensora_vae::{AutoencoderKl, VaeConfig};
use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// One encoded training sample: posterior of the clip, and states of the caption.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedSample {
    /// The row of the manifest.
    pub row: usize,
    /// Mean of the posterior, of shape [`latent_shape`](Self::latent_shape); not scaled.
    pub mean: Vec<f32>,
    /// Log variance of the posterior, clamped.
    pub logvar: Vec<f32>,
    /// Shape of mean and log variance, `[C, T, h, w]`.
    pub latent_shape: [usize; 4],
    /// States of the caption's tokens up to the last unmasked one, `[tokens, width]`.
    pub states: Vec<f32>,
    /// Attention mask: true for tokens, false for padding.
    pub mask: Vec<bool>,
    /// Width of a state.
    pub width: usize,
}

/// States and attention mask of an encoded caption.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedCaption {
    /// States of the tokens, `[tokens, width]`.
    pub states: Vec<f32>,
    /// Attention mask: true for tokens, false for padding.
    pub mask: Vec<bool>,
    /// Width of a state.
    pub width: usize,
}

/// Posterior of an encoded clip: mean and log variance.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedClip {
    /// Mean of the posterior.
    pub mean: Vec<f32>,
    /// Log variance of the posterior.
    pub logvar: Vec<f32>,
    /// Shape of mean and log variance, `[C, T, h, w]`.
    pub shape: [usize; 4],
}

/// The models that encode clips and captions, and how they do it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncoderConfig {
    /// Folder or file of the VAE.
    pub vae: PathBuf,
    /// Folder of the text encoder.
    pub t5: PathBuf,
    /// Maximum number of tokens of a caption; longer captions are cut.
    pub max_length: usize,
    /// Frames that the VAE encodes at once; `None` encodes all of a clip at once.
    pub vae_micro_batch: Option<usize>,
}

/// VAE and text encoder on one device, in f32.
pub struct ClipEncoder {
    vae: AutoencoderKl,
    text: TextEncoder,
    micro_batch: Option<usize>,
    device: Device,
}

impl ClipEncoder {
    /// Checks that the clips of `spec` have latents.
    ///
    /// # Errors
    /// Returns an error if the VAE does not support their size.
    pub fn check(&self, spec: &ClipSpec) -> Result<(), DataError> {
        let [height, width] = spec.image_size;
        let size = self.vae.config().latent_size([spec.num_frames, height, width]);
        size.map(drop).map_err(|error| DataError::Encode {
            what: format!("clips of {height}x{width} pixels"),
            source: error.into(),
        })
    }

    /// Loads both models.
    ///
    /// # Errors
    /// Returns an error if a model cannot be loaded.
    pub fn load(config: &EncoderConfig, device: &Device) -> Result<Self, DataError> {
        let EncoderConfig { vae, t5, max_length, vae_micro_batch } = config;
        let vae_config = VaeConfig::beside(vae).map_err(opensora_vae::LoadError::from)?;
        let checkpoint = Checkpoint::open(vae).map_err(opensora_vae::LoadError::from)?;
        let (vae, _) = AutoencoderKl::load(&vae_config, &checkpoint, FloatDType::F32, device)?;
        let (text, _) = TextEncoder::load(t5, *max_length, FloatDType::F32, device)?;
        Ok(Self { vae, text, micro_batch: *vae_micro_batch, device: device.clone() })
    }

    /// Encodes a clip.
    ///
    /// # Errors
    /// Returns an error if the VAE does not support the clip's size, or its output is not finite.
    pub fn clip(&self, sample: &ClipSample) -> Result<EncodedClip, DataError> {
        let fail = |source: BoxedError| DataError::Encode {
            what: format!("the clip of row {}", sample.row + 1),
            source,
        };
        let [channels, frames, height, width] = sample.shape;
        self.vae
            .config()
            .latent_size([frames, height, width])
            .map_err(|error| fail(error.into()))?;
        let data = TensorData::new(sample.pixels.clone(), [1, channels, frames, height, width]);
        let clip = Tensor::<5>::from_data(data, &self.device);
        let posterior = self.vae.encode(clip, self.micro_batch);
        let [_, channels, frames, height, width] = posterior.mean().dims();
        let host = |x: Tensor<5>| {
            let values = read(x).map_err(DataError::Device)?.try_into_vec::<f32>();
            values.map_err(BoxedError::from).and_then(finite).map_err(fail)
        };
        Ok(EncodedClip {
            mean: host(posterior.mean())?,
            logvar: host(posterior.logvar())?,
            shape: [channels, frames, height, width],
        })
    }

    /// Encodes a caption.
    ///
    /// # Errors
    /// Returns an error if the caption cannot be tokenized, or the encoder's output is not finite.
    pub fn caption(&self, caption: &str) -> Result<EncodedCaption, DataError> {
        let fail = |source: BoxedError| DataError::Encode {
            what: format!("the caption '{}'", one_line(caption)),
            source,
        };
        let encoded = self.text.encode(&[caption]).map_err(|error| fail(error.into()))?;
        let mask = encoded.mask.trim().rows()[0].clone();
        let width = encoded.states.dims()[2];
        // [1, L, C] -> [tokens, C]
        let states = read(encoded.states.narrow(1, 0, mask.len()))?;
        let states = states.try_into_vec::<f32>();
        let states = states.map_err(BoxedError::from).and_then(finite).map_err(fail)?;
        Ok(EncodedCaption { states, mask, width })
    }

    /// Encodes the caption of a row. An error of the caption names the row.
    pub(crate) fn caption_of(
        &self,
        row: usize,
        path: &Path,
        caption: &str,
    ) -> Result<EncodedCaption, DataError> {
        self.caption(caption).map_err(|error| caption_error(error, row, path))
    }
}

/// Returns the error of a row whose caption cannot be encoded. That of a device is returned unchanged: it affects every row,
/// and a good row must not be listed as bad.
fn caption_error(error: DataError, row: usize, path: &Path) -> DataError {
    match error {
        DataError::Device(_) => error,
        error => DataError::Row {
            row,
            path: path.into(),
            reason: "unusable caption".into(),
            source: Some(error.into()),
        },
    }
}

/// Returns an error for numbers that are not finite: they would ruin a run, and a cache for good.
fn finite(values: Vec<f32>) -> Result<Vec<f32>, BoxedError> {
    match values.iter().all(|value| value.is_finite()) {
        true => Ok(values),
        false => Err("the output of the model is not finite".into()),
    }
}

impl EncodedSample {
    /// Combines an encoded clip and an encoded caption.
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

/// A source that encodes clips when they are read.
pub struct OnTheFly {
    dataset: ClipDataset,
    /// One at a time: a device has its own parallelism.
    encoder: Mutex<ClipEncoder>,
}

impl OnTheFly {
    /// Creates a source of the clips of `dataset`, encoded by `encoder`.
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
        // A poisoned lock is fine: encoding does not change the encoder, so a panic in one row does no harm.
        let encoder = self.encoder.lock().unwrap_or_else(PoisonError::into_inner);
        let path = &self.dataset.manifest().rows[row].path;
        let clip = encoder.clip(&sample)?;
        let caption = encoder.caption_of(row, path, &sample.caption)?;
        Ok(EncodedSample::new(row, clip, caption))
    }

    fn describe(&self, row: usize) -> String {
        self.dataset.describe(row)
    }

    fn fingerprint(&self) -> Result<String, DataError> {
        self.dataset.fingerprint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opensora_files::error_line;
    use opensora_nn::read::ReadError;

    #[test]
    fn a_device_that_fails_makes_no_row_bad() {
        let path = Path::new("a.mp4");
        let device = ReadError::Copy { device: "cuda:0".into(), reason: "out of memory".into() };
        let error = caption_error(device.into(), 4, path);
        assert!(matches!(error, DataError::Device(ReadError::Copy { .. })), "{error}");

        let what = "the caption 'a'".to_string();
        let error = DataError::Encode { what, source: "not finite".into() };
        let error = caption_error(error, 4, path);
        assert!(matches!(error, DataError::Row { row: 4, .. }), "{error}");
        let line = "row 5: a.mp4: unusable caption: cannot encode the caption 'a': not finite";
        assert_eq!(error_line(&error), line);
    }
}
