//! Reading of any video, frame by frame.
//!
//! H.264 in MP4 and GIF are decoded in this process, detected by their contents. Other formats, and files that
//! these decoders reject, are decoded by the `ffmpeg` program if it is installed. Memory does not grow with the
//! length of a video, except for GIF, which is held completely.
//!
//! ```
//! use opensora_video::{Decoder, Frames, VideoReader};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = tempfile::tempdir()?;
//! let clip = Frames::from_rgb(vec![128; 3 * 4 * 32 * 48], [4, 32, 48])?;
//! let path = clip.save(folder.path().join("clip.mp4"), 8.0)?;
//! let reader = VideoReader::open(&path, Decoder::Auto)?;
//! assert_eq!((reader.info().width, reader.info().height, reader.info().fps), (48, 32, 8.0));
//! let times: Result<Vec<f64>, _> = reader.map(|frame| frame.map(|frame| frame.time)).collect();
//! assert_eq!(times?, [0.0, 0.125, 0.25, 0.375]);
//! # Ok(())
//! # }
//! ```
//!
//! # Shown frames
//!
//! Both decoders return the same frames as the `ffmpeg` program, OpenCV and PySceneDetect:
//!
//! - **Edit lists.** Frames that an edit hides are decoded if other frames need them, but not counted or
//!   returned. Time 0 is that of the first shown frame.
//! - **Display matrix.** Frames are rotated and mirrored as the container states, in all eight orientations;
//!   width and height are those of the upright frame. (OpenCV rotates but does not mirror.)
//! - **Times.** [`VideoFrame::time`] is the presentation time of the frame in the container, also for variable
//!   frame rates.
//! - **Pixel aspect.** Frames have the stored number of pixels, as in OpenCV. [`VideoInfo::square_size`] is the
//!   size in square pixels: the height is unchanged, the width is scaled and rounded.
//!   [`VideoReader::with_square_pixels`] resizes frames to this size.
//! - **Colours.** Matrix and range are those of the stream, else those of the container, else BT.601 in limited
//!   range. Pixels equal those of `ffmpeg -pix_fmt rgb24`. Frames of 8 bits equal those of OpenCV. Frames of 10
//!   bits differ from those of OpenCV 5.0, in which a light grey has about two steps more red and blue than
//!   green; with `ffmpeg` 5.1 it is grey. Shot scores differ by up to 0.3.

use crate::{
    Frames, PixelAspect, VideoError,
    color::Planes,
    ffmpeg::{self, Halves, Planar, Programs},
    foreign,
    frames::MAX_SIDE,
    gif, in_process,
    picks::Picks,
    pillow::{Filter, Resize},
    yuv::ToRgb,
};
use opensora_files::error_line;
use std::path::{Path, PathBuf};

/// Metadata of a video.
#[derive(Debug, Clone, PartialEq)]
pub struct VideoInfo {
    /// Width of the upright frame in pixels.
    pub width: usize,
    /// Height of the upright frame in pixels.
    pub height: usize,
    /// Mean frames per second; 0 if unknown, as for a single frame.
    pub fps: f64,
    /// Number of shown frames, if the container states it.
    pub num_frames: Option<usize>,
    /// Seconds from the first shown frame to the end of the last, if the container states it.
    pub duration: Option<f64>,
    /// Name of the codec, such as `h264`.
    pub codec: String,
    /// Pixel aspect of the upright frame.
    pub pixel_aspect: PixelAspect,
}

impl VideoInfo {
    /// Returns height and width of the upright frame in square pixels: the height is unchanged, the width is
    /// multiplied by the pixel aspect and rounded to nearest.
    pub fn square_size(&self) -> [usize; 2] {
        [self.height, self.pixel_aspect.square_width(self.width)]
    }
}

/// Selection of a decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Decoder {
    /// The decoders in this process, and the `ffmpeg` program for files that they reject.
    #[default]
    Auto,
    /// The decoders in this process.
    InProcess,
    /// The `ffmpeg` program.
    Ffmpeg,
}

