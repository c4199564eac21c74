//! Tables of images and videos: path, caption, number of frames and whatever else is known.
//!
//! | module | thought |
//! |---|---|
//! | [`table`] | rows of named columns |
//! | [`rows`] | what training takes of them: path, caption, number of frames |
//!
//! Files are CSV, or Parquet where the crate's feature `parquet` is on.

mod csv_file;
mod error;
mod header;
#[cfg(feature = "parquet")]
mod parquet_file;
pub mod rows;
mod stored;
pub mod table;

pub use error::ManifestError;
pub use rows::{Manifest, Row};
pub use table::Table;
