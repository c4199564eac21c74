//! Any video, picture by picture.
//!
//! H.264 in MP4 and GIF are decoded here; everything else, and what the decoders here refuse,
//! through the `ffmpeg` program where there is one. Memory does not grow with the length of a video
//! (but a GIF, and the compressed bytes of an MP4 up to [`mp4::MAX_FILE`], are held).

use crate::{
    Frames, VideoError,
    ffmpeg::{self, Programs},
    gif, mp4,
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

/// A video that is being read; iterates over its frames. After an error there are no more.
pub struct VideoReader {
    source: Option<Source>,
    info: VideoInfo,
    path: Box<Path>,
}

enum Source {
    Mp4(Box<mp4::Stream>),
    Held { frames: Frames, next: usize },
    Ffmpeg(ffmpeg::Stream),
}

impl VideoReader {
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
        let io = |source| VideoError::Io { path: path.into(), source };
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            // A pipe or a device would be waited for.
            return Err(VideoError::Decode { path: path.into(), reason: "it is no file".into() });
        }
        let outside = || {
            let stream = ffmpeg::Stream::open(path, programs)?;
            Ok(Self::of(path, stream.info.clone(), Source::Ffmpeg(stream)))
        };
        match decoder {
            Decoder::InProcess => Self::in_process(path),
            Decoder::Ffmpeg => outside(),
            Decoder::Auto => Self::in_process(path).or_else(|refused| match outside() {
                Err(VideoError::Program { reason, .. }) => Err(VideoError::Program {
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
            Source::Ffmpeg(stream) => stream.next_frame(),
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
