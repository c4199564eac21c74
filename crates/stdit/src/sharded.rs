//! Denoisers for sampling whose tokens are divided among ranks.

use crate::{
    AttentionCache, DenoiserConfig, PromptModel,
    embed::latent_grid,
    hooks::PassHooks,
    layout::{FrameShards, TokenLayout},
};
use burn::tensor::Tensor;
use opensora_checkpoint::CheckpointError;
use opensora_nn::mask::TokenMask;
use opensora_parallel::Group;
use std::{fmt::Debug, sync::Arc};

/// A denoiser that runs in any layout of its tokens.
pub(crate) trait InLayout: Debug + Send + Sync {
    fn config(&self) -> &DenoiserConfig;

    /// Returns the learnt null prompt, `[L, caption_channels]`.
    fn null(&self) -> Tensor<2>;

    /// Predicts noise and variance `[B, C_out, T, H, W]` of the frames that this process holds, `latents`
    /// `[B, C, T, H, W]`.
    fn forward_in(
        &self,
        layout: impl TokenLayout,
        latents: Tensor<5>,
        timesteps: &[f32],
        prompt: Tensor<3>,
        mask: Option<&TokenMask>,
        hooks: &mut impl PassHooks,
    ) -> Result<Tensor<5>, CheckpointError>;
}

/// The model in one process, and divided among ranks.
impl<M: InLayout + 'static> PromptModel for M {
    fn null_prompt(&self) -> Tensor<2> {
        self.null()
    }

    fn forward_cached(
        &self,
        latents: Tensor<5>,
        timesteps: &[f32],
        prompt: Tensor<3>,
        mask: Option<&TokenMask>,
        cache: &mut AttentionCache,
    ) -> Result<Tensor<5>, CheckpointError> {
        self.forward_in((), latents, timesteps, prompt, mask, cache)
    }

    fn sharded(self: Arc<Self>, group: &Group) -> Option<Arc<dyn PromptModel>> {
        Some(Arc::new(Sharded { model: self, group: group.clone() }))
    }
}

/// A model with the ranks among which it divides the frames of a clip.
///
/// All ranks pass the same arguments, the latents of the whole clip, and get the whole prediction: latents are small
/// beside the tokens of a block, and samplers need not know of ranks.
#[derive(Debug)]
struct Sharded<M> {
    model: Arc<M>,
    group: Group,
}

impl<M: InLayout> PromptModel for Sharded<M> {
    fn null_prompt(&self) -> Tensor<2> {
        self.model.null()
    }

    fn forward_cached(
        &self,
        latents: Tensor<5>,
        timesteps: &[f32],
        prompt: Tensor<3>,
        mask: Option<&TokenMask>,
        cache: &mut AttentionCache,
    ) -> Result<Tensor<5>, CheckpointError> {
        let [frames, ..] = latent_grid(&latents, timesteps, |size| self.model.config().grid(size));
        let shards = FrameShards::new(self.group.clone(), frames);
        let latents = shards.shard(latents); // [B, C, T/N, H, W]
        let predicted =
            self.model.forward_in(shards.clone(), latents, timesteps, prompt, mask, cache)?;
        Ok(shards.gather(predicted)) // [B, C_out, T, H, W]
    }
}
