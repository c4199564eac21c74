//! A small text-to-video model with its weights, the synthetic data set it was trained on, and an automatic
//! evaluation.
//!
//! A clip of the data set shows one coloured shape on a plain background that moves in one of eight directions,
//! grows, shrinks or stays still. A whole text-to-video model can be trained on such clips on one machine, and image
//! analysis can tell whether a sampled clip matches its prompt. A fixed set of (shape, colour, motion) triples
//! never appears in training clips; see [`is_held_out`]. All draws are functions of (seed, index), by
//! [`opensora::nn::random::HostRng`].
//!
//! ```no_run
//! use opensora::{PipelineOptions, SampleRequest, TextToVideo, nn::device};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let files = opensora_demo::model_files()?;
//! let request = SampleRequest { seed: 7, ..files.defaults.clone() };
//! let pipeline = TextToVideo::new(files, PipelineOptions::default(), device::parse("flex")?)?;
//! let prompt = "a red circle moves to the right on a black background";
//! let clips = pipeline.generate(&[prompt], &request, &mut ())?;
//! println!("{:?}", opensora_demo::judge(&clips[0]).verdict);
//! # Ok(())
//! # }
//! ```
//!
//! | module | contents |
//! |---|---|
//! | [`model`] | the bundled weights, unpacked into the user's cache folder |
//! | [`world`] | shapes, colours, backgrounds, motions, scenes |
//! | [`draw`] | the scenes of a seed and an index |
//! | [`mod@render`] | scenes to pixels |
//! | [`captions`] | scenes to captions |
//! | [`dataset`] | writes a data set of clips and images |
//! | [`mod@judge`] | recognises shape, colour and motion in every frame of a clip |
//! | [`eval`] | measures how often a model's clips match their prompts |
//! | [`reel`] | clips in a grid with captions |

pub mod captions;
pub mod dataset;
pub mod draw;
pub mod eval;
pub mod judge;
pub mod model;
pub mod reel;
pub mod render;
pub mod world;

pub use dataset::{DemoError, DemoSpec, Observer, Written, write_dataset};
pub use draw::{Captioned, Kind, film, training_clip, training_still};
pub use judge::{FrameVerdict, Judgement, Stability, Verdict, judge};
pub use model::{UnpackError, model_files};
pub use render::render;
pub use world::{Background, Colour, Labels, Motion, Scene, Shape, is_held_out, triples};

/// The README's example, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
