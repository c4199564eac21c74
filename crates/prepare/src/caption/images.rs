//! The images of a clip that a vision model gets: frames at fixed positions, as JPEG.
//!
//! Frames larger than [`ImageSpec::max_side`] are scaled down.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `tools/caption/utils.py`, `extract_frames`: frames
//! `int(length * position)` at 0.2, 0.5 and 0.8. Deviation: clips of fewer frames than positions are
//! taken as well, each frame once.

use super::prompt::View;
use crate::{
    PrepareError, RowError,
    source::{self, Header, Stream},
};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use image::codecs::jpeg::JpegEncoder;
use opensora_video::{
    Frames, media,
    pillow::{Filter, Resize},
    sheet::{SheetOptions, contact_sheet},
};
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, path::Path};

/// Maximum number of positions; prevents requests of hundreds of images.
const MAX_POSITIONS: usize = 64;

/// Layout of a clip's frames in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// One image per frame. Not every server accepts several images: vLLM must be started for them
    /// (`--limit-mm-per-prompt`).
    #[default]
    Multi,
    /// One image with the frames side by side.
    Grid,
    /// The frame at the first of the positions.
    First,
}

/// The frames of a clip that are sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageSpec {
    /// Positions of the frames in the clip, from 0 (first frame) to 1 (last frame).
    pub positions: Vec<f64>,
    /// Layout of the frames in a request.
    pub layout: Layout,
    /// Maximum length of a frame's longer side in pixels, also in a grid.
    pub max_side: usize,
    /// JPEG quality, from 1 to 100.
    pub quality: u8,
}

impl Default for ImageSpec {
    /// Returns the defaults: the positions of the reference (0.2, 0.5 and 0.8), one image per frame of
    /// at most 768 pixels, quality 90.
    fn default() -> Self {
        Self { positions: vec![0.2, 0.5, 0.8], layout: Layout::Multi, max_side: 768, quality: 90 }
    }
}

impl ImageSpec {
    /// Checks the settings.
    ///
    /// # Errors
    /// Returns an error if a setting is out of its range.
    pub fn validate(&self) -> Result<(), PrepareError> {
        let fail = |field, found: String, expected| PrepareError::Spec { field, found, expected };
        let count = self.positions.len();
        if !(1..=MAX_POSITIONS).contains(&count) {
            return Err(fail("positions", format!("{count} of them"), "1 to 64 of them"));
        }
        if let Some(position) = self.positions.iter().find(|at| !(0.0..=1.0).contains(*at)) {
            return Err(fail("positions", position.to_string(), "numbers from 0 to 1"));
        }
        if self.max_side == 0 {
            return Err(fail("max side", "0".into(), "at least 1 pixel"));
        }
        if !(1..=100).contains(&self.quality) {
            return Err(fail("quality", self.quality.to_string(), "1 to 100"));
        }
        Ok(())
    }

    /// Returns the frames that are sent of a clip of `length` frames, each once.
    fn indices(&self, length: usize) -> Vec<usize> {
        let positions = match self.layout {
            Layout::First => &self.positions[..1],
            Layout::Multi | Layout::Grid => &self.positions,
        };
        let mut indices = Vec::new();
        for position in positions {
            let index = ((length as f64 * position) as usize).min(length - 1);
            if !indices.contains(&index) {
                indices.push(index);
            }
        }
        indices
    }
}

/// JPEG images of a clip, with their size and layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Images {
    jpegs: Vec<Vec<u8>>,
    /// Height and width of each image.
    size: [usize; 2],
    /// Number and layout of the images.
    pub(crate) view: View,
}

impl Images {
    /// Reads the images of a clip.
    pub(crate) fn read(path: &Path, spec: &ImageSpec) -> Result<Self, RowError> {
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        let is_image =
            media::IMAGES.contains(&ending.to_ascii_lowercase().as_str()) && !path.is_dir();
        Self::of(frames(path, spec)?, is_image, spec)
    }

    /// Returns as many grey images of the same size, to test whether a server accepts such images.
    pub(crate) fn grey(&self, quality: u8) -> Result<Self, RowError> {
        let [height, width] = self.size;
        let jpeg = encode(&vec![128; 3 * height * width], self.size, quality)?;
        Ok(Self { jpegs: vec![jpeg; self.jpegs.len()], ..self.clone() })
    }

