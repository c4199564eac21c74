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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{TEXT, URL};

    #[test]
    fn the_delimiter_comes_with_the_offset_of_the_header() {
        assert_eq!(delimiter("contentUrl;name\n"), (b';', 0));
        assert_eq!(delimiter("sep=|\nurl|text\n"), (b'|', 6));
    }

    #[test]
    fn the_first_alias_decides_among_columns() {
        let header = ["videoid", "contentUrl", "video_url", "name"];
        assert_eq!(column(&header, URL), Some(2));
        assert_eq!(column(&header[..2], URL), Some(1));
        assert_eq!(column(&header, TEXT), None);
    }
}
