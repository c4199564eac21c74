//! A cost model of training an STDiT on several ranks: time of a step, memory of a rank, and the best layout.
//!
//! A [`Job`] describes what is trained and on what: model, clips, [`Processor`], [`Network`]. A [`Layout`] divides
//! the work among the ranks. [`Job::predict`] computes a [`Prediction`] for one layout, and [`Job::search`] those of
//! all layouts, the fastest that fits into memory first. Nothing is run or measured: the numbers are those of a
//! model, which is as good as the rates of the processor and the network that it is given.
//!
//! ```
//! use opensora_train::plan::{Job, Network, Processor};
//!
//! // 16x256x256 on 64 H100 with a link of 200 Gbit/s for each node of 8.
//! let processor = Processor::find("h100")?;
//! let job = Job {
//!     clips: 8 * 64,
//!     ranks: 64,
//!     network: Network::of(&processor).with_gbits(200.0),
//!     processor,
//!     ..Job::default()
//! };
//! let best = &job.search()?[0];
//! assert!(best.fits && best.layout.sequence == 1);
//! # Ok::<(), opensora_train::plan::PlanError>(())
//! ```
//!
//! | module | contents |
//! |---|---|
//! | [`processor`] | [`Processor`]: peak, memory, and values of data sheets |
//! | [`network`] | [`Network`]: links, and the time of collectives |
//! | [`layout`] | [`Layout`]: data and sequence parallelism, ZeRO, activation checkpointing |
//! | [`size`] | parameters, and the tokens and FLOPs of a rank |
//! | [`memory`] | [`Memory`] of a rank by category |
//! | [`time`] | [`StepTime`]: seconds of a step by part |
//! | [`search`] | layouts by speed, and weak scaling |
//!
//! The formulae and a comparison with measurements: `docs/scaling.md`.

pub mod layout;
pub mod memory;
pub mod network;
pub mod processor;
pub mod search;
pub mod size;
pub mod time;

pub use layout::Layout;
pub use memory::Memory;
pub use network::{Link, Network};
pub use processor::Processor;
pub use search::{Constraints, Scaling, WeakScaling};
pub use time::StepTime;

use burn::tensor::FloatDType;
use opensora_parallel::bucket_bytes;
use opensora_stdit::{DenoiserConfig, SizeError};
use serde::Serialize;
use size::{parameters, rank_flops};

/// Error of a job or a layout.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The model or the size of its clips is invalid.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// A value is out of range.
    #[error("{field} is {found}, expected {expected}")]
    Value {
        /// Name of the value.
        field: &'static str,
        /// The value that was found.
        found: String,
        /// The expected values.
        expected: String,
    },
    /// A processor that is not in the table.
    #[error("no processor '{name}', expected one of {known}")]
    Processor {
        /// The unknown name.
        name: String,
        /// The known names.
        known: String,
    },
    /// No layout satisfies the constraints.
    #[error("no layout of {ranks} ranks for {clips} clips a step satisfies the given constraints")]
    NoLayout {
        /// Number of ranks.
        ranks: usize,
        /// Clips of a step.
        clips: usize,
    },
    /// The clips of a step, in proportion to the ranks, are not a whole number on another number of ranks.
    #[error(
        "{clips} clips a step of {from} ranks are not a whole number of clips on {ranks} ranks"
    )]
    UnevenClips {
        /// The other number of ranks.
        ranks: usize,
        /// Number of ranks of the job.
        from: usize,
        /// Clips of a step of the job.
        clips: usize,
    },
}

impl PlanError {
    fn value(
        field: &'static str,
        found: impl std::fmt::Display,
        expected: impl Into<String>,
    ) -> Self {
        Self::Value { field, found: found.to_string(), expected: expected.into() }
    }
}

/// A training job: the model, its clips, and the machines.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// The denoiser.
    pub config: DenoiserConfig,
    /// Frames, height and width of the latents of a clip.
    pub latents: [usize; 3],
    /// Tokens of a prompt.
    pub caption_tokens: usize,
    /// Clips of an optimizer step, over all ranks.
    pub clips: usize,
    /// Type to compute in; parameters, optimizer and gradients are f32.
    pub dtype: FloatDType,
    /// Number of ranks, one for each processor.
    pub ranks: usize,
    /// The processor of a rank.
    pub processor: Processor,
    /// The network between the ranks.
    pub network: Network,
    /// Bytes of gradients or parameters of all ranks that a collective moves at once. `None`: as the trainer, by
    /// [`bucket_bytes`].
    pub bucket: Option<f64>,
    /// Share of the gradients' reduction that the backward pass hides, 0 to 1. The trainer reduces them
    /// after the pass, so nothing is hidden by default.
    pub overlap: f64,
}

impl Default for Job {
    /// Stage 2 as published (16x256x256, 8 clips, bf16) on one H100.
    fn default() -> Self {
        let processor = Processor::H100;
        let config = DenoiserConfig::xl_2();
        Self {
            latents: [16, 32, 32],
            caption_tokens: config.model_max_length,
            config,
            clips: 8,
            dtype: FloatDType::BF16,
            ranks: 1,
            network: Network::of(&processor),
            processor,
            bucket: None,
            overlap: 0.0,
        }
    }
}

