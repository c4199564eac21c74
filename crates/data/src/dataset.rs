//! Rows read as clips.

use crate::DataError;

/// Something that has rows and gives each anew in every epoch: a folder of clips, a cache of
/// latents, a generated world.
///
/// Reading is a function of (row, epoch) alone, so any number of threads in any order, and a run
/// that was interrupted, get the same items.
pub trait Source: Send + Sync {
    /// What a row is read as.
    type Item: Send;

    /// Number of rows.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads a row as it is in an epoch.
    ///
    /// # Errors
    /// Where the row cannot be read: never another row in its place.
    fn read(&self, row: usize, epoch: u64) -> Result<Self::Item, DataError>;

    /// A row's number (from 1) and file, for messages.
    fn describe(&self, row: usize) -> String;
}

/// One captioned clip as a model's input.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipSample {
    /// The row it comes from.
    pub row: usize,
    /// Its caption, as the manifest has it: cleaning is the tokenizer's.
    pub caption: String,
    /// `[3, T, H, W]` in [-1, 1], row-major.
    pub pixels: Vec<f32>,
    /// `[3, T, H, W]`.
    pub shape: [usize; 4],
}
