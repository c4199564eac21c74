//! Videos, images and folders of frames as one kind of frame stream.

use crate::{RowError, open};
use opensora_video::{Frames, media, png, reader::Decoder};
use std::path::Path;

/// Size, frame rate and length of a clip, from its header.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Header {
    /// Width in pixels.
    pub(crate) width: usize,
    /// Height in pixels.
    pub(crate) height: usize,
    /// Frames per second; `None` for images.
    pub(crate) fps: Option<f64>,
    /// Number of frames, if the file states it.
    pub(crate) num_frames: Option<usize>,
    /// Duration in seconds, if the file states it.
    pub(crate) duration: Option<f64>,
}

/// Frames in order, `[H, W, 3]` bytes each, or the error after which there are no more.
pub(crate) type Stream = Box<dyn Iterator<Item = Result<Vec<u8>, RowError>>>;

/// Opens a video, an image, or a folder of PNG frames.
///
/// # Errors
/// Returns an error if the file is missing or cannot be decoded.
pub(crate) fn open(path: &Path) -> Result<(Header, Stream), RowError> {
    if path.is_dir() {
        return Ok(whole(png::read_folder(path)?));
    }
    open::check(path)?;
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    if media::IMAGES.contains(&ending.to_ascii_lowercase().as_str()) {
        return Ok(whole(media::still(path)?));
    }
    let reader = open::open(path, Decoder::Auto)?;
    let info = reader.info();
    let header = Header {
        width: info.width,
        height: info.height,
        fps: Some(info.fps).filter(|fps| fps.is_finite() && *fps > 0.0),
        num_frames: info.num_frames,
        duration: info.duration,
    };
    Ok((header, Box::new(reader.map(|frame| Ok(frame?.rgb)))))
}

/// Returns the header and stream of decoded frames.
fn whole(frames: Frames) -> (Header, Stream) {
    let header = Header {
        width: frames.width(),
        height: frames.height(),
        fps: None,
        num_frames: Some(frames.len()),
        duration: None,
    };
    let stream =
        (0..frames.len()).map_while(move |index| frames.frame(index).map(|f| Ok(f.into())));
    (header, Box::new(stream))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// The frames that captions, previews and filters get.
    #[test]
    fn frames_are_upright_in_square_pixels_and_those_that_are_displayed() {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        for (name, [width, height], frames, seconds) in [
            ("rotated_90.mp4", [180, 320], 180, 6.0),
            ("sar_4_3.mp4", [427, 180], 180, 6.0),
            ("editlist_stream_copy.mp4", [320, 180], 90, 3.0),
            ("vfr_three_shots.mp4", [320, 180], 132, 6.0),
        ] {
            let (header, stream) = open(&folder.join(name)).unwrap();
            assert_eq!([header.width, header.height], [width, height], "{name}");
            assert_eq!((header.num_frames, header.duration), (Some(frames), Some(seconds)));
            let mut seen = 0;
            for rgb in stream {
                assert_eq!(rgb.unwrap().len(), 3 * width * height, "{name}");
                seen += 1;
            }
            assert_eq!(seen, frames, "{name}");
        }
    }
}
