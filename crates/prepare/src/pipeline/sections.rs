//! Sections of a pipeline's settings file that differ from the settings of their steps.

#[cfg(feature = "caption")]
mod caption;

#[cfg(feature = "caption")]
pub use caption::CaptionSection;

use crate::{
    PrepareError, RunOptions,
    clean::{self, Openings},
    filter::{self, Bound, Duplicates, FilterError, Keep},
};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// `[filter]`: bounds of clips, and near-duplicates.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FilterSection {
    /// Minimum values by column.
    pub min: BTreeMap<String, f64>,
    /// Maximum values by column.
    pub max: BTreeMap<String, f64>,
    /// Drops near-duplicates. Shards only measure hashes; near-duplicates are dropped when their merged
    /// table is filtered.
    pub duplicates: bool,
    /// Maximum distance of near-duplicates in bits of 64.
    pub max_distance: Option<f64>,
}

impl FilterSection {
    pub(super) fn job(&self, options: RunOptions) -> Result<filter::Job, PrepareError> {
        let columns = self.min.keys().chain(self.max.keys().filter(|c| !self.min.contains_key(*c)));
        let bound = |column: &String| {
            Bound::new(column, self.min.get(column).copied(), self.max.get(column).copied())
        };
        let bounds: Result<Vec<Bound>, FilterError> = columns.map(bound).collect();
        let max_distance = self.max_distance.unwrap_or(Duplicates::default().max_distance);
        let duplicates = Duplicates { max_distance, keep: Keep::Longest };
        Ok(filter::Job {
            bounds: bounds?,
            duplicates: self.duplicates.then_some(duplicates),
            options,
            ..filter::Job::default()
        })
    }
}

/// `[clean]`: cleaning of captions and paths.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CleanSection {
    /// File of caption openings to remove, one per line, instead of the built-in ones.
    pub openings: Option<PathBuf>,
    /// Counts the frames of each file again.
    pub relength: bool,
}

impl CleanSection {
    pub(super) fn job(
        &self,
        folder: &Path,
        options: RunOptions,
    ) -> Result<clean::Job, PrepareError> {
        let openings = self.openings.as_ref().map(|file| Openings::read(&folder.join(file)));
        Ok(clean::Job {
            openings: openings.transpose()?.unwrap_or_default(),
            relength: self.relength,
            options,
            ..clean::Job::default()
        })
    }
}
