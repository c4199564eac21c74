//! Open-Sora 1.0, text to video, on [burn].
//!
//! [`TextToVideo`] goes the whole way from prompts to frames: T5 encodes the prompts, a sampler
//! denoises latents with STDiT, the VAE decodes the latents. Each large model is loaded, used and
//! dropped in turn, so that peak memory is that of the largest model, not of their sum; a service keeps
//! them in memory with [`Residency`].
//!
//! ```no_run
//! use opensora::{
//!     ModelFiles, PipelineOptions, SampleRequest, TextToVideo, model_files::PartPaths, nn::device,
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let files = ModelFiles::resolve("opensora-v1-hq-16x256x256", &PartPaths::default())?;
//! let request = SampleRequest { seed: 7, ..files.defaults.clone() };
//! let pipeline = TextToVideo::new(files, PipelineOptions::default(), device::parse("flex")?)?;
//! let clips = pipeline.generate(&["a red fox in a misty forest"], &request, &mut ())?;
//! clips[0].save("fox.mp4", request.fps)?;
//! # Ok(())
//! # }
//! ```
//!
//! | module | contents |
//! |---|---|
//! | [`presets`] | the published checkpoints as data |
//! | [`model_files`], [`class_files`] | which files make a model: folders with a `model.json`, presets |
//! | [`inspect`] | what a file of weights is, from its headers alone |
//! | [`labels`], [`buckets`] | names of class labels; sizes of PixArt-alpha's images |
//! | [`request`] | what to sample |
//! | [`pipeline`] | prompts or labels to frames |
//! | [`denoiser`] | models with their prompts or labels, as samplers see them |
//! | [`frames`] | tensors to pixels and back |
//! | [`latents`] | sampled latents in a file |
#![cfg_attr(
    feature = "hub",
    doc = "| [`pretrained`] | models by name, fetched from the Hugging Face hub |"
)]
#![cfg_attr(feature = "train", doc = "| [`training`] | sample videos along a training run |")]
//!
//! The parts are crates of their own and re-exported here: [`t5`], [`vae`], [`stdit`], [`diffusion`],
//! [`checkpoint`], [`video`], [`files`], [`nn`] and [`burn`] itself.
//!
//! | feature | adds |
//! |---|---|
//! | `flex` (default), `ndarray`, `tch`, `cuda`, `rocm`, `wgpu`, `vulkan`, `metal` | a backend, under burn's name |
//! | `fusion`, `autotune`; `cuda-full`, `rocm-full`, `wgpu-full`, `vulkan-full`, `metal-full` | fused and tuned kernels; a backend with both, recommended on real GPUs |
//! | `hub` | `hub`, `pretrained`: weights by name from the Hugging Face hub |
//! | `train` | `train`, `data`, `manifest`, `chart`: recipes, the training loop, data sets |
//! | `prepare` | `prepare`, `shots`, `manifest`, `chart`: raw videos to a training set |
//! | `caption`, `download`, `onnx` | steps of `prepare` that speak HTTP or run ONNX models |
//! | `parquet`, `parquet-zstd` | manifests as Parquet files |

pub use burn;
#[cfg(any(feature = "train", feature = "prepare"))]
pub use opensora_chart as chart;
pub use opensora_checkpoint as checkpoint;
#[cfg(feature = "train")]
pub use opensora_data as data;
pub use opensora_diffusion as diffusion;
pub use opensora_files as files;
#[cfg(feature = "hub")]
pub use opensora_hub as hub;
#[cfg(any(feature = "train", feature = "prepare", feature = "parquet"))]
pub use opensora_manifest as manifest;
pub use opensora_nn as nn;
#[cfg(feature = "prepare")]
pub use opensora_prepare as prepare;
#[cfg(feature = "prepare")]
pub use opensora_shots as shots;
pub use opensora_stdit as stdit;
pub use opensora_t5 as t5;
#[cfg(feature = "train")]
pub use opensora_train as train;
pub use opensora_vae as vae;
pub use opensora_video as video;

pub mod buckets;
pub mod class_files;
pub mod denoiser;
pub mod frames;
pub mod inspect;
pub mod labels;
pub mod latents;
pub mod model_files;
pub mod pipeline;
pub mod presets;
#[cfg(feature = "hub")]
pub mod pretrained;
pub mod request;
#[cfg(feature = "train")]
pub mod training;

pub use class_files::ClassFiles;
pub use model_files::{ModelError, ModelFiles};
pub use pipeline::{
    ClassToVideo, Observer, PipelineError, PipelineOptions, Residency, TextToVideo,
};
pub use presets::{PRESETS, Preset};
pub use request::SampleRequest;

/// The examples of the guide, which are compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../docs/sampling.md")]
struct SamplingGuide;

/// The README's example, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
