//! Measures the speed of the models at published sizes with random weights.
//!
//! A part of the flow runs [`warmup`](BenchSpec::warmup) times unmeasured and then
//! [`reps`](BenchSpec::reps) times measured. Compare [`BenchReport`]s only of one machine at one time:
//! machines and their load differ.
//!
//! | module | contents |
//! |---|---|
//! | [`flops`] | floating point operations of the VAE and the text encoder |
//! | [`memory`] | peak memory of the process |
//! | [`parts`] | the measured parts of the flow |
//! | [`weights`] | random weights in the layout of loaded ones |
//!
//! Weights are small random values, so that no layer overflows or computes with subnormal numbers. The time
//! of a layer does not depend on them.

pub(crate) mod flops;
pub(crate) mod memory;
mod parts;
pub(crate) mod weights;

use burn::tensor::Device;
use opensora::{
    denoiser::PromptError,
    diffusion::{SamplerKind, sampler::SamplerError},
    nn::{
        dtype::{Dtype, DtypeError},
        read::{ReadError, wait},
    },
    stdit::{DenoiserConfig, SizeError},
    t5::{T5Config, T5ConfigError},
    train::{TrainError, metrics::flops::measure_matmul_ceiling},
    vae::{VaeConfig, VaeConfigError},
};
use serde::Serialize;
use std::time::Instant;

/// The part that `opensora bench` measures: a model, a whole sampling or a training step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Part {
    /// One forward pass of the denoiser.
    Stdit,
    /// Frames to posteriors.
    VaeEncode,
    /// Latents to frames.
    VaeDecode,
    /// Token ids to states.
    T5,
    /// Prompt to frames: text encoder, sampler with guidance, VAE, one after the other.
    Sample,
    /// Loss, gradients and AdamW on the denoiser.
    TrainStep,
}

/// A named preset: sizes of denoiser, VAE and text encoder.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct BenchPreset {
    /// Value of `--preset`.
    pub(crate) name: &'static str,
    /// The denoiser.
    pub(crate) denoiser: DenoiserConfig,
    /// The text encoder.
    pub t5: T5Config,
    /// The VAE.
    pub(crate) vae: VaeConfig,
}

/// The names of the presets.
pub(crate) const PRESETS: [&str; 2] = ["stdit-xl-2", "demo"];

impl BenchPreset {
    /// Returns the preset of a name, one of [`PRESETS`]: the sizes of the published models, or those of the
    /// demo model with half its blocks.
    pub(crate) fn find(name: &str) -> Option<Self> {
        match name {
            "stdit-xl-2" => Some(Self {
                name: PRESETS[0],
                denoiser: DenoiserConfig::xl_2(),
                t5: T5Config::default(),
                vae: VaeConfig::default(),
            }),
            "demo" => Some(Self {
                name: PRESETS[1],
                denoiser: DenoiserConfig {
                    hidden_size: 128,
                    depth: 4,
                    num_heads: 4,
                    caption_channels: 64,
                    model_max_length: 32,
                    ..DenoiserConfig::xl_2()
                },
                t5: T5Config {
                    vocab_size: 256,
                    d_model: 64,
                    d_kv: 16,
                    d_ff: 128,
                    num_layers: 2,
                    num_heads: 4,
                    ..T5Config::default()
                },
                vae: VaeConfig {
                    block_out_channels: vec![16, 32, 32],
                    layers_per_block: 1,
                    norm_num_groups: 8,
                    ..VaeConfig::default()
                },
            }),
            _ => None,
        }
    }
}

/// Settings of a measurement: part, sizes, dtype and number of runs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct BenchSpec {
    /// The part.
    pub(crate) part: Part,
    /// The models' sizes; `depth` and `num_layers` may be changed to save time.
    pub(crate) preset: BenchPreset,
    /// Frames of a clip.
    pub(crate) num_frames: usize,
    /// Height and width in pixels.
    pub(crate) image_size: [usize; 2],
    /// Clips per batch.
    pub(crate) batch_size: usize,
    /// Tokens of a prompt.
    pub(crate) tokens: usize,
    /// Frames that the VAE processes at once.
    pub(crate) micro_batch: usize,
    /// Rows of the tiles that the VAE decodes a frame in; `None`: whole frames.
    pub(crate) tile_rows: Option<usize>,
    /// True to recompute activations in the backward pass of a training step.
    pub(crate) activation_checkpointing: bool,
    /// The sampler of [`Part::Sample`].
    pub(crate) sampler: SamplerKind,
    /// Steps of the sampler; `None`: the published number.
    pub(crate) steps: Option<usize>,
    /// Type of weights and activations.
    pub(crate) dtype: Dtype,
    /// Unmeasured runs, which include allocation, compilation and tuning.
    pub(crate) warmup: usize,
    /// Measured runs.
    pub(crate) reps: usize,
    /// True to time large matrix products as well, for comparison.
    pub(crate) ceiling: bool,
}

