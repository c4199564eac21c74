//! From raw videos to a training set.
//!
//! Each step reads a manifest ([`opensora_manifest::Table`]) and writes another one, with columns
//! of its own added; rows that it could not use are listed apart with the reason. A step keeps a
//! journal beside what it writes: interrupted anywhere and started again, it goes on where it was
//! and the result is the same.
//!
//! | module | thought |
//! |---|---|
//! | [`clean`] | captions without openings, rows without gaps, frames counted anew |
//! | [`arrange`] | manifests merged and split |
//! | [`step`] | work row by row: in parallel, journalled, sharded, restartable |
//! | [`retry`] | patience with what is far away |

pub mod arrange;
pub mod clean;
mod error;
pub mod retry;
pub mod step;

pub use error::PrepareError;
