//! Captioned clips for training.
//!
//! | module | thought |
//! |---|---|
//! | [`window`] | which frames become a clip, and whether they are mirrored |
//! | [`dataset`] | rows read as clips |

pub mod dataset;
mod error;
pub mod window;

pub use dataset::{ClipSample, Source};
pub use error::DataError;
pub use window::{ClipSpec, Draw};
