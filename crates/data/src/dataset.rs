//! Rows read as clips.

use crate::{
    ClipSpec, DataError, Draw, Manifest, Row,
    transform::{self, ResizeCrop},
    window,
};
use burn::data::dataset::Dataset;
use opensora_video::{media::Media, reader};
use std::path::Path;

/// Something that has rows and gives each anew in every epoch: a folder of clips, a cache of
/// latents, a generated world.
///
/// Reading is a function of (row, epoch) alone, so any number of threads in any order, and a run
/// that was interrupted, get the same items.
pub trait Source: Send + Sync {
    /// What a row is read as.
    type Item: Send;

    /// Number of rows.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads a row as it is in an epoch.
    ///
    /// # Errors
    /// Where the row cannot be read: never another row in its place.
    fn read(&self, row: usize, epoch: u64) -> Result<Self::Item, DataError>;

    /// A row's number (from 1) and file, for messages.
    fn describe(&self, row: usize) -> String;
}

/// Returns the frames per second of clips that take one of `interval` frames of the videos among
/// `paths`: those of the first video that can be opened. `None` if there is none among the first
/// rows.
pub fn clip_fps<'a>(paths: impl Iterator<Item = &'a Path>, interval: usize) -> Option<f64> {
    const ROWS: usize = 16;
    let fps = |path: &Path| reader::probe(path).ok().map(|info| info.fps);
    let found = paths.take(ROWS).find_map(fps).filter(|fps| fps.is_finite() && *fps > 0.0)?;
    Some(found / interval.max(1) as f64)
}

/// One captioned clip as a model's input.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipSample {
    /// The row it comes from.
    pub row: usize,
    /// Its caption, as the manifest has it: cleaning is the tokenizer's.
    pub caption: String,
    /// `[3, T, H, W]` in [-1, 1], row-major.
    pub pixels: Vec<f32>,
    /// `[3, T, H, W]`.
    pub shape: [usize; 4],
}

/// The rows of a manifest as clips.
///
/// Of a video, a window of frames, mirrored or not, as the row's [`Draw`] says; of an image, the
/// same picture in every frame. As burn's data set it gives what epoch 0 gets.
#[derive(Debug, Clone)]
pub struct ClipDataset {
    manifest: Manifest,
    spec: ClipSpec,
    seed: u64,
}

impl ClipDataset {
    /// Over the rows of a manifest, whose files are opened only when they are read.
    ///
    /// # Errors
    /// Where a setting cannot be.
    pub fn new(manifest: Manifest, spec: ClipSpec, seed: u64) -> Result<Self, DataError> {
        spec.check()?;
        Ok(Self { manifest, spec, seed })
    }

    /// The rows.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Returns the files of the rows.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.manifest.rows.iter().map(|row| row.path.as_path())
    }

    /// How rows become clips.
    pub fn spec(&self) -> &ClipSpec {
        &self.spec
    }

    /// The seed of its draws.
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
                let draw = Draw::new(&self.spec, total, self.seed, row, epoch);
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
            .map_err(|reason| DataError::Row { row, path: path.clone(), reason })?;
        Ok(ClipSample { row, caption: caption.clone(), pixels, shape: self.spec.shape() })
    }

    fn describe(&self, row: usize) -> String {
        match self.manifest.rows.get(row) {
            Some(found) => format!("row {}: {}", row + 1, found.path.display()),
            None => format!("row {}", row + 1),
        }
    }
}

impl Dataset<ClipSample, DataError> for ClipDataset {
    /// What epoch 0 gets; a row that is not there is an error, too.
    fn get(&self, index: usize) -> Result<ClipSample, DataError> {
        self.read(index, 0)
    }

    fn len(&self) -> usize {
        Source::len(self)
    }
}
