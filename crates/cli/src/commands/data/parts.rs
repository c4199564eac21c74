//! What to do when all parts of a job array are done.

use crate::output;
use opensora::prepare::{PrepareError, assemble::shard_path, step::Shard};
use std::path::Path;

/// Prints the commands that make one table of the parts of `out`, in the order of `origin`, and, with
/// `duplicates` (more options), one without near-duplicates. Of a whole table there is nothing to say.
pub(crate) fn say_next(
    out: &Path,
    shard: Shard,
    origin: &Path,
    duplicates: Option<&str>,
) -> Result<(), PrepareError> {
    if shard == Shard::WHOLE {
        return Ok(());
    }
    let first = shard_path(out, Shard::new(0, shard.count())?).display().to_string();
    let (before, after) = first.rsplit_once("0-of-").unwrap_or((&first, ""));
    let (merged, origin) =
        (quoted(&out.display().to_string()), quoted(&origin.display().to_string()));
    let parts = format!("{}*-of-{}", quoted(before), quoted(after));
    output::message("when all parts are done:");
    output::message(format_args!("  opensora data merge {parts} -o {merged} --order-of {origin}"));
    if let Some(options) = duplicates {
        let ending = out.extension().map(|ending| ending.to_string_lossy());
        let kept =
            out.with_extension(ending.map_or("kept".into(), |ending| format!("kept.{ending}")));
        let kept = quoted(&kept.display().to_string());
        output::message(format_args!(
            "  opensora data filter --data {merged} -o {kept} --duplicates{options}"
        ));
    }
    Ok(())
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./,:+%@=".contains(c);
    if word.chars().all(is_plain) {
        return word.into();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_shells_where_they_must_be() {
        assert_eq!(quoted("set/clips.csv"), "set/clips.csv");
        assert_eq!(quoted("my clips"), "'my clips'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
