//! Memory of a rank by category.
//!
//! Counted is what a training step from a cache of latents holds at its peak; a text encoder and a VAE in the same
//! process come on top. Parameters, moments, moving average and gradients are f32, whatever the type to compute in.

use super::{
    Job, Layout, bytes_of,
    size::{Parameters, Share},
};
use crate::zero::Zero;
use burn::tensor::FloatDType;
use serde::Serialize;

/// Bytes of a rank by category.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Memory {
    /// The parameters that the passes read, in the type to compute in.
    pub weights: f64,
    /// f32 parameters that the optimizer updates, where they are not the weights themselves.
    pub master: f64,
    /// First and second moments of AdamW.
    pub optimizer: f64,
    /// Exponential moving average.
    pub average: f64,
    /// Gradients of earlier micro-batches of a step.
    pub sums: f64,
    /// Gradients that a backward pass returns.
    pub gradients: f64,
    /// Activations that are saved for the backward pass, without attention scores.
    pub activations: f64,
    /// Attention scores that are saved for the backward pass.
    pub scores: f64,
    /// Gradients of activations within a block.
    pub workspace: f64,
    /// Send and receive buffers of collectives.
    pub buffers: f64,
}

impl Memory {
    /// Returns the categories with their names.
    pub fn categories(&self) -> [(&'static str, f64); 10] {
        [
            ("weights", self.weights),
            ("f32 parameters", self.master),
            ("optimizer", self.optimizer),
            ("moving average", self.average),
            ("gradient sums", self.sums),
            ("gradients", self.gradients),
            ("activations", self.activations),
            ("attention scores", self.scores),
            ("workspace", self.workspace),
            ("buffers", self.buffers),
        ]
    }

    /// Returns the peak: the sum of all categories, of which the backward pass holds either activations and scores
    /// (at its beginning) or the parameters' gradients (at its end).
    pub fn peak(&self) -> f64 {
        let sum: f64 = self.categories().into_iter().map(|(_, bytes)| bytes).sum();
        sum - self.gradients.min(self.activations + self.scores)
    }
}

/// Values that autodiff saves in a block for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Saved {
    /// Values for each token as a multiple of the hidden size, without the MLP's inner layer.
    hidden: f64,
    /// The same of the MLP's inner layer, as a multiple of its size.
    inner: f64,
    /// Values for each attention score.
    scores: f64,
    /// Most scores that an attention saves; with more it saves none, and computes them again. Not of self-attention
    /// within at most [`SHORT`] tokens.
    most_scores: f64,
}

/// Most tokens of a sequence whose self-attention always saves its scores.
const SHORT: usize = 64;

/// Saved by the fused layers of flex in f32. Of the hidden size: spatial attention 7 (input of the norm, input of
/// `qkv`, `qkv`, input of `proj`, its output for the gate), temporal attention 6 (the same without the norm), cross
/// attention 3, MLP 3. Of the inner size: before and after GELU.
const FUSED: Saved =
    Saved { hidden: 19.0, inner: 2.0, scores: 1.0, most_scores: (1u64 << 26) as f64 };

/// Saved by burn's operations on other backends and types: in addition, the normalised tokens of both norms, and the
/// powers and products of the tanh form of GELU. Softmax saves the exponentials, and the product with the values its
/// result.
const COMPOSED: Saved = Saved { hidden: 21.0, inner: 6.0, scores: 2.0, most_scores: f64::INFINITY };

/// Gradients of activations that exist at once in the backward pass of a block, as multiples of the hidden size and of
/// the inner size: those around GELU, and of its input and output.
const WORKSPACE: [f64; 2] = [3.0, 2.0];