/// A decoded frame.
#[derive(Debug, Clone, PartialEq)]
pub struct VideoFrame {
    /// Seconds since the first shown frame, by the presentation times of the container.
    pub time: f64,
    /// `[H, W, 3]` bytes.
    pub rgb: Vec<u8>,
}

/// A decoded frame in planes, for callers that convert only some pixels to RGB.
///
/// Without [`PlanarFrames::picks`], the planes are 4:2:0: luma, then blue and red differences at half the width
/// and height, each rounded up. With it, they are the selected pixels as 4:4:4: luma, blue and red differences
/// (or red, green and blue, as `to_rgb` knows), each `[rows, columns]`.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanarFrame {
    /// Seconds since the first shown frame, by the presentation times of the container.
    pub time: f64,
    /// The three planes, concatenated.
    pub planes: Vec<u8>,
    /// Conversion of the planes to RGB.
    pub to_rgb: ToRgb,
}

/// An iterator over the frames of a video. It ends after an error.
pub struct VideoReader {
    source: Option<Source>,
    info: VideoInfo,
    path: PathBuf,
    /// Number of returned frames.
    given: usize,
    /// Programs that continue if the decoder in this process fails in the middle.
    others: Option<Programs>,
    /// Resizing to square pixels.
    resize: Option<Resize>,
}

enum Source {
    Mp4(Box<in_process::Stream>),
    Held { frames: Frames, times: Vec<f64>, next: usize },
    Ffmpeg(Box<ffmpeg::Stream>),
}

impl VideoReader {
    /// Opens a video file to read its frames in planes. [`Decoder::Auto`] prefers the `ffmpeg` program, which
    /// is faster. GIF, and videos other than 8-bit 4:2:0 with limited range, are returned as RGB planes.
    ///
    /// `wanted` returns the needed pixels of frames of a width and height; `None` for all pixels. If the pixels
    /// can be selected bit-exactly, frames contain only these ([`PlanarFrames::picks`]).
    ///
    /// # Errors
    /// Returns the errors of [`open`](Self::open).
    pub fn open_planar(
        path: &Path,
        decoder: Decoder,
        wanted: impl Fn(usize, usize) -> Option<Picks>,
    ) -> Result<(VideoInfo, PlanarFrames), VideoError> {
        let programs = Programs::default();
        check_file(path)?;
        let outside = || {
            let (stream, planar) = ffmpeg::Stream::open_planar(path, &programs, &wanted)?;
            Ok((stream.info.clone(), PlanarSource::Ffmpeg(Box::new(stream), planar)))
        };
        let inside = || {
            if foreign::is_gif(path) {
                let (info, frames, times) = read_gif(path)?;
                let [width, height] = [info.width, info.height];
                let all = || Picks { columns: (0..width).collect(), rows: (0..height).collect() };
                let picks = wanted(width, height).unwrap_or_else(all);
                return Ok((info, PlanarSource::Held { frames, times, next: 0, picks }));
            }
            let stream = in_process::Stream::open(path).map_err(|refused| refused.of(path))?;
            Ok((stream.info.clone(), PlanarSource::Mp4(Box::new(stream))))
        };
        let (info, source) = match decoder {
            Decoder::InProcess => inside()?,
            Decoder::Ffmpeg => outside()?,
            Decoder::Auto => match outside() {
                Err(absent) if is_absent(&absent) => {
                    inside().map_err(|refused| without_program(refused, &absent))?
                }
                other => other?,
            },
        };
        let decoder = match source {
            PlanarSource::Mp4(_) | PlanarSource::Held { .. } => Decoder::InProcess,
            PlanarSource::Ffmpeg(..) => Decoder::Ffmpeg,
        };
        Ok((info, PlanarFrames { source: Some(source), decoder, path: path.into() }))
    }

