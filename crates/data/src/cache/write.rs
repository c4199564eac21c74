//! Writes a cache, shard by shard.

use super::{
    CacheKey, CachedRow, FORMAT, INDEX, Index, Shard, bad_because, bad_file,
    hash::{digest, hash_file},
    io_error, json, parse_json, write_json,
};
use crate::{ClipDataset, DataError, Observer, RowsDone, encode::ClipEncoder, loader::read_caught};
use opensora_checkpoint::MAX_TENSORS;
use opensora_files::{Lock, error_line, remove_if_present, remove_unfinished, write_atomically};
use safetensors::tensor::{Dtype, TensorView};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// File that is locked while a process writes the cache.
const LOCK: &str = "write.lock";

/// The inputs and settings of [`write()`].
#[derive(Clone, Copy)]
pub struct CacheJob<'a> {
    /// The clips. Windows and flips are drawn for every variant of its [`ClipSpec`](crate::ClipSpec).
    pub dataset: &'a ClipDataset,
    /// VAE and text encoder.
    pub encoder: &'a ClipEncoder,
    /// The settings and models that the cache is made from.
    pub key: &'a CacheKey,
    /// Size in bytes at which a shard ends. One shard is held in memory.
    pub shard_bytes: usize,
    /// Maximum number of bad rows that are left out of the cache; one more is an error.
    pub skip_bad: usize,
}

impl<'a> CacheJob<'a> {
    /// Returns a job that writes shards of 256 MiB and accepts no bad row.
    pub fn new(dataset: &'a ClipDataset, encoder: &'a ClipEncoder, key: &'a CacheKey) -> Self {
        Self { dataset, encoder, key, shard_bytes: 256 << 20, skip_bad: 0 }
    }

    /// Sets the size in bytes at which a shard ends.
    pub fn with_shard_bytes(self, shard_bytes: usize) -> Self {
        Self { shard_bytes, ..self }
    }

    /// Sets the maximum number of bad rows that are left out.
    pub fn with_skip_bad(self, skip_bad: usize) -> Self {
        Self { skip_bad, ..self }
    }
}

/// Writes or completes the cache in `folder`. If `observer` breaks, the rows encoded so far are kept as a
/// shard, and the next call resumes there; a break while the files are read ([`Observer::row_read`]) changes nothing and
/// counts 0 rows as done.
///
/// Returns the bad rows that were left out, with the reasons. They keep their numbers but have no
/// latents: reading one is an error of that row, as it is without a cache.
///
/// # Errors
/// Returns an error if the VAE does not support the size of the clips, another process writes the cache, a row cannot be
/// read or encoded and is not left out, a file cannot be written, or `observer` breaks before the last row
/// ([`DataError::Stopped`]). Complete shards stay.
pub fn write(
    job: &CacheJob<'_>,
    folder: &Path,
    observer: &mut dyn Observer,
) -> Result<BTreeMap<usize, String>, DataError> {
    if *job.dataset.spec() != job.key.clip || job.dataset.seed() != job.key.seed {
        return Err(bad_file(folder, "the key's clips or seed are not those of the data set"));
    }
    // Before the files of an earlier cache are replaced.
    job.encoder.check(job.dataset.spec())?;
    fs::create_dir_all(folder).map_err(io_error(folder))?;
    // Until the end: incomplete files of another process are no leftovers.
    let _lock =
        Lock::take(&folder.join(LOCK)).map_err(bad_because(folder, "it cannot be written"))?;
    remove_partial(folder)?;
    let rows = rows(job, observer)?;
    let settings = digest(&serde_json::to_vec(job.key).map_err(json(folder))?);
    let bad = BTreeMap::new();
    let mut writer = CacheWriter { job, folder, rows, settings, bad, observer, is_stopped: false };
    let mut shards: Vec<Shard> = Vec::new();
    let mut first = 0;
    while first < writer.rows.len() {
        let shard = writer.shard(shards.len(), first)?;
        first += shard.captions.len();
        writer.tell(first);
        shards.push(shard);
        let total = writer.rows.len();
        if writer.is_stopped && first < total {
            return Err(DataError::Stopped { done: first, total });
        }
    }
    if writer.bad.len() == writer.rows.len() {
        return Err(bad_file(folder, format!("all {} rows are bad", writer.bad.len())));
    }
    let CacheWriter { rows, bad, .. } = writer;
    let count = shards.len();
    let index = Index { format: FORMAT, key: job.key.clone(), rows, shards };
    write_json(&folder.join(INDEX), &index)?;
    remove_behind(folder, count)?;
    Ok(bad)
}

