//! Opens a cache and reads samples from it.

use super::{
    CacheKey, CachedRow, FORMAT, INDEX, Index, Shard, bad_because, bad_file,
    hash::{digest, for_each_parallel, hash_file, may_be_model, size},
    io_error, json, parse_json,
};
use crate::{
    ClipDataset, ClipSpec, DataError, Source,
    encode::{EncodedCaption, EncodedClip, EncodedSample},
};
use opensora_checkpoint::{Checkpoint, CheckpointError};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// An opened cache. Samples are read from the files when they are needed.
#[derive(Debug)]
pub struct LatentCache {
    folder: PathBuf,
    key: CacheKey,
    rows: Vec<CachedRow>,
    shards: Vec<(Shard, Checkpoint)>,
}

impl LatentCache {
    /// Opens a cache that was made with the settings of `clip`, and compares all checksums. If `clip`
    /// has no number of variants, any number fits.
    ///
    /// # Errors
    /// Returns an error if the cache is incomplete or damaged, or was made with other settings.
    pub fn open_for(folder: &Path, clip: &ClipSpec) -> Result<Self, DataError> {
        Self::open_for_rank(folder, clip, [0, 1])
    }

    /// Opens a cache like [`open_for`](Self::open_for), as one of several ranks that all open it: `share` is `[rank, ranks]`.
    /// Compares the checksums of every `ranks`-th shard only, so a damaged shard is an error on one rank, of which the
    /// others must be told. If ranks have copies of the cache, a part of each copy is not compared.
    ///
    /// # Errors
    /// Returns an error if the cache is incomplete, was made with other settings, or is damaged in this rank's shards.
    pub fn open_for_rank(
        folder: &Path,
        clip: &ClipSpec,
        share: [usize; 2],
    ) -> Result<Self, DataError> {
        Self::open_as(folder, share, |key| CacheKey { clip: clip.clone(), ..key.clone() })
    }

    /// Opens a cache and compares all checksums.
    ///
    /// # Errors
    /// Returns an error if the cache is incomplete or damaged.
    pub fn open(folder: &Path) -> Result<Self, DataError> {
        Self::open_as(folder, [0, 1], CacheKey::clone)
    }

