//! Tables as Parquet.

mod read;
mod write;

pub(crate) use {read::read, write::write};

/// Rows that are converted at once.
const BATCH: usize = 8192;

#[cfg(test)]
mod tests;
