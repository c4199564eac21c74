//! Any video, picture by picture.
//!
//! H.264 in MP4 and GIF, whatever the file's name, are decoded in this process; everything else, and what the decoders in this
//! process reject, through the `ffmpeg` program if it is installed. Memory does not grow with the
//! length of a video (but a GIF is held as a whole).
//!
//! # What is shown
//!
//! Both decoders show the same frames, those that the `ffmpeg` program, OpenCV and PySceneDetect show:
//!
//! - **Edit lists.** Frames that an edit hides are decoded if others need them, but neither counted
//!   nor handed over. Time 0 is that of the first frame that is shown.
//! - **Display matrix.** Pictures are turned and mirrored as the container states, in all eight
//!   orientations; width and height are those of the upright picture. (OpenCV turns by quarters but
//!   does not mirror.)
//! - **Times.** [`VideoFrame::time`] is the container's own presentation time of that very frame, also
//!   if the frame rate varies.
//! - **Pixel aspect.** Frames have the stored number of pixels, as with OpenCV.
//!   [`VideoInfo::square_size`] is the size in square pixels: the height stays, the width is scaled
//!   and rounded to the nearest pixel. [`VideoReader::with_square_pixels`] resizes frames to it.
//! - **Colours.** The stream's own matrix and range, else those of the container, else BT.601 in
//!   limited range. Pixels are those of `ffmpeg -pix_fmt rgb24`. Frames of 8 bits equal OpenCV's.
//!   Frames of 10 bits differ from those of OpenCV 5.0, where a light grey has about two steps more
//!   red and blue than green; through `ffmpeg` 5.1 it stays grey. Scores of shots differ by up to 0.3.

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

/// What is known of a video before it is decoded.
#[derive(Debug, Clone, PartialEq)]
pub struct VideoInfo {
    /// Pixels in a row of the upright picture.
    pub width: usize,
    /// Rows of the upright picture.
    pub height: usize,
    /// Frames per second: the mean if frames last unequally long, 0 if it is not known (as with a
    /// single frame).
    pub fps: f64,
    /// Number of shown frames, if the container tells.
    pub num_frames: Option<usize>,
    /// Seconds from the first shown frame to the end of the last, if the container tells.
    pub duration: Option<f64>,
    /// Name of the codec, such as `h264`.
    pub codec: String,
    /// Shape of the pixels of the upright picture.
    pub pixel_aspect: PixelAspect,
}

impl VideoInfo {
    /// Returns height and width of the upright picture in square pixels: the height as it is, the
    /// width times the pixel aspect, rounded to the nearest pixel.
    pub fn square_size(&self) -> [usize; 2] {
        [self.height, self.pixel_aspect.square_width(self.width)]
    }
}

/// Who decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Decoder {
    /// The decoders here, and the `ffmpeg` program for what they refuse, where it is found.
    #[default]
    Auto,
    /// The decoders here.
    InProcess,
    /// The `ffmpeg` program.
    Ffmpeg,
}

/// A decoded frame.
#[derive(Debug, Clone, PartialEq)]
pub struct VideoFrame {
    /// Seconds from the first shown frame to this one, by their presentation times in the container.
    pub time: f64,
    /// `[H, W, 3]` bytes.
    pub rgb: Vec<u8>,
}

/// A decoded frame as codecs hold it, 4:2:0: luma, then blue and red differences at half the width
/// and height, each rounded up. Whoever looks at few pixels saves turning all of them into RGB. Where
/// [`PlanarFrames::picks`] says so, only the pixels that were asked for, 4:4:4: luma, blue and red
/// differences (or red, green and blue, as `to_rgb` knows), each `[rows, columns]`.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanarFrame {
    /// Seconds from the first shown frame to this one, by their presentation times in the container.
    pub time: f64,
    /// The three planes, one after the other.
    pub planes: Vec<u8>,
    /// How they become RGB.
    pub to_rgb: ToRgb,
}

/// A video that is being read; iterates over its frames. After an error there are no more.
pub struct VideoReader {
    source: Option<Source>,
    info: VideoInfo,
    path: PathBuf,
    /// Frames given so far.
    given: usize,
    /// Who goes on if the decoder in this process gives up on the way.
    others: Option<Programs>,
    /// To square pixels.
    resize: Option<Resize>,
}

