//! The prompt of a vision model and its placeholders.

use crate::PrepareError;
use std::path::Path;

/// The built-in prompt.
const OWN: &str = include_str!("prompt.txt");
/// Placeholder of a phrase that describes the images, such as `3 frames of one video ...`.
const FRAMES: &str = "frames";
/// Placeholder of the number of frames.
const NUM_FRAMES: &str = "num_frames";
/// Maximum size of a prompt in bytes, far above any real one.
const MAX_BYTES: usize = 64 << 10;

/// A prompt with the placeholders `{frames}`, a phrase that describes the images, and `{num_frames}`, the
/// number of frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt(String);

/// Number and layout of the images of a request, as the prompt's placeholders describe them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum View {
    /// Frames of a video, one image each.
    Frames(usize),
    /// Frames of a video, side by side in one image.
    SideBySide(usize),
    /// An image that is not a frame of a video.
    Image,
}

impl View {
    /// Returns the number of frames.
    fn count(self) -> usize {
        match self {
            Self::Frames(count) | Self::SideBySide(count) => count,
            Self::Image => 1,
        }
    }

    /// Returns a phrase for the placeholder `{frames}`.
    fn phrase(self) -> String {
        match self {
            Self::Image => "a picture".into(),
            Self::Frames(1) | Self::SideBySide(1) => "a frame of a video".into(),
            Self::Frames(count) => {
                format!("{count} frames of one video, in the order of time, each as a picture")
            }
            Self::SideBySide(count) => format!(
                "a picture of {count} frames of one video, side by side in the order of time, from \
                 left to right"
            ),
        }
    }
}

impl Default for Prompt {
    fn default() -> Self {
        Self(OWN.trim().into())
    }
}

impl Prompt {
    /// Parses a prompt.
    ///
    /// # Errors
    /// Returns an error if the text is empty, longer than 64 KiB, or has an unknown placeholder.
    pub fn new(text: &str) -> Result<Self, PrepareError> {
        let text = text.trim();
        let fail =
            |found: String, expected| PrepareError::Spec { field: "prompt", found, expected };
        if text.is_empty() || text.len() > MAX_BYTES {
            return Err(fail(format!("{} bytes", text.len()), "1 to 65536 bytes of text"));
        }
        match pieces(text).find(|piece| matches!(piece, Piece::Name(name) if !is_known(name))) {
            Some(Piece::Name(name)) => {
                Err(fail(format!("{{{name}}}"), "no placeholders but {frames} and {num_frames}"))
            }
            _ => Ok(Self(text.into())),
        }
    }

    /// Reads a prompt from a file.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read, or [`Prompt::new`] rejects its text.
    pub fn read(path: &Path) -> Result<Self, PrepareError> {
        Self::new(&std::fs::read_to_string(path).map_err(PrepareError::io(path))?)
    }

    /// Returns the text with its placeholders.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// Returns the text for some images, without placeholders.
    pub(crate) fn fill(&self, view: View) -> String {
        let fill = |piece| match piece {
            Piece::Text(text) => text.to_string(),
            Piece::Name(FRAMES) => view.phrase(),
            Piece::Name(_) => view.count().to_string(),
        };
        pieces(&self.0).map(fill).collect()
    }
}

fn is_known(name: &str) -> bool {
    [FRAMES, NUM_FRAMES].contains(&name)
}

/// A piece of a prompt: text or a placeholder.
enum Piece<'a> {
    Text(&'a str),
    /// A placeholder, without its braces.
    Name(&'a str),
}

/// Returns the pieces of a prompt. Braces around anything but one lower-case word, as in JSON, are text.
fn pieces(text: &str) -> impl Iterator<Item = Piece<'_>> {
    let is_word =
        |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    text.split_inclusive('}')
        .flat_map(move |part| {
            let named = part.strip_suffix('}').and_then(|part| part.rsplit_once('{'));
            match named.filter(|(_, name)| is_word(name)) {
                Some((before, name)) => [Some(Piece::Text(before)), Some(Piece::Name(name))],
                None => [Some(Piece::Text(part)), None],
            }
        })
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_filled_and_unknown_ones_rejected() {
        let prompt = Prompt::new(" See {frames}; {num_frames}! {\"as\": {json}}{}").unwrap_err();
        assert!(prompt.to_string().contains("{json}"), "{prompt}");
        let prompt = Prompt::new(" See {frames} ({num_frames}). {\"a\": 1} {B} {} }{").unwrap();
        assert_eq!(prompt.fill(View::Image), "See a picture (1). {\"a\": 1} {B} {} }{",);
        assert!(prompt.fill(View::Frames(3)).starts_with("See 3 frames of one video"));
        assert!(prompt.fill(View::SideBySide(3)).contains("side by side"));
        assert!(prompt.fill(View::SideBySide(1)).starts_with("See a frame of a video (1)"));
        assert!(Prompt::new("  \n").is_err());
    }

    #[test]
    fn the_built_in_prompt_is_valid() {
        let own = Prompt::default();
        assert_eq!(Prompt::new(OWN).unwrap(), own);
        assert!(own.fill(View::Frames(3)).starts_with("You see 3 frames of one video"));
    }
}
