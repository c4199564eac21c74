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
//! | [`assemble`] | from outcomes back to tables |
//! | [`retry`] | patience with what is far away |
//! | [`download`] | videos of public lists, fetched |
//! | [`scan`] | a folder of videos as a table |
//! | [`shots`] | where one shot of a video ends and the next begins |
//! | [`split`] | videos cut at their shots into clips |
//! | [`filter`] | which clips a model shall learn from: measures, bounds, near-duplicates |
//! | [`caption`] | captions by a vision model that a server holds |
//! | [`clean`] | captions without openings, rows without gaps, frames counted anew |
//! | [`arrange`] | manifests merged and split |
//! | [`stats`] | what a manifest holds, in numbers |
//! | [`preview`] | clips and captions to look at, on one sheet |
//! | [`pipeline`] | steps one after another |

pub mod arrange;
pub mod assemble;
pub mod caption;
pub mod clean;
pub mod download;
mod error;
pub mod filter;
mod look;
mod open;
pub mod pipeline;
pub mod preview;
pub mod retry;
pub mod scan;
mod source;
pub mod split;
pub mod stats;
pub mod step;

pub use error::PrepareError;
pub use opensora_shots as shots;
