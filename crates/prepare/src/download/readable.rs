//! Rows that a table can hold: a row beyond the limits of the readers would make the whole table unreadable.

use opensora_files::one_line;
use opensora_manifest::{
    limits::{MAX_CAPTION_CHARS, MAX_COLUMNS, MAX_FIELD_BYTES, MAX_ROW_BYTES},
    table::TEXT,
};

/// The fields of a row, by column.
pub(crate) type Fields = Vec<(String, String)>;

/// Number and size in bytes of the fields that a download adds to a row.
const ADDED: (usize, usize) = (16, 64 << 10);

/// Returns why a table with these columns could not be read, if it could not.
pub(crate) fn wrong_columns<'a>(columns: impl ExactSizeIterator<Item = &'a str>) -> Option<String> {
    let most = MAX_COLUMNS - ADDED.0;
    if columns.len() > most {
        return Some(format!("its header has {} columns, expected at most {most}", columns.len()));
    }
    let mut bytes = 0;
    for name in columns {
        if name.contains('\0') {
            return Some(format!("its header has a NUL byte: {}", one_line(name)));
        }
        if name.len() > MAX_FIELD_BYTES {
            return Some(format!("its header has a name of {} bytes", name.len()));
        }
        bytes += name.len();
    }
    let most = MAX_ROW_BYTES - ADDED.1;
    (bytes > most).then(|| format!("its header has {bytes} bytes, expected at most {most}"))
}

/// Returns why a table with this row could not be read, if it could not.
pub(crate) fn wrong(row: &[(String, String)]) -> Option<String> {
    let mut bytes = 0;
    for (column, field) in row {
        if field.contains('\0') {
            return Some(format!("its {} has a NUL byte", one_line(column)));
        }
        if field.len() > MAX_FIELD_BYTES {
            let (column, found) = (one_line(column), field.len());
            return Some(format!(
                "its {column} has {found} bytes, expected at most {MAX_FIELD_BYTES}"
            ));
        }
        if column == TEXT && field.len() > MAX_CAPTION_CHARS {
            let found = field.chars().count();
            if found > MAX_CAPTION_CHARS {
                return Some(format!(
                    "its caption has {found} characters, expected at most {MAX_CAPTION_CHARS}"
                ));
            }
        }
        bytes += field.len();
    }
    let most = MAX_ROW_BYTES - ADDED.1;
    (bytes > most).then(|| format!("it has {bytes} bytes, expected at most {most}"))
}

/// Returns a row of which a table can hold the beginnings of the fields; other rows are unchanged.
pub(crate) fn shortened(row: Fields) -> Fields {
    if wrong(&row).is_none() {
        return row;
    }
    let most = (MAX_ROW_BYTES / 2 / row.len().max(1)).min(MAX_FIELD_BYTES);
    let short = |(column, field): (String, String)| {
        let mut field = field.replace('\0', "\u{fffd}");
        let most = if column == TEXT { most.min(MAX_CAPTION_CHARS) } else { most };
        field.truncate(field.floor_char_boundary(most));
        (column, field)
    };
    row.into_iter().map(short).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(column: &str, field: String) -> Fields {
        vec![("url".into(), "https://a.example/1.mp4".into()), (column.into(), field)]
    }

    #[test]
    fn rows_beyond_the_limits_are_wrong_until_they_are_shortened() {
        for (column, field, reason) in [
            (TEXT, "\u{e9}".repeat(10_000), None),
            (TEXT, "\u{e9}".repeat(10_001), Some("its caption has 10001 characters")),
            (TEXT, "a\0b".into(), Some("its text has a NUL byte")),
            ("note", "x".repeat(MAX_FIELD_BYTES), None),
            ("note", "x".repeat(MAX_FIELD_BYTES + 1), Some("its note has 1048577 bytes")),
        ] {
            let found = wrong(&row(column, field.clone()));
            match reason {
                None => assert_eq!(found, None, "{column}"),
                Some(words) => assert!(found.unwrap().starts_with(words), "{words}"),
            }
            let short = shortened(row(column, field.clone()));
            assert_eq!(wrong(&short), None, "{column}");
            assert_eq!(short[0].1, "https://a.example/1.mp4");
            assert_eq!(short[1].1 == field, reason.is_none(), "{column}");
        }
        let many: Fields = (0..9).map(|at| (at.to_string(), "x".repeat(MAX_FIELD_BYTES))).collect();
        assert!(wrong(&many).unwrap().contains("expected at most"));
        assert_eq!(wrong(&shortened(many)), None);
    }

    #[test]
    fn headers_beyond_the_limits_are_wrong() {
        let names: Vec<String> = (0..MAX_COLUMNS).map(|at| at.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert!(wrong_columns(names.iter().copied()).unwrap().contains("4096 columns"));
        assert_eq!(wrong_columns(names[..4000].iter().copied()), None);
        assert!(wrong_columns(["url", "a\0"].into_iter()).unwrap().contains("NUL"));
    }
}
