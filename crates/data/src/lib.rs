//! Captioned clips for training.
//!
//! | module | thought |
//! |---|---|
//! | [`manifest`] | the list of clips and captions |
//! | [`media`] | images and videos by their endings |
//! | [`window`] | which frames become a clip, and whether they are mirrored |
//! | [`transform`] | pixels resized, cut about their centre, in [-1, 1] |
//! | [`pillow`] | resizing of images by Pillow's arithmetic |
//! | [`dataset`] | rows read as clips |

pub mod dataset;
mod error;
pub mod manifest;
pub mod media;
pub mod pillow;
pub mod transform;
pub mod window;

pub use dataset::{ClipDataset, ClipSample, Source};
pub use error::DataError;
pub use manifest::{Manifest, Row};
pub use window::{ClipSpec, Draw};
