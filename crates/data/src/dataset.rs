//! The trait [`Source`], and a manifest's rows as clips.

use crate::{
    ClipSpec, DataError, Draw, DrawKey, Manifest, Row,
    transform::{self, ResizeCrop},
    window,
};
use burn::data::dataset::Dataset;
use opensora_files::hex;
use opensora_video::{media::Media, reader};
use sha2::{Digest, Sha256};
use std::path::Path;

/// Rows that can be read in every epoch: a folder of clips, a cache of latents, generated data.
///
/// Reading depends on (row, epoch) only, so that any number of threads in any order, and a resumed
/// run, get the same items.
pub trait Source: Send + Sync {
    /// A row's sample.
    type Item: Send;

    /// Returns the number of rows.
    fn len(&self) -> usize;

    /// Returns true if there are no rows.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads a row in an epoch.
    ///
    /// # Errors
    /// Returns an error if the row cannot be read. Another row never takes its place.
    fn read(&self, row: usize, epoch: u64) -> Result<Self::Item, DataError>;

    /// Returns a row's number (from 1) and file, for messages.
    fn describe(&self, row: usize) -> String;

    /// Returns a digest of all rows, by which the ranks of a run notice that they read different data. By default it
    /// covers the [descriptions](Self::describe).
    ///
    /// # Errors
    /// Returns an error if the rows cannot be read.
    fn fingerprint(&self) -> Result<String, DataError> {
        Ok(fingerprint_of((0..self.len()).map(|row| self.describe(row))))
    }
}

/// Returns the SHA-256 of `rows` and their lengths, in hexadecimal digits.
pub fn fingerprint_of(rows: impl IntoIterator<Item = impl AsRef<[u8]>>) -> String {
    let mut hasher = Sha256::new();
    for row in rows {
        let row = row.as_ref();
        hasher.update((row.len() as u64).to_le_bytes());
        hasher.update(row);
    }
    hex(&hasher.finalize())
}

/// Returns the frames per second of clips that take every `interval`-th frame of the videos in `paths`,
/// according to the first video that can be opened. `None` if no video of the first 16 rows can be.
pub fn clip_fps<'a>(paths: impl Iterator<Item = &'a Path>, interval: usize) -> Option<f64> {
    const ROWS: usize = 16;
    let fps = |path: &Path| reader::probe(path).ok().map(|info| info.fps);
    let found = paths.take(ROWS).find_map(fps).filter(|fps| fps.is_finite() && *fps > 0.0)?;
    Some(found / interval.max(1) as f64)
}

/// One captioned clip as a model's input.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipSample {
    /// The row of the manifest.
    pub row: usize,
    /// The row's caption as in the manifest; the tokenizer cleans it.
    pub caption: String,
    /// `[3, T, H, W]` in [-1, 1], row-major.
    pub pixels: Vec<f32>,
    /// Shape of `pixels`, `[3, T, H, W]`.
    pub shape: [usize; 4],
}

/// The rows of a manifest as clips.
///
/// A video becomes a window of its frames, mirrored or not according to the row's [`Draw`]. An image
/// becomes a clip that repeats it in every frame. As burn's [`Dataset`] it has the samples of epoch 0.
#[derive(Debug, Clone)]
pub struct ClipDataset {
    manifest: Manifest,
    spec: ClipSpec,
    seed: u64,
}

impl ClipDataset {
    /// Creates a data set of a manifest's rows, whose files are opened only when they are read.
    ///
    /// # Errors
    /// Returns an error if a setting is out of range.
    pub fn new(manifest: Manifest, spec: ClipSpec, seed: u64) -> Result<Self, DataError> {
        spec.validate()?;
        Ok(Self { manifest, spec, seed })
    }

    /// Returns the manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Returns the files of the rows.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.manifest.rows.iter().map(|row| row.path.as_path())
    }

    /// Returns how rows become clips.
    pub fn spec(&self) -> &ClipSpec {
        &self.spec
    }

    /// Returns the seed of windows and flips.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    fn clip(&self, media: &Media, row: usize, epoch: u64) -> Result<Vec<f32>, String> {
        let frames = media.frames();
        let source = [frames.height(), frames.width()];
        let ClipSpec { num_frames, image_size, .. } = self.spec;
        let mut pixels = match media {
            Media::Image(_) => {
                transform::repeat(&transform::image(frames.data(), source, image_size), num_frames)
            }
            Media::Video(_) => {
                let total = frames.len();
                let draw = Draw::new(&self.spec, total, DrawKey { seed: self.seed, row, epoch });
                let indices = window::frame_indices(&self.spec, total, draw.begin)
                    .ok_or_else(|| format!("it has {total} frames, a clip takes {num_frames}"))?;
                let place = ResizeCrop::of_video(source, image_size);
                transform::video(frames, &indices, &place, draw.flip)
            }
        };
        transform::normalize(&mut pixels);
        Ok(pixels)
    }
}

impl Source for ClipDataset {
    type Item = ClipSample;

    fn len(&self) -> usize {
        self.manifest.rows.len()
    }

    fn read(&self, row: usize, epoch: u64) -> Result<ClipSample, DataError> {
        let rows = &self.manifest.rows;
        let Row { path, caption, .. } =
            rows.get(row).ok_or(DataError::NoSuchRow { row, len: rows.len() })?;
        let pixels = Media::read(path)
            .map_err(|error| error.line_without(path))
            .and_then(|media| self.clip(&media, row, epoch))
            .map_err(|reason| DataError::row(row, path, reason))?;
        Ok(ClipSample { row, caption: caption.clone(), pixels, shape: self.spec.shape() })
    }

    fn describe(&self, row: usize) -> String {
        match self.manifest.rows.get(row) {
            Some(found) => format!("row {}: {}", row + 1, found.path.display()),
            None => format!("row {}", row + 1),
        }
    }

    /// Covers captions and names of files, not their folders: nodes may have copies in different places.
    fn fingerprint(&self) -> Result<String, DataError> {
        let rows = self.manifest.rows.iter().map(|Row { path, caption, num_frames }| {
            format!("{:?} {num_frames:?} {caption}", path.file_name())
        });
        Ok(fingerprint_of(rows))
    }
}

impl Dataset<ClipSample, DataError> for ClipDataset {
    /// Reads a row of epoch 0. Returns an error if there is no such row.
    fn get(&self, index: usize) -> Result<ClipSample, DataError> {
        self.read(index, 0)
    }

    fn len(&self) -> usize {
        Source::len(self)
    }
}
