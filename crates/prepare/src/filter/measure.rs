//! Measures a clip in one pass over its frames.

use super::{
    duplicates::{ClipHash, MOMENTS, picture_hasher},
    flow::{self, Pyramid},
    grey::Shrink,
    score::Score,
    thinned::Thinned,
};
use crate::{
    RowError,
    source::{self, Header},
};
use opensora_video::pillow::{Filter, Resize};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::Path, sync::Arc};

/// Maximum number of pairs of neighbouring frames whose flow is measured; at least half as many if the clip
/// has them.
const FLOW_PAIRS: usize = 32;
/// Maximum number of hashed frames, of which those nearest to the moments are used.
const HASHED: usize = 128;
/// Maximum number of frames held for a model, and the number of them that it scores.
const HELD: usize = 16;
const SCORED: usize = 4;
/// Maximum mean luma of a dark frame, and minimum mean luma of a bright one.
const DARK: f64 = 0.1;
const BRIGHT: f64 = 0.9;

/// Columns from a file's header.
pub(crate) const HEADER: [&str; 5] = ["num_frames", "fps", "duration", "width", "height"];
/// Columns from all frames of a clip.
pub(crate) const PIXELS: [&str; 5] = ["motion", "flow", "brightness", "dark_share", "bright_share"];
/// The column of hashes.
pub(crate) const HASH: &str = "hash";

/// The part of a file that is read: its header or all frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Depth {
    /// The header, if it is complete.
    Header,
    /// All frames.
    Pixels,
}

/// Measured numbers and hash of a clip.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Finite numbers by column; unknown ones are left out.
    pub(crate) numbers: BTreeMap<String, f64>,
    /// The hash as text ([`ClipHash::to_text`]).
    pub(crate) hash: Option<String>,
}

impl Measured {
    fn set(&mut self, column: &str, value: f64) {
        if value.is_finite() {
            self.numbers.insert(column.into(), rounded(value));
        }
    }
}

/// Rounds a number to six decimals, as it is written, so that bounds compare the written value.
pub(crate) fn rounded(value: f64) -> f64 {
    let rounded = (value * 1e6).round() / 1e6;
    if rounded.is_finite() { rounded } else { value }
}

/// Measures a clip.
///
/// # Errors
/// Returns an error if the clip cannot be read to its end or a model fails on it.
pub(crate) fn measure(
    path: &Path,
    depth: Depth,
    models: &[Arc<dyn Score>],
) -> Result<Measured, RowError> {
    let (header, frames) = source::open(path)?;
    let mut measured = Measured::default();
    measured.set("width", header.width as f64);
    measured.set("height", header.height as f64);
    header.fps.into_iter().for_each(|fps| measured.set("fps", fps));
    let stated = header.num_frames.map(|count| (count, duration(&header, count)));
    if let (Depth::Header, Some((count, duration))) = (depth, stated) {
        measured.set("num_frames", count as f64);
        duration.into_iter().for_each(|seconds| measured.set("duration", seconds));
        return Ok(measured);
    }
    let mut clip = Pass::new(&header, models);
    for rgb in frames {
        let rgb = rgb?;
        let (found, expected) = (rgb.len(), 3 * header.width * header.height);
        if found != expected {
            return Err(format!("a frame has {found} bytes, expected {expected}").into());
        }
        match depth {
            Depth::Header => clip.count += 1,
            Depth::Pixels => clip.frame(&rgb),
        }
    }
    if clip.count == 0 {
        return Err(RowError::NoFrames);
    }
    measured.set("num_frames", clip.count as f64);
    let duration = duration(&header, clip.count);
    duration.into_iter().for_each(|seconds| measured.set("duration", seconds));
    if depth == Depth::Pixels {
        clip.finish(&mut measured)?;
    }
    Ok(measured)
}

/// Returns the duration of a clip of `count` frames in seconds, from its frame rate if it has one. A single
/// frame is an image, without duration unless its file states one.
fn duration(header: &Header, count: usize) -> Option<f64> {
    header.fps.filter(|_| count > 1).map(|fps| count as f64 / fps).or(header.duration)
}

/// One pass over a clip's frames: running sums, hashes and frames for models.
struct Pass<'a> {
    models: &'a [Arc<dyn Score>],
    size: [usize; 2],
    shrink: Shrink,
    hasher: Box<dyn Fn(&image::GrayImage) -> u64>,
    count: usize,
    last: Option<(super::grey::Grey, Option<Pyramid>)>,
    difference: f64,
    brightness: f64,
    dark: usize,
    bright: usize,
    flows: Thinned<f64>,
    hashes: Thinned<u64>,
    /// Frames for each model, in the model's size.
    held: Vec<Thinned<Vec<u8>>>,
}

