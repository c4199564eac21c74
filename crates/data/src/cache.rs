//! Posteriors and prompt states computed once and kept in shards.
//!
//! ```text
//! CACHE/
//!   shard-00000.safetensors  mean.ROW.VARIANT, logvar.ROW.VARIANT, states.K
//!   shard-00000.json         what it was made from, its checksum, each row's caption K: written last
//!   index.json               settings and all shards: written when every shard is there
//! ```
//!
//! A shard is kept, on a later call, where it was made from the same settings, models, captions and
//! contents of files; what is interrupted goes on behind the last whole shard. A cache that was
//! made from something else than a training run wants is refused, and so is a damaged one: all
//! checksums are compared when it is opened, which reads it once.

use crate::{
    ClipDataset, ClipSpec, DataError, Source,
    encode::{ClipEncoder, EncodedCaption, EncodedClip, EncodedSample},
};
use opensora_checkpoint::Checkpoint;
use opensora_nn::files::write_atomically;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
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
    /// The key for models in these folders or files.
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
        Ok(Self { clip: clip.clone(), seed, max_length, vae: hash_tree(vae)?, t5: hash_tree(t5)? })
    }

    /// The setting by which a cache of `self` differs from what `other` wants.
    fn difference(&self, other: &Self) -> Option<String> {
        let name = |what: &str, found: &dyn std::fmt::Debug, wanted: &dyn std::fmt::Debug| {
            Some(format!("{what} was {found:?}, and is {wanted:?} now"))
        };
        if self.clip != other.clip {
            return name("the clip", &self.clip, &other.clip);
        }
        if self.seed != other.seed {
            return name("the seed", &self.seed, &other.seed);
        }
        if self.max_length != other.max_length {
            return name("the tokens of a caption", &self.max_length, &other.max_length);
        }
        if self.vae != other.vae {
            return Some("the VAE is another one now".into());
        }
        (self.t5 != other.t5).then(|| "the text encoder is another one now".into())
    }

    fn variants(&self) -> u64 {
        self.clip.variants.unwrap_or(1).max(1)
    }
}

/// A row as it was when it was encoded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct CachedRow {
    path: PathBuf,
    caption: String,
    /// Bytes of the file, and their SHA-256.
    bytes: u64,
    sha256: String,
}

/// One shard: rows `first..first + captions.len()` of the cached rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Shard {
    file: String,
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
}

#[derive(Serialize, Deserialize)]
struct Index {
    format: u32,
    key: CacheKey,
    rows: Vec<CachedRow>,
    shards: Vec<Shard>,
}

/// What [`write()`] does.
pub struct CacheJob<'a> {
    /// The clips; windows and flips are drawn for every variant of its spec.
    pub dataset: &'a ClipDataset,
    /// VAE and text encoder.
    pub encoder: &'a ClipEncoder,
    /// What the cache is made from.
    pub key: &'a CacheKey,
    /// Bytes that a shard has at most, about.
    pub shard_bytes: usize,
}

/// Writes or completes the cache in `folder`. `progress` hears how many rows of all are there.
///
/// # Errors
/// Where a row cannot be read or encoded, or a file not be written. Shards that are whole stay.
pub fn write(
    job: &CacheJob<'_>,
    folder: &Path,
    mut progress: impl FnMut(usize, usize),
) -> Result<(), DataError> {
    fs::create_dir_all(folder).map_err(io_error(folder))?;
    let rows = job
        .dataset
        .manifest()
        .rows
        .iter()
        .map(|row| {
            let (bytes, sha256) = hash_file(&row.path)?;
            Ok(CachedRow { path: row.path.clone(), caption: row.caption.clone(), bytes, sha256 })
        })
        .collect::<Result<Vec<_>, DataError>>()?;
    let per_shard = rows_per_shard(job)?;
    let mut shards = Vec::new();
    for (number, part) in rows.chunks(per_shard).enumerate() {
        let first = number * per_shard;
        let file = format!("shard-{number:05}.safetensors");
        let sidecar = folder.join(format!("shard-{number:05}.json"));
        let inputs = digest(&serde_json::to_vec(&(job.key, part, first)).map_err(json(&sidecar))?);
        let shard = match kept_shard(folder, &sidecar, &inputs) {
            Some(shard) => shard,
            None => {
                // Its mark goes first: a shard that is being replaced is not whole.
                match fs::remove_file(&sidecar) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(io_error(&sidecar)(error));
                    }
                    _ => {}
                }
                let shard = write_shard(job, folder, file, inputs, first, part, |done| {
                    progress(first + done, rows.len());
                })?;
                write_json(&sidecar, &shard)?;
                shard
            }
        };
        shards.push(shard);
        progress(first + part.len(), rows.len());
    }
    let index = Index { format: FORMAT, key: job.key.clone(), rows, shards };
    write_json(&folder.join(INDEX), &index)
}

