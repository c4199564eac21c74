//! This crate's steps as stages of a pipeline.

#[cfg(feature = "caption")]
mod caption;

#[cfg(feature = "caption")]
pub use caption::Caption;

use super::Stage;
use crate::{
    PrepareError,
    assemble::Summary,
    clean,
    filter::{self, Bound, Duplicates},
    scan::{self, Found, Walk},
    split,
    step::{Shard, Watch},
};
use opensora_manifest::Table;
use opensora_video::reader::Decoder;
use serde_json::{Value, json};
use std::path::Path;

/// A folder of videos as a table: [`scan::scan`].
#[derive(Debug, Clone)]
pub struct Scan {
    /// How the folder is walked.
    pub walk: Walk,
    /// Files that are opened at once.
    pub workers: usize,
    /// Whether files that could not be opened are tried again.
    pub retry_failed: bool,
}

impl Stage for Scan {
    fn name(&self) -> &str {
        "scan"
    }

    fn settings(&self) -> Value {
        match self.walk {
            // As earlier versions had it.
            Walk { follow_links: false } => json!({}),
            walk => json!(walk),
        }
    }

    fn run(
        &self,
        input: &Path,
        output: &Path,
        watch: &mut dyn Watch,
    ) -> Result<Summary, PrepareError> {
        let found = Found::walk_with(&[input.to_path_buf()], self.walk)?;
        let job = scan::Job {
            out: output.into(),
            decoder: Decoder::Auto,
            workers: self.workers,
            retry_failed: self.retry_failed,
        };
        scan::scan(&found, &job, watch)
    }
}

/// Videos cut into clips: [`split::split`].
#[derive(Debug, Clone)]
pub struct Split {
    /// What clips are like.
    pub settings: split::Settings,
    /// Videos worked on at once.
    pub workers: usize,
    /// Whether videos that gave no clips are tried again.
    pub retry_failed: bool,
}

impl Stage for Split {
    fn name(&self) -> &str {
        "split"
    }

    fn settings(&self) -> Value {
        json!(self.settings)
    }

    fn run(
        &self,
        input: &Path,
        output: &Path,
        watch: &mut dyn Watch,
    ) -> Result<Summary, PrepareError> {
        let job = split::Job {
            workers: self.workers,
            shard: Shard::WHOLE,
            retry_failed: self.retry_failed,
            // Not of the table's name: the step's own folder is called that already.
            clips: output.with_file_name("clips"),
            ..split::Job::new(output)
        };
        split::split(&Table::read(input)?, &self.settings, &job, watch)
    }
}

/// Clips measured, and those out of bounds left out: [`filter::run`].
#[derive(Debug, Clone)]
pub struct Filter {
    /// What rows are judged by.
    pub bounds: Vec<Bound>,
    /// Whether and how near-duplicates go; not in a part of a job array, which measures hashes instead.
    pub duplicates: Option<Duplicates>,
    /// Whether hashes are measured without looking for near-duplicates.
    pub hashes: bool,
    /// Files measured at once.
    pub workers: usize,
    /// Whether files that could not be read are tried again.
    pub retry_failed: bool,
}

impl Stage for Filter {
    fn name(&self) -> &str {
        "filter"
    }

    fn settings(&self) -> Value {
        let distance = self.duplicates.map(|duplicates| duplicates.max_distance);
        let mut settings = json!({ "bounds": self.bounds, "duplicates": distance });
        if self.hashes {
            settings["hashes"] = true.into();
        }
        settings
    }

    fn for_part(&self) -> Option<Box<dyn Stage>> {
        self.duplicates?;
        Some(Box::new(Self { duplicates: None, hashes: true, ..self.clone() }))
    }

    fn run(
        &self,
        input: &Path,
        output: &Path,
        watch: &mut dyn Watch,
    ) -> Result<Summary, PrepareError> {
        let job = filter::Job {
            bounds: self.bounds.clone(),
            duplicates: self.duplicates,
            hashes: self.hashes,
            workers: self.workers,
            retry_failed: self.retry_failed,
            ..filter::Job::new(output)
        };
        let report = filter::run(&Table::read(input)?, &job, watch).map_err(Box::new)?;
        // What was dropped was judged, and is listed apart.
        Ok(Summary { input: report.rows, output: report.kept, failed: report.failed })
    }
}

/// Captions and rows put in order: [`clean::clean`].
#[derive(Debug, Clone)]
pub struct Clean {
    /// What is cleaned.
    pub settings: clean::Settings,
    /// Files that are read at once.
    pub workers: usize,
    /// Whether files that could not be read are tried again.
    pub retry_failed: bool,
}

impl Stage for Clean {
    fn name(&self) -> &str {
        "clean"
    }

    fn settings(&self) -> Value {
        json!({ "openings": self.settings.openings, "relength": self.settings.relength })
    }

    fn run(
        &self,
        input: &Path,
        output: &Path,
        watch: &mut dyn Watch,
    ) -> Result<Summary, PrepareError> {
        let (workers, retry_failed) = (self.workers, self.retry_failed);
        let job = clean::Job { out: output, workers, retry_failed };
        let counts = clean::clean(&Table::read(input)?, &self.settings, &job, watch)?;
        Ok(Summary { input: counts.rows, output: counts.written, failed: counts.listed })
    }
}