    /// Opens a long video twice, to decode on two cores: from the first frame, and from a key frame near the
    /// middle. Returns `None` if the `ffmpeg` program is not installed or the index names no such frame; use
    /// [`open_planar`](Self::open_planar) then.
    ///
    /// The index of a file may be wrong. Read the first reader up to and including the frame `place`: it must
    /// equal the first frame of the second reader, and the second reader must return all remaining frames.
    pub fn open_planar_halves(
        path: &Path,
        wanted: impl Fn(usize, usize) -> Option<Picks>,
    ) -> Option<PlanarHalves> {
        check_file(path).ok()?;
        let programs = Programs::default();
        let halves = ffmpeg::Stream::open_planar_halves(path, &programs, &wanted).ok()??;
        let Halves { first, second, place, planar } = halves;
        let info = first.info.clone();
        let frames = |stream| PlanarFrames {
            source: Some(PlanarSource::Ffmpeg(Box::new(stream), planar.clone())),
            decoder: Decoder::Ffmpeg,
            path: path.into(),
        };
        Some(PlanarHalves { info, first: frames(first), second: frames(second), place })
    }

    /// Opens a video file.
    ///
    /// With [`Decoder::Auto`], the `ffmpeg` program also continues if the decoder in this process fails in the
    /// middle of a file, because it conceals damaged frames.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or decoded; and [`VideoError::NeedsFfmpeg`] if the `ffmpeg`
    /// program could decode the file but is excluded or not installed.
    pub fn open(path: &Path, decoder: Decoder) -> Result<Self, VideoError> {
        Self::open_with(path, decoder, &Programs::default())
    }

    /// Opens a video file as [`open`](Self::open), with other programs.
    ///
    /// # Errors
    /// Returns the errors of [`open`](Self::open).
    pub fn open_with(
        path: &Path,
        decoder: Decoder,
        programs: &Programs,
    ) -> Result<Self, VideoError> {
        check_file(path)?;
        let outside = || {
            let stream = ffmpeg::Stream::open(path, programs)?;
            Ok(Self::of(path, stream.info.clone(), Source::Ffmpeg(Box::new(stream))))
        };
        match decoder {
            Decoder::InProcess => Self::in_process(path),
            Decoder::Ffmpeg => outside(),
            Decoder::Auto => match Self::in_process(path) {
                Ok(reader) => Ok(Self { others: Some(programs.clone()), ..reader }),
                Err(refused) => outside().map_err(|error| match error {
                    absent if is_absent(&absent) => without_program(refused, &absent),
                    // Both decoders describe the problem; the first knows more about its formats.
                    VideoError::Decode { source, .. } => {
                        let (first, second) = (problem(&refused), error_line(&*source));
                        match first == second {
                            true => VideoError::decode(path, source),
                            false => VideoError::decode(path, format!("{first}; {second}")),
                        }
                    }
                    other => other,
                }),
            },
        }
    }

    fn in_process(path: &Path) -> Result<Self, VideoError> {
        if foreign::is_gif(path) {
            let (info, frames, times) = read_gif(path)?;
            return Ok(Self::of(path, info, Source::Held { frames, times, next: 0 }));
        }
        let stream = in_process::Stream::open(path).map_err(|refused| refused.of(path))?;
        Ok(Self::of(path, stream.info.clone(), Source::Mp4(Box::new(stream))))
    }

    fn of(path: &Path, info: VideoInfo, source: Source) -> Self {
        let source = Some(source);
        Self { source, info, path: path.into(), given: 0, others: None, resize: None }
    }

    /// Returns the metadata of the video.
    pub fn info(&self) -> &VideoInfo {
        &self.info
    }

    /// Resizes frames to square pixels ([`VideoInfo::square_size`], bicubic as in Pillow) and updates the
    /// metadata. Frames with square pixels are unchanged.
    ///
    /// # Errors
    /// Returns an error if a side would be too long.
    pub fn with_square_pixels(mut self) -> Result<Self, VideoError> {
        let (from, to) = ([self.info.height, self.info.width], self.info.square_size());
        if to[1] > MAX_SIDE {
            let aspect = self.info.pixel_aspect;
            let reason = format!(
                "its frames have {}x{} pixels of {}:{}, expected sides of at most {MAX_SIDE} square pixels",
                from[0], from[1], aspect.width, aspect.height
            );
            return Err(VideoError::decode(&self.path, reason));
        }
        if from != to {
            self.resize = Some(Resize::whole(from, to));
        }
        [self.info.height, self.info.width] = to;
        self.info.pixel_aspect = PixelAspect::SQUARE;
        Ok(self)
    }