enum Source {
    Mp4(Box<in_process::Stream>),
    Held { frames: Frames, times: Vec<f64>, next: usize },
    Ffmpeg(Box<ffmpeg::Stream>),
}

impl VideoReader {
    /// Opens a video file for its frames in planes. The `ffmpeg` program comes
    /// first where it is there and nothing else is asked for, as it decodes faster. Pictures of other
    /// depths, ranges and chroma formats than the usual ones, and of GIF, come as red, green and blue.
    ///
    /// `wanted` says of frames of a width and a height which pixels will be looked at, `None` for
    /// all of them. Where that can be had to the byte, the frames hold nothing else:
    /// [`PlanarFrames::picks`].
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
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

    /// Opens a long video twice, so that two cores can decode: the frames from the first on, and
    /// those from a key frame near the middle on, together with that frame's place. `None` where the
    /// `ffmpeg` program is not there or the file does not tell of such a frame; then, and on any
    /// doubt, there is [`open_planar`](Self::open_planar).
    ///
    /// Files are not always as their index says. Read the first reader up to and including that
    /// place: this frame and the second reader's first one have to be equal, and the second reader
    /// has to hold as many frames as are left.
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
    /// With [`Decoder::Auto`], the `ffmpeg` program also takes over where the decoder in this process
    /// gives up in the middle of a file: it conceals pictures that are damaged.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or decoded; [`VideoError::NeedsFfmpeg`] if the
    /// `ffmpeg` program may be able to and is not installed or not to be used.
    pub fn open(path: &Path, decoder: Decoder) -> Result<Self, VideoError> {
        Self::open_with(path, decoder, &Programs::default())
    }

    /// As [`open`](Self::open), with other programs.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
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
                    // Both decoders describe the problem; the first knows more of its own formats.
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

    /// What the container says.
    pub fn info(&self) -> &VideoInfo {
        &self.info
    }

    /// Makes pixels square: resizes frames to [`VideoInfo::square_size`] (bicubic, as Pillow does),
    /// which is then their width and height. Frames of square pixels stay as they are.
    ///
    /// # Errors
    /// Returns an error if a side would be too long.
    pub fn with_square_pixels(mut self) -> Result<Self, VideoError> {
        let (from, to) = ([self.info.height, self.info.width], self.info.square_size());
        if to[1] > MAX_SIDE {
            let aspect = self.info.pixel_aspect;
            let reason = format!(
                "its pictures are {}x{} pixels of {}:{}, sides are at most {MAX_SIDE} square pixels",
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

    /// The next frame, or why there is none; `None` after the last.
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

    /// Has the program decode from the beginning, up to the frame that could not be decoded in this
    /// process.
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

/// A video that two programs decode.
pub struct PlanarHalves {
    /// What the container says.
    pub info: VideoInfo,
    /// From the first frame on.
    pub first: PlanarFrames,
    /// From the frame at `place` on.
    pub second: PlanarFrames,
    /// Frames before the second's first.
    pub place: usize,
}

/// The frames of a video in planes. After an error there are no more.
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
    /// Who decodes them: never [`Decoder::Auto`].
    pub fn decoder(&self) -> Decoder {
        self.decoder
    }

    /// The pixels that the frames hold, in [`PlanarFrame::planes`] of 4:4:4; `None` where they hold
    /// all of them, in 4:2:0.
    pub fn picks(&self) -> Option<&Picks> {
        match &self.source {
            Some(PlanarSource::Ffmpeg(_, planar)) => planar.picks.as_ref(),
            Some(PlanarSource::Held { picks, .. }) => Some(picks),
            _ => None,
        }
    }

    /// Takes back the planes of a frame that is done with, so that the next one needs no new memory.
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

/// Fails for pipes and devices, which would be waited for, and for what is known to be no video.
fn check_file(path: &Path) -> Result<(), VideoError> {
    let io = |source| VideoError::Io { path: path.into(), source };
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(VideoError::decode(path, "it is no file"));
    }
    match foreign::kind(path).map_err(io)? {
        Some(kind) => Err(VideoError::decode(path, format!("it is {kind}, expected a video"))),
        None => Ok(()),
    }
}

/// Reads a GIF: what is known of it, its frames and their times.
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

/// Returns true for the error of a program that cannot be used at all.
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

/// What a video is, without decoding more than its first picture.
///
/// # Errors
/// Those of [`VideoReader::open`].
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