    /// Returns the files of the rows, as paths at the time when the cache was written.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.rows.iter().map(|row| row.path.as_path())
    }

    /// Returns the number of tokens of the longest prompt.
    pub fn longest_prompt(&self) -> usize {
        let masks = self.shards.iter().flat_map(|(shard, _)| &shard.masks);
        masks.map(Vec::len).max().unwrap_or(0)
    }

    /// Opens a cache whose key equals `wanted(key)`, and compares the checksums of this rank's shards.
    fn open_as(
        folder: &Path,
        [rank, ranks]: [usize; 2],
        wanted: impl FnOnce(&CacheKey) -> CacheKey,
    ) -> Result<Self, DataError> {
        let path = folder.join(INDEX);
        let text = fs::read(&path)
            .map_err(bad_because(folder, format!("no complete cache of latents: {INDEX}")))?;
        let Index { format, key, rows, shards } = parse_json(&path, &text)?;
        if format != FORMAT {
            return Err(bad_file(&path, format!("format {format}, expected {FORMAT}")));
        }
        let mut cache = Self { folder: folder.into(), key, rows, shards: Vec::new() };
        cache.check(&wanted(&cache.key))?;
        let mut next: usize = 0;
        for shard in shards {
            // Only file names beside the index.
            let plain = Path::new(&shard.file).file_name().is_some_and(|name| *name == *shard.file);
            if !plain || shard.first != next {
                let reason = format!("shard '{}' is out of order", shard.file);
                return Err(bad_file(&path, reason));
            }
            next += shard.captions.len();
            let file = folder.join(&shard.file);
            let checkpoint = Checkpoint::open(&file).map_err(|error| match error {
                CheckpointError::Open { source, .. } => io_error(&file)(source),
                error => bad_because(&file, "damaged")(error),
            })?;
            cache.check_tensors(&shard, &checkpoint)?;
            cache.shards.push((shard, checkpoint));
        }
        if next != cache.rows.len() {
            let reason = format!("{} rows, but shards for {next}", cache.rows.len());
            return Err(bad_file(&path, reason));
        }
        let share: Vec<_> = cache.shards.iter().skip(rank).step_by(ranks.max(1)).collect();
        for_each_parallel(&share, |(shard, _)| {
            let file = folder.join(&shard.file);
            match hash_file(&file)?.1 == shard.sha256 {
                true => Ok(()),
                false => Err(bad_file(&file, "damaged: the checksum differs")),
            }
        })?;
        Ok(cache)
    }

    /// Returns an error if a row of a shard lacks a tensor or has one of another shape.
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
                let reason = format!("row {} has caption {caption}, which has no mask", row + 1);
                bad_file(&self.folder.join(INDEX), reason)
            })?;
            let shape = [mask.len(), shard.width];
            self.tensor(shard, checkpoint, &format!("states.{caption}"), &shape)?;
        }
        Ok(())
    }

    /// Returns a tensor of a shard, which must have this shape.
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

    /// Returns the settings and models that the cache was made from.
    pub fn key(&self) -> &CacheKey {
        &self.key
    }

    /// Returns the SHA-256 of everything that the cache was made from: settings, models, captions and
    /// contents of files, without their paths.
    ///
    /// # Errors
    /// Returns an error if a setting cannot be written as JSON.
    pub fn fingerprint(&self) -> Result<String, DataError> {
        let rows: Vec<_> =
            self.rows.iter().map(|row| (&row.caption, row.bytes, &row.sha256)).collect();
        Ok(digest(&serde_json::to_vec(&(&self.key, rows)).map_err(json(&self.folder))?))
    }

    /// Checks that the cache was made with the settings and models of `wanted`.
    ///
    /// # Errors
    /// Returns an error that names the first difference.
    pub fn check(&self, wanted: &CacheKey) -> Result<(), DataError> {
        match self.key.difference(wanted) {
            Some(difference) => Err(self.stale(difference)),
            None => Ok(()),
        }
    }

    /// Checks that the models at these paths encoded the cache: their files have the same names and contents. The path of a
    /// VAE can be that of its folder or of the weights in it. A model is not compared if its path has no complete weights,
    /// or if it has more than 2 GiB (T5 v1.1 XXL: 19 GB), since each start of a run would read it.
    ///
    /// # Errors
    /// Returns an error if other files encoded the cache, or a file cannot be read. The weights need not differ: a folder
    /// can have other files beside them.
    pub fn check_models(&self, vae: Option<&Path>, t5: Option<&Path>) -> Result<(), DataError> {
        for (what, path, hash) in [("VAE", vae, &self.key.vae), ("text encoder", t5, &self.key.t5)]
        {
            if let Some(path) = path
                && !may_be_model(path, hash)?
            {
                let reason = format!(
                    "encoded with other files than those of the {what} {}; if its weights differ, give the \
                     {what} of the cache, or encode again",
                    path.display()
                );
                return Err(bad_file(&self.folder, reason));
            }
        }
        Ok(())
    }

    /// Checks that prompts were not cut to fewer than `tokens` tokens.
    ///
    /// # Errors
    /// Returns an error if some may have been: the cache was encoded with a smaller length, and the longest prompt fills it.
    pub fn check_length(&self, tokens: usize) -> Result<(), DataError> {
        let limit = self.key.max_length;
        if limit >= tokens || self.longest_prompt() < limit {
            return Ok(());
        }
        let reason = format!(
            "prompts may have been cut to {limit} tokens; the model has space for {tokens}: if captions are \
             longer, encode again with --max-length {tokens}"
        );
        Err(bad_file(&self.folder, reason))
    }

    /// Checks that the cache was made from the rows of `dataset`. Compares file name, caption and
    /// file size of each row, not the folder and the contents of its file.
    ///
    /// # Errors
    /// Returns an error that names the first different row.
    pub fn check_rows(&self, dataset: &ClipDataset) -> Result<(), DataError> {
        let rows = &dataset.manifest().rows;
        if rows.len() != self.rows.len() {
            let text = format!("{} rows in the cache, expected {}", self.rows.len(), rows.len());
            return Err(self.stale(text));
        }
        for (number, (row, cached)) in rows.iter().zip(&self.rows).enumerate() {
            let what = if row.path.file_name() != cached.path.file_name() {
                "path"
            } else if row.caption != cached.caption {
                "caption"
            } else if !cached.sha256.is_empty() && size(&row.path)? != cached.bytes {
                "file"
            } else {
                continue;
            };
            return Err(self.stale(format!("the {what} of row {} has changed", number + 1)));
        }
        Ok(())
    }

    fn stale(&self, difference: String) -> DataError {
        bad_file(&self.folder, format!("stale: {difference}; encode again"))
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
            let reason = format!("not in the cache: {reason}");
            return Err(DataError::row(row, &self.rows[row].path, reason));
        }
        let read = |key: String, shape: &[usize]| -> Result<Vec<f32>, DataError> {
            let file = self.folder.join(&shard.file);
            let reason = || format!("cannot read {key}");
            let data = self.tensor(shard, checkpoint, &key, shape)?.read(&key);
            let data = data.map_err(bad_because(&file, reason()))?;
            data.try_into_vec::<f32>().map_err(bad_because(&file, reason()))
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

    fn fingerprint(&self) -> Result<String, DataError> {
        Self::fingerprint(self)
    }
}
