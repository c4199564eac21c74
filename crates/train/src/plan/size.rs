//! Sizes that follow from a configuration: parameters, and the tokens and FLOPs of a rank.

use crate::{shards::LARGE, zero::Zero};
use opensora_stdit::{DenoiserConfig, work::BlockFlops};
use serde::Serialize;

/// Width of the sinusoidal timestep embedding, `opensora_nn::timestep`.
const FREQUENCIES: f64 = 256.0;

/// Numbers of parameters of an STDiT.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Parameters {
    /// All parameters.
    pub total: f64,
    /// Trained parameters: all except the null prompt, which is a buffer.
    pub trained: f64,
    /// Parameters of one block.
    pub block: f64,
}

/// Returns the numbers of parameters of an STDiT.
pub fn parameters(config: &DenoiserConfig) -> Parameters {
    let (hidden, inner) = (config.hidden_size as f64, config.mlp_size() as f64);
    let linear = |input: f64, output: f64| (input + 1.0) * output;
    let attention = linear(hidden, 3.0 * hidden) + linear(hidden, hidden);
    let cross = 2.0 * linear(hidden, hidden) + linear(hidden, 2.0 * hidden);
    let mlp = linear(hidden, inner) + linear(inner, hidden);
    let block = 2.0 * attention + cross + mlp + 6.0 * hidden;

    let patch = config.patch_size.iter().product::<usize>() as f64;
    let captions = config.caption_channels as f64;
    let null_prompt = config.model_max_length as f64 * captions;
    let embeddings = linear(patch * config.in_channels as f64, hidden)
        + linear(FREQUENCIES, hidden)
        + linear(hidden, hidden)
        + linear(hidden, 6.0 * hidden)
        + linear(captions, hidden)
        + linear(hidden, hidden);
    let head = linear(hidden, patch * config.out_channels() as f64) + 2.0 * hidden;
    let trained = config.depth as f64 * block + embeddings + head;
    Parameters { total: trained + null_prompt, trained, block }
}

/// Returns the numbers of collectives in which the trainer reduces the gradients of all trained parameters and gathers
/// the parameters over `ranks`, in buckets of `bucket` elements: those of large weights, and of all others together.
pub(super) fn collectives(
    config: &DenoiserConfig,
    ranks: usize,
    zero: Zero,
    bucket: f64,
) -> [f64; 2] {
    let (hidden, depth) = (config.hidden_size, config.depth);
    // Sides of weights whose other side is the hidden size, and their numbers.
    let weights = [
        (3 * hidden, 2 * depth),
        (hidden, 4 * depth + 2),
        (2 * hidden, depth),
        (config.mlp_size(), 2 * depth),
        (6 * hidden, 1),
        (config.caption_channels, 1),
        (FREQUENCIES as usize, 1),
    ];
    let (mut reductions, mut gathers, mut rest) = (0.0, 0.0, parameters(config).trained);
    for (side, number) in weights {
        let (length, number) = (side.saturating_mul(hidden), number as f64);
        let elements = length as f64;
        let is_even = zero == Zero::Off || length.is_multiple_of(ranks);
        if is_even && elements >= (bucket / LARGE as f64).max(1.0) {
            // Sums are exchanged in pieces of a bucket, gathered weights as a whole.
            reductions += number * (elements / bucket).ceil();
            gathers += number;
            rest -= number * elements;
        }
    }
    let others = (rest / bucket).ceil();
    [reductions + others, gathers + others]
}

/// Tokens of a clip that a rank of a sequence group of `sequence` ranks holds, of a grid along (t, h, w). Frames and
/// positions that do not divide are rounded up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    /// Frames of the rank, with all positions: outside the temporal attention.
    pub(super) frames: usize,
    /// Positions of the rank, with all frames: in the temporal attention.
    pub(super) positions: usize,
    /// All frames.
    pub(super) all_frames: usize,
    /// All positions.
    pub(super) all_positions: usize,
}

impl Share {
    pub(super) fn of([t, h, w]: [usize; 3], sequence: usize) -> Self {
        let positions = h * w;
        Self {
            frames: t.div_ceil(sequence),
            positions: positions.div_ceil(sequence),
            all_frames: t,
            all_positions: positions,
        }
    }

    /// Returns the tokens outside the temporal attention.
    pub(super) fn tokens(self) -> f64 {
        (self.frames * self.all_positions) as f64
    }

    /// Returns the tokens that the rank sends in an exchange, with padding.
    pub(super) fn exchanged(self, sequence: usize) -> f64 {
        (self.frames * self.positions * sequence) as f64
    }
}

