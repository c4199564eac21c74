//! Latte, the denoiser of clips of a class.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `opensora/models/latte/latte.py`, class `Latte`, after
//! Vchitect/Latte, `models/latte.py`.

use crate::{
    ClassConfig, ClassModel, DenoiserWork, LoadError, SizeError,
    attention::{Axis, TokenGrid},
    dit::{ClassInputs, Dit},
    keys,
};
use burn::{
    module::Module,
    tensor::{Device, Tensor},
};
use opensora_checkpoint::{Checkpoint, CheckpointError, KeyMap, PublishedModel};

/// Predicts the noise in latent clips, given a timestep and a class label: the layers of [`Dit`], of
/// which every second block attends over time.
///
/// [`load`](PublishedModel::load) reads the published `ucf101.pt`, and state dicts of the reference's class.
/// The reference's DiT and Latte have the same keys and shapes. Only the original layouts tell them apart,
/// and a DiT in its original layout is rejected.
#[derive(Module, Debug)]
pub struct Latte {
    /// The layers.
    pub base: Dit,
}

impl PublishedModel for Latte {
    type Config = ClassConfig;
    type ConfigError = SizeError;
    type LoadError = LoadError;

    fn validate(config: &ClassConfig) -> Result<(), SizeError> {
        config.validate()
    }

    fn build(config: &ClassConfig, device: &Device) -> Self {
        Self { base: Dit::build(config, device) }
    }

    fn block_count(config: &ClassConfig) -> (&'static str, usize) {
        Dit::block_count(config)
    }

    fn unwrapped(checkpoint: &Checkpoint) -> Result<Checkpoint, CheckpointError> {
        keys::unwrapped(checkpoint)
    }

    fn key_map(_: &ClassConfig, checkpoint: &Checkpoint) -> Result<KeyMap, CheckpointError> {
        keys::check_no_dit(checkpoint)?;
        Ok(keys::latte())
    }
}

impl ClassModel for Latte {
    fn config(&self) -> &ClassConfig {
        self.base.config()
    }

    fn forward(&self, latents: Tensor<5>, timesteps: &[f32], labels: &[usize]) -> Tensor<5> {
        let ClassInputs { mut x, c, grid } = self.base.embed(latents, timesteps, labels);
        for (index, block) in self.base.blocks.iter().enumerate() {
            // Quirk of the reference: the temporal table is added to x itself, after the first block.
            if index == 1 {
                x = self.base.with_time(x, grid);
            }
            x = block.forward(x, c.clone(), axis(index), TokenGrid::new(grid));
        }
        self.base.head(x, c, grid)
    }

    fn work(&self, samples: usize, grid: [usize; 3]) -> DenoiserWork {
        let TokenGrid { frames, positions } = TokenGrid::new(grid);
        let keys = |index| match axis(index) {
            Axis::Time => frames,
            Axis::Space => positions,
        };
        DenoiserWork::of_class_pass(self.config(), samples, frames * positions, keys)
    }
}

/// Returns the axis along which a block attends: space for even blocks, time for odd ones.
fn axis(block: usize) -> Axis {
    if block.is_multiple_of(2) { Axis::Space } else { Axis::Time }
}
