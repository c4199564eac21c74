//! Open-Sora 1.0, text to video, on [burn].
//!
//! [`TextToVideo`] samples videos of prompts: T5 encodes the prompts, a sampler denoises latents with STDiT,
//! and the VAE decodes the latents to frames. By default each model is loaded, used and dropped before the
//! next, so that peak memory is that of the largest model. [`Residency`] keeps models in memory between calls.
//! [`ClassToVideo`] samples images and clips of class labels with DiT and Latte.
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
//! | [`pipeline`] | [`TextToVideo`] and [`ClassToVideo`], their options, events and errors |
//! | [`request`] | [`SampleRequest`]: size, length, sampler, guidance, seed |
//! | [`model_files`], [`class_files`] | the files of a model: presets, folders with a `model.json`, checkpoints |
//! | [`presets`] | the published checkpoints |
//! | [`labels`], [`buckets`] | names of class labels; training sizes of PixArt-alpha |
//! | [`inspect`] | identifies a file of weights by its headers |
//! | [`denoiser`] | models with their prompts or labels, as samplers see them |
//! | [`frames`] | converts tensors to pixels and back |
//! | [`latents`] | saves and loads latents |
#![cfg_attr(
    feature = "hub",
    doc = "| [`pretrained`] | fetches models from the Hugging Face hub by name |"
)]
#![cfg_attr(feature = "train", doc = "| [`training`] | samples videos during a training run |")]
//!
//! The crates that the library is made of are re-exported: [`t5`], [`vae`], [`stdit`], [`diffusion`],
//! [`checkpoint`], [`video`], [`files`], [`nn`], [`parallel`], and [`burn`].
//!
//! | feature | adds |
//! |---|---|
//! | `flex` (default), `ndarray`, `tch`, `cuda`, `rocm`, `wgpu`, `vulkan`, `metal` | the backend of burn with this name |
//! | `fusion`, `autotune` | fused kernels, tuned kernels |
//! | `cuda-full`, `rocm-full`, `wgpu-full`, `vulkan-full`, `metal-full` | a backend with `fusion` and `autotune`, recommended on GPUs |
//! | `hub` | modules `hub` and `pretrained`: weights from the Hugging Face hub |
//! | `train` | modules `train`, `training`, `data`, `manifest` and `chart`: recipes, the training loop, data sets |
//! | `prepare` | modules `prepare`, `shots`, `manifest` and `chart`: raw videos to a training set |
//! | `caption`, `download`, `onnx` | steps of `prepare` that use HTTP or ONNX models |
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
pub use opensora_parallel as parallel;
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
    ClassToVideo, NonFiniteCause, Observer, PipelineError, PipelineOptions, Residency, TextToVideo,
};
pub use presets::{PRESETS, Preset};
pub use request::SampleRequest;

/// Compiles the examples of the guide with the tests.
#[cfg(doctest)]
#[doc = include_str!("../docs/sampling.md")]
struct SamplingGuide;

/// The README's example, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