/// Returns the manifest's rows with sizes and hashes of their files. If bad rows may be left out, files that
/// cannot be read have no hash.
fn rows(job: &CacheJob<'_>, observer: &mut dyn Observer) -> Result<Vec<CachedRow>, DataError> {
    let rows = &job.dataset.manifest().rows;
    let total = rows.len();
    let rows = rows.iter().enumerate();
    rows.map(|(number, row)| {
        if row.path.to_str().is_none() {
            let reason = "its path is not UTF-8, as the index of a cache is".into();
            return Err(DataError::Row {
                row: number,
                path: row.path.clone(),
                reason,
                source: None,
            });
        }
        let (bytes, sha256) = match hash_file(&row.path) {
            Ok(found) => found,
            // Encoding reports the row as bad.
            Err(_) if job.skip_bad > 0 => (0, String::new()),
            Err(DataError::Io { path, source }) => {
                let (reason, source) = ("cannot read".into(), Some(source.into()));
                return Err(DataError::Row { row: number, path, reason, source });
            }
            Err(error) => return Err(error),
        };
        let event = RowsDone { done: number + 1, total };
        if observer.row_read(&event).is_break() {
            return Err(DataError::Stopped { done: 0, total });
        }
        Ok(CachedRow { path: row.path.clone(), caption: row.caption.clone(), bytes, sha256 })
    })
    .collect()
}

struct CacheWriter<'a> {
    job: &'a CacheJob<'a>,
    folder: &'a Path,
    rows: Vec<CachedRow>,
    /// SHA-256 of the key.
    settings: String,
    bad: BTreeMap<usize, String>,
    observer: &'a mut dyn Observer,
    /// True after `observer` broke.
    is_stopped: bool,
}

/// Tensors, captions and bad rows of a shard that is not yet written.
#[derive(Default)]
struct Contents {
    tensors: Vec<(String, Vec<usize>, Vec<u8>)>,
    bytes: usize,
    captions: Vec<usize>,
    masks: Vec<Vec<bool>>,
    latent_shape: [usize; 4],
    width: usize,
    bad: Vec<(usize, String)>,
}

impl Contents {
    fn push(&mut self, name: String, shape: Vec<usize>, values: &[f32]) {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.bytes += bytes.len();
        self.tensors.push((name, shape, bytes));
    }
}