    /// Encodes frames of one size.
    fn of(frames: Vec<Frame>, is_image: bool, spec: &ImageSpec) -> Result<Self, RowError> {
        let [height, width] = frames.first().ok_or(RowError::NoFrames)?.size;
        let count = frames.len();
        let rgb = frames.into_iter().flat_map(|frame| frame.rgb).collect();
        let mut shown = Frames::from_rgb(rgb, [count, height, width])?;
        let mut view = if is_image { View::Image } else { View::Frames(count) };
        if spec.layout == Layout::Grid && count > 1 {
            let options = SheetOptions { columns: count, scale: 1 };
            shown = contact_sheet(&[shown], &options)?;
            view = View::SideBySide(count);
        }
        let size = [shown.height(), shown.width()];
        let jpegs = shown.iter().map(|rgb| encode(rgb, size, spec.quality));
        Ok(Self { jpegs: jpegs.collect::<Result<_, _>>()?, size, view })
    }

    /// Returns the images as `data:` URLs.
    pub(crate) fn data_urls(&self) -> impl Iterator<Item = String> {
        self.jpegs.iter().map(|jpeg| format!("data:image/jpeg;base64,{}", BASE64.encode(jpeg)))
    }
}

/// Returns the size scaled down to a longer side of at most `max_side`.
fn fitted(size: [usize; 2], max_side: usize) -> [usize; 2] {
    let longer = size[0].max(size[1]);
    if longer <= max_side {
        return size;
    }
    size.map(|side| ((side * max_side + longer / 2) / longer).max(1))
}

fn encode(rgb: &[u8], [height, width]: [usize; 2], quality: u8) -> Result<Vec<u8>, RowError> {
    let mut jpeg = Vec::new();
    let colour = image::ExtendedColorType::Rgb8;
    JpegEncoder::new_with_quality(&mut jpeg, quality).encode(
        rgb,
        width as u32,
        height as u32,
        colour,
    )?;
    Ok(jpeg)
}

/// A frame in the size in which it is sent.
struct Frame {
    /// Height and width.
    size: [usize; 2],
    /// `[H, W, 3]` bytes.
    rgb: Vec<u8>,
}

impl Frame {
    /// Returns a frame of `[H, W, 3]` bytes, whose height and width are `source`, scaled down to
    /// [`ImageSpec::max_side`].
    fn of(rgb: &[u8], source: [usize; 2], spec: &ImageSpec) -> Self {
        let size = fitted(source, spec.max_side);
        // `Resize` skips passes that keep the size.
        Self { size, rgb: Resize::whole(source, size).apply(rgb, Filter::Bicubic) }
    }
}

/// Returns the frames of a clip that are sent. Only these are held while the clip is decoded. If the
/// stated number of frames is missing or wrong, the clip is decoded again.
fn frames(path: &Path, spec: &ImageSpec) -> Result<Vec<Frame>, RowError> {
    let (header, stream) = source::open(path)?;
    let told = header.num_frames.filter(|&told| told > 0);
    // Without a stated number, decode to the end.
    let (seen, frames) = pick(&header, stream, told.unwrap_or(usize::MAX), spec)?;
    if told.is_some() && !frames.is_empty() {
        return Ok(frames);
    }
    if seen == 0 {
        return Err(RowError::NoFrames);
    }
    let (header, stream) = source::open(path)?;
    Ok(pick(&header, stream, seen, spec)?.1)
}

