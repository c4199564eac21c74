//! Reading and writing of Parquet tables.

mod read;
mod write;

pub(crate) use {read::read, write::write};

/// Number of rows that are converted at once.
const BATCH: usize = 8192;

#[cfg(test)]
mod tests;