/// Returns the FLOPs of a forward pass over one clip of `grid` tokens along (t, h, w) for the busiest rank of a
/// sequence group. They are those of [`ModelFlops`](crate::metrics::flops::ModelFlops) for a group of one rank.
pub fn rank_flops(
    config: &DenoiserConfig,
    grid: [usize; 3],
    caption_tokens: usize,
    sequence: usize,
) -> f64 {
    let [_, height, width] = grid;
    let share = Share::of(grid, sequence);
    // Every rank projects the whole prompt.
    let local = BlockFlops::new(config, [share.frames, height, width], caption_tokens);
    let across = BlockFlops::new(config, [share.all_frames, 1, share.positions], caption_tokens);
    config.depth as f64 * (local.spatial + across.temporal + local.cross + local.mlp)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{denoiser::Freeze, metrics::flops::ModelFlops, parameters::values};
    use burn::{module::Module, tensor::Device};
    use opensora_stdit::StDit;

    #[test]
    fn parameters_are_those_of_the_model() {
        for config in [
            DenoiserConfig {
                hidden_size: 32,
                depth: 3,
                num_heads: 4,
                mlp_ratio: 2.5,
                caption_channels: 24,
                model_max_length: 7,
                ..DenoiserConfig::xl_2()
            },
            DenoiserConfig {
                in_channels: 3,
                patch_size: [2, 1, 2],
                hidden_size: 16,
                depth: 1,
                num_heads: 2,
                pred_sigma: false,
                caption_channels: 8,
                model_max_length: 5,
                ..DenoiserConfig::xl_2()
            },
        ] {
            let model: StDit = config.init(&Device::flex()).unwrap();
            let found = parameters(&config);
            assert_eq!(found.total, model.num_params() as f64);
            assert_eq!(found.block, model.blocks[0].num_params() as f64);
            let trained = values(&model).unwrap().into_iter();
            let trained = trained.filter(|(path, _)| Freeze::Nothing.is_trainable(path));
            let trained: usize = trained.map(|(_, value)| value.dims()[0]).sum();
            assert_eq!(found.trained, trained as f64);
        }
    }

    /// The published weights have 760.1 million values.
    #[test]
    fn stdit_xl_has_760_million_parameters() {
        let found = parameters(&DenoiserConfig::xl_2());
        assert!((found.total / 760.1e6 - 1.0).abs() < 1e-3, "{found:?}");
    }

    #[test]
    fn large_weights_have_their_own_collectives() {
        let config = DenoiserConfig::xl_2();
        // 56 weights of MLPs and two others have at least 4 million elements; the rest fills 7 buckets.
        let bucket = (64 << 20) as f64;
        assert_eq!(collectives(&config, 64, Zero::Gradients, bucket), [65.0; 2]);
        // Slices of 7 ranks differ; whole gradients have no slices.
        let trained = parameters(&config).trained;
        assert_eq!(
            collectives(&config, 7, Zero::Optimizer, bucket),
            [(trained / bucket).ceil(); 2]
        );
        assert_eq!(collectives(&config, 7, Zero::Off, bucket), [65.0; 2]);
        // 4 MiB: all 257 weights are large, and the others fill one bucket.
        assert_eq!(collectives(&config, 64, Zero::Optimizer, (1 << 20) as f64), [887.0, 258.0]);
    }

    #[test]
    fn flops_of_one_rank_are_those_of_the_metrics() {
        let config = DenoiserConfig::xl_2();
        for grid in [[16, 16, 16], [64, 32, 32], [1, 3, 5]] {
            let wanted = ModelFlops::new(&config, grid, 120).forward();
            let found = rank_flops(&config, grid, 120, 1);
            assert!((found / wanted - 1.0).abs() < 1e-12, "{found} {wanted}");
        }
    }

    #[test]
    fn ranks_of_a_sequence_group_share_the_work() {
        let config = DenoiserConfig::xl_2();
        let grid = [64, 32, 32];
        let one = rank_flops(&config, grid, 120, 1);
        let four = rank_flops(&config, grid, 120, 4);
        // Only the projection of the prompt is repeated: 4 C^2 L a block.
        let repeated = 28.0 * 4.0 * 1152.0 * 1152.0 * 120.0;
        assert!((4.0 * four / (one + 3.0 * repeated) - 1.0).abs() < 1e-12, "{one} {four}");
        // 64 frames over 3 ranks: the busiest has 22.
        let share = Share::of([64, 1, 10], 3);
        assert_eq!((share.frames, share.positions), (22, 4));
        assert_eq!((share.tokens(), share.exchanged(3)), (220.0, 264.0));
    }
}
