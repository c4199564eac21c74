//! Options that all steps share: workers, shard, retries of failed rows.

use crate::PrepareError;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Workers, shard and retries of a step; the same for every step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunOptions {
    /// Rows that are processed at once; 0 counts as 1.
    pub workers: usize,
    /// The rows that are processed.
    pub shard: Shard,
    /// True to retry rows that failed in an earlier run.
    pub retry_failed: bool,
}

impl Default for RunOptions {
    /// Processes all rows, one at a time, and keeps earlier failures.
    fn default() -> Self {
        Self { workers: 1, shard: Shard::WHOLE, retry_failed: false }
    }
}

/// One part of the rows, for job arrays: row r belongs to part r modulo `count`.
///
/// Written as `index/count`, such as `0/4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    index: usize,
    /// At least 1.
    count: usize,
}

impl Shard {
    /// All rows.
    pub const WHOLE: Self = Self { index: 0, count: 1 };

    /// Returns part `index` of `count`, counted from 0.
    ///
    /// # Errors
    /// Returns an error if `index` is not below `count`.
    pub fn new(index: usize, count: usize) -> Result<Self, PrepareError> {
        if index < count {
            return Ok(Self { index, count });
        }
        Err(PrepareError::Spec {
            field: "shard",
            found: format!("{index}/{count}"),
            expected: "i/n with i from 0 to n - 1",
        })
    }

    /// Returns the number of parts.
    pub fn count(self) -> usize {
        self.count
    }

    /// Returns true if a row belongs to this part.
    pub fn holds(self, row: usize) -> bool {
        row % self.count == self.index
    }
}

impl FromStr for Shard {
    type Err = PrepareError;

    fn from_str(text: &str) -> Result<Self, PrepareError> {
        let numbers = text.split_once('/');
        let parsed = numbers.and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        // Text that is not two numbers is as invalid as part 0 of 0.
        let (index, count) = parsed.unwrap_or((0, 0));
        Self::new(index, count).map_err(|error| match error {
            PrepareError::Spec { field, expected, .. } => {
                PrepareError::Spec { field, found: text.into(), expected }
            }
            error => error,
        })
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}
