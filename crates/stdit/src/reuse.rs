//! Attention outputs used again in later sampling steps: pyramid attention broadcast.
//!
//! From one sampling step to the next the outputs of attention change little, those of cross
//! attention least and those of spatial attention most. So each kind is computed in every k-th step
//! of a window of timesteps only, and what it gave is added in the steps between. It trades
//! likeness to the full computation for time: a range of 1 computes always and changes nothing.
//!
//! Source: Zhao et al. 2024, "Real-Time Video Generation with Pyramid Attention Broadcast" (arXiv
//! 2408.12588); NUS-HPC-AI-Lab/VideoSys, `videosys/core/pab_mgr.py` and the `OpenSoraPABConfig` of
//! `videosys/pipelines/open_sora/pipeline_open_sora.py`: counts run from the first step, a step is
//! skipped where its count is no multiple of the range and its timestep strictly inside the window.
//! What is kept of self-attention is the gated output, as in `open_sora_transformer_3d.py`. Their
//! reuse of MLP outputs is left out: it is tied to one list of timesteps.
//!
//! Ranges count steps, not timesteps. They were published for 30 and more steps; in runs of 20 or
//! fewer neighbouring steps lie further apart and the same ranges cost more quality.
//!
//! Memory: one tensor `[B, N, C]` for each block and each kind whose range is above 1 while the
//! window lasts. STDiT-XL/2 with all three at 16x256x256 in f32, guided: 3.2 GB.

use crate::work::{BlockFlops, DenoiserWork};
use burn::tensor::Tensor;
use std::{fmt, str::FromStr};

/// In which steps attention outputs are used again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionReuse {
    spatial: usize,
    temporal: usize,
    cross: usize,
    above: f32,
    below: f32,
}

/// Why a setting is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AttentionReuseError {
    /// A part that is no `name=number`, or has an unknown name.
    #[error(
        "'{found}' is no part of an attention reuse, expected such as spatial=2,temporal=4,cross=6,above=450,below=930"
    )]
    Part {
        /// What was found.
        found: String,
    },
    /// Every step is the first.
    #[error("the {kind} range is 0 steps, expected at least 1")]
    Range {
        /// Whose range it is.
        kind: &'static str,
    },
    /// A window without a timestep.
    #[error("the window is above {above} and below {below}, expected timesteps in rising order")]
    Window {
        /// Its lower end.
        above: f32,
        /// Its upper end.
        below: f32,
    },
}

/// The three attentions of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttentionKind {
    /// Within a frame.
    Spatial,
    /// Over time.
    Temporal,
    /// To the prompt.
    Cross,
}

impl AttentionKind {
    const ALL: [Self; 3] = [Self::Spatial, Self::Temporal, Self::Cross];
}

impl AttentionReuse {
    /// Everything is computed in every step.
    pub const OFF: Self = Self { spatial: 1, temporal: 1, cross: 1, above: 450.0, below: 930.0 };

    /// As published for Open-Sora: every 2nd, 4th and 6th step at timesteps between 450 and 930.
    pub const PUBLISHED: Self = Self { spatial: 2, temporal: 4, cross: 6, ..Self::OFF };

    /// Of `ranges` steps (spatial, temporal, cross) one computes, at timesteps strictly between
    /// `window`'s ends.
    ///
    /// # Errors
    /// For a range of 0, or a window whose ends are no numbers in rising order.
    pub fn new(ranges: [usize; 3], [above, below]: [f32; 2]) -> Result<Self, AttentionReuseError> {
        for (kind, range) in ["spatial", "temporal", "cross"].into_iter().zip(ranges) {
            if range == 0 {
                return Err(AttentionReuseError::Range { kind });
            }
        }
        // A comparison that NaN fails.
        if !(above < below) {
            return Err(AttentionReuseError::Window { above, below });
        }
        let [spatial, temporal, cross] = ranges;
        Ok(Self { spatial, temporal, cross, above, below })
    }

    /// Whether nothing is ever used again.
    pub fn is_off(&self) -> bool {
        AttentionKind::ALL.iter().all(|&kind| self.range(kind) == 1)
    }

    fn range(&self, kind: AttentionKind) -> usize {
        match kind {
            AttentionKind::Spatial => self.spatial,
            AttentionKind::Temporal => self.temporal,
            AttentionKind::Cross => self.cross,
        }
    }

    /// Whether step `step` of a run, counted from 0, may do without computing.
    fn skips(&self, kind: AttentionKind, step: usize, timestep: f32) -> bool {
        !step.is_multiple_of(self.range(kind)) && self.above < timestep && timestep < self.below
    }

    /// Whether a later step of the run may want what this one computes.
    fn keeps(&self, kind: AttentionKind, timestep: f32) -> bool {
        self.range(kind) > 1 && timestep > self.above
    }
}

impl Default for AttentionReuse {
    fn default() -> Self {
        Self::OFF
    }
}

impl fmt::Display for AttentionReuse {
    /// `off`, or the form that parses.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_off() {
            return f.write_str("off");
        }
        let Self { spatial, temporal, cross, above, below } = self;
        write!(
            f,
            "spatial={spatial},temporal={temporal},cross={cross},above={above},below={below}"
        )
    }
}

impl FromStr for AttentionReuse {
    type Err = AttentionReuseError;

