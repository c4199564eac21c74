//! A rank's part of every batch, and how the ranks agree on bad rows.

use super::{Skipped, Slot};
use crate::DataError;
use opensora_files::error_line;
use opensora_parallel::{Group, Lowest, Solo, first_error, lowest};
use std::{collections::BTreeMap, error::Error, ops::Range, sync::Arc};

/// The part of every batch that this rank reads. The default is the whole batch, in one process.
#[derive(Debug, Clone)]
pub struct Part {
    /// All ranks of the run. They agree on bad rows.
    pub group: Group,
    /// Number of this part, from 0. Ranks with the same number read the same samples.
    pub index: usize,
    /// Number of parts of a batch.
    pub count: usize,
}

impl Default for Part {
    fn default() -> Self {
        Self { group: Arc::new(Solo), index: 0, count: 1 }
    }
}

impl Part {
    /// Returns the positions of this part in a batch of `size` samples. Parts differ by at most one sample; a
    /// part is empty if there are more parts than samples.
    pub fn of(&self, size: usize) -> Range<usize> {
        let begin = |index: usize| (index * size).div_ceil(self.count);
        begin(self.index)..begin(self.index + 1)
    }

    /// Returns the skipped rows of rank 0 if all ranks have the same rows: `rows` in number, with `fingerprint`. Other ranks
    /// may have found another list, in a folder that is not shared or while rank 0 added to it; with different lists they
    /// would read parts of different batches. A collective.
    ///
    /// # Errors
    /// Returns an error on every rank if a rank has other rows than rank 0.
    pub(super) fn skipped_on_first(
        &self,
        rows: usize,
        fingerprint: &str,
        skipped: &BTreeMap<usize, Skipped>,
    ) -> Result<BTreeMap<usize, Skipped>, DataError> {
        let skipped = skipped
            .iter()
            .map(|(row, Skipped { slot, reason })| format!("{row} {slot} {reason}\n"));
        let lines: String = std::iter::once(format!("{fingerprint}\n")).chain(skipped).collect();
        let message = (self.group.rank() == 0).then_some((rows as u64, lines.as_bytes()));
        let Some(Lowest { key, bytes, .. }) = lowest(&*self.group, message) else {
            return Ok(BTreeMap::new());
        };
        let (expected, text) = (key as usize, String::from_utf8_lossy(&bytes));
        let mut lines = text.lines();
        let is_same = lines.next() == Some(fingerprint);
        self.agree(match rows == expected {
            true if is_same => Ok(()),
            true => Err(DataError::OtherRows { rows }),
            false => Err(DataError::OtherData { found: rows, expected }),
        })?;
        let parse = |line: &str| {
            let (row, rest) = line.split_once(' ')?;
            let (slot, reason) = rest.split_once(' ')?;
            let skipped = Skipped { slot: slot.parse().ok()?, reason: reason.into() };
            Some((row.parse::<usize>().ok()?, skipped))
        };
        Ok(lines.filter_map(parse).collect())
    }

    /// Returns the first bad place of the batch with its error, the same on all ranks. `mine` is the first bad
    /// place of this rank.
    pub(super) fn first_bad(
        &self,
        mine: Option<(usize, DataError)>,
        slots: &[Slot],
    ) -> Option<(usize, DataError)> {
        if self.group.size() == 1 {
            return mine;
        }
        let text = mine.as_ref().map(|(place, error)| (*place as u64, encode(error)));
        let message = text.as_ref().map(|(place, text)| (*place, text.as_bytes()));
        let found = lowest(&*self.group, message)?;
        let place = found.key as usize;
        let error = match mine {
            Some((own, error)) if own == place => error,
            _ => decode(&String::from_utf8_lossy(&found.bytes), slots[place].row, found.rank),
        };
        Some((place, error))
    }

    /// Returns the result of this rank, or the error of the first rank that failed. A collective.
    pub(super) fn agree<T>(&self, result: Result<T, DataError>) -> Result<T, DataError> {
        if self.group.size() == 1 {
            return result;
        }
        let line = result.as_ref().err().map(|error| error_line(error));
        match (first_error(&*self.group, line.as_deref()), result) {
            (_, Err(error)) => Err(error),
            (Some((rank, message)), Ok(_)) => Err(DataError::OtherRank { rank, message }),
            (None, Ok(value)) => Ok(value),
        }
    }
}

/// Separates the path of a row's error from the reason; neither contains it.
const BETWEEN: char = '\0';

/// Returns an error as text for other ranks: of a row its path and reason, of others one line.
fn encode(error: &DataError) -> String {
    let DataError::Row { path, reason, .. } = error else { return error_line(error) };
    let reason = match error.source() {
        Some(source) => format!("{reason}: {}", error_line(source)),
        None => reason.clone(),
    };
    format!("{}{BETWEEN}{reason}", path.display())
}

/// Returns the error of `row` on rank `rank` from its text.
fn decode(text: &str, row: usize, rank: usize) -> DataError {
    match text.split_once(BETWEEN) {
        Some((path, reason)) => DataError::row(row, path, reason),
        None => DataError::OtherRank { rank, message: text.into() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_a_batch() {
        for (size, count) in [(8, 4), (7, 3), (2, 4), (1, 1)] {
            let part = |index| Part { index, count, ..Part::default() }.of(size);
            let places: Vec<usize> = (0..count).flat_map(part).collect();
            assert_eq!(places, (0..size).collect::<Vec<_>>());
            assert!(part(0).contains(&0));
        }
    }

    #[test]
    fn an_error_keeps_its_line_on_other_ranks() {
        let source = Some("truncated".into());
        let error = DataError::Row { row: 4, path: "a.mp4".into(), reason: "bad".into(), source };
        let there = decode(&encode(&error), 4, 2);
        assert_eq!(error_line(&there), error_line(&error));
        assert!(matches!(there, DataError::Row { row: 4, .. }));
        let there = decode(&encode(&DataError::Empty), 4, 2);
        assert_eq!(error_line(&there), "rank 2: the data has no rows");
    }
}
