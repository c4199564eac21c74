//! Training of Open-Sora's models: the same loop for denoiser, VAE and text encoder.
//!
//! | module | thought |
//! |---|---|
//! | [`recipe`] | what is trained, on what, how, for how long, as TOML |
//! | [`session`] | a run from its recipe: data, model, resume, finished weights |
//! | [`run`] | the loop: batches to steps, guards, checkpoints, metrics |
//! | [`task`] | what the loop asks of a model: loss and gradients of a batch |
//! | [`denoiser`] | STDiT: the noise loss at a random timestep |
//! | [`vae`] | the VAE: reconstruction and divergence |
//! | [`text`], [`masked_tokens`] | the text encoder: guessing masked tokens |
//! | [`trainer`] | values, optimizer, moving average, step |
//! | [`parameters`] | a model's parameters as named flat tensors |
//! | [`optimizer`] | AdamW, clipping by the global norm, learning rate |
//! | `recompute` | activation checkpointing |
//! | [`state`] | checkpoints of a run and their resume |
//! | [`description`] | the `model.json` of a finished run |
//! | [`metrics`] | what a run leaves to look at |
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `scripts/train.py`. Deviations: parameters, optimizer and
//! average are f32 whatever is computed in; every draw is keyed by seed and sample, so that a
//! resumed run goes on with the very same numbers; a bad sample is an error and never another one.

pub mod denoiser;
pub mod description;
mod error;
pub mod masked_tokens;
pub mod metrics;
pub mod optimizer;
pub mod parameters;
pub mod recipe;
mod recompute;
pub mod run;
pub mod session;
pub mod state;
pub mod task;
pub mod text;
pub mod trainer;
pub mod vae;

pub use error::TrainError;
pub use parameters::{FlatTensors, Graph};
pub use recipe::Recipe;
pub use run::{Outcome, Run};
pub use session::{Prepared, Session};
pub use trainer::Trainer;

/// The README's example, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
