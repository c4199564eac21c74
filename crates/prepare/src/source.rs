//! Clips as a stream of frames, whatever file they lie in.

use crate::open::{self, without_path};
use opensora_video::{Frames, VideoError, media, png, reader::Decoder};
use std::path::Path;

/// What is known of a clip before its frames are seen.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Header {
    /// Pixels in a row.
    pub(crate) width: usize,
    /// Rows.
    pub(crate) height: usize,
    /// Frames a second; `None` for pictures.
    pub(crate) fps: Option<f64>,
    /// Frames there are, where the file says so.
    pub(crate) num_frames: Option<usize>,
    /// Seconds, where the file says so.
    pub(crate) duration: Option<f64>,
}

/// Frames in order, `[H, W, 3]` each, or one line that says why there are no more.
pub(crate) type Stream = Box<dyn Iterator<Item = Result<Vec<u8>, String>>>;

/// Opens a video, an image, or a folder of PNG frames.
///
/// # Errors
/// One line, without the path.
pub(crate) fn open(path: &Path) -> Result<(Header, Stream), String> {
    if path.is_dir() {
        let words = |error: VideoError| without_path(&error, path);
        return png::read_folder(path).map(whole).map_err(words);
    }
    open::check(path)?;
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    if media::IMAGES.contains(&ending.to_ascii_lowercase().as_str()) {
        return media::still(path).map(whole).map_err(|error| without_path(&error, path));
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
    let place = path.to_path_buf();
    let frames = reader.map(move |frame| {
        frame.map(|frame| frame.rgb).map_err(|error| without_path(&error, &place))
    });
    Ok((header, Box::new(frames)))
}

/// Pictures that are in memory.
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

    /// What captions, previews and filters see of files from the field.
    #[test]
    fn clips_are_upright_in_square_pixels_and_have_the_frames_that_are_shown() {
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
