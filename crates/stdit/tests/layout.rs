//! STDiT with the frames of a clip divided among ranks, against one process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{Device, FloatDType, Tensor},
};
use opensora_nn::mask::TokenMask;
use opensora_parallel::threads::run_ranks;
use opensora_stdit::{
    AttentionCache, AttentionReuse, DenoiserConfig, DenoiserWork, PixArt, PositionScales,
    PromptModel, StDit,
};
use std::sync::Arc;

const TOKENS: usize = 5;
const WIDTH: usize = 8;

fn waves<const D: usize>(shape: [usize; D], phase: f32) -> Tensor<D> {
    let count = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..count).map(|i| (i as f32 * 1.7 + phase).sin()).collect();
    Tensor::<1>::from_floats(values.as_slice(), &Device::flex()).reshape(shape)
}

/// Sets every parameter, since fresh ones are partly zero, and casts it.
struct Waves {
    dtype: FloatDType,
    phase: f32,
}

impl ModuleMapper for Waves {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        self.phase += 1.0;
        let value = waves(param.lazy_shape().dims::<D>(), self.phase) * 0.3;
        Param::initialized(param.id, value.cast(self.dtype))
    }
}

fn config() -> DenoiserConfig {
    DenoiserConfig {
        hidden_size: 24,
        depth: 2,
        num_heads: 2,
        caption_channels: WIDTH,
        model_max_length: TOKENS,
        scales: PositionScales { space_scale: 0.5, time_scale: 0.7 },
        ..DenoiserConfig::xl_2()
    }
}

fn model(dtype: FloatDType) -> Arc<StDit> {
    let model = config().init::<StDit>(&Device::flex()).unwrap();
    Arc::new(model.map(&mut Waves { dtype, phase: 0.0 }))
}

/// Predictions at falling timesteps for two clips with different prompts, and the work.
fn predict(
    model: &dyn PromptModel,
    [frames, height, width]: [usize; 3],
    reuse: AttentionReuse,
) -> (Vec<f32>, DenoiserWork) {
    let mut mask = vec![vec![true; TOKENS]; 2];
    mask[1][3] = false;
    mask[1][4] = false;
    let mask = TokenMask::new(mask).unwrap();
    let mut cache = AttentionCache::new(reuse);
    let mut values = Vec::new();
    for t in [900.0, 800.0, 700.0] {
        let latents = waves([2, 4, frames, height, width], t);
        let prompt = waves([2, TOKENS, WIDTH], 0.5);
        let output = model.forward_cached(latents, &[t, t], prompt, Some(&mask), &mut cache);
        let output = output.unwrap();
        assert_eq!(output.dims(), [2, 8, frames, height, width]);
        values.extend(output.into_data().try_to_vec::<f32>().unwrap());
    }
    (values, cache.work())
}

/// Returns the largest difference, as a part of the largest value.
fn distance(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |max: f32, x| if x > max || x.is_nan() { x } else { max }) / largest
}

/// Latents `[T, h, w]`: even sizes, frames or positions that no number of ranks divides, fewer frames or positions
/// than ranks.
const SIZES: [[usize; 3]; 5] = [[12, 4, 12], [5, 6, 6], [7, 2, 10], [2, 4, 4], [3, 2, 2]];

fn assert_ranks_agree(dtype: FloatDType, reuse: AttentionReuse, tolerance: f32) {
    let model = model(dtype);
    for size in SIZES {
        let (expected, work) = predict(&*model, size, reuse);
        for ranks in 1..=4 {
            let found = run_ranks(ranks, |group| {
                predict(&*model.clone().sharded(&group).unwrap(), size, reuse)
            });
            for (rank, (found, found_work)) in found.iter().enumerate() {
                let distance = distance(found, &expected);
                let case = format!("{size:?} rank {rank} of {ranks}: {distance}");
                assert!(distance <= tolerance, "{case}");
                assert_eq!(*found_work, work, "{case}");
            }
        }
    }
}

#[test]
fn a_clip_divided_by_frames_equals_one_process() {
    assert_ranks_agree(FloatDType::F32, AttentionReuse::OFF, 1e-5);
}

#[test]
fn attention_outputs_are_reused_on_ranks_as_in_one_process() {
    let reuse = AttentionReuse::new([2, 3, 2], [100.0, 950.0]).unwrap();
    assert_ranks_agree(FloatDType::F32, reuse, 1e-5);
}

/// bf16 has 8 bits; sums in another order differ by a few of the last.
#[test]
fn bf16_on_ranks_is_near_to_one_process() {
    assert_ranks_agree(FloatDType::BF16, AttentionReuse::OFF, 0.03);
}

/// The first block alone gets temporal positions: with those of another rank, clips would differ.
#[test]
fn positions_of_frames_matter() {
    let model = model(FloatDType::F32);
    let scales = PositionScales { space_scale: 0.5, time_scale: 0.2 };
    let other = Arc::new((*model).clone().with_scales(scales));
    let size = SIZES[0];
    let [expected, other] =
        [&model, &other].map(|model| predict(&**model, size, AttentionReuse::OFF).0);
    assert!(distance(&other, &expected) > 1e-3);
}

#[test]
fn models_whose_tokens_cannot_be_divided_say_so() {
    let model: Arc<PixArt> = Arc::new(config().init(&Device::flex()).unwrap());
    assert!(run_ranks(1, |group| model.clone().sharded(&group).is_none())[0]);
}