impl CacheWriter<'_> {
    fn tell(&mut self, done: usize) {
        let event = RowsDone { done, total: self.rows.len() };
        self.is_stopped |= self.observer.rows_done(&event).is_break();
    }

    /// Returns the shard that begins at row `first`, reused or written.
    fn shard(&mut self, number: usize, first: usize) -> Result<Shard, DataError> {
        // The cause of a bad row can be gone though its file is the same: a missing program, too little memory.
        let is_bad = |&(row, _): &(usize, String)| {
            self.row(row, &mut Contents::default(), &mut BTreeMap::new()).is_err()
        };
        let kept = self.kept(number, first)?;
        if let Some(shard) = kept.filter(|shard| shard.bad.iter().all(is_bad)) {
            for (row, reason) in &shard.bad {
                self.note_bad(*row, reason)?;
            }
            return Ok(shard);
        }
        // Index and sidecar are removed first: a cache that is being replaced is incomplete.
        let sidecar = sidecar(self.folder, number);
        for mark in [&self.folder.join(INDEX), &sidecar] {
            remove(mark)?;
        }
        let contents = self.encode(number, first)?;
        let shard = self.save(number, first, contents)?;
        write_json(&sidecar, &shard)?;
        Ok(shard)
    }

    /// Returns the shard on disk if it is complete and was made from the same inputs.
    fn kept(&self, number: usize, first: usize) -> Result<Option<Shard>, DataError> {
        let Some(shard) = read_sidecar(self.folder, number) else { return Ok(None) };
        let end = first.saturating_add(shard.captions.len());
        if shard.first != first || shard.captions.is_empty() || end > self.rows.len() {
            return Ok(None);
        }
        // Different inputs are found without reading the shard.
        if shard.file != file_name(number) || shard.inputs != self.inputs(first, end)? {
            return Ok(None);
        }
        let rows = shard.captions.len().saturating_sub(shard.bad.len());
        if self.tensors_of(rows, shard.masks.len()) > MAX_TENSORS {
            return Ok(None);
        }
        let sha256 = hash_file(&self.folder.join(&shard.file)).ok().map(|(_, sha256)| sha256);
        Ok(sha256.is_some_and(|sha256| sha256 == shard.sha256).then_some(shard))
    }

    /// Returns the tensors of `rows` rows with `captions` different captions.
    fn tensors_of(&self, rows: usize, captions: usize) -> usize {
        let variants = usize::try_from(self.job.key.variants()).unwrap_or(usize::MAX);
        rows.saturating_mul(variants).saturating_mul(2).saturating_add(captions)
    }

    /// Returns the SHA-256 of everything that the contents of a shard depend on: settings, row numbers,
    /// captions and files, without their paths.
    fn inputs(&self, first: usize, end: usize) -> Result<String, DataError> {
        let rows: Vec<_> = self.rows[first..end]
            .iter()
            .map(|row| (&row.caption, row.bytes, &row.sha256))
            .collect();
        let text = serde_json::to_vec(&(&self.settings, first, rows)).map_err(json(self.folder))?;
        Ok(digest(&text))
    }

    fn encode(&mut self, number: usize, first: usize) -> Result<Contents, DataError> {
        // The shard after a replaced one keeps its first row unless the replacement gets too large.
        let next = read_sidecar(self.folder, number + 1)
            .filter(|next| next.settings == self.settings && next.first > first)
            .map(|next| next.first);
        let limit = self.job.shard_bytes.saturating_mul(if next.is_some() { 2 } else { 1 });
        let end = next.unwrap_or(usize::MAX).min(self.rows.len());
        let mut contents = Contents::default();
        let mut known = BTreeMap::new();
        for row in first..end {
            match self.row(row, &mut contents, &mut known) {
                Err(error @ DataError::Row { .. }) if self.job.skip_bad > 0 => {
                    let reason = reason_of(row, &error);
                    self.note_bad(row, &reason)?;
                    contents.bad.push((row, reason));
                    contents.captions.push(0);
                }
                done => done?,
            }
            self.tell(row + 1);
            // A file with more tensors cannot be opened.
            let tensors = contents.tensors.len().saturating_add(self.tensors_of(1, 1));
            let is_full = tensors > MAX_TENSORS;
            if contents.bytes >= limit || is_full || self.is_stopped {
                break;
            }
        }
        Ok(contents)
    }

    /// Encodes a row and adds its tensors to `contents`, all or none. `known` has the number of each
    /// caption of the shard.
    fn row(
        &self,
        row: usize,
        contents: &mut Contents,
        known: &mut BTreeMap<String, usize>,
    ) -> Result<(), DataError> {
        let (dataset, encoder) = (self.job.dataset, self.job.encoder);
        let clips = (0..self.job.key.variants())
            .map(|variant| encoder.clip(&read_caught(dataset, row, variant)?))
            .collect::<Result<Vec<_>, _>>()?;
        let CachedRow { caption, path, .. } = &self.rows[row];
        let number = match known.get(caption) {
            Some(&number) => number,
            None => {
                let encoded = encoder.caption_of(row, path, caption)?;
                let number = known.len();
                known.insert(caption.clone(), number);
                contents.width = encoded.width;
                let shape = vec![encoded.mask.len(), encoded.width];
                contents.push(format!("states.{number}"), shape, &encoded.states);
                contents.masks.push(encoded.mask);
                number
            }
        };
        for (variant, clip) in clips.into_iter().enumerate() {
            contents.latent_shape = clip.shape;
            for (name, values) in [("mean", clip.mean), ("logvar", clip.logvar)] {
                contents.push(format!("{name}.{row}.{variant}"), clip.shape.to_vec(), &values);
            }
        }
        contents.captions.push(number);
        Ok(())
    }

    fn note_bad(&mut self, row: usize, reason: &str) -> Result<(), DataError> {
        if self.bad.len() == self.job.skip_bad {
            let allowed = match self.job.skip_bad {
                0 => "no bad row is allowed".into(),
                allowed => format!("more than the {allowed} bad rows that are allowed"),
            };
            let reason = format!("{allowed}: {reason}");
            return Err(DataError::row(row, &self.rows[row].path, reason));
        }
        self.bad.insert(row, reason.into());
        Ok(())
    }

    fn save(&self, number: usize, first: usize, contents: Contents) -> Result<Shard, DataError> {
        let file = file_name(number);
        let path = self.folder.join(&file);
        let views = contents
            .tensors
            .iter()
            .map(|(key, shape, bytes)| {
                TensorView::new(Dtype::F32, shape.clone(), bytes)
                    .map(|view| (key.clone(), view))
                    .map_err(bad_because(&path, format!("cannot write {key}")))
            })
            .collect::<Result<Vec<_>, _>>()?;
        write_atomically(&path, |temporary| {
            safetensors::serialize_to_file(views, None, temporary).map_err(io::Error::other)
        })
        .map_err(io_error(&path))?;
        let (_, sha256) = hash_file(&path)?;
        let inputs = self.inputs(first, first + contents.captions.len())?;
        let Contents { captions, masks, latent_shape, width, bad, .. } = contents;
        let settings = self.settings.clone();
        Ok(Shard {
            file,
            settings,
            inputs,
            sha256,
            first,
            captions,
            masks,
            latent_shape,
            width,
            bad,
        })
    }
}

