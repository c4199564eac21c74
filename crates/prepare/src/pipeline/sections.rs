//! The sections of a pipeline's file, as far as steps have no settings of their own that can be
//! read from one.

#[cfg(feature = "caption")]
mod caption;

#[cfg(feature = "caption")]
pub use caption::CaptionSection;

use super::stages::{Clean, Filter};
use crate::{
    PrepareError,
    clean::{self, Openings},
    filter::{Bound, Duplicates, FilterError, Keep},
};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// `[filter]`: which clips stay.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FilterSection {
    /// Least values by column.
    pub min: BTreeMap<String, f64>,
    /// Greatest values by column.
    pub max: BTreeMap<String, f64>,
    /// Whether near-duplicates go. Parts of a job array measure hashes, and near-duplicates go when the
    /// parts are merged and filtered once more.
    pub duplicates: bool,
    /// Most bits of 64 in which near-duplicates differ.
    pub max_distance: Option<f64>,
}

impl FilterSection {
    pub(super) fn stage(&self, workers: usize, retry_failed: bool) -> Result<Filter, PrepareError> {
        let columns = self.min.keys().chain(self.max.keys().filter(|c| !self.min.contains_key(*c)));
        let bound = |column: &String| {
            Bound::new(column, self.min.get(column).copied(), self.max.get(column).copied())
        };
        let bounds: Result<Vec<Bound>, FilterError> = columns.map(bound).collect();
        let max_distance = self.max_distance.unwrap_or(Duplicates::default().max_distance);
        let duplicates = Duplicates { max_distance, keep: Keep::Longest };
        Ok(Filter {
            bounds: bounds.map_err(Box::new)?,
            duplicates: self.duplicates.then_some(duplicates),
            hashes: false,
            workers,
            retry_failed,
        })
    }
}

/// `[clean]`: captions and rows in order.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CleanSection {
    /// File of caption openings to drop, one a line, instead of the built-in ones.
    pub openings: Option<PathBuf>,
    /// Whether frames are counted anew.
    pub relength: bool,
}

impl CleanSection {
    pub(super) fn stage(
        &self,
        folder: &Path,
        workers: usize,
        retry_failed: bool,
    ) -> Result<Clean, PrepareError> {
        let openings = self.openings.as_ref().map(|file| Openings::read(&folder.join(file)));
        let settings = clean::Settings {
            openings: openings.transpose()?.unwrap_or_default(),
            relength: self.relength,
            ..clean::Settings::default()
        };
        Ok(Clean { settings, workers, retry_failed })
    }
}
