//! Batches of a source: read ahead by worker threads, in an order that does not depend on the threads.
//!
//! A bad row is an error unless the configuration allows some: then it is skipped from its slot of
//! the order on, the next slots fill the batch, and row and slot are written to a list. A resumed run
//! reads the list and so has the batches of a run without a break. No row replaces another. Errors
//! that affect more than one row (a damaged cache, a setting) are never skipped.
//!
//! In a run over several ranks, every rank reads its [`Part`] of each batch. The ranks agree on bad rows, so that
//! the batches are those of one process.

mod part;
mod skip_list;
#[cfg(test)]
mod tests;
mod workers;

use crate::{DataError, SettingError, Source, order::Order};
use opensora_files::error_line;
pub use part::Part;
use skip_list::SkipList;
pub use skip_list::Skipped;
use std::{collections::BTreeMap, ops::Range, path::PathBuf, sync::Arc};
pub use workers::read as read_caught;
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
    /// File that lists bad rows (CSV: row from 1, path, reason, slot). Rows that it lists already, with
    /// the same path, are skipped from the slot on without being read, and do not count.
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
    /// The samples; over several ranks, those of this rank's part.
    pub items: Vec<T>,
    /// Positions of `items` in the batch.
    pub own: Range<usize>,
    /// Rows of all samples of the batch in the manifest.
    pub rows: Vec<usize>,
    /// The slot at which the batch begins.
    pub first_slot: u64,
    /// The slot at which the next batch begins.
    pub next_slot: u64,
}

/// A slot of the order with its row and epoch.
#[derive(Debug, Clone, Copy)]
struct Slot {
    slot: u64,
    row: usize,
    epoch: u64,
}

/// An endless iterator of batches. It ends after an error.
pub struct Loader<S: Source + ?Sized> {
    source: Arc<S>,
    config: LoaderConfig,
    order: Order,
    part: Part,
    /// The next slot to put into a batch.
    slot: u64,
    /// The next slot that may be requested from a worker, and its place in its batch.
    ahead: (u64, usize),
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
            part: Part::default(),
            slot: start,
            ahead: (start, 0),
            skip_list,
            newly_skipped: 0,
            workers,
            finished: false,
        })
    }

    /// Reads only `part` of every batch. All ranks of the part's group take their batches together. Rank 0 reads and
    /// writes the list of bad rows for all of them. A collective.
    ///
    /// # Errors
    /// Returns an error on every rank if the sources of the ranks differ in their number of rows.
    pub fn with_part(mut self, part: Part) -> Result<Self, DataError> {
        let skipped = if part.group.size() == 1 {
            self.skipped().clone()
        } else {
            let fingerprint = part.agree(self.source.fingerprint())?;
            part.skipped_on_first(self.source.len(), &fingerprint, self.skipped())?
        };
        if part.group.rank() > 0 {
            self.skip_list.follow(skipped);
        }
        self.part = part;
        Ok(self)
    }

    /// Returns the skipped rows.
    pub fn skipped(&self) -> &BTreeMap<usize, Skipped> {
        self.skip_list.rows()
    }

    fn batch(&mut self) -> Result<Batch<S::Item>, DataError> {
        let first_slot = self.slot;
        let own = self.part.of(self.config.batch_size);
        let mut slots = Vec::new();
        let mut found = BTreeMap::new();
        loop {
            self.fill(&mut slots)?;
            let failed = self.read_slots(&slots[own.clone()], &mut found);
            let failed = failed.map(|(index, error)| (own.start + index, error));
            let Some((place, error)) = self.part.first_bad(failed, &slots) else { break };
            let Slot { slot, row, .. } = slots[place];
            let skipped = self.skip(row, slot, error);
            self.part.agree(skipped)?;
            slots.retain(|other| other.row != row || other.slot < slot);
            self.ahead = (first_slot, 0);
        }
        if let Some(workers) = &mut self.workers {
            workers.forget_before(self.slot);
        }
        let items = slots[own.clone()].iter().filter_map(|slot| found.remove(&slot.slot));
        let items = items.collect();
        let rows = slots.iter().map(|slot| slot.row).collect();
        Ok(Batch { items, own, rows, first_slot, next_slot: self.slot })
    }

    /// Completes the slots of a batch by the next ones whose rows are not skipped.
    fn fill(&mut self, slots: &mut Vec<Slot>) -> Result<(), DataError> {
        while slots.len() < self.config.batch_size {
            let slot = self.slot;
            if self.skip_list.skips_all(self.source.len(), slot) {
                return Err(DataError::AllBad { rows: self.source.len() });
            }
            let Some((epoch, row)) = self.order.at(slot) else {
                return Err(DataError::Empty);
            };
            self.slot += 1;
            if !self.skip_list.skips(row, slot) {
                slots.push(Slot { slot, row, epoch });
            }
        }
        Ok(())
    }

    /// Reads those of `slots` that are not in `found`. Returns the index and the error of the first bad one.
    fn read_slots(
        &mut self,
        slots: &[Slot],
        found: &mut BTreeMap<u64, S::Item>,
    ) -> Option<(usize, DataError)> {
        for (index, slot) in slots.iter().enumerate() {
            if found.contains_key(&slot.slot) {
                continue;
            }
            match self.take_slot(slot) {
                Ok(item) => found.insert(slot.slot, item),
                Err(error) => return Some((index, error)),
            };
        }
        None
    }

    /// Returns the sample of a slot, from a worker or read in this thread.
    fn take_slot(&mut self, slot: &Slot) -> Read<S::Item> {
        let Some(workers) = &mut self.workers else {
            return read(&*self.source, slot.row, slot.epoch);
        };
        workers.request((slot.slot, slot.row, slot.epoch))?;
        // Keep the workers busy with the slots of the batches to read ahead.
        let own = self.part.of(self.config.batch_size);
        while self.ahead.0 < slot.slot + self.config.ahead() as u64 {
            let (slot, place) = self.ahead;
            if let Some((epoch, row)) = self.order.at(slot)
                && !self.skip_list.skips(row, slot)
            {
                if own.contains(&place) {
                    workers.request((slot, row, epoch))?;
                }
                self.ahead.1 = (place + 1) % self.config.batch_size;
            }
            self.ahead.0 += 1;
        }
        workers.receive(slot.slot)
    }

    /// Lists a row that is bad in `slot`, or returns its error if no more are allowed.
    fn skip(&mut self, row: usize, slot: u64, error: DataError) -> Result<(), DataError> {
        if self.config.skip_bad == 0 || !matches!(error, DataError::Row { .. }) {
            return Err(error);
        }
        // A listed row can fail before its slot, if its file was damaged since.
        let is_new = !self.skipped().contains_key(&row);
        if is_new && self.newly_skipped == self.config.skip_bad {
            let allowed = self.config.skip_bad;
            return Err(DataError::TooManyBad { allowed, source: Box::new(error) });
        }
        let skipped = Skipped { slot, reason: error_line(&error) };
        self.skip_list.add(row, &name_of(&*self.source, row), skipped)?;
        self.newly_skipped += usize::from(is_new);
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
