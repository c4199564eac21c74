//! Videos opened, with reasons that fit into a table.

use opensora_files::one_line;
use opensora_video::reader::{Decoder, VideoReader};
use std::path::Path;

/// Opens a video.
///
/// # Errors
/// One line without the path, which the row has.
pub(crate) fn open(path: &Path, decoder: Decoder) -> Result<VideoReader, String> {
    let file = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if file.is_file() && file.len() == 0 {
        return Err("it is empty".into());
    }
    VideoReader::open(path, decoder).map_err(|error| without_path(&error, path))
}

/// An error's words without the path at their beginning, nor where ffmpeg begins to speak.
pub(crate) fn without_path(error: &dyn std::fmt::Display, path: &Path) -> String {
    let path = path.display().to_string();
    let text = error.to_string().replace(&format!("file:{path}: "), "");
    let rest = text.strip_prefix(&path).unwrap_or(&text);
    one_line(rest.trim_start_matches([':', ' ']))
}
