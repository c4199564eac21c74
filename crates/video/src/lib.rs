//! Video clips as 8-bit RGB, and their files: MP4 (H.264), GIF, PNG, and other formats through `ffmpeg`.
//!
//! | module | contents |
//! |---|---|
//! | [`frames`] | a clip in memory |
//! | [`writer`] | writes a clip atomically, after checking the target before the work |
//! | [`media`] | reads images and videos by their extensions |
//! | [`reader`] | reads any video frame by frame |
//! | [`picks`] | a subset of the pixels of each frame, selected while `ffmpeg` decodes |
//! | [`ffmpeg`] | the `ffmpeg` program, for formats that are not decoded in this process |
//! | `probe` | metadata of a file by the `ffprobe` program |
//! | `pipe` | frames from the output of a program |
//! | `stamps` | timestamps of frames from the log of a program |
//! | [`mp4`] | writes and reads H.264 in MP4 |
//! | `metadata` | comment in the header of an MP4 |
//! | `in_process` | decodes the shown frames of an MP4 in this process |
//! | `decode` | interface of video decoders, and H.264 |
//! | `sps` | sequence parameter sets of H.264: size, colours, pixel aspect |
//! | `orientation`, `aspect` | rotation of stored frames, and sample aspect ratio |
//! | `color` | RGB to YUV 4:2:0 and back |
//! | [`yuv`] | YUV to RGB, bit-exact with FFmpeg |
//! | [`vectors`] | loops compiled for several vector instruction sets |
//! | `track` | the video track of an MP4: `boxes`, sample `tables`, and `edits` that hide frames |
//! | `refusal` | reasons for not decoding a file in this process |
//! | [`gif`], [`png`] | GIF and PNG files |
//! | [`pillow`] | resizing of images, bit-exact with Pillow |
//! | [`sheet`] | contact sheets of clips |
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
//! // The record of how the clip was made.
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
pub use pipe::shielded;
pub use reader::{Decoder, PlanarFrame, PlanarHalves, VideoFrame, VideoInfo, VideoReader};
pub use writer::{Format, VideoSpec, Writer};

/// The README's example, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
