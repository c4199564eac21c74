//! Strict import of published weight files into burn modules, and export under published keys.
//!
//! - [`Checkpoint::open`] opens a `torch.save` file, a safetensors file, an index with its shards, or a
//!   folder with any of these. It returns named tensors, which are read when they are needed.
//! - A [`KeyMap`], kept beside its model, maps parameters to published keys.
//! - [`import`] fills a module. Every parameter must have a key, and every key must be used or on the map's
//!   allow-list. Otherwise the import fails with the keys and the likely cause. [`StreamedImport`] checks the
//!   same and reads a large model part by part.
//! - [`export`] writes a module as safetensors under the published keys.
//! - [`Checkpoint::unwrapped`] removes the wrappers of training programs, such as the prefix `module.` or the
//!   dictionary `{"model": ..}`; the [`ImportReport`] lists them.
//! - [`Checkpoint::convert`] writes any checkpoint as safetensors files.
//! - [`known_fields`] reads a model's configuration inside another file and rejects unknown fields.
//!
//! ```
//! use burn::{
//!     nn::{Linear, LinearConfig},
//!     tensor::{Device, FloatDType},
//! };
//! use opensora_checkpoint::{Checkpoint, ExportOptions, KeyMap, export, import};
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("layer.safetensors");
//! let layer = LinearConfig::new(3, 2).init(&Device::flex());
//! // The published keys are `proj.weight` and `proj.bias`.
//! let map = KeyMap::new("a projection").rename(|path| format!("proj.{path}"));
//! export(&layer, &map, ExportOptions::default(), &path)?;
//!
//! let checkpoint = Checkpoint::open(&path)?;
//! // PyTorch stores linear layers as [out, in].
//! assert_eq!(checkpoint.tensors()["proj.weight"].shape(), [2, 3]);
//! let fresh = LinearConfig::new(3, 2).init(&Device::flex());
//! let (loaded, report): (Linear, _) = import(fresh, &checkpoint, &map, FloatDType::F32)?;
//! assert_eq!(report.elements, 8);
//! assert_eq!(loaded.weight.to_data(), layer.weight.to_data());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Files are untrusted: nothing in a file is executed, declared sizes are compared with the file
//! before they are used, and shards are opened only beside their index. Pipes, devices and folders
//! are not read.

mod blocks;
mod convert;
mod error;
mod export;
mod file_range;
mod import;
mod key_map;
mod known_fields;
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
pub use convert::{ConvertSpec, Converted, Observer, Written};
pub use error::{BoxedError, CheckpointError, Mismatch, ShapeMismatch};
pub use export::{ExportOptions, export, published_tensors};
pub use import::{ImportReport, ParameterSlot, check, check_import, import, parameter_slots};
pub use key_map::{KeyMap, Rename};
pub use known_fields::known_fields;
pub use names::ParameterNames;
pub use published::{Described, PublishedModel};
pub use source::{Checkpoint, MAX_TENSORS, TensorEntry};
pub use stream::StreamedImport;

/// The README's example, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
