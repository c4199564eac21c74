//! Any video, picture by picture.
//!
//! H.264 in MP4 and GIF are decoded here; everything else, and what the decoders here refuse,
//! through the `ffmpeg` program where there is one. Memory does not grow with the length of a video
//! (but a GIF, and the compressed bytes of an MP4 up to [`mp4::MAX_FILE`], are held).

use crate::{
    Frames, VideoError,
    color::Planes,
    ffmpeg::{self, Halves, Planar, Programs},
    gif, mp4,
    picks::Picks,
    yuv::ToRgb,
};
use std::path::Path;

/// What is known of a video before it is decoded.
#[derive(Debug, Clone, PartialEq)]
pub struct VideoInfo {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Frames per second; the mean where frames last unequally long.
    pub fps: f64,
    /// Number of frames, where the container tells.
    pub num_frames: Option<usize>,
    /// Seconds, where the container tells.
    pub duration: Option<f64>,
    /// Name of the codec, such as `h264`.
    pub codec: String,
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
    /// Seconds from the first frame.
    pub time: f64,
    /// `[H, W, 3]` bytes.
    pub rgb: Vec<u8>,
}

/// A decoded frame as codecs hold it, 4:2:0: luma, then blue and red differences at half the width
/// and height, each rounded up. Whoever looks at few pixels saves turning all of them into RGB. Where
/// [`PlanarFrames::picks`] says so, only the pixels that were asked for, 4:4:4: luma, blue and red
/// differences, each `[rows, columns]`.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanarFrame {
    /// Seconds from the first frame.
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
    path: Box<Path>,
}

enum Source {
    Mp4(Box<mp4::Stream>),
    Held { frames: Frames, next: usize },
    Ffmpeg(Box<ffmpeg::Stream>),
}

impl VideoReader {
    /// Opens a video file for its frames in planes. A GIF has none. The `ffmpeg` program comes
    /// first where it is there and nothing else is asked for, as it decodes faster; it rounds depths
    /// above 8 bits and averages colours that are stored at more than half the resolution.
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
            let stream = mp4::Stream::open(path)?;
            Ok((stream.info.clone(), PlanarSource::Mp4(Box::new(stream))))
        };
        let (info, source) = match decoder {
            Decoder::InProcess => inside()?,
            Decoder::Ffmpeg => outside()?,
            Decoder::Auto => match outside() {
                Err(VideoError::Program { reason, .. }) => {
                    inside().map_err(|refused| needs_program(path, &refused, &reason))?
                }
                other => other?,
            },
        };
        let decoder = match source {
            PlanarSource::Mp4(_) => Decoder::InProcess,
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
    /// # Errors
    /// Where it cannot be read, or nobody can decode it; where the `ffmpeg` program could and is
    /// not there, the error says so.
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
            Decoder::Auto => Self::in_process(path).or_else(|refused| match outside() {
                Err(VideoError::Program { reason, .. }) => {
                    Err(needs_program(path, &refused, &reason))
                }
                // Two opinions on one file; the first one knows more of its own kind.
                Err(VideoError::Decode { reason, .. }) => Err(VideoError::Decode {
                    path: path.into(),
                    reason: format!("{}; {reason}", own_words(&refused)),
                }),
                other => other,
            }),
        }
    }

    fn in_process(path: &Path) -> Result<Self, VideoError> {
        let is_gif = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gif"));
        if is_gif {
            let (frames, fps) = gif::read(path)?;
            let info = VideoInfo {
                width: frames.width(),
                height: frames.height(),
                fps,
                num_frames: Some(frames.len()),
                duration: Some(frames.len() as f64 / fps),
                codec: "gif".into(),
            };
            return Ok(Self::of(path, info, Source::Held { frames, next: 0 }));
        }
        let stream = mp4::Stream::open(path)?;
        Ok(Self::of(path, stream.info.clone(), Source::Mp4(Box::new(stream))))
    }

    fn of(path: &Path, info: VideoInfo, source: Source) -> Self {
        Self { source: Some(source), info, path: path.into() }
    }

    /// What the container says.
    pub fn info(&self) -> &VideoInfo {
        &self.info
    }

    /// The next frame, or why there is none; `None` after the last.
    fn read_next(source: &mut Source, fps: f64) -> Result<Option<VideoFrame>, String> {
        match source {
            Source::Mp4(stream) => Ok(stream.next_picture()?.map(|(picture, time)| {
                let rgb = picture.matrix.rgb(&picture.planes);
                VideoFrame { time, rgb }
            })),
            Source::Held { frames, next } => {
                let time = *next as f64 / fps;
                let rgb = frames.frame(*next).map(<[u8]>::to_vec);
                *next += 1;
                Ok(rgb.map(|rgb| VideoFrame { time, rgb }))
            }
            Source::Ffmpeg(stream) => Ok(stream
                .next_frame()?
                .map(|frame| VideoFrame { time: frame.time, rgb: frame.bytes })),
        }
    }
}

impl Iterator for VideoReader {
    type Item = Result<VideoFrame, VideoError>;

    fn next(&mut self) -> Option<Self::Item> {
        let frame = Self::read_next(self.source.as_mut()?, self.info.fps);
        if !matches!(frame, Ok(Some(_))) {
            self.source = None;
        }
        let decode = |reason| VideoError::Decode { path: self.path.to_path_buf(), reason };
        frame.map_err(decode).transpose()
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
    Mp4(Box<mp4::Stream>),
    Ffmpeg(Box<ffmpeg::Stream>, Planar),
}

impl PlanarSource {
    fn read_next(&mut self) -> Result<Option<PlanarFrame>, String> {
        match self {
            Self::Mp4(stream) => Ok(stream.next_picture()?.map(|(picture, time)| {
                let Planes { y: mut planes, u, v, .. } = picture.planes;
                planes.extend(u);
                planes.extend(v);
                PlanarFrame { time, planes, to_rgb: ToRgb::new(picture.matrix) }
            })),
            Self::Ffmpeg(stream, planar) => Ok(stream.next_frame()?.map(|frame| PlanarFrame {
                time: frame.time,
                planes: frame.bytes,
                to_rgb: planar.to_rgb,
            })),
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
        let frame = self.source.as_mut()?.read_next();
        if !matches!(frame, Ok(Some(_))) {
            self.source = None;
        }
        let decode = |reason| VideoError::Decode { path: self.path.to_path_buf(), reason };
        frame.map_err(decode).transpose()
    }
}

/// Fails for pipes and devices, which would be waited for.
fn check_file(path: &Path) -> Result<(), VideoError> {
    let io = |source| VideoError::Io { path: path.into(), source };
    if std::fs::metadata(path).map_err(io)?.is_file() {
        return Ok(());
    }
    Err(VideoError::Decode { path: path.into(), reason: "it is no file".into() })
}

/// What was refused here, and that a program could do it.
fn needs_program(path: &Path, refused: &VideoError, absent: &str) -> VideoError {
    let reason = format!("{}; {absent}", own_words(refused));
    VideoError::Program { path: path.into(), reason }
}

/// What a video is, without decoding more than its first picture.
///
/// # Errors
/// Those of [`VideoReader::open`].
pub fn probe(path: &Path) -> Result<VideoInfo, VideoError> {
    Ok(VideoReader::open(path, Decoder::Auto)?.info)
}

/// An error without the path, which its reader knows.
fn own_words(error: &VideoError) -> String {
    match error {
        VideoError::Decode { reason, .. } => reason.clone(),
        error => error.to_string(),
    }
}
