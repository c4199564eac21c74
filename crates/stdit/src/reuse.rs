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
use opensora_nn::modulation::gated_sum;
use std::{cmp::Ordering, fmt, str::FromStr};

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
        // Not a number compares as nothing.
        if above.partial_cmp(&below) != Some(Ordering::Less) {
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
        write!(f, "spatial={spatial},temporal={temporal},cross={cross},above={above},below={below}")
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

    /// Counts a forward pass over `samples` that computed all of its `attentions`, at `flops` operations
    /// a sample: for models that reuse none.
    pub fn count(&mut self, samples: usize, attentions: usize, flops: f64) {
        self.work += DenoiserWork {
            forward_samples: samples as u64,
            attentions_computed: attentions as u64,
            attentions_reused: 0,
            flops: samples as f64 * flops,
        };
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

    /// `x` and the gated output of an attention of block `block`: an earlier step's where that will do, and
    /// `compute`'s otherwise.
    fn add(
        &mut self,
        (block, kind, flops): (usize, AttentionKind, BlockFlops),
        x: Tensor<3>,
        gate: Option<&Tensor<3>>,
        compute: impl FnOnce(Tensor<3>) -> Tensor<3>,
    ) -> Tensor<3> {
        let Step { index, timestep, tokens } = self.step;
        let kept = &mut self.kept[block][kind as usize];
        if let (Some(timestep), Some(output)) = (timestep, kept.as_ref())
            && self.reuse.skips(kind, index, timestep)
        {
            self.work.attentions_reused += 1;
            return x + output.clone();
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
        let output = compute(x.clone());
        if timestep.is_some_and(|timestep| self.reuse.keeps(kind, timestep)) {
            let output = match gate {
                Some(gate) => gate.clone() * output,
                None => output,
            };
            *kept = Some(output.clone());
            return x + output;
        }
        sum(x, gate, output)
    }
}

/// `x + gate * output`.
fn sum(x: Tensor<3>, gate: Option<&Tensor<3>>, output: Tensor<3>) -> Tensor<3> {
    match gate {
        Some(gate) => gated_sum(x, gate.clone(), output),
        None => x + output,
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

    /// `x` `[B, N, C]` and the output of one of them, times `gate` `[B, 1, C]`.
    pub(crate) fn add(
        &mut self,
        kind: AttentionKind,
        x: Tensor<3>,
        gate: Option<&Tensor<3>>,
        compute: impl FnOnce(Tensor<3>) -> Tensor<3>,
    ) -> Tensor<3> {
        match &mut self.0 {
            None => {
                let output = compute(x.clone());
                sum(x, gate, output)
            }
            Some((cache, block, flops)) => cache.add((*block, kind, *flops), x, gate, compute),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DenoiserConfig, StDit, block::StDitBlock};
    use burn::tensor::Device;
    use opensora_nn::linear::{XAVIER, linear};

    const DEPTH: usize = 2;

    /// A small model none of whose layers is silent.
    fn model(device: &Device) -> StDit {
        let config = DenoiserConfig {
            hidden_size: 24,
            depth: DEPTH,
            num_heads: 2,
            caption_channels: 8,
            model_max_length: 5,
            ..DenoiserConfig::xl_2()
        };
        let layer = |to: usize| linear(24, to, true, XAVIER, device);
        let mut model = StDit::new(&config, device).unwrap();
        for StDitBlock { base, attn_temp } in &mut model.blocks {
            base.cross_attn.proj = layer(24);
            attn_temp.proj = layer(24);
        }
        model.final_layer.linear = layer(2 * 2 * 8);
        model
    }

    fn waves<const D: usize>(shape: [usize; D], phase: f32, device: &Device) -> Tensor<D> {
        let count = shape.iter().product::<usize>();
        let values: Vec<f32> = (0..count).map(|i| (i as f32 * 1.7 + phase).sin()).collect();
        Tensor::<1>::from_floats(values.as_slice(), device).reshape(shape)
    }

    const TIMESTEPS: [f32; 6] = [950.0, 900.0, 800.0, 700.0, 600.0, 100.0];

    /// The outputs of a run over [`TIMESTEPS`] on two samples of `frames` frames.
    fn run(model: &StDit, frames: usize, cache: Option<&mut AttentionCache>) -> Vec<Vec<f32>> {
        let device = &model.null_prompt().device();
        let prompt = waves([2, 5, 8], 0.5, device);
        let mut cache = cache;
        TIMESTEPS
            .iter()
            .map(|&t| {
                let latents = waves([2, 4, frames, 4, 6], t, device);
                let output = match &mut cache {
                    None => model.forward(latents, &[t; 2], prompt.clone(), None),
                    Some(cache) => {
                        model.forward_cached(latents, &[t; 2], prompt.clone(), None, cache)
                    }
                };
                output.into_data().try_to_vec::<f32>().unwrap()
            })
            .collect()
    }

    #[test]
    fn ranges_of_one_change_no_bit() {
        let model = model(&Device::flex());
        let mut cache = AttentionCache::new(AttentionReuse::OFF);
        assert_eq!(run(&model, 3, Some(&mut cache)), run(&model, 3, None));
        let config = model.config();
        let flops = BlockFlops::new(config, [3, 2, 3], 5).total();
        let wanted = DenoiserWork {
            forward_samples: 12,
            attentions_computed: (6 * 3 * DEPTH) as u64,
            attentions_reused: 0,
            flops: 12.0 * DEPTH as f64 * flops,
        };
        assert_eq!(cache.work(), wanted);
        assert!(cache.kept.iter().flatten().all(Option::is_none));
    }

    #[test]
    fn attentions_are_reused_inside_the_window_only() {
        let model = model(&Device::flex());
        let reuse = AttentionReuse::new([2, 3, 1], [500.0, 930.0]).unwrap();
        let mut cache = AttentionCache::new(reuse);
        let (found, full) = (run(&model, 3, Some(&mut cache)), run(&model, 3, None));
        // Spatial: steps 1 and 3 of the window's 1 to 4; temporal: 1, 2 and 4.
        assert_eq!(cache.work().attentions_reused, (5 * DEPTH) as u64);
        assert_eq!(cache.work().attentions_computed, ((6 * 3 - 5) * DEPTH) as u64);
        let block = BlockFlops::new(model.config(), [3, 2, 3], 5);
        let wanted = 6.0 * block.total() - 2.0 * block.spatial - 3.0 * block.temporal;
        assert_eq!(cache.work().flops, 2.0 * DEPTH as f64 * wanted);
        for step in 0..6 {
            let same = found[step] == full[step];
            assert_eq!(same, [0, 5].contains(&step), "step {step}");
        }
        assert!(cache.kept.iter().flatten().all(Option::is_none), "kept behind the window");
    }

    #[test]
    fn nothing_is_carried_into_another_run() {
        let model = model(&Device::flex());
        let fresh =
            |frames| run(&model, frames, Some(&mut AttentionCache::new(AttentionReuse::PUBLISHED)));
        let (short, long) = (fresh(2), fresh(3));
        let mut cache = AttentionCache::new(AttentionReuse::PUBLISHED);
        for (frames, wanted) in [(3, &long), (3, &long), (2, &short), (3, &long)] {
            assert_eq!(&run(&model, frames, Some(&mut cache)), wanted);
        }
    }

    #[test]
    fn a_run_that_was_left_in_the_window_leaves_nothing() {
        let device = Device::flex();
        let model = model(&device);
        let reuse = AttentionReuse::new([9, 9, 9], [0.0, 1001.0]).unwrap();
        let mut cache = AttentionCache::new(reuse);
        let mut step = |t: f32, frames| {
            let (latents, prompt) =
                (waves([1, 4, frames, 4, 6], t, &device), waves([1, 5, 8], 0.5, &device));
            let before = cache.work().attentions_reused;
            model.forward_cached(latents, &[t], prompt, None, &mut cache);
            cache.work().attentions_reused - before
        };
        let all = (3 * DEPTH) as u64;
        assert_eq!([step(900.0, 3), step(800.0, 3)], [0, all]);
        // The same timestep again, and a clip of another length.
        assert_eq!([step(800.0, 3), step(700.0, 3), step(600.0, 2)], [0, all, 0]);
    }

    #[test]
    fn settings_are_read_and_written() {
        let parse = |text: &str| text.parse::<AttentionReuse>();
        assert_eq!(parse("published"), Ok(AttentionReuse::PUBLISHED));
        assert_eq!(parse("off"), Ok(AttentionReuse::OFF));
        assert_eq!(
            parse("spatial=2, cross=6,above=100,below=850.5"),
            AttentionReuse::new([2, 1, 6], [100.0, 850.5])
        );
        for reuse in [AttentionReuse::OFF, AttentionReuse::PUBLISHED] {
            assert_eq!(parse(&reuse.to_string()), Ok(reuse));
        }
        for text in ["", "2", "spatial", "spatial=-1", "mlp=2", "spatial=2;cross=6"] {
            assert!(matches!(parse(text), Err(AttentionReuseError::Part { .. })), "{text}");
        }
        let error = parse("spatial=2,temporal=0").unwrap_err();
        assert_eq!(error, AttentionReuseError::Range { kind: "temporal" });
        for text in ["above=NaN", "above=930", "below=100"] {
            assert!(matches!(parse(text), Err(AttentionReuseError::Window { .. })), "{text}");
        }
    }
}
