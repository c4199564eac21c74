//! Tables
mod csv_file;
mod error;
mod header;
mod known;
pub mod limits;
#[cfg(feature = "parquet")]
mod parquet_file;
pub mod prompts;
pub mod rows;
mod stored;
pub mod table;
pub mod text;
pub mod value;

pub use error::ManifestError;
pub use prompts::read_prompts;
pub use rows::{Manifest, Row};
pub use table::Table;
