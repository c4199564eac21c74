//! Attention outputs of earlier sampling steps, and the count of the work of a run.
//!
//! Memory: one tensor `[B, N, C]` for each block and each kind of attention whose range is above 1, while
//! the window lasts. STDiT-XL/2 with all three kinds at 16x256x256 in f32, guided: 3.2 GB.

use crate::{
    AttentionReuse,
    hooks::{AttentionKind, Pass, PassHooks},
    modulation::Branch,
    work::{AttentionCounts, BlockFlops, DenoiserWork},
};
use burn::tensor::Tensor;

/// The attention outputs that one sampling run reuses, and a count of its work.
///
/// A cache belongs to one prompt: pass it to the forward passes of one run, in order. A timestep that
/// does not fall, or a clip of another size, begins a new run, which reuses nothing of the run before.
#[derive(Debug, Clone, Default)]
pub struct AttentionCache {
    reuse: AttentionReuse,
    /// The current forward pass.
    step: Step,
    /// Last output of each block, by kind.
    stored: Vec<[Option<Tensor<3>>; 3]>,
    /// Work of the passes before the current one.
    finished: DenoiserWork,
}

/// One forward pass of a run.
#[derive(Debug, Clone, Copy, Default)]
struct Step {
    /// Number of passes of the run before this one.
    index: usize,
    /// `None` before the first pass, and if the samples are at different timesteps.
    timestep: Option<f32>,
    samples: usize,
    /// Tokens along (t, h, w).
    grid: [usize; 3],
    blocks: usize,
    flops: BlockFlops,
    counts: AttentionCounts,
}

impl AttentionCache {
    /// Returns an empty cache.
    pub fn new(reuse: AttentionReuse) -> Self {
        Self { reuse, ..Self::default() }
    }

    /// Returns the work of all forward passes so far.
    pub fn work(&self) -> DenoiserWork {
        let Step { samples, blocks, flops, counts, .. } = self.step;
        self.finished + DenoiserWork::of_pass(samples, blocks, flops, counts)
    }
}

impl PassHooks for AttentionCache {
    fn begin(&mut self, pass: &Pass<'_>) {
        self.finished = self.work();
        let Pass { config, timesteps, grid, prompt_tokens } = *pass;
        let samples = timesteps.len();
        let timestep = timesteps.first().copied().filter(|t| timesteps.iter().all(|u| u == t));
        let continues = match (self.step.timestep, timestep) {
            (Some(before), Some(now)) => {
                now < before && (self.step.samples, self.step.grid) == (samples, grid)
            }
            _ => false,
        };
        let index = if continues { self.step.index + 1 } else { 0 };
        // Neither later steps of this run nor another run reuse outputs from here on.
        if !continues || timestep.is_none_or(|timestep| self.reuse.is_past(timestep)) {
            self.stored.clear();
        }
        let blocks = config.depth;
        self.stored.resize_with(blocks, Default::default);
        let flops = BlockFlops::new(config, grid, prompt_tokens);
        let counts = AttentionCounts::default();
        self.step = Step { index, timestep, samples, grid, blocks, flops, counts };
    }

    fn attention(
        &mut self,
        block: usize,
        kind: AttentionKind,
        compute: impl FnOnce() -> Branch,
    ) -> Branch {
        let Step { index, timestep, counts, .. } = &mut self.step;
        let stored = &mut self.stored[block][kind as usize];
        if let (Some(timestep), Some(output)) = (*timestep, stored.as_ref())
            && self.reuse.skips(kind, *index, timestep)
        {
            counts.reused += 1;
            return output.clone().into();
        }
        counts.computed[kind as usize] += 1;
        // Frees the old output before the new one is computed.
        *stored = None;
        let branch = compute();
        if timestep.is_none_or(|timestep| !self.reuse.stores(kind, timestep)) {
            return branch;
        }
        let output = branch.value();
        *stored = Some(output.clone());
        output.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DenoiserConfig, PromptModel, StDit, block::StDitBlock};
    use burn::tensor::Device;
    use opensora_nn::linear::{XAVIER, linear};

    const DEPTH: usize = 2;

    /// Returns a small model without zero weights.
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
        let mut model = config.init::<StDit>(device).unwrap();
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

    /// Returns the outputs of a run over [`TIMESTEPS`] on two samples of `frames` frames.
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
                        model.forward_cached(latents, &[t; 2], prompt.clone(), None, cache).unwrap()
                    }
                };
                output.into_data().try_to_vec::<f32>().unwrap()
            })
            .collect()
    }

    #[test]
    fn ranges_of_one_are_bit_exact() {
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
        assert!(cache.stored.iter().flatten().all(Option::is_none));
    }

    #[test]
    fn attentions_are_reused_inside_the_window_only() {
        let model = model(&Device::flex());
        let reuse = AttentionReuse::new([2, 3, 1], [500.0, 930.0]).unwrap();
        let mut cache = AttentionCache::new(reuse);
        let (found, full) = (run(&model, 3, Some(&mut cache)), run(&model, 3, None));
        // The window contains steps 1 to 4. Reused: spatial in steps 1 and 3, temporal in 1, 2 and 4.
        assert_eq!(cache.work().attentions_reused, (5 * DEPTH) as u64);
        assert_eq!(cache.work().attentions_computed, ((6 * 3 - 5) * DEPTH) as u64);
        let block = BlockFlops::new(model.config(), [3, 2, 3], 5);
        let wanted = 6.0 * block.total() - 2.0 * block.spatial - 3.0 * block.temporal;
        assert_eq!(cache.work().flops, 2.0 * DEPTH as f64 * wanted);
        for step in 0..6 {
            let same = found[step] == full[step];
            assert_eq!(same, [0, 5].contains(&step), "step {step}");
        }
        assert!(cache.stored.iter().flatten().all(Option::is_none), "stored after the window");
    }

    #[test]
    fn another_run_reuses_nothing() {
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
    fn an_interrupted_run_is_not_reused() {
        let device = Device::flex();
        let model = model(&device);
        let reuse = AttentionReuse::new([9, 9, 9], [0.0, 1001.0]).unwrap();
        let mut cache = AttentionCache::new(reuse);
        let mut step = |t: f32, frames| {
            let (latents, prompt) =
                (waves([1, 4, frames, 4, 6], t, &device), waves([1, 5, 8], 0.5, &device));
            let before = cache.work().attentions_reused;
            model.forward_cached(latents, &[t], prompt, None, &mut cache).unwrap();
            cache.work().attentions_reused - before
        };
        let all = (3 * DEPTH) as u64;
        assert_eq!([step(900.0, 3), step(800.0, 3)], [0, all]);
        // A repeated timestep, and a clip of another length, begin new runs.
        assert_eq!([step(800.0, 3), step(700.0, 3), step(600.0, 2)], [0, all, 0]);
    }
}
