//! The floating point operations of a denoiser, from its configuration and counts of computed attentions.
//!
//! Matrix products of the blocks are counted, a multiply-add as two operations. Embeddings and the final
//! layer are not: they are less than one percent of STDiT-XL/2.

use crate::{ClassConfig, DenoiserConfig, hooks::AttentionKind};
use serde::Serialize;
use std::ops::{Add, AddAssign};

/// Floating point operations of each branch of a block of STDiT, for one sample.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct BlockFlops {
    /// Attention within a frame.
    pub spatial: f64,
    /// Attention over time.
    pub temporal: f64,
    /// Attention to the prompt.
    pub cross: f64,
    /// The MLP.
    pub mlp: f64,
}

impl BlockFlops {
    /// Returns the operations for a clip of `grid` tokens along (t, h, w), each of which attends to
    /// `caption_tokens` tokens of the prompt.
    pub fn new(config: &DenoiserConfig, grid: [usize; 3], caption_tokens: usize) -> Self {
        let [frames, height, width] = grid.map(|side| side as f64);
        let (hidden, inner) = (config.hidden_size as f64, config.mlp_size() as f64);
        let (space, captions) = (height * width, caption_tokens as f64);
        let tokens = frames * space;
        let project = |tokens: f64, layers: f64| 2.0 * layers * hidden * hidden * tokens;
        let attend = |keys: f64| 4.0 * hidden * tokens * keys;
        Self {
            spatial: project(tokens, 4.0) + attend(space),
            temporal: project(tokens, 4.0) + attend(frames),
            cross: project(tokens, 2.0) + project(captions, 2.0) + attend(captions),
            mlp: 4.0 * hidden * inner * tokens,
        }
    }

    /// Returns the operations of the whole block.
    pub fn total(self) -> f64 {
        self.spatial + self.temporal + self.cross + self.mlp
    }

    fn attention(self, kind: AttentionKind) -> f64 {
        match kind {
            AttentionKind::Spatial => self.spatial,
            AttentionKind::Temporal => self.temporal,
            AttentionKind::Cross => self.cross,
        }
    }
}

/// Attentions of one forward pass, each over the whole batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct AttentionCounts {
    /// Attentions that were computed, by kind.
    pub computed: [u64; 3],
    /// Attentions whose output was reused.
    pub reused: u64,
}

/// Returns the floating point operations of one forward pass of a model with DiT's blocks, for one sample
/// of `tokens` that each attend to `keys(index)` tokens in block `index`.
fn adaln_flops(config: &ClassConfig, tokens: usize, keys: impl Fn(usize) -> usize) -> f64 {
    let (hidden, inner) = (config.hidden_size as f64, config.mlp_size() as f64);
    let tokens = tokens as f64;
    // Four projections, the MLP's two layers, and the modulation, which is computed once a sample.
    let layers =
        8.0 * hidden * hidden * tokens + 4.0 * hidden * inner * tokens + 12.0 * hidden * hidden;
    let attend = |index| 4.0 * hidden * tokens * keys(index) as f64;
    (0..config.depth).map(|index| layers + attend(index)).sum()
}

/// The work of forward passes.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct DenoiserWork {
    /// Samples that went through the model; guidance sends each through twice a step.
    pub forward_samples: u64,
    /// Attentions that were computed, each over the whole batch, of all blocks and kinds.
    pub attentions_computed: u64,
    /// Attentions whose output was reused from an earlier step.
    pub attentions_reused: u64,
    /// Floating point operations that were computed.
    pub flops: f64,
}

impl DenoiserWork {
    /// Returns the work of a forward pass of STDiT or PixArt-alpha over `samples`, through `blocks` that
    /// each need `flops` for one sample.
    pub(crate) fn of_pass(
        samples: usize,
        blocks: usize,
        flops: BlockFlops,
        counts: AttentionCounts,
    ) -> Self {
        let attentions = AttentionKind::ALL
            .map(|kind| counts.computed[kind as usize] as f64 * flops.attention(kind));
        let one_sample = attentions.iter().sum::<f64>() + blocks as f64 * flops.mlp;
        Self {
            forward_samples: samples as u64,
            attentions_computed: counts.computed.iter().sum(),
            attentions_reused: counts.reused,
            flops: samples as f64 * one_sample,
        }
    }

    /// Returns the work of a forward pass of a model with DiT's blocks over `samples` of `tokens`, which
    /// attend to `keys(index)` tokens in block `index`.
    pub(crate) fn of_class_pass(
        config: &ClassConfig,
        samples: usize,
        tokens: usize,
        keys: impl Fn(usize) -> usize,
    ) -> Self {
        Self {
            forward_samples: samples as u64,
            attentions_computed: config.depth as u64,
            attentions_reused: 0,
            flops: samples as f64 * adaln_flops(config, tokens, keys),
        }
    }
}

impl Add for DenoiserWork {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            forward_samples: self.forward_samples + other.forward_samples,
            attentions_computed: self.attentions_computed + other.attentions_computed,
            attentions_reused: self.attentions_reused + other.attentions_reused,
            flops: self.flops + other.flops,
        }
    }
}

impl AddAssign for DenoiserWork {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// DiT-XL/2 is published with 118.64 (256x256) and 524.60 (512x512) billion multiply-adds in all layers (Peebles and Xie 2022, "Scalable Diffusion Models with Transformers", arXiv 2212.09748).
    #[test]
    fn flops_of_dit_xl_agree_with_its_paper() {
        let config = ClassConfig::dit_xl_2();
        for (side, published) in [(16usize, 118.64e9), (32, 524.60e9)] {
            let tokens = side * side;
            let found = adaln_flops(&config, tokens, |_| tokens);
            assert!((found / 2.0 / published - 1.0).abs() < 0.01, "{side}: {found}");
        }
    }

    #[test]
    fn work_is_counted_by_kind_and_added() {
        let flops = BlockFlops { spatial: 1.0, temporal: 10.0, cross: 100.0, mlp: 1000.0 };
        let counts = AttentionCounts { computed: [1, 2, 3], reused: 4 };
        let work = DenoiserWork::of_pass(2, 5, flops, counts);
        let expected = DenoiserWork {
            forward_samples: 2,
            attentions_computed: 6,
            attentions_reused: 4,
            flops: 2.0 * (1.0 + 20.0 + 300.0 + 5000.0),
        };
        assert_eq!(work, expected);
        let mut sum = work;
        sum += work;
        assert_eq!(
            sum,
            DenoiserWork {
                forward_samples: 4,
                attentions_computed: 12,
                attentions_reused: 8,
                flops: 2.0 * expected.flops,
            }
        );
    }

    #[test]
    fn flops_of_a_block_of_stdit_xl_agree_with_the_formula() {
        let found = BlockFlops::new(&DenoiserConfig::xl_2(), [16, 16, 16], 120).total();
        // 36 C^2 N + 4 C (S + T + L) N + 4 C^2 L
        let (c, s, t, l) = (1152.0, 256.0, 16.0, 120.0);
        let n = s * t;
        let wanted = 36.0 * c * c * n + 4.0 * c * (s + t + l) * n + 4.0 * c * c * l;
        assert!((found / wanted - 1.0).abs() < 1e-12, "{found} {wanted}");
    }
}
