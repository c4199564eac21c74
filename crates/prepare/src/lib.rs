//! From raw videos to a training set.
//!
//! Each step reads a manifest ([`opensora_manifest::Table`]) and writes another one, with columns
//! of its own added; rows that it could not use are listed apart with the reason. A step keeps a
//! journal beside what it writes: interrupted anywhere and started again, it goes on where it was
//! and the result is the same.
//!
//! | module | thought |
//! |---|---|
//! | [`step`] | work row by row: in parallel, journalled, sharded, restartable |
//! | [`retry`] | patience with what is far away |
//! | [`caption`] | captions by a vision model that a server holds |

pub mod caption;
mod error;
pub mod retry;
pub mod step;

pub use error::PrepareError;