/// The prediction for one layout.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Prediction {
    /// The layout.
    pub layout: Layout,
    /// Clips of a micro-batch that a sequence group computes at once.
    pub micro_batch: usize,
    /// Seconds of an optimizer step by part.
    pub time: StepTime,
    /// Seconds of an optimizer step.
    pub seconds: f64,
    /// Clips per second, over all ranks.
    pub clips_per_second: f64,
    /// The model's FLOP/s divided by the processors' peak, 0 to 1. As in the metrics of a run, operations
    /// that are computed again do not count.
    pub utilisation: f64,
    /// The largest part of the time.
    pub limited_by: &'static str,
    /// Bytes of a rank by category.
    pub memory: Memory,
    /// Bytes of a rank at the peak.
    pub memory_bytes: f64,
    /// True if the memory fits into [`USABLE_MEMORY`] of the processor's.
    pub fits: bool,
}

/// Share of a processor's memory that a job may use. The rest is left to the runtime, kernels and gaps between
/// buffers.
pub const USABLE_MEMORY: f64 = 0.9;

impl Job {
    /// Checks the values.
    ///
    /// # Errors
    /// Returns an error if a value is out of range or the clip does not fit the model.
    pub fn validate(&self) -> Result<(), PlanError> {
        self.config.validate()?;
        self.config.grid(self.latents)?;
        self.processor.validate()?;
        self.network.validate()?;
        // Far above any use, and small enough that products do not overflow.
        let counts = [
            ("ranks", self.ranks, 1 << 20),
            ("clips", self.clips, 1 << 30),
            ("caption_tokens", self.caption_tokens, 1 << 20),
            ("frames", self.latents[0], 1 << 20),
            ("height", self.latents[1], 1 << 16),
            ("width", self.latents[2], 1 << 16),
        ];
        for (field, found, most) in counts {
            if !(1..=most).contains(&found) {
                return Err(PlanError::value(field, found, format!("1 to {most}")));
            }
        }
        let bucket = self.bucket_bytes();
        if !(bucket.is_finite() && bucket >= 1.0) {
            return Err(PlanError::value("bucket", bucket, "1 byte or more"));
        }
        if !(0.0..=1.0).contains(&self.overlap) {
            return Err(PlanError::value("overlap", self.overlap, "0 to 1"));
        }
        Ok(())
    }

    /// Returns the bytes of all ranks that a collective moves at once.
    pub fn bucket_bytes(&self) -> f64 {
        self.bucket.unwrap_or(bucket_bytes(self.ranks) as f64)
    }

    /// Predicts time and memory of `layout`.
    ///
    /// # Errors
    /// Returns an error if a value of the job is out of range, or the layout does not fit the job.
    pub fn predict(&self, layout: Layout) -> Result<Prediction, PlanError> {
        self.validate()?;
        layout.check(self)?;
        let grid = self.config.grid(self.latents)?;
        let parameters = parameters(&self.config);
        let micro_batch = layout.micro_batch(self.clips);
        let time = time::of(self, layout, grid, &parameters);
        let memory = memory::of(self, layout, grid, &parameters);
        let (seconds, memory_bytes) = (time.total(), memory.peak());
        let whole = rank_flops(&self.config, grid, self.caption_tokens, 1);
        // The backward pass takes twice the operations of the forward pass.
        let flops = 3.0 * self.clips as f64 * whole;
        let peak = self.processor.peak(self.dtype) * self.ranks as f64;
        Ok(Prediction {
            layout,
            micro_batch,
            seconds,
            clips_per_second: self.clips as f64 / seconds,
            utilisation: flops / seconds / peak,
            limited_by: time.largest(),
            memory_bytes,
            fits: memory_bytes <= USABLE_MEMORY * self.processor.memory_bytes,
            time,
            memory,
        })
    }
}

/// Bytes of a value of `dtype`.
fn bytes_of(dtype: FloatDType) -> f64 {
    match dtype {
        FloatDType::F64 => 8.0,
        FloatDType::F32 | FloatDType::Flex32 => 4.0,
        FloatDType::F16 | FloatDType::BF16 => 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_jobs_are_rejected() {
        let ok = Job::default();
        assert_eq!(ok.validate(), Ok(()));
        for bad in [
            Job { clips: 0, ..ok.clone() },
            Job { ranks: usize::MAX, ..ok.clone() },
            Job { latents: [16, 31, 32], ..ok.clone() },
            Job { overlap: f64::NAN, ..ok.clone() },
            Job { bucket: Some(0.0), ..ok.clone() },
            Job { config: DenoiserConfig { depth: 0, ..ok.config.clone() }, ..ok.clone() },
            Job { processor: Processor { efficiency: 1.5, ..ok.processor }, ..ok.clone() },
            Job { network: Network { ranks_per_node: 0, ..ok.network }, ..ok.clone() },
        ] {
            let error = bad.predict(Layout::data(1)).unwrap_err().to_string();
            assert!(error.contains("expected") || error.contains("latents"), "{error}");
        }
    }

    /// Stage 2 on one H100 by hand: 8 clips of 5.71 TFLOP, four passes, 15 % of 989.4 TFLOP/s.
    #[test]
    fn one_rank_computes_and_does_not_communicate() {
        let job = Job::default();
        let layout = Layout { activation_checkpointing: true, ..Layout::data(1) };
        let found = job.predict(layout).unwrap();
        let wanted = 8.0 * 5.71e12 * 4.0 / (0.15 * 989.4e12);
        assert!((found.time.compute / wanted - 1.0).abs() < 3e-3, "{found:?} {wanted}");
        let time = &found.time;
        let communication =
            [time.gradients, time.parameters, time.exchanges, time.scalars, time.staging];
        assert_eq!(communication, [0.0; 5]);
        assert_eq!((found.limited_by, found.micro_batch), ("compute", 8));
        // Without communication, three of the four passes have the efficiency of 15 %, less the update.
        assert!(found.utilisation < 0.1125 && found.utilisation > 0.105, "{found:?}");
    }
}
