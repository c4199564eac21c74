//! Writing a cache, shard by shard.

use super::{
    CacheKey, CachedRow, FORMAT, INDEX, Index, Shard, bad_file,
    hash::{digest, hash_file},
    io_error, json, parse_json, write_json,
};
use crate::{ClipDataset, DataError, encode::ClipEncoder, loader::read_caught};
use opensora_files::{remove_leftovers, write_atomically};
use safetensors::tensor::{Dtype, TensorView};
use std::{
    collections::BTreeMap,
    fs, io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Duration,
};

/// What [`write()`] does.
pub struct CacheJob<'a> {
    /// The clips; windows and flips are drawn for every variant of its spec.
    pub dataset: &'a ClipDataset,
    /// VAE and text encoder.
    pub encoder: &'a ClipEncoder,
    /// What the cache is made from.
    pub key: &'a CacheKey,
    /// Bytes after which a shard ends. As many are held in memory.
    pub shard_bytes: usize,
}

/// Writes or completes the cache in `folder`. `progress` hears how many rows of all are done; if it
/// breaks, the rows done so far are kept as a shard, and the next call resumes there.
///
/// # Errors
/// Returns an error if a row cannot be read or encoded, a file cannot be written, or `progress`
/// breaks before the last row ([`DataError::Stopped`]). Complete shards stay.
pub fn write(
    job: &CacheJob<'_>,
    folder: &Path,
    progress: impl FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<(), DataError> {
    write_skipping(job, folder, 0, progress).map(|_| ())
}

/// As [`write()`], with up to `skip_bad` bad rows in the whole cache. These keep their numbers but
/// have no latents: reading one is its error, as it is without a cache. Returns them with the
/// reasons.
///
/// # Errors
/// As [`write()`], and where more rows are bad.
pub fn write_skipping(
    job: &CacheJob<'_>,
    folder: &Path,
    skip_bad: usize,
    progress: impl FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<BTreeMap<usize, String>, DataError> {
    if *job.dataset.spec() != job.key.clip || job.dataset.seed() != job.key.seed {
        let reason = "the key's clips or seed are not those of the data set".into();
        return Err(bad_file(folder, reason));
    }
    fs::create_dir_all(folder).map_err(io_error(folder))?;
    remove_partial(folder)?;
    let rows = rows(job.dataset, skip_bad)?;
    let settings = digest(&serde_json::to_vec(job.key).map_err(json(folder))?);
    let bad = BTreeMap::new();
    let mut writer =
        CacheWriter { job, folder, rows, settings, skip_bad, bad, progress, is_stopped: false };
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

/// The manifest's rows with what their files hold.
fn rows(dataset: &ClipDataset, skip_bad: usize) -> Result<Vec<CachedRow>, DataError> {
    let rows = dataset.manifest().rows.iter().enumerate();
    rows.map(|(number, row)| {
        let (bytes, sha256) = match hash_file(&row.path) {
            Ok(found) => found,
            // The row is bad when its turn comes.
            Err(_) if skip_bad > 0 => (0, String::new()),
            Err(DataError::Io { path, source }) => {
                return Err(DataError::Row { row: number, path, reason: source.to_string() });
            }
            Err(error) => return Err(error),
        };
        Ok(CachedRow { path: row.path.clone(), caption: row.caption.clone(), bytes, sha256 })
    })
    .collect()
}

struct CacheWriter<'a, P> {
    job: &'a CacheJob<'a>,
    folder: &'a Path,
    rows: Vec<CachedRow>,
    /// SHA-256 of the key.
    settings: String,
    skip_bad: usize,
    bad: BTreeMap<usize, String>,
    progress: P,
    /// Whether `progress` has broken.
    is_stopped: bool,
}

/// A shard in memory.
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

impl<P: FnMut(usize, usize) -> ControlFlow<()>> CacheWriter<'_, P> {
    fn tell(&mut self, done: usize) {
        self.is_stopped |= (self.progress)(done, self.rows.len()).is_break();
    }

    /// The shard that begins at row `first`, kept or written.
    fn shard(&mut self, number: usize, first: usize) -> Result<Shard, DataError> {
        if let Some(shard) = self.kept(number, first)? {
            for (row, reason) in &shard.bad {
                self.note_bad(*row, reason)?;
            }
            return Ok(shard);
        }
        // Marks go first: what is being replaced is not whole.
        let sidecar = sidecar(self.folder, number);
        for mark in [&self.folder.join(INDEX), &sidecar] {
            remove(mark)?;
        }
        let contents = self.encode(number, first)?;
        let shard = self.save(number, first, contents)?;
        write_json(&sidecar, &shard)?;
        Ok(shard)
    }

    /// A shard that is there, whole, and made from the same.
    fn kept(&self, number: usize, first: usize) -> Result<Option<Shard>, DataError> {
        let Some(shard) = read_sidecar(self.folder, number) else { return Ok(None) };
        let end = first.saturating_add(shard.captions.len());
        if shard.first != first || shard.captions.is_empty() || end > self.rows.len() {
            return Ok(None);
        }
        // What differs is found without reading the shard.
        if shard.file != file_name(number) || shard.inputs != self.inputs(first, end)? {
            return Ok(None);
        }
        let sha256 = hash_file(&self.folder.join(&shard.file)).ok().map(|(_, sha256)| sha256);
        Ok(sha256.is_some_and(|sha256| sha256 == shard.sha256).then_some(shard))
    }

    /// SHA-256 of what decides the contents of a shard: not where files lie.
    fn inputs(&self, first: usize, end: usize) -> Result<String, DataError> {
        let rows: Vec<_> = self.rows[first..end]
            .iter()
            .map(|row| (&row.caption, row.bytes, &row.sha256))
            .collect();
        let text = serde_json::to_vec(&(&self.settings, first, rows)).map_err(json(self.folder))?;
        Ok(digest(&text))
    }

    fn encode(&mut self, number: usize, first: usize) -> Result<Contents, DataError> {
        // Where a shard is replaced, the next one keeps its place, unless that takes too much.
        let next = read_sidecar(self.folder, number + 1)
            .filter(|next| next.settings == self.settings && next.first > first)
            .map(|next| next.first);
        let limit = self.job.shard_bytes.saturating_mul(if next.is_some() { 2 } else { 1 });
        let end = next.unwrap_or(usize::MAX).min(self.rows.len());
        let mut contents = Contents::default();
        let mut known = BTreeMap::new();
        for row in first..end {
            match self.row(row, &mut contents, &mut known) {
                Err(error @ DataError::Row { .. }) if self.skip_bad > 0 => {
                    let reason = words(row, &error);
                    self.note_bad(row, &reason)?;
                    contents.bad.push((row, reason));
                    contents.captions.push(0);
                }
                done => done?,
            }
            self.tell(row + 1);
            if contents.bytes >= limit || self.is_stopped {
                break;
            }
        }
        Ok(contents)
    }

    /// Adds a row, all of it or nothing.
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
        if self.bad.len() == self.skip_bad {
            let path = self.rows[row].path.clone();
            let allowed = match self.skip_bad {
                0 => "no bad row is allowed".into(),
                allowed => format!("more than the {allowed} bad rows that are allowed"),
            };
            return Err(DataError::Row { row, path, reason: format!("{allowed}: {reason}") });
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
                    .map_err(|error| bad_file(&path, error.to_string()))
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

/// What an error says of a row, without its number and file.
fn words(row: usize, error: &DataError) -> String {
    match error {
        DataError::Row { row: named, reason, .. } if *named == row => reason.clone(),
        other => other.to_string(),
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
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(path)(error)),
        _ => Ok(()),
    }
}

/// Names of the files in a cache's folder.
fn names(folder: &Path) -> Result<Vec<String>, DataError> {
    let entries = fs::read_dir(folder).map_err(io_error(folder))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.collect())
}

/// Removes what killed processes left half-written, also under the names of earlier versions. Only
/// one process at a time writes a cache, so none of it is in use.
fn remove_partial(folder: &Path) -> Result<(), DataError> {
    remove_leftovers(folder, Duration::ZERO).map_err(io_error(folder))?;
    let ours = |name: &String| name.starts_with(".shard-") || name.starts_with(".index.json.");
    for name in names(folder)?.iter().filter(|name| ours(name) && name.ends_with(".partial")) {
        remove(&folder.join(name))?;
    }
    Ok(())
}

/// The shards behind the last of `count`, of a cache that was larger.
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
