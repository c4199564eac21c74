//! Clips as a stream of frames, whatever file they lie in.

use opensora_video::{Frames, VideoError, gif, mp4, png};
use std::path::Path;

/// What is known of a clip before its frames are seen.
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

/// Opens a video, a GIF, a PNG, or a folder of PNG frames.
///
/// # Errors
/// One line, without the path.
pub(crate) fn open(path: &Path) -> Result<(Header, Stream), String> {
    let words = |error: VideoError| {
        let text = error.to_string();
        let rest = text.strip_prefix(&path.display().to_string()).unwrap_or(&text);
        rest.trim_start_matches([':', '/', '\\', ' ']).to_string()
    };
    if path.is_dir() {
        return png::read_folder(path).map(|frames| whole(frames, None)).map_err(words);
    }
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    match ending.to_ascii_lowercase().as_str() {
        "png" => png::read(path).map(|frames| whole(frames, None)),
        "gif" => gif::read(path).map(|(frames, fps)| whole(frames, Some(fps))),
        _ => mp4::read(path).map(|(frames, fps)| whole(frames, Some(fps))),
    }
    .map_err(words)
}

/// A clip that is in memory.
fn whole(frames: Frames, fps: Option<f64>) -> (Header, Stream) {
    let fps = fps.filter(|fps| fps.is_finite() && *fps > 0.0);
    let header = Header {
        width: frames.width(),
        height: frames.height(),
        fps,
        num_frames: Some(frames.len()),
        duration: fps.map(|fps| frames.len() as f64 / fps),
    };
    let stream =
        (0..frames.len()).map_while(move |index| frames.frame(index).map(|f| Ok(f.into())));
    (header, Box::new(stream))
}
