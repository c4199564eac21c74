//! The subcommands: one module each, with its options and its call of the library.

pub(crate) mod bench;
pub(crate) mod completions;
pub(crate) mod data;
pub(crate) mod devices;
pub(crate) mod eval;
pub(crate) mod man;
pub(crate) mod plan;
pub(crate) mod plot;
pub(crate) mod probe_device;
pub(crate) mod sample;
#[cfg(feature = "serve")]
pub(crate) mod serve;
pub(crate) mod train;
pub(crate) mod verify;
pub(crate) mod weights;
