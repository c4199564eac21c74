//! Opening a cache and reading from it.

use super::{
    CacheKey, CachedRow, FORMAT, INDEX, Index, Shard, bad_file,
    hash::{digest, for_each_parallel, hash_file},
    io_error, json, parse_json,
};
use crate::{
    ClipDataset, ClipSpec, DataError, Source,
    encode::{EncodedCaption, EncodedClip, EncodedSample},
};
use opensora_checkpoint::Checkpoint;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// An opened cache, read by position and not held in memory.
#[derive(Debug)]
pub struct LatentCache {
    folder: PathBuf,
    key: CacheKey,
    rows: Vec<CachedRow>,
    shards: Vec<(Shard, Checkpoint)>,
}

impl LatentCache {
    /// Opens a cache that was made with the settings of `clip`; where that names no number of
    /// variants, with any.
    ///
    /// # Errors
    /// Where it is not complete, was made with other settings, or is damaged.
    pub fn open_for(folder: &Path, clip: &ClipSpec) -> Result<Self, DataError> {
        Self::open_as(folder, |key| CacheKey { clip: clip.clone(), ..key.clone() })
    }

    /// Opens a cache and compares every checksum.
    ///
    /// # Errors
    /// Where it is not complete or damaged.
    pub fn open(folder: &Path) -> Result<Self, DataError> {
        Self::open_as(folder, CacheKey::clone)
    }

    /// Returns the files of the rows, where they were when the cache was written.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.rows.iter().map(|row| row.path.as_path())
    }

    /// Opens a cache of the key that is wanted, given the one that it has.
    fn open_as(
        folder: &Path,
        wanted: impl FnOnce(&CacheKey) -> CacheKey,
    ) -> Result<Self, DataError> {
        let path = folder.join(INDEX);
        let text = fs::read(&path).map_err(|error| {
            bad_file(folder, format!("no complete cache of latents: {INDEX}: {error}"))
        })?;
        let Index { format, key, rows, shards } = parse_json(&path, &text)?;
        if format != FORMAT {
            return Err(bad_file(&path, format!("format {format}, expected {FORMAT}")));
        }
        let mut cache = Self { folder: folder.into(), key, rows, shards: Vec::new() };
        cache.check(&wanted(&cache.key))?;
        let mut next: usize = 0;
        for shard in shards {
            // Only names of files beside the index.
            let plain = Path::new(&shard.file).file_name().is_some_and(|name| *name == *shard.file);
            if !plain || shard.first != next {
                let reason = format!("its part on '{}' is not in order", shard.file);
                return Err(bad_file(&path, reason));
            }
            next += shard.captions.len();
            let file = folder.join(&shard.file);
            let checkpoint = Checkpoint::open(&file)
                .map_err(|error| bad_file(&file, format!("damaged: {error}")))?;
            cache.check_tensors(&shard, &checkpoint)?;
            cache.shards.push((shard, checkpoint));
        }
        if next != cache.rows.len() {
            let reason = format!("{} rows, but shards for {next}", cache.rows.len());
            return Err(bad_file(&path, reason));
        }
        for_each_parallel(&cache.shards, |(shard, _)| {
            let file = folder.join(&shard.file);
            match hash_file(&file)?.1 == shard.sha256 {
                true => Ok(()),
                false => Err(bad_file(&file, "damaged: the checksum is another one".into())),
            }
        })?;
        Ok(cache)
    }

    /// Fails where a row of a shard lacks a tensor or has one of another shape.
    fn check_tensors(&self, shard: &Shard, checkpoint: &Checkpoint) -> Result<(), DataError> {
        for (row, &caption) in (shard.first..).zip(&shard.captions) {
            if shard.bad(row).is_some() {
                continue;
            }
            for variant in 0..self.key.variants() {
                for key in latent_keys(row, variant) {
                    self.tensor(shard, checkpoint, &key, &shard.latent_shape)?;
                }
            }
            let mask = shard.masks.get(caption).ok_or_else(|| {
                let reason = format!("row {} has caption {caption} without mask", row + 1);
                bad_file(&self.folder.join(INDEX), reason)
            })?;
            let shape = [mask.len(), shard.width];
            self.tensor(shard, checkpoint, &format!("states.{caption}"), &shape)?;
        }
        Ok(())
    }

    /// A tensor of a shard, of this shape.
    fn tensor<'a>(
        &self,
        shard: &Shard,
        checkpoint: &'a Checkpoint,
        key: &str,
        shape: &[usize],
    ) -> Result<&'a opensora_checkpoint::TensorEntry, DataError> {
        let bad = |reason: String| {
            bad_file(&self.folder.join(&shard.file), format!("damaged: {key}: {reason}"))
        };
        let tensor = checkpoint.tensors().get(key).ok_or_else(|| bad("missing".into()))?;
        if tensor.shape() != shape {
            return Err(bad(format!("shape {:?}, expected {shape:?}", tensor.shape())));
        }
        Ok(tensor)
    }

    /// What it was made from, besides the rows.
    pub fn key(&self) -> &CacheKey {
        &self.key
    }

    /// SHA-256 of everything that it was made from: settings, models, captions and the contents of
    /// files, wherever these lie.
    ///
    /// # Errors
    /// Where a setting cannot be written as JSON.
    pub fn fingerprint(&self) -> Result<String, DataError> {
        let rows: Vec<_> =
            self.rows.iter().map(|row| (&row.caption, row.bytes, &row.sha256)).collect();
        Ok(digest(&serde_json::to_vec(&(&self.key, rows)).map_err(json(&self.folder))?))
    }

    /// Fails where the cache was made from other settings or models than `wanted`.
    ///
    /// # Errors
    /// Names the first that differs.
    pub fn check(&self, wanted: &CacheKey) -> Result<(), DataError> {
        match self.key.difference(wanted) {
            Some(difference) => Err(self.stale(difference)),
            None => Ok(()),
        }
    }

    /// Fails where the rows of `dataset` are not those that the cache was made from: name, caption
    /// and size of the file of each are compared, not its content, and not the folder it lies in.
    ///
    /// # Errors
    /// Names the first row that differs.
    pub fn check_rows(&self, dataset: &ClipDataset) -> Result<(), DataError> {
        let rows = &dataset.manifest().rows;
        if rows.len() != self.rows.len() {
            let text = format!("it had {} rows, and has {} now", self.rows.len(), rows.len());
            return Err(self.stale(text));
        }
        for (number, (row, cached)) in rows.iter().zip(&self.rows).enumerate() {
            let what = if row.path.file_name() != cached.path.file_name() {
                "path"
            } else if row.caption != cached.caption {
                "caption"
            } else if !cached.sha256.is_empty()
                && fs::metadata(&row.path).map_err(io_error(&row.path))?.len() != cached.bytes
            {
                "file"
            } else {
                continue;
            };
            return Err(self.stale(format!("the {what} of row {} is another one", number + 1)));
        }
        Ok(())
    }

    fn stale(&self, difference: String) -> DataError {
        bad_file(&self.folder, format!("stale: {difference}; encode anew"))
    }

    fn shard_of(&self, row: usize) -> Option<&(Shard, Checkpoint)> {
        let next = self.shards.partition_point(|(shard, _)| shard.first <= row);
        self.shards.get(next.checked_sub(1)?).filter(|_| row < self.rows.len())
    }
}

