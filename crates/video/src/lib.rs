//! Clips of 8-bit RGB and their files.
//!
//! | module | thought |
//! |---|---|
//! | [`frames`] | the clip in memory, and the reference's rounding to bytes |
//! | [`writer`] | an output that is tried before the work and complete or absent after it |
//! | [`media`] | images and videos by their endings |
//! | [`reader`] | any video, picture by picture |
//! | [`picks`] | frames made smaller by leaving pixels out, while `ffmpeg` decodes |
//! | [`ffmpeg`] | the `ffmpeg` program, for what is not decoded in this process |
//! | `probe` | what the `ffprobe` program says of a file |
//! | `pipe` | frames out of a program's output |
//! | `stamps` | times of frames, told by a program |
//! | [`mp4`] | H.264 in MP4, written and read |
//! | `metadata` | the record of a clip in the header of an MP4 |
//! | `in_process` | the shown frames of an MP4, decoded in this process |
//! | `decode` | decoders of video streams, behind one interface |
//! | `sps` | size, colours and pixel aspect that an H.264 stream states |
//! | `orientation`, `aspect` | how stored pictures are turned, and the shape of their pixels |
//! | `color` | RGB to the planes of a video codec and back |
//! | [`yuv`] | pixels of those planes as RGB, as FFmpeg has them |
//! | [`vectors`] | loops for the vectors that the processor has |
//! | `track` | the video track of an MP4: `boxes`, sample `tables`, and `edits` that hide frames |
//! | `refusal` | why a file is not decoded in this process |
//! | [`gif`], [`png`] | the other two formats |
//! | [`pillow`] | resizing of images by Pillow's arithmetic |
//! | [`sheet`] | several clips in one picture |
//!
//! ```
//! use opensora_video::{Frames, VideoSpec, Writer, mp4};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = tempfile::tempdir()?;
//! let grey = vec![0.0; 3 * 4 * 32 * 48]; // [3, T, H, W] in [-1, 1]
//! let clip = Frames::from_signed(&grey, [3, 4, 32, 48])?;
//! let spec = VideoSpec { frames: 4, width: 48, height: 32, fps: 8.0 };
//! let writer = Writer::open(&folder.path().join("clip.mp4"), &spec)?;
//! let path = writer.write(&clip, &serde_json::json!({"prompt": "fog"}))?;
//! let (read, fps) = mp4::read(&path)?;
//! assert_eq!((read.len(), fps), (4, 8.0));
//! assert!(path.with_extension("mp4.json").exists());
//! # Ok(())
//! # }
//! ```

mod aspect;
mod boxes;
mod color;
mod decode;
mod edits;
mod error;
pub mod ffmpeg;
mod foreign;
pub mod frames;
pub mod gif;
mod in_process;
pub mod media;
mod metadata;
pub mod mp4;
mod orientation;
pub mod picks;
pub mod pillow;
mod pipe;
pub mod png;
mod probe;
pub mod reader;
mod refusal;
pub mod sheet;
mod sps;
mod stamps;
mod tables;
mod track;
pub mod vectors;
pub mod writer;
pub mod yuv;

pub use aspect::PixelAspect;
pub use error::VideoError;
pub use frames::{Frames, FramesError};
pub use reader::{Decoder, PlanarFrame, PlanarHalves, VideoFrame, VideoInfo, VideoReader};
pub use writer::{Format, VideoSpec, Writer};

/// The README's example, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
