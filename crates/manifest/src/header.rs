//! Names of columns, spelled in one way.

use crate::table::{NUM_FRAMES, PATH, TEXT, URL};

/// Whether these are names of columns and not the fields of a row: one of them is `path` or `url`.
pub(crate) fn is_header(names: &[&str]) -> bool {
    names.iter().any(|name| is(name, PATH) || is(name, URL))
}

/// The columns of a header: names that readers of these tables know are spelled in one way, others
/// kept as they are.
pub(crate) fn columns(names: &[&str]) -> Result<Vec<String>, String> {
    let has = |known: &str| names.iter().any(|name| is(name, known));
    let mut columns = Vec::<String>::with_capacity(names.len());
    for name in names.iter().map(|name| name.trim()) {
        let name = match name.to_ascii_lowercase().as_str() {
            "caption" if !has(TEXT) => TEXT.into(),
            "frames" if !has(NUM_FRAMES) => NUM_FRAMES.into(),
            known @ (PATH | TEXT | NUM_FRAMES | URL) => known.into(),
            _ => name.to_string(),
        };
        if columns.contains(&name) {
            return Err(format!("its header names the column {name} twice"));
        }
        columns.push(name);
    }
    Ok(columns)
}

fn is(name: &str, known: &str) -> bool {
    name.trim().eq_ignore_ascii_case(known)
}
