//! Detection of the delimiter and the known columns of a table, for readers of other lists.
//!
//! [`Table`](crate::Table) uses the same rules.

use crate::{csv_file, header};

/// Returns the delimiter of a table that begins with `text`, and the number of bytes before the header
/// (Excel's `sep=;`). The text must not contain a byte order mark.
///
/// ```
/// use opensora_manifest::layout::delimiter;
///
/// assert_eq!(delimiter("contentUrl;name\n"), (b';', 0));
/// assert_eq!(delimiter("sep=;\nurl;text\n"), (b';', 6));
/// ```
pub fn delimiter(text: &str) -> (u8, usize) {
    csv_file::delimiter(text)
}

/// Returns the index of the column `known` (`path`, `text`, `num_frames` or `url`) in a header, under any
/// of its names.
///
/// ```
/// use opensora_manifest::{layout::column, table::URL};
///
/// assert_eq!(column(&["videoid", "contentUrl"], URL), Some(1));
/// assert_eq!(column(&["video_url", "url"], URL), Some(1));
/// ```
pub fn column(header: &[&str], known: &str) -> Option<usize> {
    header::place(header, known)
}
