//! Batches of a source: read ahead by worker threads, in an order that does not depend on the threads.
//!
//! A bad row is an error unless the configuration allows some: then its slot of the order is
//! skipped, the next slots fill the batch, and the row is written to a list that later runs use. No
//! row replaces another. Errors that affect more than one row (a damaged cache, a setting) are
//! never skipped.

mod skip_list;
#[cfg(test)]
mod tests;
mod workers;

use crate::{DataError, SettingError, Source, order::Order};
use opensora_files::error_line;
use skip_list::SkipList;
use std::{collections::BTreeMap, path::PathBuf, sync::Arc};
pub(crate) use workers::read as read_caught;
use workers::{Read, Workers, name_of, read};

/// Maximum number of samples that are read ahead: far more than a step needs, and small enough not to overflow.
const MAX_AHEAD: usize = 1 << 20;
/// Maximum number of threads that read.
const MAX_WORKERS: usize = 1024;
/// The last slot at which a run can begin. No run reaches it; a damaged checkpoint may name a larger one.
const MAX_START: u64 = 1 << 62;

/// Settings of a [`Loader`].
#[derive(Debug, Clone, PartialEq)]
pub struct LoaderConfig {
    /// Samples of a batch.
    pub batch_size: usize,
    /// Threads that read; 0 reads in the calling thread.
    pub workers: usize,
    /// Batches to read ahead.
    pub prefetch: usize,
    /// Seed of the order.
    pub seed: u64,
    /// Shuffles the order anew each epoch.
    pub shuffle: bool,
    /// Maximum number of bad rows that are skipped; one more is an error.
    pub skip_bad: usize,
    /// File that lists bad rows (CSV: row from 1, path, reason). Rows that it lists already, with
    /// the same path, are skipped without being read and do not count.
    pub skip_list: Option<PathBuf>,
}

impl Default for LoaderConfig {
    /// Returns the defaults: shuffled batches of 8 with seed 42, of which two threads read 4 ahead; bad
    /// rows are errors.
    fn default() -> Self {
        Self {
            batch_size: 8,
            workers: 2,
            prefetch: 4,
            seed: 42,
            shuffle: true,
            skip_bad: 0,
            skip_list: None,
        }
    }
}

impl LoaderConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// Returns an error if a setting is out of range.
    pub fn validate(&self) -> Result<(), SettingError> {
        if self.batch_size == 0 {
            Err(SettingError::new("batch_size", 0, "at least 1"))
        } else if self.workers > MAX_WORKERS {
            Err(SettingError::new("workers", self.workers, "at most 1024"))
        } else if self.ahead() > MAX_AHEAD {
            let found = format!("{} batches of {}", self.prefetch, self.batch_size);
            Err(SettingError::new("prefetch", found, "at most 1048576 samples"))
        } else {
            Ok(())
        }
    }

    /// Returns the number of samples to read ahead.
    fn ahead(&self) -> usize {
        self.batch_size.saturating_mul(self.prefetch.max(1))
    }
}

/// A batch: consecutive samples of the order, with their rows and slots.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch<T> {
    /// The samples.
    pub items: Vec<T>,
    /// Rows of the samples in the manifest.
    pub rows: Vec<usize>,
    /// The slot at which the batch begins.
    pub first_slot: u64,
    /// The slot at which the next batch begins.
    pub next_slot: u64,
}

/// An endless iterator of batches. It ends after an error.
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
    /// Creates a loader whose first batch begins at slot `start`.
    ///
    /// # Errors
    /// Returns an error if the source has no rows, a setting is out of range, the list of bad rows
    /// cannot be read, or a thread cannot be started.
    pub fn new(source: Arc<S>, config: LoaderConfig, start: u64) -> Result<Self, DataError> {
        config.validate()?;
        if start > MAX_START {
            return Err(SettingError::new("the first slot", start, "at most 2^62").into());
        }
        if source.len() == 0 {
            return Err(DataError::Empty);
        }
        let skip_list = SkipList::open(config.skip_list.clone(), &*source)?;
        let order = match config.shuffle {
            true => Order::shuffled(source.len(), config.seed),
            false => Order::sequential(source.len()),
        };
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

    /// Returns the skipped rows with the reasons.
    pub fn skipped(&self) -> &BTreeMap<usize, String> {
        self.skip_list.rows()
    }

    fn batch(&mut self) -> Result<Batch<S::Item>, DataError> {
        let first_slot = self.slot;
        let (mut items, mut rows) = (Vec::new(), Vec::new());
        while items.len() < self.config.batch_size {
            // The list has only rows of this source: no good row is left.
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

    /// Returns the sample of a slot, from a worker or read in this thread.
    fn take_slot(&mut self, slot: u64, row: usize, epoch: u64) -> Read<S::Item> {
        let Some(workers) = &mut self.workers else { return read(&*self.source, row, epoch) };
        // Keep the workers busy with the slots of the batches to read ahead.
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

    /// Lists a bad row, or returns its error if no more are allowed.
    fn skip(&mut self, row: usize, error: DataError) -> Result<(), DataError> {
        if self.config.skip_bad == 0 || !matches!(error, DataError::Row { .. }) {
            return Err(error);
        }
        if self.newly_skipped == self.config.skip_bad {
            let allowed = self.config.skip_bad;
            return Err(DataError::TooManyBad { allowed, source: Box::new(error) });
        }
        self.skip_list.add(row, &name_of(&*self.source, row), error_line(&error))?;
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
