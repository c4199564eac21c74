//! Hooks around the attention branches of a forward pass, for caches and counters.
//!
//! A block computes each attention branch through [`BlockHooks`]. An implementation of
//! [`PassHooks`] decides whether the branch is computed or replaced by an earlier output, and gets the sizes of the
//! pass. `()` computes every branch; [`AttentionCache`](crate::AttentionCache) reuses outputs of earlier
//! steps and counts the work.

use crate::{DenoiserConfig, modulation::Branch};
use burn::tensor::Tensor;

/// The attentions of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionKind {
    /// Self-attention within a frame; over all tokens in PixArt-alpha.
    Spatial,
    /// Self-attention over time.
    Temporal,
    /// Attention to the prompt.
    Cross,
}

impl AttentionKind {
    /// All kinds, in the order of their discriminants.
    pub const ALL: [Self; 3] = [Self::Spatial, Self::Temporal, Self::Cross];
}

/// Configuration, timesteps and token counts of one forward pass.
#[derive(Debug, Clone, Copy)]
pub struct Pass<'a> {
    /// The model's configuration.
    pub config: &'a DenoiserConfig,
    /// Timestep of each sample.
    pub timesteps: &'a [f32],
    /// Tokens of the whole clip along (t, h, w), which attend to each other within a frame and over time. A model
    /// whose tokens all attend to each other has one frame.
    pub grid: [usize; 3],
    /// Prompt tokens that each token attends to.
    pub prompt_tokens: usize,
}

/// Decides how the attention branches of a forward pass are computed.
pub trait PassHooks {
    /// Called before the first block.
    fn begin(&mut self, _pass: &Pass<'_>) {}

    /// Returns the output of an attention of block `block`, which `compute` computes.
    fn attention(
        &mut self,
        _block: usize,
        _kind: AttentionKind,
        compute: impl FnOnce() -> Branch,
    ) -> Branch {
        compute()
    }
}

/// Computes every branch.
impl PassHooks for () {}

/// The hooks of a forward pass, for one of its blocks.
#[derive(Debug)]
pub struct BlockHooks<'a, H> {
    hooks: &'a mut H,
    block: usize,
}

impl<'a, H: PassHooks> BlockHooks<'a, H> {
    /// Returns the hooks of block `block`.
    pub fn new(hooks: &'a mut H, block: usize) -> Self {
        Self { hooks, block }
    }

    /// Returns the output of the block's spatial attention, which `compute` computes.
    pub fn spatial(&mut self, compute: impl FnOnce() -> Branch) -> Branch {
        self.hooks.attention(self.block, AttentionKind::Spatial, compute)
    }

    /// Returns the output of the block's temporal attention, which `compute` computes.
    pub fn temporal(&mut self, compute: impl FnOnce() -> Branch) -> Branch {
        self.hooks.attention(self.block, AttentionKind::Temporal, compute)
    }

    /// Returns the output of the block's attention to the prompt, which `compute` computes.
    pub fn cross(&mut self, compute: impl FnOnce() -> Tensor<3>) -> Branch {
        self.hooks.attention(self.block, AttentionKind::Cross, || compute().into())
    }
}
