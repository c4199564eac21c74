//! Open-Sora 1.0, text to video, in Rust: the library behind the program `opensora`.
//!
//! [`TextToVideo`] is the whole way: prompts are cleaned and encoded by T5, a sampler walks from
//! noise to latents with STDiT, the VAE turns latents into frames. Each large model is loaded, used
//! and dropped in turn, so that memory peaks at the largest one and not at their sum.
//!
//! ```no_run
//! use opensora::{ModelFiles, Quiet, SampleRequest, TextToVideo, nn::device, nn::dtype::Dtype};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = device::parse("flex")?;
//! let files = ModelFiles::demo()?;
//! let request = SampleRequest { seed: 7, ..files.defaults.clone() };
//! let pipeline = TextToVideo::new(files, Dtype::F32, Dtype::F32, device)?;
//! let clips = pipeline.generate(&["a red circle moves to the right on a black background"], &request, &mut Quiet)?;
//! println!("{} frames", clips[0].len());
//! # Ok(())
//! # }
//! ```
//!
//! The parts stand for themselves as well, one crate each, and are re-exported here: [`t5`],
//! [`vae`], [`stdit`], [`diffusion`], [`data`], [`prepare`], [`train`], [`manifest`], [`video`],
//! [`chart`], [`checkpoint`], [`files`], [`nn`].
//!
//! | module | thought |
//! |---|---|
//! | [`model_files`] | which files make a model: folders with a `model.json`, published presets |
//! | [`demo_model`] | the small model that comes with the crate |
//! | [`request`] | what to sample |
//! | [`pipeline`] | prompts to frames |
//! | [`denoiser`] | STDiT with its prompts, as samplers see it |
//! | [`mod@bench`] | how fast the models run on a machine |
//! | [`eval`] | whether a model shows what its prompts say, in the demo world |
//! | [`frames`] | decoded tensors to pixels |
//! | [`latents`] | sampled latents kept in a file |
//! | [`training`] | sample videos along a training run |
//! | [`verify`] | golden cases: the proof on any backend |

pub use opensora_chart as chart;
pub use opensora_checkpoint as checkpoint;
pub use opensora_data as data;
pub use opensora_diffusion as diffusion;
pub use opensora_files as files;
pub use opensora_manifest as manifest;
pub use opensora_nn as nn;
pub use opensora_prepare as prepare;
pub use opensora_stdit as stdit;
pub use opensora_t5 as t5;
pub use opensora_train as train;
pub use opensora_vae as vae;
pub use opensora_video as video;

pub mod bench;
pub mod demo_model;
pub mod denoiser;
pub mod eval;
pub mod frames;
pub mod latents;
pub mod model_files;
pub mod pipeline;
pub mod request;
pub mod training;
pub mod verify;

pub use model_files::{ModelError, ModelFiles, Preset};
pub use pipeline::{Observer, PipelineError, Quiet, TextToVideo};
pub use request::SampleRequest;