/// Result of a measurement: its settings, device, seconds of each run and FLOPs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct BenchReport {
    /// The part.
    pub(crate) what: Part,
    /// The models' sizes.
    pub(crate) preset: &'static str,
    /// Blocks of the denoiser.
    pub(crate) depth: usize,
    /// Blocks of the text encoder.
    pub(crate) layers: usize,
    /// Frames of a clip.
    pub(crate) num_frames: usize,
    /// Height and width in pixels.
    pub(crate) image_size: [usize; 2],
    /// Clips per batch.
    pub(crate) batch: usize,
    /// Tokens of a prompt.
    pub(crate) tokens: usize,
    /// Type of weights and activations.
    pub(crate) dtype: String,
    /// The device, as burn prints it.
    pub(crate) device: String,
    /// Median of `reps`.
    pub(crate) seconds: f64,
    /// Minimum of `reps`.
    pub(crate) min_seconds: f64,
    /// Seconds of each run.
    pub(crate) reps: Vec<f64>,
    /// Operations of one run / 1e9, a multiply-add as two.
    pub(crate) gflop: f64,
    /// `gflop / seconds`.
    pub(crate) gflops: f64,
    /// Speed of large square matrix products on the device; null if they fail or are left out.
    pub(crate) matmul_ceiling_gflops: Option<f64>,
    /// `gflops / matmul_ceiling_gflops`.
    pub(crate) share_of_ceiling: Option<f64>,
    /// Peak resident memory of the process in bytes; null if the system does not report it.
    pub(crate) peak_rss_bytes: Option<u64>,
    /// The last run of [`Part::Sample`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stages: Option<StageSeconds>,
}

/// Seconds of the stages from prompt to frames.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct StageSeconds {
    /// Text encoder.
    pub(crate) text: f64,
    /// Sampler and denoiser.
    pub(crate) denoise: f64,
    /// VAE, to frames of bytes.
    pub(crate) decode: f64,
}

impl StageSeconds {
    /// Returns the sum of all stages.
    pub(crate) fn total(&self) -> f64 {
        self.text + self.denoise + self.decode
    }
}

