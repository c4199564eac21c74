//! Posteriors and prompt states computed once and kept in shards.
//!
//! ```text
//! CACHE/
//!   shard-00000.safetensors  mean.ROW.VARIANT, logvar.ROW.VARIANT, states.K
//!   shard-00000.json         what it was made from, its checksum, each row's caption K: written last
//!   index.json               settings and all shards: written when every shard is there
//! ```
//!
//! Captions that are the same share their states within a shard. A shard is kept, on a later call,
//! where it was made from the same settings, models, captions and contents of files, wherever these
//! lie now; what is interrupted goes on behind the last whole shard. A cache that was made from
//! something else than a training run wants is refused, and so is a damaged one: when it is opened,
//! settings are compared first, then headers and shapes, then all checksums, on every core. That
//! reads the cache once. One process at a time writes a cache.

mod hash;
mod read;
mod write;

pub use read::LatentCache;
pub use write::{CacheJob, write, write_skipping};

use crate::{ClipSpec, DataError};
use hash::{digest, hash_model};
use opensora_files::{one_line, write_atomically};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fmt::Debug,
    fs, io,
    path::{Path, PathBuf},
};

const FORMAT: u32 = 1;
const INDEX: &str = "index.json";

/// What a cache is made from, besides the rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CacheKey {
    /// How a clip is cut from its file.
    pub clip: ClipSpec,
    /// Seed of windows and flips.
    pub seed: u64,
    /// Tokens that captions are cut to.
    pub max_length: usize,
    /// SHA-256 of the VAE's files.
    pub vae: String,
    /// SHA-256 of the text encoder's files.
    pub t5: String,
}

impl CacheKey {
    /// The key for models in these folders or files. Of a folder, all files count; of a file, its
    /// shards and the `config.json` beside it do, too.
    ///
    /// # Errors
    /// Where a file cannot be read.
    pub fn new(
        clip: &ClipSpec,
        seed: u64,
        max_length: usize,
        vae: &Path,
        t5: &Path,
    ) -> Result<Self, DataError> {
        let (vae, t5) = (hash_model(vae)?, hash_model(t5)?);
        Ok(Self { clip: clip.clone(), seed, max_length, vae, t5 })
    }

    /// The setting by which a cache of `self` differs from what `other` wants. Where `other` wants
    /// no certain number of variants, any will do.
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
            .or_else(|| differs("the tokens of a caption", &self.max_length, &other.max_length))
            .or_else(|| (self.vae != other.vae).then(|| "the VAE is another one now".into()))
            .or_else(|| (self.t5 != other.t5).then(|| "the text encoder is another one now".into()))
    }

    fn variants(&self) -> u64 {
        self.clip.variants.unwrap_or(1).max(1)
    }
}

fn differs<T: PartialEq + Debug>(what: &str, found: &T, wanted: &T) -> Option<String> {
    (found != wanted).then(|| format!("{what} was {found:?}, and is {wanted:?} now"))
}

/// A row as it was when it was encoded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct CachedRow {
    path: PathBuf,
    caption: String,
    /// Bytes of the file, and their SHA-256; empty where it could not be read.
    bytes: u64,
    sha256: String,
}

/// One shard: rows `first..first + captions.len()` of the cached rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Shard {
    file: String,
    /// SHA-256 of the key alone.
    #[serde(default)]
    settings: String,
    /// SHA-256 of key and rows.
    inputs: String,
    sha256: String,
    first: usize,
    /// For each row the K of its `states.K`.
    captions: Vec<usize>,
    /// For each K the tokens that count.
    masks: Vec<Vec<bool>>,
    latent_shape: [usize; 4],
    width: usize,
    /// Rows that could not be encoded, in order, and why; they have no tensors. (A list: a map from
    /// numbers does not survive `flatten`.)
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    bad: Vec<(usize, String)>,
}

impl Shard {
    /// Why a row could not be encoded.
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

/// A JSON file and the SHA-256 of what it says.
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
    // Caches of the first days have no seal.
    if !seal.is_empty() && digest(&serde_json::to_vec(&body).map_err(json(path))?) != seal {
        return Err(bad_file(path, "damaged: the checksum is another one".into()));
    }
    Ok(body)
}

fn bad_file(path: &Path, reason: String) -> DataError {
    DataError::Cache { path: path.into(), reason }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> DataError {
    let path = path.to_path_buf();
    move |source| DataError::Io { path, source }
}

fn json(path: &Path) -> impl FnOnce(serde_json::Error) -> DataError {
    let path = path.to_path_buf();
    move |error| DataError::Cache { path, reason: format!("damaged: {}", one_line(error)) }
}