    /// Returns the next frame; `None` after the last.
    fn read_next(&mut self) -> Result<Option<VideoFrame>, VideoError> {
        let Some(source) = &mut self.source else { return Ok(None) };
        match source {
            Source::Mp4(stream) => match stream.next_picture() {
                Ok(frame) => Ok(frame.map(|frame| {
                    let rgb = frame.matrix.rgb(&frame.planes);
                    VideoFrame { time: frame.time, rgb }
                })),
                Err(refused) => self.go_on(refused.of(&self.path)),
            },
            Source::Held { frames, times, next } => {
                let time = times.get(*next).copied().unwrap_or_default();
                let rgb = frames.frame(*next).map(<[u8]>::to_vec);
                *next += 1;
                Ok(rgb.map(|rgb| VideoFrame { time, rgb }))
            }
            Source::Ffmpeg(stream) => match stream.next_frame() {
                Ok(frame) => {
                    Ok(frame.map(|frame| VideoFrame { time: frame.time, rgb: frame.bytes }))
                }
                Err(source) => Err(VideoError::decode(&self.path, source)),
            },
        }
    }

    /// Starts the program from the beginning and skips the frames that were already returned.
    fn go_on(&mut self, refused: VideoError) -> Result<Option<VideoFrame>, VideoError> {
        let Some(programs) = self.others.take() else { return Err(refused) };
        let stream = match ffmpeg::Stream::open(&self.path, &programs) {
            Ok(stream) => stream,
            Err(absent) if is_absent(&absent) => return Err(without_program(refused, &absent)),
            Err(_) => return Err(refused),
        };
        self.source = Some(Source::Ffmpeg(Box::new(stream)));
        for _ in 0..self.given {
            if self.read_next()?.is_none() {
                return Ok(None);
            }
        }
        self.read_next()
    }
}

impl Iterator for VideoReader {
    type Item = Result<VideoFrame, VideoError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut frame = self.read_next();
        match &mut frame {
            Ok(Some(frame)) => {
                self.given += 1;
                if let Some(resize) = &self.resize {
                    frame.rgb = resize.apply(&frame.rgb, Filter::Bicubic);
                }
            }
            _ => self.source = None,
        }
        frame.transpose()
    }
}

/// A video that is decoded by two processes.
pub struct PlanarHalves {
    /// Metadata of the video.
    pub info: VideoInfo,
    /// All frames.
    pub first: PlanarFrames,
    /// Frames from index `place`.
    pub second: PlanarFrames,
    /// Index of the first frame of `second`.
    pub place: usize,
}

/// An iterator over the frames of a video in planes. It ends after an error.
pub struct PlanarFrames {
    source: Option<PlanarSource>,
    decoder: Decoder,
    path: Box<Path>,
}

enum PlanarSource {
    Mp4(Box<in_process::Stream>),
    Held { frames: Frames, times: Vec<f64>, next: usize, picks: Picks },
    Ffmpeg(Box<ffmpeg::Stream>, Planar),
}

