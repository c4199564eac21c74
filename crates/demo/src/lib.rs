//! The demo of `opensora`: a small text-to-video model with its weights, the world of moving shapes it
//! was trained on, and a judge of its clips.
//!
//! One coloured shape on a plain background moves in one of four directions, grows or shrinks. The
//! world is small enough to train a whole text-to-video model on it on one machine, and plain enough
//! that image analysis can tell whether a sampled clip shows what its prompt says. A fixed set of
//! (shape, colour, motion) triples never appears in training clips: see [`is_held_out`]. Everything
//! is a function of (seed, index), through [`opensora::nn::random::HostRng`].
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
//! println!("{:?}", opensora_demo::judge(&clips[0]));
//! # Ok(())
//! # }
//! ```
//!
//! | module | contents |
//! |---|---|
//! | [`model`] | the bundled weights and where they are unpacked |
//! | [`world`] | shapes, colours, backgrounds, motions |
//! | [`draw`] | which scene a seed and an index stand for |
//! | [`mod@render`] | scenes as pixels |
//! | [`captions`] | scenes as text |
//! | [`dataset`] | a data set of clips and images on disk |
//! | [`mod@judge`] | pixels back to what they show |
//! | [`eval`] | how often a model's clips match their prompts |

pub mod captions;
pub mod dataset;
pub mod draw;
pub mod eval;
pub mod judge;
pub mod model;
pub mod render;
pub mod world;

pub use dataset::{DemoError, DemoSpec, Observer, Written, write_dataset};
pub use draw::{Captioned, Kind, film, training_clip, training_still};
pub use judge::{Verdict, judge};
pub use model::{UnpackError, model_files};
pub use render::render;
pub use world::{Background, Colour, Labels, Motion, Scene, Shape, is_held_out, triples};

/// The README's example, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
