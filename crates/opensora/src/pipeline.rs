//! Prompts or class labels to frames.
//!
//! [`TextToVideo::generate`] is three steps, which can be called one by one: [`encode`](TextToVideo::encode)
//! turns prompts into states, a [`LoadedDenoiser`] samples latents for them, and a [`LoadedVae`] decodes the
//! latents. [`ClassToVideo`] does the same for class labels, without the first step.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `scripts/inference.py`. Deviation: the reference keeps all
//! models resident; here each is loaded, used and dropped before the next unless [`Residency`] keeps it.

mod batches;
mod class;
mod conditions;
mod decode_plan;
mod decode_shards;
mod decoding;
mod error;
mod finite;
mod observer;
mod options;
mod ranks;
mod sampling;
mod shared;
mod slot;
mod text;
mod weights;

pub use batches::{Clips, LatentBatches, SampledClip, SampledLatents};
pub use class::ClassToVideo;
pub use conditions::{Conditioning, Conditions};
pub use decoding::{DecodedClips, LoadedVae};
pub use error::{NonFiniteCause, PipelineError};
pub use observer::{Decoded, Loaded, Observer, Part, SamplerStep, UnknownWords};
pub use options::{PipelineOptions, Residency};
pub use ranks::SamplingRanks;
pub use sampling::LoadedDenoiser;
pub use text::TextToVideo;