/// Returns the memory of a rank.
pub(super) fn of(job: &Job, layout: Layout, grid: [usize; 3], parameters: &Parameters) -> Memory {
    let ranks = layout.ranks() as f64;
    let value = bytes_of(job.dtype);
    let is_f32 = value == 4.0;
    let divided = |stage: Zero| if layout.zero >= stage { ranks } else { 1.0 };
    let state = 4.0 * parameters.trained / divided(Zero::Optimizer);
    // Without division, an f32 model computes with the optimizer's parameters themselves.
    let is_divided = layout.zero != Zero::Off && layout.ranks() > 1;
    let has_master = !is_f32 || is_divided;
    // burn returns the gradients of all parameters at once.
    let gradients = 4.0 * parameters.trained;
    let sums = if layout.accumulation > 1 { gradients / divided(Zero::Gradients) } else { 0.0 };

    let share = Share::of(grid, layout.sequence);
    let clips = layout.micro_batch(job.clips) as f64;
    let hidden = job.config.hidden_size as f64;
    let tokens = clips * share.tokens();
    let (block, scores) = saved_in_block(job, share, clips);
    let depth = job.config.depth as f64;
    let entering = tokens * hidden * value;
    let (activations, scores) = match layout.activation_checkpointing {
        true => (depth * entering + block, scores),
        false => (depth * block, depth * scores),
    };
    let width = WORKSPACE[0] * hidden + WORKSPACE[1] * job.config.mlp_size() as f64;
    let exchange = match layout.sequence {
        1 => 0.0,
        _ => clips * share.exchanged(layout.sequence) * hidden * value,
    };
    let bucket = if ranks > 1.0 { job.bucket_bytes().min(4.0 * parameters.trained) } else { 0.0 };
    Memory {
        weights: value * parameters.total,
        master: if has_master { state } else { 0.0 },
        optimizer: 2.0 * state,
        average: state,
        sums,
        gradients,
        activations,
        scores,
        workspace: tokens * width * value,
        // Each is sent from one buffer and received in another.
        buffers: 2.0 * (exchange + bucket),
    }
}