/// Returns the reason of a row's error and its causes, without the row's number and file.
fn reason_of(row: usize, error: &DataError) -> String {
    match error {
        DataError::Row { row: named, reason, source, .. } if *named == row => match source {
            Some(source) => format!("{reason}: {}", error_line(source.as_ref())),
            None => reason.clone(),
        },
        other => error_line(other),
    }
}

fn file_name(number: usize) -> String {
    format!("shard-{number:05}.safetensors")
}

fn sidecar(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("shard-{number:05}.json"))
}

fn read_sidecar(folder: &Path, number: usize) -> Option<Shard> {
    let path = sidecar(folder, number);
    parse_json(&path, &fs::read(&path).ok()?).ok()
}

fn remove(path: &Path) -> Result<(), DataError> {
    remove_if_present(path).map_err(io_error(path))
}

/// Returns the names of the files in a cache's folder.
fn names(folder: &Path) -> Result<Vec<String>, DataError> {
    let entries = fs::read_dir(folder).map_err(io_error(folder))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.collect())
}

/// Removes incomplete files of killed processes, also under the names of earlier versions. Only one
/// process at a time writes a cache, so none of them is in use.
fn remove_partial(folder: &Path) -> Result<(), DataError> {
    remove_unfinished(folder).map_err(io_error(folder))?;
    let ours = |name: &String| name.starts_with(".shard-") || name.starts_with(".index.json.");
    for name in names(folder)?.iter().filter(|name| ours(name) && name.ends_with(".partial")) {
        remove(&folder.join(name))?;
    }
    Ok(())
}

/// Removes the shards after the first `count`, which a larger cache left.
fn remove_behind(folder: &Path, count: usize) -> Result<(), DataError> {
    for name in names(folder)? {
        let number = name.strip_prefix("shard-").and_then(|rest| {
            rest.strip_suffix(".safetensors").or_else(|| rest.strip_suffix(".json"))
        });
        if number.and_then(|text| text.parse().ok()).is_some_and(|number: usize| number >= count) {
            remove(&folder.join(&name))?;
        }
    }
    Ok(())
}
