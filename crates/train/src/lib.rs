//! Training of Open-Sora's models: one loop for denoiser, VAE, text encoder and any other burn module.
//!
//! A [`Recipe`] (TOML) describes a run, and a [`Session`] trains it in a folder: it checks
//! everything that needs no model, resumes from the newest checkpoint, and writes metrics and the
//! finished weights.
//!
//! ```no_run
//! use burn::tensor::Device;
//! use opensora_train::{Ranks, Recipe, Session};
//!
//! // A bundled recipe by its name, or a file.
//! let mut recipe = Recipe::open("stage2-16x256x256".as_ref())?;
//! recipe.data.cache = Some("cache".into());
//! recipe.run.steps = 1000;
//! let session = Session {
//!     recipe,
//!     folder: "run".into(),
//!     resume: true,
//!     peak_flops: None,
//!     device: Device::flex(),
//!     ranks: Ranks::default(),
//! };
//! // `()` is an observer that ignores all events, and hooks that do nothing.
//! session.run(&mut (), &mut ())?;
//! # Ok::<(), opensora_train::TrainError>(())
//! ```
//!
//! For another model or loss, implement [`task::Task`]; its module has a complete example.
//!
//! | module | contents |
//! |---|---|
//! | [`recipe`] | recipes: model, data, optimizer, length |
//! | [`session`] | a run from its recipe: data, model, resume, finished weights |
//! | [`run`] | the training loop |
//! | [`observer`] | the events of a run |
//! | [`task`] | the interface between loop and model: loss and gradients of a batch |
//! | [`denoiser`] | training of an STDiT: the diffusion loss at a random timestep |
//! | [`vae`] | training of a VAE: L1 loss and KL divergence |
//! | [`text`], [`masked_tokens`] | training of a text encoder: prediction of masked tokens |
//! | [`trainer`] | parameters, optimizer, moving average |
//! | [`ranks`] | the ranks of a run over several devices |
//! | [`zero`] | the training state that ranks divide |
//! | `shards` | slices of parameters, and the collectives between slices and whole tensors |
//! | `shared` | the numbers of a micro-batch from all ranks |
//! | [`parameters`] | a model's parameters as named flat tensors |
//! | [`optimizer`] | AdamW, gradient clipping, learning rate |
//! | `pending` | steps whose numbers the device is still computing |
//! | `recompute` | activation checkpointing |
//! | [`state`] | checkpoints of a run |
//! | [`description`] | the `model.json` of a finished run |
//! | [`metrics`] | `metrics.csv`, TensorBoard's event files, FLOPs |
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `scripts/train.py`. Deviations: parameters, optimizer and
//! moving average are f32 for every type to compute in; every random draw is keyed by seed and
//! sample, so that a resumed run has bit-exact the same numbers; a bad sample is an error and is
//! never replaced by another one.

pub mod denoiser;
pub mod description;
mod error;
pub mod masked_tokens;
pub mod metrics;
pub mod observer;
pub mod optimizer;
pub mod parameters;
mod pending;
pub mod ranks;
pub mod recipe;
mod recompute;
pub mod run;
mod sequence;
pub mod session;
mod shards;
mod shared;
pub mod state;
pub mod task;
pub mod text;
pub mod trainer;
pub mod vae;
pub mod zero;

pub use error::{RecipeError, TrainError};
pub use observer::Observer;
pub use parameters::{FlatTensors, Graph};
pub use ranks::Ranks;
pub use recipe::Recipe;
pub use run::{Outcome, Run};
pub use session::{Prepared, Session};
pub use trainer::Trainer;
pub use zero::Zero;

/// The README's example, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
