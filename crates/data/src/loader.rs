//! Batches from a source: read ahead by worker threads, in an order that does not depend on them.
//!
//! A bad row is an error, unless the recipe allows some: then its slot of the order is left out,
//! the batch goes on with the slots behind it, and the row is written to a list that later runs
//! heed. No row ever stands in for another. What is wrong with more than a row (a damaged cache, a
//! setting) is an error in any case.

mod skip_list;
#[cfg(test)]
mod tests;
mod workers;

use crate::{DataError, Source, order::Order};
use skip_list::SkipList;
use std::{collections::BTreeMap, path::PathBuf, sync::Arc};
pub(crate) use workers::read as read_caught;
use workers::{Read, Workers, name_of, read};

/// Most samples that are read ahead: far more than a step needs, and below what overflows.
const MAX_AHEAD: usize = 1 << 20;
/// Most threads that read.
const MAX_WORKERS: usize = 1024;
/// The last slot that a run can begin at: none reaches it, and a damaged number may be beyond.
const MAX_START: u64 = 1 << 62;

/// How a loader reads.
#[derive(Debug, Clone, PartialEq)]
pub struct LoaderConfig {
    /// Samples of a batch.
    pub batch_size: usize,
    /// Threads that read; 0 reads in the calling thread.
    pub workers: usize,
    /// Batches that are read ahead.
    pub prefetch: usize,
    /// Seed of the order.
    pub seed: u64,
    /// Whether the order is shuffled, anew each epoch.
    pub shuffle: bool,
    /// Bad rows that are left out before it is an error.
    pub skip_bad: usize,
    /// Where bad rows are listed (CSV: row from 1, path, reason); rows that are listed there
    /// already, with the same path, are left out unread and do not count.
    pub skip_list: Option<PathBuf>,
}

impl LoaderConfig {
    fn check(&self, start: u64) -> Result<(), DataError> {
        let fail = |field, found: String, expected| Err(DataError::Spec { field, found, expected });
        if self.batch_size == 0 {
            fail("batch_size", "0".into(), "at least 1")
        } else if self.workers > MAX_WORKERS {
            fail("workers", self.workers.to_string(), "at most 1024")
        } else if self.ahead() > MAX_AHEAD {
            let found = format!("{} batches of {}", self.prefetch, self.batch_size);
            fail("prefetch", found, "at most 1048576 samples")
        } else if start > MAX_START {
            fail("the first slot", start.to_string(), "at most 2^62")
        } else {
            Ok(())
        }
    }

    /// Samples that are read ahead.
    fn ahead(&self) -> usize {
        self.batch_size.saturating_mul(self.prefetch.max(1))
    }
}

/// Consecutive samples of the order.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch<T> {
    /// The samples.
    pub items: Vec<T>,
    /// Their rows in the manifest.
    pub rows: Vec<usize>,
    /// The slot at which the batch began.
    pub first_slot: u64,
    /// The slot at which the next one begins.
    pub next_slot: u64,
}

/// An endless iterator of batches; after an error it ends.
pub struct Loader<S: Source + ?Sized> {
    source: Arc<S>,
    config: LoaderConfig,
    order: Order,
    /// The next slot to hand to a worker, and the next to put into a batch.
    ahead: u64,
    slot: u64,
    skip_list: SkipList,
    newly_skipped: usize,
    workers: Option<Workers<S::Item>>,
    finished: bool,
}

impl<S: Source + ?Sized + 'static> Loader<S>
where
    S::Item: 'static,
{
    /// Batches from slot `start` on.
    ///
    /// # Errors
    /// Where the source has no rows, a setting cannot be, the skip list cannot be read or a thread
    /// not be started.
    pub fn new(source: Arc<S>, config: LoaderConfig, start: u64) -> Result<Self, DataError> {
        config.check(start)?;
        if source.len() == 0 {
            return Err(DataError::Empty);
        }
        let skip_list = SkipList::open(config.skip_list.clone(), &*source)?;
        let order = Order::new(source.len(), config.seed, config.shuffle);
        let workers = match config.workers {
            0 => None,
            count => Some(Workers::start(&source, count)?),
        };
        Ok(Self {
            source,
            config,
            order,
            ahead: start,
            slot: start,
            skip_list,
            newly_skipped: 0,
            workers,
            finished: false,
        })
    }

    /// The rows that are left out, with the reasons.
    pub fn skipped(&self) -> &BTreeMap<usize, String> {
        self.skip_list.rows()
    }

    fn batch(&mut self) -> Result<Batch<S::Item>, DataError> {
        let first_slot = self.slot;
        let (mut items, mut rows) = (Vec::new(), Vec::new());
        while items.len() < self.config.batch_size {
            // The list only has rows of this source: no good one is left to wait for.
            if self.skipped().len() == self.source.len() {
                return Err(DataError::AllBad { rows: self.source.len() });
            }
            let slot = self.slot;
            let Some((epoch, row)) = self.order.at(slot) else {
                return Err(DataError::Empty);
            };
            self.slot += 1;
            if self.skipped().contains_key(&row) {
                if let Some(workers) = &mut self.workers {
                    workers.forget(slot);
                }
                continue;
            }
            match self.take_slot(slot, row, epoch) {
                Ok(item) => {
                    items.push(item);
                    rows.push(row);
                }
                Err(error) => self.skip(row, error)?,
            }
        }
        Ok(Batch { items, rows, first_slot, next_slot: self.slot })
    }

    /// The sample of a slot, from a worker or read here.
    fn take_slot(&mut self, slot: u64, row: usize, epoch: u64) -> Read<S::Item> {
        let Some(workers) = &mut self.workers else { return read(&*self.source, row, epoch) };
        // Keep the workers busy: as many slots ahead as batches are to be read ahead.
        self.ahead = self.ahead.max(slot);
        while self.ahead < slot + self.config.ahead() as u64 {
            if let Some((epoch, row)) = self.order.at(self.ahead)
                && !self.skip_list.rows().contains_key(&row)
            {
                workers.send((self.ahead, row, epoch))?;
            }
            self.ahead += 1;
        }
        workers.receive(slot)
    }

    /// Notes a bad row, or gives its error where no more are allowed.
    fn skip(&mut self, row: usize, error: DataError) -> Result<(), DataError> {
        if self.config.skip_bad == 0 || !matches!(error, DataError::Row { .. }) {
            return Err(error);
        }
        if self.newly_skipped == self.config.skip_bad {
            let allowed = self.config.skip_bad;
            return Err(DataError::TooManyBad { allowed, source: Box::new(error) });
        }
        self.skip_list.add(row, &name_of(&*self.source, row), error.to_string())?;
        self.newly_skipped += 1;
        Ok(())
    }
}

impl<S: Source + ?Sized + 'static> Iterator for Loader<S>
where
    S::Item: 'static,
{
    type Item = Result<Batch<S::Item>, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let batch = self.batch();
        if batch.is_err() {
            self.finished = true;
            self.workers = None;
        }
        Some(batch)
    }
}
