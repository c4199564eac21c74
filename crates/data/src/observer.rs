//! The observer of long work on data.

use std::ops::ControlFlow;

/// Receives the progress of encoding a cache. `()` ignores it.
pub trait Observer {
    /// Called for each row after its file was read for the checksum; all files are read before the first row is encoded.
    /// `Break` ends the work.
    fn row_read(&mut self, event: &RowsDone) -> ControlFlow<()> {
        let _ = event;
        ControlFlow::Continue(())
    }

    /// Called after every row, encoded or skipped as bad, and after every shard. `Break` ends the work: the
    /// rows done so far are kept.
    fn rows_done(&mut self, event: &RowsDone) -> ControlFlow<()> {
        let _ = event;
        ControlFlow::Continue(())
    }
}

impl Observer for () {}

/// Progress: rows that are done, and all rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RowsDone {
    /// Rows that are done.
    pub done: usize,
    /// All rows.
    pub total: usize,
}