impl<'a> Pass<'a> {
    fn new(header: &Header, models: &'a [Arc<dyn Score>]) -> Self {
        Self {
            models,
            size: [header.height, header.width],
            shrink: Shrink::new(header.height, header.width),
            hasher: Box::new(picture_hasher()),
            count: 0,
            last: None,
            difference: 0.0,
            brightness: 0.0,
            dark: 0,
            bright: 0,
            flows: Thinned::new(FLOW_PAIRS),
            hashes: Thinned::new(HASHED),
            held: models.iter().map(|_| Thinned::new(HELD)).collect(),
        }
    }

    fn frame(&mut self, rgb: &[u8]) {
        let grey = self.shrink.apply(rgb);
        let mean = grey.mean();
        self.brightness += mean;
        self.dark += usize::from(mean <= DARK);
        self.bright += usize::from(mean >= BRIGHT);
        if self.hashes.wants(self.count) {
            self.hashes.keep(self.count, (self.hasher)(&grey.to_bytes()));
        }
        for (model, held) in self.models.iter().zip(&mut self.held) {
            if held.wants(self.count) {
                let fitted = fit(self.size, model.frame_size());
                held.keep(self.count, fitted.apply(rgb, Filter::Bicubic));
            }
        }
        // A pair has the index of its first frame.
        let mut pyramid = None;
        if let Some((last, first)) = self.last.take() {
            self.difference += last.difference(&grey);
            let pair = self.count - 1;
            if self.flows.wants(pair) {
                let first = first.unwrap_or_else(|| Pyramid::new(last));
                let second = pyramid.insert(Pyramid::new(grey.clone()));
                self.flows.keep(pair, flow::magnitude(&first, second));
            }
        }
        self.last = Some((grey, pyramid));
        self.count += 1;
    }

    fn finish(self, measured: &mut Measured) -> Result<(), RowError> {
        let frames = self.count as f64;
        // An image has no pairs and no motion.
        let pairs = (self.count - 1).max(1) as f64;
        measured.set("motion", self.difference / pairs);
        let flows = self.flows.iter().count().max(1) as f64;
        measured.set("flow", self.flows.iter().sum::<f64>() / flows);
        measured.set("brightness", self.brightness / frames);
        measured.set("dark_share", self.dark as f64 / frames);
        measured.set("bright_share", self.bright as f64 / frames);
        let moments = self.hashes.spread(MOMENTS, self.count).copied();
        measured.hash = ClipHash::new(moments).map(ClipHash::to_text);
        for (model, held) in self.models.iter().zip(&self.held) {
            let frames: Vec<&[u8]> = held.spread(SCORED, self.count).map(Vec::as_slice).collect();
            let column = model.column();
            let score = model.score(&frames).map_err(|error| RowError::part(column, error))?;
            measured.set(column, score);
        }
        Ok(())
    }
}

/// Scales to cover `size` and crops the centre.
fn fit([height, width]: [usize; 2], size: [usize; 2]) -> Resize {
    let scale = (size[0] as f64 / height as f64).max(size[1] as f64 / width as f64);
    let side = |from: usize, least: usize| ((from as f64 * scale).round() as usize).max(least);
    let resized = [side(height, size[0]), side(width, size[1])];
    let offset = [0, 1].map(|axis| (resized[axis] - size[axis]) / 2);
    Resize { source: [height, width], resized, offset, size }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_scaled_and_centre_cropped() {
        let fitted = fit([100, 300], [50, 50]);
        assert_eq!((fitted.resized, fitted.offset), ([50, 150], [0, 50]));
        let fitted = fit([3, 2], [10, 4]);
        assert_eq!((fitted.resized, fitted.offset), ([10, 7], [0, 1]));
        let rgb = [[7u8; 3]; 6].concat();
        assert_eq!(fitted.apply(&rgb, Filter::Bicubic), [7; 120]);
    }

    #[test]
    fn numbers_are_rounded_once() {
        assert_eq!(rounded(29.97002997), 29.97003);
        assert_eq!(rounded(rounded(0.1 + 0.2)), 0.3);
        assert_eq!(rounded(1e305), 1e305);
        let mut measured = Measured::default();
        for odd in [f64::NAN, f64::INFINITY] {
            measured.set("motion", odd);
        }
        assert!(measured.numbers.is_empty());
    }
}
