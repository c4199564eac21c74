//! Published weight files to burn modules, strictly.
//!
//! The way of a weight: [`Checkpoint::open`] finds what a path holds (a `torch.save` file, a
//! safetensors file, an index with its shards, or a folder with any of these) and gives named
//! tensors that are read only when asked for. A [`KeyMap`], kept beside the model that it
//! belongs to, says which published key feeds which parameter. [`import`] brings both together:
//! every parameter must be fed and every key must be used or stand on the map's allow-list,
//! otherwise the load fails with the keys and the likely cause. [`StreamedImport`] makes the same
//! check and reads a large model part by part. [`export`] goes the other way: a module
//! is written as safetensors under the published keys.
//!
//! ```no_run
//! # use burn::{module::Module, nn::{Linear, LinearConfig}, tensor::{Device, FloatDType}};
//! # use opensora_checkpoint::{Checkpoint, CheckpointError, KeyMap, import};
//! # fn load(linear: Linear) -> Result<Linear, CheckpointError> {
//! let checkpoint = Checkpoint::open("model.pth")?;
//! let map = KeyMap::new("a linear layer").allow_unused("step");
//! let (linear, report) = import(linear, &checkpoint, &map, FloatDType::F32)?;
//! println!("{report}");
//! # Ok(linear)
//! # }
//! ```
//!
//! What trainers put around a model, such as `module.` or `{"model": ..}`, is taken off by
//! [`Checkpoint::unwrapped`], and the [`ImportReport`] says so.
//!
//! Nothing in a file is executed, no size that a file declares is trusted before it is compared
//! with what the file holds, and shards are looked for only beside their index. Pipes, devices and folders
//! are not read.

mod blocks;
mod convert;
mod error;
mod export;
mod file_range;
mod import;
mod key_map;
mod names;
mod non_finite;
mod published;
mod pytorch;
mod safetensors_file;
mod shards;
mod source;
mod stream;
mod telltale;
mod wrapper;

pub use blocks::{BlockSource, StreamedBlocks};
pub use convert::{Advance, ConvertSpec, Converted};
pub use error::{CheckpointError, Mismatch, ShapeMismatch};
pub use export::{export, export_with_buffers, published_tensors};
pub use import::{ImportReport, ParameterSlot, check, check_import, import, parameter_slots};
pub use key_map::{KeyMap, Rename};
pub use names::ParameterNames;
pub use published::{Described, PublishedModel};
pub use source::{Checkpoint, TensorEntry};
pub use stream::StreamedImport;

/// The README's example, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