fn latent_keys(row: usize, variant: u64) -> [String; 2] {
    ["mean", "logvar"].map(|name| format!("{name}.{row}.{variant}"))
}

impl Source for LatentCache {
    type Item = EncodedSample;

    fn len(&self) -> usize {
        self.rows.len()
    }

    fn read(&self, row: usize, epoch: u64) -> Result<EncodedSample, DataError> {
        let (shard, checkpoint) =
            self.shard_of(row).ok_or(DataError::NoSuchRow { row, len: self.rows.len() })?;
        if let Some(reason) = shard.bad(row) {
            let reason = format!("left out of the cache: {reason}");
            return Err(DataError::Row { row, path: self.rows[row].path.clone(), reason });
        }
        let read = |key: String, shape: &[usize]| -> Result<Vec<f32>, DataError> {
            let bad = |reason| bad_file(&self.folder.join(&shard.file), format!("{key}: {reason}"));
            let data = self.tensor(shard, checkpoint, &key, shape)?.read(&key);
            let data = data.map_err(|error| bad(error.to_string()))?;
            data.try_into_vec::<f32>().map_err(|error| bad(error.to_string()))
        };
        let [mean, logvar] = latent_keys(row, epoch % self.key.variants());
        let shape = shard.latent_shape;
        let clip = EncodedClip { mean: read(mean, &shape)?, logvar: read(logvar, &shape)?, shape };
        let number = shard.captions[row - shard.first];
        let (mask, width) = (shard.masks[number].clone(), shard.width);
        let states = read(format!("states.{number}"), &[mask.len(), width])?;
        Ok(EncodedSample::new(row, clip, EncodedCaption { states, mask, width }))
    }

    fn describe(&self, row: usize) -> String {
        let path = self.rows.get(row).map(|cached| cached.path.display().to_string());
        format!("row {}: {}", row + 1, path.unwrap_or_default())
    }
}