/// Returns the number of decoded frames, and the frames of a clip of `length` frames to send to the model.
/// Returns no frames if the clip ends before the last frame to send.
fn pick(
    header: &Header,
    stream: Stream,
    length: usize,
    spec: &ImageSpec,
) -> Result<(usize, Vec<Frame>), RowError> {
    let size = [header.height, header.width];
    let indices = spec.indices(length);
    let (mut picked, mut seen) = (HashMap::new(), 0);
    for rgb in stream {
        let rgb = rgb?;
        if rgb.len() != 3 * size[0] * size[1] {
            return Err(RowError::FrameSize { frame: seen });
        }
        if indices.contains(&seen) {
            picked.insert(seen, Frame::of(&rgb, size, spec));
        }
        seen += 1;
        if picked.len() == indices.len() {
            // In the order of the positions, which need not be sorted.
            return Ok((seen, indices.iter().filter_map(|index| picked.remove(index)).collect()));
        }
    }
    Ok((seen, vec![]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames of these greys.
    fn grey_frames(greys: [u8; 3], size: [usize; 2], spec: &ImageSpec) -> Vec<Frame> {
        greys.map(|grey| Frame::of(&vec![grey; 3 * size[0] * size[1]], size, spec)).into()
    }

    fn decoded(jpeg: &[u8]) -> image::RgbImage {
        image::load_from_memory(jpeg).unwrap().into_rgb8()
    }

    #[test]
    fn positions_are_those_of_the_reference() {
        let spec = ImageSpec::default();
        for (length, indices) in
            [(100, vec![20, 50, 80]), (16, vec![3, 8, 12]), (3, vec![0, 1, 2]), (1, vec![0])]
        {
            assert_eq!(spec.indices(length), indices);
        }
        let ends = ImageSpec { positions: vec![1.0, 0.0], ..spec };
        assert_eq!(ends.indices(7), [6, 0]);
        assert_eq!(ImageSpec { layout: Layout::First, ..ends }.indices(7), [6]);
    }

    #[test]
    fn images_show_their_frames_in_the_requested_size() {
        let spec = ImageSpec { max_side: 32, ..ImageSpec::default() };
        let frames = || grey_frames([40, 100, 160], [40, 80], &spec);
        let images = Images::of(frames(), false, &spec).unwrap();
        assert_eq!((images.jpegs.len(), images.view), (3, View::Frames(3)));
        for (jpeg, grey) in images.jpegs.iter().zip([40u8, 100, 160]) {
            let image = decoded(jpeg);
            assert_eq!(image.dimensions(), (32, 16));
            assert!(image.pixels().all(|pixel| pixel.0.iter().all(|v| v.abs_diff(grey) <= 3)));
        }
        let grid = ImageSpec { layout: Layout::Grid, ..spec.clone() };
        let images = Images::of(frames(), false, &grid).unwrap();
        assert_eq!(images.view, View::SideBySide(3));
        let image = decoded(&images.jpegs[0]);
        assert!(image.width() >= 96 && image.height() < 24, "{:?}", image.dimensions());
        // The centre of each third.
        for (third, grey) in [40u8, 100, 160].into_iter().enumerate() {
            let x = image.width() * (2 * third as u32 + 1) / 6;
            assert!(image.get_pixel(x, image.height() / 2).0[0].abs_diff(grey) <= 4);
        }
        let test = images.grey(90).unwrap();
        assert_eq!(decoded(&test.jpegs[0]).dimensions(), image.dimensions());
        assert!(images.data_urls().all(|url| url.starts_with("data:image/jpeg;base64,/9j/")));
    }

    #[test]
    fn images_are_read_and_missing_files_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let jpg = folder.path().join("a.JPG");
        std::fs::write(&jpg, encode(&[200; 3 * 8 * 8], [8, 8], 90).unwrap()).unwrap();
        let spec = ImageSpec::default();
        assert_eq!(Images::read(&jpg, &spec).unwrap().view, View::Image);
        for name in ["none.mp4", "none.jpg", "none"] {
            assert!(Images::read(&folder.path().join(name), &spec).is_err());
        }
    }

    #[test]
    fn clips_that_end_early_give_no_frames_until_their_length_is_known() {
        let header = Header { width: 1, height: 1, fps: None, num_frames: None, duration: None };
        let stream = || -> Stream { Box::new((0..5u8).map(|grey| Ok(vec![grey; 3]))) };
        let spec = ImageSpec { positions: vec![0.8, 0.2], ..ImageSpec::default() };
        let (seen, none) = pick(&header, stream(), 100, &spec).unwrap();
        assert_eq!((seen, none.len()), (5, 0));
        let (_, frames) = pick(&header, stream(), seen, &spec).unwrap();
        let greys: Vec<u8> = frames.iter().map(|frame| frame.rgb[0]).collect();
        assert_eq!(greys, [4, 1]);
        let odd: Stream = Box::new([Ok(vec![0; 3]), Ok(vec![0; 6])].into_iter());
        assert!(
            pick(&header, odd, 9, &spec).is_err_and(|error| error.to_string().contains("frame 2"))
        );
    }

    #[test]
    fn invalid_settings_are_rejected() {
        let spec = ImageSpec::default();
        spec.validate().unwrap();
        for (wrong, word) in [
            (ImageSpec { positions: vec![], ..spec.clone() }, "positions"),
            (ImageSpec { positions: vec![0.5, 20.0], ..spec.clone() }, "20"),
            (ImageSpec { positions: vec![f64::NAN], ..spec.clone() }, "NaN"),
            (ImageSpec { max_side: 0, ..spec.clone() }, "max side"),
            (ImageSpec { quality: 0, ..spec.clone() }, "quality"),
        ] {
            let text = wrong.validate().unwrap_err().to_string();
            assert!(text.contains(word), "{text}");
        }
        assert_eq!(fitted([1080, 1920], 768), [432, 768]);
        assert_eq!(fitted([1, 4000], 100), [1, 100]);
    }
}
