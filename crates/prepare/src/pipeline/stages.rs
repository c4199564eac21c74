//! This crate's steps as stages of a pipeline.

use super::Stage;
use crate::{
    PrepareError,
    assemble::Summary,
    scan::{self, Found},
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
        json!({})
    }

    fn run(
        &self,
        input: &Path,
        output: &Path,
        watch: &mut dyn Watch,
    ) -> Result<Summary, PrepareError> {
        let found = Found::walk(&[input.to_path_buf()])?;
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
