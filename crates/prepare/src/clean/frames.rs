//! Counts the frames of files by decoding them, each file once.

use super::Job;
use crate::{
    Observer, PrepareError, RowError, RunOptions, Shard,
    assemble::journal_path,
    open::{open, regular},
    step::{self, Fault, Outcome, Run},
};
use opensora_manifest::{Table, table::PATH};
use opensora_video::{media::IMAGES, png, reader::Decoder};
use serde_json::json;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

/// Returns the number of frames of each row's file, or why they cannot be counted; `None` for rows of
/// `skip`.
///
/// A file that has changed since it was counted is counted again.
pub(super) fn count(
    job: &Job,
    input: &Table,
    skip: &[bool],
    out: &Path,
    observer: &mut dyn Observer,
) -> Result<Vec<Option<Result<usize, String>>>, PrepareError> {
    let mut files = HashMap::<String, usize>::new();
    let (mut keys, mut paths) = (Vec::new(), Vec::<PathBuf>::new());
    let mut of_row = vec![None; input.len()];
    for row in (0..input.len()).filter(|&row| !skip[row]) {
        let path = Path::new(input.get(row, PATH).unwrap_or_default());
        let key = Table::name_in(out, path)?.display().to_string();
        let file = *files.entry(key.clone()).or_insert(keys.len());
        if file == keys.len() {
            keys.push(key);
            paths.push(path.into());
        }
        of_row[row] = Some(file);
    }
    let run = Run {
        journal: journal_path(out),
        settings: json!({ "step": "relength" }),
        // The rows are those of the shard.
        options: RunOptions { shard: Shard::WHOLE, ..job.options },
    };
    let path = |file: usize| paths[file].as_path();
    let work = |file: usize| frames(path(file)).map_err(Fault::Row);
    let counted = step::run_on_files(&run, &keys, path, work, observer)?;
    let of_file = |file: usize| match &counted[file] {
        Some(Outcome::Done(frames)) => Ok(*frames),
        Some(Outcome::Failed(reason)) => Err(reason.clone()),
        // All files are of the one shard.
        None => Err("it was not counted".into()),
    };
    Ok(of_row.into_iter().map(|file| file.map(of_file)).collect())
}

/// Returns the number of frames of an image, a video or a folder of frames. Videos are decoded: the
/// numbers in their headers are what this step checks.
fn frames(path: &Path) -> Result<usize, RowError> {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    let ending = ending.to_ascii_lowercase();
    let count = if path.is_dir() {
        png::read_folder(path)?.len()
    } else if IMAGES.contains(&ending.as_str()) {
        regular(path).map(|_| 1)?
    } else {
        open(path, Decoder::Auto)?.try_fold(0, |count, frame| frame.map(|_| count + 1))?
    };
    if count == 0 { Err(RowError::NoFrames) } else { Ok(count) }
}
