//! A cache of posteriors and prompt states, computed once and stored in shards.
//!
//! ```text
//! CACHE/
//!   shard-00000.safetensors  mean.ROW.VARIANT, logvar.ROW.VARIANT, states.K
//!   shard-00000.json         checksums of inputs and shard, each row's caption K: written last
//!   index.json               settings and all shards: written when all shards are complete
//!   write.lock               while a process writes
//! ```
//!
//! Equal captions share their states within a shard. A later call reuses a shard that was made from
//! the same settings, models, captions and contents of files, even if the files have moved;
//! interrupted work resumes after the last complete shard. Opening rejects a cache that is damaged
//! or was made with other clips than a training run needs: settings are compared first, then headers
//! and shapes, then all checksums, on all cores. That reads the cache once; several ranks share the
//! checksums ([`LatentCache::open_for_rank`]). Rows and models are compared by
//! [`LatentCache::check_rows`] and [`LatentCache::check_models`]. One process at a time writes a cache.

mod hash;
mod read;
mod write;

pub use read::LatentCache;
pub use write::{CacheJob, write};

use crate::{ClipSpec, DataError, encode::EncoderConfig};
use hash::{digest, hash_model};
use opensora_checkpoint::BoxedError;
use opensora_files::write_atomically;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fmt::Debug,
    fs, io,
    path::{Path, PathBuf},
};

const FORMAT: u32 = 1;
const INDEX: &str = "index.json";

/// The settings and models that a cache is made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CacheKey {
    /// Frames, size and augmentation of the clips.
    pub clip: ClipSpec,
    /// Seed of windows and flips.
    pub seed: u64,
    /// Maximum number of tokens of a caption.
    pub max_length: usize,
    /// SHA-256 of the VAE's files.
    pub vae: String,
    /// SHA-256 of the text encoder's files.
    pub t5: String,
}

impl CacheKey {
    /// Returns the key of a cache that is encoded by the models of `encoder`. Models count with all
    /// files of their folder or, if the path is a file, with its shards and the `config.json` beside it.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read.
    pub fn new(clip: &ClipSpec, seed: u64, encoder: &EncoderConfig) -> Result<Self, DataError> {
        Ok(Self {
            clip: clip.clone(),
            seed,
            max_length: encoder.max_length,
            vae: hash_model(&encoder.vae)?,
            t5: hash_model(&encoder.t5)?,
        })
    }

    /// Describes the first setting of `self` that differs from `other`; `None` if they agree. The
    /// numbers of variants are compared only if `other` has one.
    fn difference(&self, other: &Self) -> Option<String> {
        let (clip, wanted) = (&self.clip, &other.clip);
        differs("num_frames", &clip.num_frames, &wanted.num_frames)
            .or_else(|| differs("frame_interval", &clip.frame_interval, &wanted.frame_interval))
            .or_else(|| differs("image_size", &clip.image_size, &wanted.image_size))
            .or_else(|| differs("horizontal_flip", &clip.horizontal_flip, &wanted.horizontal_flip))
            .or_else(|| {
                wanted.variants.and_then(|wanted| differs("variants", &self.variants(), &wanted))
            })
            .or_else(|| differs("the seed", &self.seed, &other.seed))
            .or_else(|| differs("max_length", &self.max_length, &other.max_length))
            .or_else(|| (self.vae != other.vae).then(|| "the VAE has changed".into()))
            .or_else(|| (self.t5 != other.t5).then(|| "the text encoder has changed".into()))
    }

    fn variants(&self) -> u64 {
        self.clip.variants.unwrap_or(1).max(1)
    }
}

fn differs<T: PartialEq + Debug>(what: &str, found: &T, wanted: &T) -> Option<String> {
    (found != wanted).then(|| format!("{what} is {found:?} in the cache, expected {wanted:?}"))
}

/// A row at the time when it was encoded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct CachedRow {
    path: PathBuf,
    caption: String,
    /// Size of the file in bytes.
    bytes: u64,
    /// SHA-256 of the file; empty if it could not be read.
    sha256: String,
}

/// Index entry of one shard: rows `first..first + captions.len()` of the cached rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Shard {
    file: String,
    /// SHA-256 of the key.
    #[serde(default)]
    settings: String,
    /// SHA-256 of key and rows.
    inputs: String,
    sha256: String,
    first: usize,
    /// For each row, the `K` of its caption's tensor `states.K`.
    captions: Vec<usize>,
    /// For each `K`, the attention mask of the caption.
    masks: Vec<Vec<bool>>,
    latent_shape: [usize; 4],
    width: usize,
    /// Rows that could not be encoded, in order, with the reasons; they have no tensors. (A list: serde's
    /// `flatten` does not support maps with numbers as keys.)
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    bad: Vec<(usize, String)>,
}

impl Shard {
    /// Returns the reason why a row could not be encoded, if it could not.
    fn bad(&self, row: usize) -> Option<&str> {
        let at = self.bad.binary_search_by_key(&row, |(row, _)| *row).ok()?;
        Some(&self.bad[at].1)
    }
}

#[derive(Serialize, Deserialize)]
struct Index {
    format: u32,
    key: CacheKey,
    rows: Vec<CachedRow>,
    shards: Vec<Shard>,
}

/// The contents of a JSON file with their SHA-256.
#[derive(Serialize, Deserialize)]
struct Sealed<T> {
    #[serde(flatten)]
    body: T,
    #[serde(default)]
    seal: String,
}

fn write_json<T: Serialize>(path: &Path, body: &T) -> Result<(), DataError> {
    let seal = digest(&serde_json::to_vec(body).map_err(json(path))?);
    let text = serde_json::to_vec(&Sealed { body, seal }).map_err(json(path))?;
    write_atomically(path, |file| fs::write(file, &text)).map_err(io_error(path))
}

fn parse_json<T: Serialize + DeserializeOwned>(path: &Path, text: &[u8]) -> Result<T, DataError> {
    let Sealed { body, seal } = serde_json::from_slice::<Sealed<T>>(text).map_err(json(path))?;
    // Caches of the first versions have no seal.
    if !seal.is_empty() && digest(&serde_json::to_vec(&body).map_err(json(path))?) != seal {
        return Err(bad_file(path, "damaged: the checksum differs"));
    }
    Ok(body)
}

fn bad_file(path: &Path, reason: impl Into<String>) -> DataError {
    DataError::Cache { path: path.into(), reason: reason.into(), source: None }
}

/// Returns a function that makes an error of a file from its cause.
fn bad_because<E: Into<BoxedError>>(
    path: &Path,
    reason: impl Into<String>,
) -> impl FnOnce(E) -> DataError {
    let (path, reason) = (path.to_path_buf(), reason.into());
    move |error| DataError::Cache { path, reason, source: Some(error.into()) }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> DataError {
    let path = path.to_path_buf();
    move |source| DataError::Io { path, source }
}

fn json(path: &Path) -> impl FnOnce(serde_json::Error) -> DataError {
    bad_because(path, "damaged")
}