impl PlanarSource {
    fn read_next(&mut self, path: &Path) -> Result<Option<PlanarFrame>, VideoError> {
        match self {
            Self::Mp4(stream) => match stream.next_picture() {
                Ok(frame) => Ok(frame.map(|frame| {
                    let Planes { y: mut planes, u, v, .. } = frame.planes;
                    planes.extend(u);
                    planes.extend(v);
                    PlanarFrame { time: frame.time, planes, to_rgb: ToRgb::new(frame.matrix) }
                })),
                Err(refused) => Err(refused.of(path)),
            },
            Self::Held { frames, times, next, picks } => {
                let time = times.get(*next).copied().unwrap_or_default();
                let planes = frames.frame(*next).map(|rgb| picks.of_rgb(rgb, frames.width()));
                *next += 1;
                Ok(planes.map(|planes| PlanarFrame { time, planes, to_rgb: ToRgb::NONE }))
            }
            Self::Ffmpeg(stream, planar) => match stream.next_frame() {
                Ok(frame) => Ok(frame.map(|frame| PlanarFrame {
                    time: frame.time,
                    planes: frame.bytes,
                    to_rgb: planar.to_rgb,
                })),
                Err(source) => Err(VideoError::decode(path, source)),
            },
        }
    }
}

impl PlanarFrames {
    /// Returns the decoder in use, never [`Decoder::Auto`].
    pub fn decoder(&self) -> Decoder {
        self.decoder
    }

    /// Returns the selected pixels of 4:4:4 frames; `None` for frames with all pixels in 4:2:0.
    pub fn picks(&self) -> Option<&Picks> {
        match &self.source {
            Some(PlanarSource::Ffmpeg(_, planar)) => planar.picks.as_ref(),
            Some(PlanarSource::Held { picks, .. }) => Some(picks),
            _ => None,
        }
    }

    /// Returns the planes of a processed frame for reuse by a later frame.
    pub fn reuse(&mut self, planes: Vec<u8>) {
        if let Some(PlanarSource::Ffmpeg(stream, _)) = &mut self.source {
            stream.reuse(planes);
        }
    }
}

impl Iterator for PlanarFrames {
    type Item = Result<PlanarFrame, VideoError>;

    fn next(&mut self) -> Option<Self::Item> {
        let frame = self.source.as_mut()?.read_next(&self.path);
        if !matches!(frame, Ok(Some(_))) {
            self.source = None;
        }
        frame.transpose()
    }
}

/// Returns an error for pipes and devices, which could block, and for known formats without video.
fn check_file(path: &Path) -> Result<(), VideoError> {
    let io = |source| VideoError::Io { path: path.into(), source };
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(VideoError::decode(path, "it is not a regular file"));
    }
    match foreign::kind(path).map_err(io)? {
        Some(kind) => Err(VideoError::decode(path, format!("it is {kind}, expected a video"))),
        None => Ok(()),
    }
}

/// Reads a GIF. Returns metadata, frames and times.
fn read_gif(path: &Path) -> Result<(VideoInfo, Frames, Vec<f64>), VideoError> {
    let gif::Timed { frames, times, duration } = gif::read_timed(path)?;
    let info = VideoInfo {
        width: frames.width(),
        height: frames.height(),
        fps: frames.len() as f64 / duration,
        num_frames: Some(frames.len()),
        duration: Some(duration),
        codec: "gif".into(),
        pixel_aspect: PixelAspect::SQUARE,
    };
    Ok((info, frames, times))
}

/// Returns true for the error of a program that is not installed or cannot be started.
fn is_absent(error: &VideoError) -> bool {
    matches!(error, VideoError::NotInstalled { .. } | VideoError::Program { .. })
}

/// Returns the error of a file that was rejected in this process while the program cannot be used.
fn without_program(refused: VideoError, absent: &VideoError) -> VideoError {
    match refused {
        VideoError::NeedsFfmpeg { path, found, .. } => {
            let reason = absent.line_without(&path);
            VideoError::NeedsFfmpeg { path, found, reason }
        }
        other => other,
    }
}

/// Returns the metadata of a video. At most its first frame is decoded.
///
/// # Errors
/// Returns the errors of [`VideoReader::open`].
pub fn probe(path: &Path) -> Result<VideoInfo, VideoError> {
    Ok(VideoReader::open(path, Decoder::Auto)?.info)
}

/// Returns the problem that an error names, without the path.
fn problem(error: &VideoError) -> String {
    match error {
        VideoError::Decode { source, .. } => error_line(&**source),
        VideoError::NeedsFfmpeg { found, .. } => format!("found {found}"),
        error => error_line(error),
    }
}
