//! Rules for the fields of the known columns, common to all formats.

use crate::{
    header,
    limits::{MAX_CAPTION_CHARS, MAX_FIELD_BYTES},
    table::{CLIP_END, CLIP_START, NUM_FRAMES, PATH, TEXT, URL},
    value,
};
use opensora_files::one_line;

/// The purpose for which a table is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// All columns, for data preparation. Rows must be as long as the header: otherwise a comma is probably
    /// not quoted. Without a header, rows may omit the number of frames.
    Preparation,
    /// Path, caption and number of frames, for training. Rows may end after the caption; additional fields are
    /// ignored. Rows with a clip range are rejected.
    Training,
}

/// The columns of a file that are read.
pub(crate) struct Known {
    /// Indices of the kept columns in the file.
    pub(crate) kept: Vec<usize>,
    /// Names of the kept columns.
    pub(crate) columns: Vec<String>,
    purpose: Purpose,
}

impl Known {
    /// Selects from the columns of a file.
    pub(crate) fn of(columns: Vec<String>, purpose: Purpose) -> Result<Self, String> {
        let at = |name: &str| columns.iter().position(|column| column == name);
        let kept: Vec<usize> = match purpose {
            Purpose::Preparation => (0..columns.len()).collect(),
            Purpose::Training => {
                let need = |name| {
                    at(name).ok_or_else(|| {
                        format!(
                            "found the columns {}, expected a column {}",
                            shown(&columns),
                            header::names_of(name)
                        )
                    })
                };
                let known = [NUM_FRAMES, CLIP_START, CLIP_END].into_iter().filter_map(at);
                [need(PATH)?, need(TEXT)?].into_iter().chain(known).collect()
            }
        };
        let columns = kept.iter().map(|&at| columns[at].clone()).collect();
        Ok(Self { kept, columns, purpose })
    }

    /// Checks the kept fields of a row and replaces missing values by empty fields.
    pub(crate) fn check(&self, fields: &mut [String]) -> Result<(), String> {
        for (name, field) in self.columns.iter().zip(fields) {
            if field.len() > MAX_FIELD_BYTES {
                return Err(format!(
                    "the field {name} has {} bytes, expected at most {MAX_FIELD_BYTES}",
                    field.len()
                ));
            }
            let is_range = [CLIP_START, CLIP_END].contains(&name.as_str());
            if self.purpose == Purpose::Training && is_range && !value::is_missing(field) {
                return Err(format!(
                    "found a range of the file ({name} {}), expected a whole file; cut the ranges \
                     with `opensora data split` first",
                    start(field)
                ));
            }
            if ![PATH, TEXT, NUM_FRAMES, URL].contains(&name.as_str()) {
                continue;
            }
            if value::is_missing(field) {
                field.clear();
            }
            if name == TEXT && field.len() > MAX_CAPTION_CHARS {
                let found = field.chars().count();
                if found > MAX_CAPTION_CHARS {
                    return Err(format!(
                        "the caption has {found} characters, expected at most {MAX_CAPTION_CHARS}"
                    ));
                }
            }
            if self.purpose == Purpose::Training {
                if name == PATH && field.is_empty() {
                    return Err("the path is empty, expected a file".into());
                }
                if name == NUM_FRAMES && !field.is_empty() && value::count(field).is_none() {
                    return Err(format!(
                        "the number of frames is '{}', expected a whole number",
                        start(field)
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Returns the names of columns for a message.
pub(crate) fn shown(columns: &[String]) -> String {
    const MOST: usize = 12;
    let mut names: Vec<String> = columns.iter().take(MOST).map(|name| start(name)).collect();
    if columns.len() > MOST {
        names.push("...".into());
    }
    names.join(", ")
}

/// Returns the first characters of a field for a message.
pub(crate) fn start(field: &str) -> String {
    const MOST: usize = 60;
    match field.char_indices().nth(MOST) {
        Some((end, _)) => one_line(&field[..end]) + "...",
        None => one_line(field),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(column: &str, field: String) -> Result<(), String> {
        let known = Known::of(vec![column.into()], Purpose::Preparation).unwrap();
        known.check(&mut [field])
    }

    #[test]
    fn fields_and_captions_are_limited() {
        assert_eq!(check("note", "x".repeat(MAX_FIELD_BYTES)), Ok(()));
        assert_eq!(
            check("note", "x".repeat(MAX_FIELD_BYTES + 1)).unwrap_err(),
            "the field note has 1048577 bytes, expected at most 1048576"
        );
        assert_eq!(check(TEXT, "x".repeat(MAX_CAPTION_CHARS)), Ok(()));
        assert_eq!(
            check(TEXT, "x".repeat(MAX_CAPTION_CHARS + 1)).unwrap_err(),
            "the caption has 10001 characters, expected at most 10000"
        );
        // The limit of captions holds for captions only.
        assert_eq!(check(URL, "x".repeat(MAX_CAPTION_CHARS + 1)), Ok(()));
    }

    #[test]
    fn messages_show_twelve_columns() {
        let columns: Vec<String> = (1..=13).map(|at| at.to_string()).collect();
        assert_eq!(shown(&columns[..12]), "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12");
        assert_eq!(shown(&columns), "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, ...");
    }
}
