//! Prompt files: one prompt per line, or a table with a column of prompts.

use crate::{
    ManifestError,
    csv_file::{Record, Records, dialect},
    header,
    known::shown,
    limits::{MAX_CAPTION_CHARS, MAX_PROMPT_FILE_BYTES},
    table::TEXT,
    text::{ReadError, TextError, TextReader},
    value,
};
use std::{fs::File, io::Read, path::Path};

/// Reads the prompts of a file, at least one.
///
/// Each line is a prompt, without blanks around it; blank lines are skipped. In a file named
/// `.csv` or `.tsv`, each row is a prompt, from the column `text` or one of its other names
/// ([`table`](crate::table)); rows without a value are skipped. In a table of one column, commas belong to the prompt.
///
/// ```
/// # let folder = tempfile::tempdir()?;
/// let path = folder.path().join("prompts.txt");
/// std::fs::write(&path, "\u{feff}a red fox\r\n\r\na sailing boat\r\n")?;
/// assert_eq!(opensora_manifest::read_prompts(&path)?, ["a red fox", "a sailing boat"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Returns an error if the file cannot be read, is not UTF-8, is larger than
/// [`MAX_PROMPT_FILE_BYTES`], has a prompt of more than [`MAX_CAPTION_CHARS`] characters, or has no
/// prompts.
pub fn read_prompts(path: &Path) -> Result<Vec<String>, ManifestError> {
    let io = |source| ManifestError::Io { path: path.into(), source };
    let file = File::open(path).map_err(io)?;
    // One byte more than the limit, to detect larger files.
    let mut file = file.take(MAX_PROMPT_FILE_BYTES + 1);
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    let is_table = ["csv", "tsv"].iter().any(|known| ending.eq_ignore_ascii_case(known));
    let read = if is_table { of_table } else { of_lines };
    let prompts = read(&mut file, path);
    let whole = |reason| ManifestError::Whole { path: path.into(), reason };
    if file.limit() == 0 {
        let most = MAX_PROMPT_FILE_BYTES >> 20;
        return Err(whole(format!("larger than {most} MiB, the limit of prompt files")));
    }
    let prompts = prompts?;
    if prompts.is_empty() {
        return Err(whole("found no prompt, expected one a line".into()));
    }
    Ok(prompts)
}

fn of_lines(file: &mut dyn Read, path: &Path) -> Result<Vec<String>, ManifestError> {
    let mut prompts = vec![];
    // A character has at most four bytes. Surrounding blanks count.
    for line in TextReader::new(file).lines(4 * MAX_CAPTION_CHARS) {
        let (line, text) = line.map_err(|error| match error {
            ReadError::Io(source) => ManifestError::Io { path: path.into(), source },
            ReadError::Text(TextError::LongLine { line, .. }) => too_long(path, line),
            ReadError::Text(source) => ManifestError::Text { path: path.into(), source },
        })?;
        let prompt = text.trim();
        if prompt.chars().nth(MAX_CAPTION_CHARS).is_some() {
            return Err(too_long(path, line));
        }
        let is_list = || prompt.starts_with("[\"").then_some("JSON");
        if prompts.is_empty()
            && let Some(found) = dialect::format_of(prompt).or_else(is_list)
        {
            let reason = format!("found {found}, expected one prompt a line, or a table (.csv)");
            return Err(ManifestError::Line { path: path.into(), line, reason });
        }
        if !prompt.is_empty() {
            prompts.push(prompt.to_string());
        }
    }
    Ok(prompts)
}

fn too_long(path: &Path, line: u64) -> ManifestError {
    let reason = format!("the prompt is longer than {MAX_CAPTION_CHARS} characters");
    ManifestError::Line { path: path.into(), line, reason }
}

fn of_table(file: &mut dyn Read, path: &Path) -> Result<Vec<String>, ManifestError> {
    let fail = |fault: crate::csv_file::Fault| fault.of(path);
    let whole = |reason| ManifestError::Whole { path: path.into(), reason };
    let mut records = Records::new(file).map_err(fail)?;
    let Some(first) = records.next().map_err(fail)? else { return Ok(vec![]) };
    let names: Vec<&str> = first.fields.iter().map(String::as_str).collect();
    let columns = header::columns(&names).map_err(whole)?;
    let at = columns.iter().position(|column| column == TEXT).ok_or_else(|| {
        whole(format!(
            "found the columns {}, expected a column {}",
            shown(&columns),
            header::names_of(TEXT)
        ))
    })?;
    let delimiter = records.delimiter();
    let mut prompts = vec![];
    while let Some(Record { line, mut fields }) = records.next().map_err(fail)? {
        if columns.len() == 1 {
            // Nothing separates a single column, so delimiters belong to the prompt, except those of empty fields at
            // the end.
            while fields.last().is_some_and(|field| field.trim().is_empty()) {
                fields.pop();
            }
            fields = vec![fields.join(&delimiter.to_string())];
        } else if fields.iter().skip(columns.len()).any(|field| !field.trim().is_empty()) {
            let (found, expected) = (fields.len(), columns.len());
            let reason = format!(
                "found {found} fields, expected {expected}: a prompt with {delimiter:?} needs quotes"
            );
            return Err(ManifestError::Line { path: path.into(), line, reason });
        }
        let prompt = fields.get(at).and_then(|field| value::present(field));
        if prompt.is_some_and(|prompt| prompt.chars().nth(MAX_CAPTION_CHARS).is_some()) {
            return Err(too_long(path, line));
        }
        // Outputs show a prompt on one line.
        prompts.extend(prompt.map(|prompt| prompt.replace(['\n', '\r'], " ")));
    }
    Ok(prompts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_of_the_longest_characters_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompts.txt");
        let prompt = "\u{1f98a}".repeat(MAX_CAPTION_CHARS);
        std::fs::write(&path, format!("{prompt}\n")).unwrap();
        assert_eq!(read_prompts(&path).unwrap(), [prompt]);
    }

    #[test]
    fn a_file_of_the_largest_size_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompts.txt");
        let line = format!("{:1023}\n", "");
        let mut text = line.repeat((MAX_PROMPT_FILE_BYTES >> 10) as usize - 1);
        text += &format!("{:>1024}", "a red fox");
        assert_eq!(text.len() as u64, MAX_PROMPT_FILE_BYTES);
        std::fs::write(&path, &text).unwrap();
        assert_eq!(read_prompts(&path).unwrap(), ["a red fox"]);
        std::fs::write(&path, text + " ").unwrap();
        let error = read_prompts(&path).unwrap_err().to_string();
        assert!(error.ends_with("larger than 64 MiB, the limit of prompt files"), "{error}");
    }
}
