//! Tables of images and videos: path, caption, number of frames and whatever else is known.
//!
//! | module | thought |
//! |---|---|
//! | [`table`] | rows of named columns, and their files |

mod error;
pub mod table;

pub use error::ManifestError;
pub use table::Table;