/// Error for invalid sizes of a measurement, or for a run that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    /// A number that must be at least 1.
    #[error("{what} is 0, expected at least 1")]
    Zero {
        /// The number.
        what: &'static str,
    },
    /// More tokens than the denoiser supports.
    #[error("{found} tokens of a prompt, the denoiser takes at most {most}")]
    Tokens {
        /// Tokens of the prompt.
        found: usize,
        /// Maximum of the denoiser.
        most: usize,
    },
    /// A batch that does not fit any memory.
    #[error("{batch_size} clips of {num_frames} frames of {height}x{width} are too many")]
    TooLarge {
        /// Clips per batch.
        batch_size: usize,
        /// Frames per clip.
        num_frames: usize,
        /// Their height in pixels.
        height: usize,
        /// Their width in pixels.
        width: usize,
    },
    /// The denoiser's sizes do not fit.
    #[error(transparent)]
    Denoiser(#[from] SizeError),
    /// The VAE's sizes do not fit.
    #[error(transparent)]
    Vae(#[from] VaeConfigError),
    /// The text encoder's sizes do not fit.
    #[error(transparent)]
    T5(#[from] T5ConfigError),
    /// The prompt's states do not fit the denoiser.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// The device does not support this type.
    #[error(transparent)]
    Dtype(#[from] DtypeError),
    /// The sampler does not support this number of steps.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// Sampling failed.
    #[error(transparent)]
    Sample(#[from] opensora::diffusion::SampleError),
    /// The training step failed.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The device could not finish its work.
    #[error(transparent)]
    Device(ReadError),
    /// The decoded values cannot be converted to pixels.
    #[error(transparent)]
    Frames(opensora::frames::ToFramesError),
}

impl BenchSpec {
    fn check(&self, device: &Device) -> Result<[usize; 3], BenchError> {
        for (what, number) in [
            ("the number of runs (reps)", self.reps),
            ("the batch size", self.batch_size),
            ("the number of frames", self.num_frames),
            ("the number of tokens", self.tokens),
            ("the depth", self.preset.denoiser.depth),
            ("the number of layers", self.preset.t5.num_layers),
            ("the micro-batch", self.micro_batch),
        ] {
            if number == 0 {
                return Err(BenchError::Zero { what });
            }
        }
        self.dtype.check(device)?;
        let most = self.preset.denoiser.model_max_length;
        if self.tokens > most {
            return Err(BenchError::Tokens { found: self.tokens, most });
        }
        self.preset.denoiser.validate()?;
        self.preset.t5.validate()?;
        let (batch_size, num_frames) = (self.batch_size, self.num_frames);
        let [height, width] = self.image_size;
        // 2^36 pixels take 800 GB; later products cannot overflow.
        [batch_size, num_frames, height, width]
            .into_iter()
            .try_fold(1usize, usize::checked_mul)
            .filter(|&pixels| pixels <= 1 << 36)
            .ok_or(BenchError::TooLarge { batch_size, num_frames, height, width })?;
        Ok(self.preset.vae.latent_size([num_frames, height, width])?)
    }

    /// Runs the part and measures its time; `on_stage` receives the name of each stage when it starts.
    ///
    /// # Errors
    /// Returns an error if sizes do not fit each other or the device fails.
    pub(crate) fn run(
        &self,
        device: &Device,
        on_stage: &mut dyn FnMut(&str),
    ) -> Result<BenchReport, BenchError> {
        let latents = self.check(device)?;
        on_stage("weights");
        let mut part = parts::prepare(self, latents, device)?;
        let mut stages = None;
        let mut timed = || -> Result<f64, BenchError> {
            let synced = || wait(device).map_err(BenchError::Device);
            synced()?;
            let began = Instant::now();
            stages = part.run()?;
            synced()?;
            let elapsed = began.elapsed().as_secs_f64();
            // Stages leave out the creation of weights.
            Ok(stages.as_ref().map_or(elapsed, StageSeconds::total))
        };
        for run in 0..self.warmup {
            on_stage(&format!("warm-up {} of {}", run + 1, self.warmup));
            timed()?;
        }
        let mut reps = Vec::new();
        for run in 0..self.reps {
            on_stage(&format!("run {} of {}", run + 1, self.reps));
            reps.push(timed()?);
        }
        // Read before the matrices of the ceiling are allocated.
        let peak_rss_bytes = memory::peak_rss_bytes();
        let gflop = part.flop() / 1e9;
        drop(part);

        let matmul_ceiling_gflops = if self.ceiling {
            on_stage("matrix products");
            measure_matmul_ceiling(device, self.dtype.float()).map(|ceiling| ceiling / 1e9)
        } else {
            None
        };
        let seconds = median(&reps);
        let gflops = gflop / seconds;
        Ok(BenchReport {
            what: self.part,
            preset: self.preset.name,
            depth: self.preset.denoiser.depth,
            layers: self.preset.t5.num_layers,
            num_frames: self.num_frames,
            image_size: self.image_size,
            batch: self.batch_size,
            tokens: self.tokens,
            dtype: self.dtype.to_string(),
            device: format!("{device:?}"),
            seconds,
            min_seconds: reps.iter().copied().fold(f64::INFINITY, f64::min),
            reps,
            gflop,
            gflops,
            matmul_ceiling_gflops,
            share_of_ceiling: matmul_ceiling_gflops.map(|ceiling| gflops / ceiling),
            peak_rss_bytes,
            stages,
        })
    }
}

/// Returns the median of at least one value.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_value_or_the_mean_of_two() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median(&[7.0]), 7.0);
    }

    #[test]
    fn presets_are_found_by_their_names() {
        for name in PRESETS {
            assert_eq!(BenchPreset::find(name).unwrap().name, name);
        }
        assert_eq!(BenchPreset::find("stdit-xl"), None);
    }
}