/// How many rows go into a shard, from the size of the first one.
fn rows_per_shard(job: &CacheJob<'_>) -> Result<usize, DataError> {
    let shape = job.dataset.spec().shape();
    // Latents have at most as many numbers as pixels; the factor is the VAE's to know.
    let sample = job.dataset.read(0, 0)?;
    let latents = job.encoder.clip(&sample)?.mean.len().min(shape.iter().product());
    let bytes = 2 * 4 * latents * job.key.variants() as usize;
    Ok((job.shard_bytes / bytes.max(1)).max(1))
}

/// A shard that is there, whole, and made from the same.
fn kept_shard(folder: &Path, sidecar: &Path, inputs: &str) -> Option<Shard> {
    let shard: Shard = serde_json::from_slice(&fs::read(sidecar).ok()?).ok()?;
    let (_, sha256) = hash_file(&folder.join(&shard.file)).ok()?;
    (shard.inputs == inputs && shard.sha256 == sha256).then_some(shard)
}

fn write_shard(
    job: &CacheJob<'_>,
    folder: &Path,
    file: String,
    inputs: String,
    first: usize,
    rows: &[CachedRow],
    mut progress: impl FnMut(usize),
) -> Result<Shard, DataError> {
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    let mut known: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut captions, mut masks) = (Vec::new(), Vec::new());
    let (mut latent_shape, mut width) = ([0; 4], 0);
    for (offset, row) in rows.iter().enumerate() {
        let number = first + offset;
        for variant in 0..job.key.variants() {
            let clip = job.encoder.clip(&job.dataset.read(number, variant)?)?;
            latent_shape = clip.shape;
            for (name, values) in [("mean", clip.mean), ("logvar", clip.logvar)] {
                let key = format!("{name}.{number}.{variant}");
                tensors.push((key, clip.shape.to_vec(), bytes_of(&values)));
            }
        }
        let next = known.len();
        let caption = *known.entry(&row.caption).or_insert(next);
        if caption == next {
            let encoded = job.encoder.caption(&row.caption)?;
            width = encoded.width;
            let shape = vec![encoded.mask.len(), encoded.width];
            tensors.push((format!("states.{caption}"), shape, bytes_of(&encoded.states)));
            masks.push(encoded.mask);
        }
        captions.push(caption);
        progress(offset + 1);
    }
    let path = folder.join(&file);
    let views = tensors
        .iter()
        .map(|(key, shape, bytes)| {
            TensorView::new(Dtype::F32, shape.clone(), bytes)
                .map(|view| (key.clone(), view))
                .map_err(|error| DataError::Cache { path: path.clone(), reason: error.to_string() })
        })
        .collect::<Result<Vec<_>, _>>()?;
    write_atomically(&path, |temporary| {
        safetensors::serialize_to_file(views, None, temporary).map_err(io::Error::other)
    })
    .map_err(io_error(&path))?;
    let (_, sha256) = hash_file(&path)?;
    Ok(Shard { file, inputs, sha256, first, captions, masks, latent_shape, width })
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// An opened cache, read by position and not held in memory.
#[derive(Debug)]
pub struct LatentCache {
    folder: PathBuf,
    key: CacheKey,
    rows: Vec<CachedRow>,
    shards: Vec<(Shard, Checkpoint)>,
}

impl LatentCache {
    /// Opens a cache that was made with the settings of `clip`.
    ///
    /// # Errors
    /// Where it is not complete, was made with other settings, or is damaged.
    pub fn open_for(folder: &Path, clip: &ClipSpec) -> Result<Self, DataError> {
        let cache = Self::open(folder)?;
        let wanted = CacheKey { clip: clip.clone(), ..cache.key.clone() };
        cache.check(&wanted)?;
        Ok(cache)
    }

