//! Prints the commands that follow when all shards are done.

use crate::output;
use opensora::prepare::{PrepareError, Shard, assemble::shard_path};
use std::path::Path;

/// Prints the commands that merge the shards of `out` in the order of `origin` and, with `duplicates`
/// (further options), drop near-duplicates of the merged table. Prints nothing without shards.
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
    output::message("when all shards are done:");
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

/// Quotes a word for a shell if necessary.
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
    fn words_are_quoted_for_shells_if_necessary() {
        assert_eq!(quoted("set/clips.csv"), "set/clips.csv");
        assert_eq!(quoted("my clips"), "'my clips'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
