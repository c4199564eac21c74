//! Frames counted anew, each file once.

use super::Job;
use crate::{
    PrepareError,
    assemble::journal_path,
    open::{open, regular, without_path},
    step::{self, Fault, Outcome, Run, Shard, Watch},
};
use opensora_manifest::{Table, table::PATH};
use opensora_video::{VideoError, media::IMAGES, png, reader::Decoder};
use serde_json::json;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

/// The number of frames of each row's file, or why there is none; `None` where `skip` says so.
///
/// A file that was changed since it was counted is counted again.
pub(super) fn count(
    input: &Table,
    skip: &[bool],
    job: &Job<'_>,
    watch: &mut dyn Watch,
) -> Result<Vec<Option<Result<usize, String>>>, PrepareError> {
    let mut files = HashMap::<String, usize>::new();
    let (mut keys, mut paths) = (Vec::new(), Vec::<PathBuf>::new());
    let mut of_row = vec![None; input.len()];
    for row in (0..input.len()).filter(|&row| !skip[row]) {
        let path = Path::new(input.get(row, PATH).unwrap_or_default());
        let key = Table::name_in(job.out, path)?.display().to_string();
        let file = *files.entry(key.clone()).or_insert(keys.len());
        if file == keys.len() {
            keys.push(key);
            paths.push(path.into());
        }
        of_row[row] = Some(file);
    }
    let run = Run {
        journal: journal_path(job.out),
        settings: json!({ "step": "relength" }),
        workers: job.workers,
        shard: Shard::WHOLE,
        retry_failed: job.retry_failed,
    };
    let path = |file: usize| paths[file].as_path();
    let work = |file: usize| frames(path(file)).map_err(Fault::Row);
    let counted = step::run_on_files(&run, &keys, path, work, watch)?;
    let of_file = |file: usize| match &counted[file] {
        Some(Outcome::Done(frames)) => Ok(*frames),
        Some(Outcome::Failed(reason)) => Err(reason.clone()),
        // All files are of the one shard.
        None => Err("it was not counted".into()),
    };
    Ok(of_row.into_iter().map(|file| file.map(of_file)).collect())
}

/// Frames of an image, a video or a folder of frames. Those of videos are decoded, as what a
/// file says of itself is what is doubted.
fn frames(path: &Path) -> Result<usize, String> {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    let ending = ending.to_ascii_lowercase();
    let strip = |error: VideoError| without_path(&error, path);
    let count = if path.is_dir() {
        png::read_folder(path).map_err(strip)?.len()
    } else if IMAGES.contains(&ending.as_str()) {
        regular(path).map(|_| 1)?
    } else {
        let mut video = open(path, Decoder::Auto)?;
        video.try_fold(0, |count, frame| frame.map(|_| count + 1)).map_err(strip)?
    };
    if count == 0 { Err("it has no frames".into()) } else { Ok(count) }
}