    /// `off`, `published`, or parts such as `spatial=2,cross=6`: ranges that are not named are 1, an
    /// end of the window that is not named is the published one.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim() {
            "off" => return Ok(Self::OFF),
            "published" => return Ok(Self::PUBLISHED),
            _ => (),
        }
        let mut found = Self::OFF;
        for part in text.split(',') {
            let refused = || AttentionReuseError::Part { found: part.trim().into() };
            let (name, value) = part.split_once('=').ok_or_else(refused)?;
            let range = || value.trim().parse::<usize>().map_err(|_| refused());
            let timestep = || value.trim().parse::<f32>().map_err(|_| refused());
            match name.trim() {
                "spatial" => found.spatial = range()?,
                "temporal" => found.temporal = range()?,
                "cross" => found.cross = range()?,
                "above" => found.above = timestep()?,
                "below" => found.below = timestep()?,
                _ => return Err(refused()),
            }
        }
        Self::new([found.spatial, found.temporal, found.cross], [found.above, found.below])
    }
}

/// What one sampling run keeps of its attentions, and a count of its work.
///
/// It belongs to one prompt: hand it to the forward passes of one run, in order. A timestep that
/// does not fall, or tokens of another shape, begin a new run and nothing is carried over.
#[derive(Debug, Clone, Default)]
pub struct AttentionCache {
    reuse: AttentionReuse,
    /// The forward pass that is under way.
    step: Step,
    /// Last output of each block, by kind.
    kept: Vec<[Option<Tensor<3>>; 3]>,
    work: DenoiserWork,
}

/// One forward pass of a run.
#[derive(Debug, Clone, Copy, Default)]
struct Step {
    /// Passes of the run before this one.
    index: usize,
    /// `None` before the first, and where the samples are at different timesteps.
    timestep: Option<f32>,
    /// `[B, N, C]`.
    tokens: [usize; 3],
}

impl AttentionCache {
    /// Empty.
    pub fn new(reuse: AttentionReuse) -> Self {
        Self { reuse, ..Self::default() }
    }

    /// The work of all forward passes so far.
    pub fn work(&self) -> DenoiserWork {
        self.work
    }

    /// Begins a forward pass over `depth` blocks, each of which would do `flops` for a sample.
    pub(crate) fn begin(
        &mut self,
        timesteps: &[f32],
        tokens: [usize; 3],
        depth: usize,
        flops: BlockFlops,
    ) {
        let timestep = timesteps.first().copied().filter(|t| timesteps.iter().all(|u| u == t));
        let goes_on = match (self.step.timestep, timestep) {
            (Some(before), Some(now)) => now < before && self.step.tokens == tokens,
            _ => false,
        };
        let index = if goes_on { self.step.index + 1 } else { 0 };
        // Behind the window nothing is used again, and another run has no use for it either.
        if !goes_on || timestep.is_none_or(|timestep| timestep <= self.reuse.above) {
            self.kept.clear();
        }
        self.kept.resize_with(depth, Default::default);
        self.step = Step { index, timestep, tokens };
        let samples = tokens[0] as u64;
        self.work.forward_samples += samples;
        self.work.flops += samples as f64 * depth as f64 * flops.mlp;
    }

    /// The output of an attention of block `block`: an earlier step's where that will do, and
    /// `compute`'s otherwise.
    fn output(
        &mut self,
        block: usize,
        kind: AttentionKind,
        flops: BlockFlops,
        compute: impl FnOnce() -> Tensor<3>,
    ) -> Tensor<3> {
        let Step { index, timestep, tokens } = self.step;
        let kept = &mut self.kept[block][kind as usize];
        if let (Some(timestep), Some(output)) = (timestep, kept.as_ref())
            && self.reuse.skips(kind, index, timestep)
        {
            self.work.attentions_reused += 1;
            return output.clone();
        }
        self.work.attentions_computed += 1;
        self.work.flops += tokens[0] as f64
            * match kind {
                AttentionKind::Spatial => flops.spatial,
                AttentionKind::Temporal => flops.temporal,
                AttentionKind::Cross => flops.cross,
            };
        // The old one makes room before the new one is there.
        *kept = None;
        let output = compute();
        if timestep.is_some_and(|timestep| self.reuse.keeps(kind, timestep)) {
            *kept = Some(output.clone());
        }
        output
    }
}

/// The attentions of one block in one forward pass.
pub(crate) struct BlockAttentions<'a>(Option<(&'a mut AttentionCache, usize, BlockFlops)>);

impl<'a> BlockAttentions<'a> {
    /// All are computed; nothing is kept or counted.
    pub(crate) fn computed() -> Self {
        Self(None)
    }

    /// Those of block `block`, by a cache whose pass has begun.
    pub(crate) fn cached(cache: &'a mut AttentionCache, block: usize, flops: BlockFlops) -> Self {
        Self(Some((cache, block, flops)))
    }

    /// The output `[B, N, C]` of one of them, as it is added to the tokens.
    pub(crate) fn output(
        &mut self,
        kind: AttentionKind,
        compute: impl FnOnce() -> Tensor<3>,
    ) -> Tensor<3> {
        match &mut self.0 {
            None => compute(),
            Some((cache, block, flops)) => cache.output(*block, kind, *flops, compute),
        }
    }
}
