//! What is measured of a clip, in one pass over its frames.

use super::{
    duplicates::{ClipHash, MOMENTS, picture_hasher},
    flow::{self, Pyramid},
    grey::Shrink,
    score::Score,
    thinned::Thinned,
};
use crate::source::{self, Header};
use opensora_video::pillow::{Filter, Resize};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::Path};

/// Pairs of neighbouring frames whose flow is measured, at most; at least half as many of clips
/// that have them.
const FLOW_PAIRS: usize = 32;
/// Pictures of a clip that are hashed, at most, before the moments' are taken.
const HASHED: usize = 128;
/// Frames that are held for a model, at most, and how many of them it sees.
const HELD: usize = 16;
const SCORED: usize = 4;
/// Mean luma up to which a frame is dark, and from which on it is bright.
const DARK: f64 = 0.1;
const BRIGHT: f64 = 0.9;

/// Columns that a file's header gives.
pub(crate) const HEADER: [&str; 5] = ["num_frames", "fps", "duration", "width", "height"];
/// Columns that all of a clip's frames give.
pub(crate) const PIXELS: [&str; 5] = ["motion", "flow", "brightness", "dark_share", "bright_share"];
/// The column of hashes.
pub(crate) const HASH: &str = "hash";

/// How far into a file one looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Depth {
    /// Its header, where that says everything.
    Header,
    /// All of its frames.
    Pixels,
}

/// What was measured of a clip.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Numbers by column, none of them infinite or not a number. Where there is no number there is
    /// no entry.
    pub(crate) numbers: BTreeMap<String, f64>,
    /// Its hash, see [`ClipHash::to_text`].
    pub(crate) hash: Option<String>,
}

impl Measured {
    fn set(&mut self, column: &str, value: f64) {
        if value.is_finite() {
            self.numbers.insert(column.into(), rounded(value));
        }
    }
}

/// A number to six decimals: as it is written, so that it is judged as it is read.
pub(crate) fn rounded(value: f64) -> f64 {
    let rounded = (value * 1e6).round() / 1e6;
    if rounded.is_finite() { rounded } else { value }
}

/// Measures a clip.
///
/// # Errors
/// One line, where it cannot be read to its end or a model fails on it.
pub(crate) fn measure(
    path: &Path,
    depth: Depth,
    models: &[Box<dyn Score>],
) -> Result<Measured, String> {
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
            return Err(format!("a frame has {found} bytes, expected {expected}"));
        }
        match depth {
            Depth::Header => clip.count += 1,
            Depth::Pixels => clip.frame(&rgb),
        }
    }
    if clip.count == 0 {
        return Err("it has no frames".into());
    }
    measured.set("num_frames", clip.count as f64);
    let duration = duration(&header, clip.count);
    duration.into_iter().for_each(|seconds| measured.set("duration", seconds));
    if depth == Depth::Pixels {
        clip.finish(&mut measured)?;
    }
    Ok(measured)
}

/// Seconds of a clip with so many frames: by its rate where it has one. A single frame is a picture
/// and has no duration, unless its file says so.
fn duration(header: &Header, count: usize) -> Option<f64> {
    header.fps.filter(|_| count > 1).map(|fps| count as f64 / fps).or(header.duration)
}

/// Sums over a clip's frames.
struct Pass<'a> {
    models: &'a [Box<dyn Score>],
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
    /// Frames for each model, in its size.
    held: Vec<Thinned<Vec<u8>>>,
}

impl<'a> Pass<'a> {
    fn new(header: &Header, models: &'a [Box<dyn Score>]) -> Self {
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
        // A pair's number is that of its first frame.
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

    fn finish(self, measured: &mut Measured) -> Result<(), String> {
        let frames = self.count as f64;
        // A picture does not move.
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
            let score = model.score(&frames).map_err(|reason| format!("{column}: {reason}"))?;
            measured.set(column, score);
        }
        Ok(())
    }
}

/// Scales the shorter side to what fits and cuts out the middle.
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
    fn frames_are_fitted_by_their_middles() {
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