    /// Opens a cache and compares every checksum.
    ///
    /// # Errors
    /// Where it is not complete or damaged.
    pub fn open(folder: &Path) -> Result<Self, DataError> {
        let path = folder.join(INDEX);
        let bad = |path: &Path, reason: String| DataError::Cache { path: path.into(), reason };
        let text = fs::read(&path).map_err(|error| {
            bad(folder, format!("no complete cache of latents: {INDEX}: {error}"))
        })?;
        let index: Index = serde_json::from_slice(&text).map_err(json(&path))?;
        if index.format != FORMAT {
            return Err(bad(&path, format!("format {}, expected {FORMAT}", index.format)));
        }
        let mut shards = Vec::with_capacity(index.shards.len());
        let mut next = 0;
        for shard in index.shards {
            // Only names of files beside the index.
            let plain = Path::new(&shard.file).file_name().is_some_and(|name| *name == *shard.file);
            let file = folder.join(&shard.file);
            let rows_fit = shard.first == next
                && shard.captions.iter().all(|&caption| caption < shard.masks.len());
            if !plain || !rows_fit {
                return Err(bad(&path, format!("its part on '{}' is not in order", shard.file)));
            }
            next += shard.captions.len();
            let (_, sha256) = hash_file(&file)?;
            if sha256 != shard.sha256 {
                return Err(bad(&file, "damaged: the checksum is another one".into()));
            }
            let checkpoint =
                Checkpoint::open(&file).map_err(|error| bad(&file, error.to_string()))?;
            shards.push((shard, checkpoint));
        }
        if next != index.rows.len() {
            return Err(bad(&path, format!("{} rows, but shards for {next}", index.rows.len())));
        }
        Ok(Self { folder: folder.into(), key: index.key, rows: index.rows, shards })
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

    /// Fails where the rows of `dataset` are not those that the cache was made from: path, caption
    /// and size of the file of each are compared.
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
            let what = if row.path != cached.path {
                "path"
            } else if row.caption != cached.caption {
                "caption"
            } else if fs::metadata(&row.path).map_err(io_error(&row.path))?.len() != cached.bytes {
                "file"
            } else {
                continue;
            };
            return Err(self.stale(format!("the {what} of row {} is another one", number + 1)));
        }
        Ok(())
    }

    fn stale(&self, difference: String) -> DataError {
        let reason = format!("stale: {difference}; encode anew");
        DataError::Cache { path: self.folder.clone(), reason }
    }

    fn shard_of(&self, row: usize) -> Option<&(Shard, Checkpoint)> {
        let next = self.shards.partition_point(|(shard, _)| shard.first <= row);
        self.shards.get(next.checked_sub(1)?).filter(|_| row < self.rows.len())
    }
}

impl Source for LatentCache {
    type Item = EncodedSample;

    fn len(&self) -> usize {
        self.rows.len()
    }

    fn read(&self, row: usize, epoch: u64) -> Result<EncodedSample, DataError> {
        let (shard, checkpoint) =
            self.shard_of(row).ok_or(DataError::NoSuchRow { row, len: self.rows.len() })?;
        let read = |key: String, shape: &[usize]| -> Result<Vec<f32>, DataError> {
            let bad = |reason: String| DataError::Cache {
                path: self.folder.join(&shard.file),
                reason: format!("{key}: {reason}"),
            };
            let tensor = checkpoint.tensors().get(&key).ok_or_else(|| bad("missing".into()))?;
            if tensor.shape() != shape {
                return Err(bad(format!("shape {:?}, expected {shape:?}", tensor.shape())));
            }
            let data = tensor.read(&key).map_err(|error| bad(error.to_string()))?;
            data.try_into_vec::<f32>().map_err(|error| bad(error.to_string()))
        };
        let variant = epoch % self.key.variants();
        let clip = EncodedClip {
            mean: read(format!("mean.{row}.{variant}"), &shard.latent_shape)?,
            logvar: read(format!("logvar.{row}.{variant}"), &shard.latent_shape)?,
            shape: shard.latent_shape,
        };
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

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), DataError> {
    let text = serde_json::to_vec(value).map_err(json(path))?;
    write_atomically(path, |file| fs::write(file, &text)).map_err(io_error(path))
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> DataError {
    let path = path.to_path_buf();
    move |source| DataError::Io { path, source }
}

fn json(path: &Path) -> impl FnOnce(serde_json::Error) -> DataError {
    let path = path.to_path_buf();
    move |error| DataError::Cache { path, reason: error.to_string() }
}

fn digest(bytes: &[u8]) -> String {
    hex(Sha256::digest(bytes).as_slice())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes and SHA-256 of a file; of a folder of frames, those of all its files.
fn hash_file(path: &Path) -> Result<(u64, String), DataError> {
    if path.is_dir() {
        return Ok((fs::metadata(path).map_err(io_error(path))?.len(), hash_tree(path)?));
    }
    let mut file = File::open(path).map_err(io_error(path))?;
    let (mut hasher, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(io_error(path))? {
            0 => return Ok((bytes, hex(hasher.finalize().as_slice()))),
            read => {
                bytes += read as u64;
                hasher.update(&buffer[..read]);
            }
        }
    }
}

/// SHA-256 over a file, or over the names and contents of a folder's files.
fn hash_tree(path: &Path) -> Result<String, DataError> {
    if !path.is_dir() {
        return Ok(hash_file(path)?.1);
    }
    let mut files: Vec<PathBuf> = fs::read_dir(path)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(io_error(path))?;
    files.sort();
    let mut all = String::new();
    for file in files.iter().filter(|file| file.is_file()) {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        all += &format!("{name} {}\n", hash_file(file)?.1);
    }
    Ok(digest(all.as_bytes()))
}
