//! Latte, the denoiser of clips of a class.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `opensora/models/latte/latte.py`, class `Latte`, after
//! Vchitect/Latte, `models/latte.py`.

use crate::{
    ClassConfig, SizeError,
    dit::{ClassInputs, Dit},
    keys,
    stdit::LoadError,
    work::adaln_flops,
};
use burn::{
    module::Module,
    tensor::{Device, FloatDType, Tensor},
};
use opensora_checkpoint::{Checkpoint, ImportReport, check_import, import};

/// Predicts the noise in latent clips, given a timestep and a class label: the layers of [`Dit`], of
/// which every second block attends over time.
#[derive(Module, Debug)]
pub struct Latte {
    /// The layers.
    pub base: Dit,
}

impl Latte {
    /// Returns a model with fresh weights; nothing is allocated before a weight is used or loaded.
    ///
    /// # Errors
    /// Returns an error if a value of the configuration is out of range.
    pub fn new(config: &ClassConfig, device: &Device) -> Result<Self, SizeError> {
        Ok(Self { base: Dit::new(config, device)? })
    }

    /// Loads weights: the published `ucf101.pt`, and state dicts of the reference's class.
    ///
    /// The reference's DiT and Latte have the same keys and shapes. Only the original layouts tell
    /// them apart, and a DiT in its original layout is rejected.
    ///
    /// # Errors
    /// Returns an error if a value of the configuration is out of range or the file does not fit it.
    pub fn load(
        config: &ClassConfig,
        checkpoint: &Checkpoint,
        dtype: FloatDType,
        device: &Device,
    ) -> Result<(Self, ImportReport), LoadError> {
        let (model, checkpoint) = Self::described(config, checkpoint, device)?;
        Ok(import(model, &checkpoint, &keys::latte(), dtype)?)
    }

    /// Checks that weights fit, as [`load`](Self::load) does, from the file's headers alone.
    ///
    /// # Errors
    /// Returns an error if [`load`](Self::load) would.
    pub fn check(
        config: &ClassConfig,
        checkpoint: &Checkpoint,
        device: &Device,
    ) -> Result<ImportReport, LoadError> {
        let (model, checkpoint) = Self::described(config, checkpoint, device)?;
        Ok(check_import(&model, &checkpoint, &keys::latte())?)
    }

    fn described(
        config: &ClassConfig,
        checkpoint: &Checkpoint,
        device: &Device,
    ) -> Result<(Self, Checkpoint), LoadError> {
        let (base, checkpoint) = Dit::described(config, checkpoint, device)?;
        keys::check_no_dit(&checkpoint)?;
        Ok((Self { base }, checkpoint))
    }

    /// Returns the configuration that the model was made with.
    pub fn config(&self) -> &ClassConfig {
        self.base.config()
    }

    /// Predicts noise and variance; arguments, result and panics as in [`Dit::forward`].
    pub fn forward(&self, latents: Tensor<5>, timesteps: &[f32], labels: &[usize]) -> Tensor<5> {
        let ClassInputs { mut x, c, grid } = self.base.embed(latents, timesteps, labels);
        let frames_and_positions = [grid[0], grid[1] * grid[2]];
        for (index, block) in self.base.blocks.iter().enumerate() {
            // Quirk of the reference: the temporal table is added to x itself, after the first block.
            if index == 1 {
                x = self.base.add_temporal_positions(x, grid);
            }
            let axis = if attends_over_time(index) { 1 } else { 2 };
            x = block.forward(x, c.clone(), frames_and_positions, axis);
        }
        self.base.head(x, c, grid)
    }

    /// Returns the floating point operations of a forward pass over one sample of `grid` tokens along
    /// (t, h, w), counted as in [`work`](crate::work).
    pub fn flops(&self, grid: [usize; 3]) -> f64 {
        let [frames, positions] = [grid[0], grid[1] * grid[2]];
        let keys = |index| if attends_over_time(index) { frames } else { positions };
        adaln_flops(self.config(), frames * positions, keys)
    }
}

/// Blocks attend within each frame and over time at each position, in turn.
fn attends_over_time(block: usize) -> bool {
    !block.is_multiple_of(2)
}