/// Returns the bytes of the activations and of the scores that a block saves for `clips`.
fn saved_in_block(job: &Job, share: Share, clips: f64) -> (f64, f64) {
    let value = bytes_of(job.dtype);
    let is_fused = job.dtype == FloatDType::F32 && job.processor.host_bandwidth.is_none();
    let saved = if is_fused { FUSED } else { COMPOSED };
    let config = &job.config;
    let (hidden, inner) = (config.hidden_size as f64, config.mlp_size() as f64);
    let tokens = share.tokens();
    let values = tokens * (saved.hidden * hidden + saved.inner * inner);
    let heads = config.num_heads as f64;
    let spatial = tokens * share.all_positions as f64;
    // As f64: the product can be larger than a usize.
    let all_frames = share.all_frames as f64;
    let temporal = share.positions as f64 * all_frames * all_frames;
    let cross = tokens * job.caption_tokens as f64;
    let scores =
        [(spatial, share.all_positions), (temporal, share.all_frames), (cross, usize::MAX)]
            .into_iter()
            .map(|(scores, length)| (clips * heads * scores, length))
            .filter(|&(scores, length)| scores <= saved.most_scores || length <= SHORT)
            .map(|(scores, _)| scores)
            .sum::<f64>();
    (clips * values * value, saved.scores * scores * value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Processor;
    use opensora_stdit::DenoiserConfig;

    /// A model of 1000 parameters, all trained.
    const PARAMETERS: Parameters = Parameters { total: 1000.0, trained: 1000.0, block: 100.0 };

    fn job(dtype: FloatDType) -> Job {
        let config = DenoiserConfig {
            hidden_size: 8,
            depth: 3,
            num_heads: 2,
            patch_size: [1, 1, 1],
            ..DenoiserConfig::xl_2()
        };
        Job {
            config,
            latents: [4, 2, 3],
            caption_tokens: 5,
            clips: 8,
            ranks: 4,
            processor: Processor::CPU,
            dtype,
            ..Job::default()
        }
    }

    fn memory(job: &Job, layout: Layout) -> Memory {
        of(job, layout, [4, 2, 3], &PARAMETERS)
    }

    #[test]
    fn the_state_is_divided_by_its_stage() {
        let job = job(FloatDType::F32);
        let state = |zero| {
            let found = memory(&job, Layout { zero, ..Layout::data(4) });
            [found.weights, found.master, found.optimizer, found.average]
        };
        assert_eq!(state(Zero::Off), [4000.0, 0.0, 8000.0, 4000.0]);
        assert_eq!(state(Zero::Optimizer), [4000.0, 1000.0, 2000.0, 1000.0]);
        assert_eq!(state(Zero::Gradients), [4000.0, 1000.0, 2000.0, 1000.0]);
        let sums = |zero, accumulation| {
            memory(&job, Layout { zero, accumulation, ..Layout::data(4) }).sums
        };
        assert_eq!([sums(Zero::Off, 1), sums(Zero::Gradients, 1)], [0.0, 0.0]);
        assert_eq!([sums(Zero::Optimizer, 2), sums(Zero::Gradients, 2)], [4000.0, 1000.0]);
        let half = super::of(&self::job(FloatDType::BF16), Layout::data(4), [4, 2, 3], &PARAMETERS);
        assert_eq!([half.weights, half.master, half.gradients], [2000.0, 4000.0, 4000.0]);
        assert_eq!((half.optimizer, half.average, half.sums), (8000.0, 4000.0, 0.0));
        // Activations of this small model exceed its gradients.
        let passes = half.activations + half.scores;
        assert!(passes > 4000.0);
        let rest = half.workspace + half.buffers;
        assert_eq!(half.peak(), 2000.0 + 4000.0 + 8000.0 + 4000.0 + passes + rest);
        let large = Memory { gradients: 3.0 * passes, ..half };
        assert_eq!(large.peak(), half.peak() + 2.0 * passes);
    }

    /// A rank has 2 clips of 24 tokens; the inner size is 32.
    #[test]
    fn activations_and_scores_are_those_computed_by_hand() {
        let job = job(FloatDType::F32);
        let layout = Layout::data(4);
        let block = 2.0 * 24.0 * (19.0 * 8.0 + 2.0 * 32.0) * 4.0;
        // Spatial: 24 tokens x 6 positions; temporal: 6 positions x 16; cross: 24 x 5; two heads.
        let scores = 2.0 * 2.0 * (24.0 * 6.0 + 6.0 * 16.0 + 24.0 * 5.0) * 4.0;
        let found = memory(&job, layout);
        assert_eq!([found.activations, found.scores], [3.0 * block, 3.0 * scores]);
        let found = memory(&job, Layout { activation_checkpointing: true, ..layout });
        let entering = 2.0 * 24.0 * 8.0 * 4.0;
        assert_eq!([found.activations, found.scores], [3.0 * entering + block, scores]);
        let found = memory(&job, Layout { accumulation: 2, ..layout });
        assert_eq!(found.activations, 3.0 * block / 2.0);
    }

    #[test]
    fn scores_of_short_sequences_are_always_saved() {
        let job = Job { clips: 4 << 20, ..job(FloatDType::F32) };
        // Per clip 2 heads of 24 tokens x 6 positions and 6 positions x 16. Those of the caption are more than 2^26.
        let scores = 2.0 * (24.0 * 6.0 + 6.0 * 16.0) * f64::from(1 << 20) * 4.0;
        assert_eq!(memory(&job, Layout::data(4)).scores, 3.0 * scores);
    }

    #[test]
    fn a_sequence_group_divides_the_activations() {
        let job = Job { clips: 2, ..job(FloatDType::F32) };
        let whole = memory(&Job { ranks: 2, ..job.clone() }, Layout::data(2));
        let half = memory(&job, Layout { data: 2, sequence: 2, ..Layout::data(2) });
        assert_eq!(half.activations, whole.activations / 2.0);
        assert_eq!(half.scores, whole.scores / 2.0);
        // Two frames of six positions and eight channels, sent and received; and two buckets.
        assert_eq!(half.buffers - whole.buffers, 2.0 * 12.0 * 8.0 * 4.0);
    }
}
