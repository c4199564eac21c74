//! The VAE, applied to clips frame by frame.

use crate::{
    Posterior, VaeConfig, VaeConfigError,
    blocks::conv1x1,
    decoder::Decoder,
    encoder::Encoder,
    keys::{self, Naming},
};
use burn::{
    module::Module,
    nn::conv::Conv2d,
    tensor::{Device, FloatDType, Tensor},
};
use opensora_checkpoint::{Checkpoint, CheckpointError, KeyMap, PublishedModel};

/// The factor by which latents are multiplied after encoding. Quirk of the reference, kept: it is fixed, and
/// the `scaling_factor` of a config is ignored.
pub const SCALING_FACTOR: f64 = 0.18215;

/// AutoencoderKL: frames to latents and back, each frame separately.
///
/// [`load`](PublishedModel::load) reads published weights in all layouts of [`keys`].
#[derive(Module, Debug)]
pub struct AutoencoderKl {
    encoder: Encoder,
    decoder: Decoder,
    pub(crate) quant_conv: Conv2d,
    pub(crate) post_quant_conv: Conv2d,
    #[module(skip)]
    config: VaeConfig,
}

/// Error for a VAE that cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] VaeConfigError),
    /// The file cannot be read or does not fit the configuration.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

impl PublishedModel for AutoencoderKl {
    type Config = VaeConfig;
    type ConfigError = VaeConfigError;
    type LoadError = LoadError;

    fn validate(config: &VaeConfig) -> Result<(), VaeConfigError> {
        config.validate()
    }

    fn build(config: &VaeConfig, device: &Device) -> Self {
        let latent = config.latent_channels;
        Self {
            encoder: Encoder::new(config, device),
            decoder: Decoder::new(config, device),
            quant_conv: conv1x1(2 * latent, 2 * latent, device),
            post_quant_conv: conv1x1(latent, latent, device),
            config: config.clone(),
        }
    }

    fn block_count(config: &VaeConfig) -> (&'static str, usize) {
        // Encoder and decoder.
        let blocks = 2 * config.block_out_channels.len() * config.layers_per_block;
        ("2 * levels * layers_per_block", blocks)
    }

    fn unwrapped(checkpoint: &Checkpoint) -> Result<Checkpoint, CheckpointError> {
        keys::unwrapped(checkpoint)
    }

    fn key_map(config: &VaeConfig, checkpoint: &Checkpoint) -> Result<KeyMap, CheckpointError> {
        Ok(Naming::detect(checkpoint.keys()).key_map(config))
    }
}

impl AutoencoderKl {
    /// Returns the configuration that the VAE was made with.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Returns the device of the weights.
    pub fn device(&self) -> Device {
        self.quant_conv.weight.device()
    }

    /// Encodes frames `[B, 3, T, H, W]` in [-1, 1] to the posterior of their latents, `micro_batch` frames at a
    /// time. `None`: all at once, with the same result.
    pub fn encode(&self, clip: Tensor<5>, micro_batch: Option<usize>) -> Posterior {
        let encode = |frames| self.quant_conv.forward(self.encoder.forward(frames));
        Posterior::new(self.per_frame(clip, micro_batch, encode))
    }

    /// Decodes latents `[B, C, T, h, w]` to frames `[B, 3, T, H, W]` of about [-1, 1], not clamped,
    /// `micro_batch` frames at a time. `None`: all at once, with the same result.
    pub fn decode(&self, latents: Tensor<5>, micro_batch: Option<usize>) -> Tensor<5> {
        let decode = |frames| self.decoder.forward(self.post_quant_conv.forward(frames));
        self.per_frame(latents / SCALING_FACTOR, micro_batch, decode)
    }

    /// Decodes as [`decode`](Self::decode) does, in tiles of about `rows` rows (at least 8). The frames are
    /// equal within rounding, without seams. Memory holds two activations of the largest level instead of three
    /// or more. Frames that are not higher than a tile are decoded whole. Small tiles take more time, since each
    /// is computed with two rows of its neighbours on either side.
    pub fn decode_in_tiles(
        &self,
        latents: Tensor<5>,
        micro_batch: Option<usize>,
        rows: usize,
    ) -> Tensor<5> {
        let height = latents.dims()[3] * self.config.downsample_factor();
        if height <= rows {
            return self.decode(latents, micro_batch);
        }
        let decode =
            |frames| self.decoder.forward_in_tiles(self.post_quant_conv.forward(frames), rows);
        self.per_frame(latents / SCALING_FACTOR, micro_batch, decode)
    }

    /// Applies `f` to the frames of `[B, C, T, H, W]` as one batch `[B T, C, H, W]` in the dtype of the weights;
    /// returns f32.
    fn per_frame(
        &self,
        clip: Tensor<5>,
        micro_batch: Option<usize>,
        f: impl Fn(Tensor<4>) -> Tensor<4>,
    ) -> Tensor<5> {
        let [batch, channels, frames, height, width] = clip.dims();
        let dtype = self.quant_conv.weight.dtype();
        // [B, C, T, H, W] -> [B, T, C, H, W] -> [B T, C, H, W]
        let x = clip.cast(dtype).swap_dims(1, 2);
        let images = batch * frames;
        let x = x.reshape([images, channels, height, width]);
        let step = micro_batch.unwrap_or(images).max(1);
        let parts = x.split(step, 0).into_iter().map(f).collect();
        let y = Tensor::cat(parts, 0);
        let [_, channels, height, width] = y.dims();
        // ... and back.
        let y = y.reshape([batch, frames, channels, height, width]).swap_dims(1, 2);
        y.cast(FloatDType::F32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opensora_nn::noise::{Purpose, normal_batch};

    #[test]
    fn invalid_configurations_and_too_many_blocks_are_rejected() {
        let invalid = VaeConfig { norm_num_groups: 0, ..VaeConfig::default() };
        assert!(matches!(AutoencoderKl::validate(&invalid), Err(VaeConfigError::Value(_))));
        assert!(AutoencoderKl::validate(&VaeConfig::default()).is_ok());
        // Four levels of two blocks, in the encoder and in the decoder.
        let expected = ("2 * levels * layers_per_block", 16);
        assert_eq!(AutoencoderKl::block_count(&VaeConfig::default()), expected);
    }

    /// Several tiles, a last tile of one row, and odd heights.
    #[test]
    fn tiled_decoding_equals_decoding_of_the_whole() {
        let config = VaeConfig {
            block_out_channels: vec![32, 32, 64],
            layers_per_block: 1,
            norm_num_groups: 8,
            ..VaeConfig::default()
        };
        let device = Device::flex();
        let vae = config.init(&device).unwrap();
        for (height, rows) in [(4, 8), (12, 8), (9, 8), (17, 16), (33, 10), (12, 1000)] {
            let latents = normal_batch(1, Purpose::Weights, 0, 0, [1, 4, 2, height, 6], &device);
            let whole = vae.decode(latents.clone(), None);
            let tiled = vae.decode_in_tiles(latents, Some(1), rows);
            assert_eq!(tiled.dims(), whole.dims());
            let size = whole.clone().abs().max().into_scalar::<f32>();
            let difference = (tiled - whole).abs().max().into_scalar::<f32>();
            assert!(difference <= 1e-5 * size.max(1.0), "{height} {rows}: {difference} {size}");
        }
    }
}
