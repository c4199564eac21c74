//! Keys of files in the journal of measurements.

use crate::assemble::Keys;
use opensora_manifest::{Table, table::PATH};
use serde::Deserialize;
use std::{
    collections::HashSet,
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

/// Returns the keys of files: their paths as [`Keys`] spells them, relative to the journal's folder if they are below
/// it. All are different if the paths are.
///
/// Earlier versions recorded the paths as the table spells them. A file that has only such a record keeps that key.
pub(super) fn of(paths: &[String], journal: &Path) -> Vec<String> {
    let mut table = Table::new([PATH]);
    for path in paths {
        table.push([(PATH, path.clone())]);
    }
    let rows = Keys::of(&table, PATH, journal);
    let (mut keys, mut taken) = (Vec::with_capacity(paths.len()), HashSet::new());
    for key in rows.all() {
        // The key of a second link to a file ends in a row number, which differs between tables. It is removed unless two
        // keys would be equal.
        let path = key.rsplit_once("\nrow ").map_or(key.as_str(), |(path, _)| path);
        keys.push(if taken.insert(path) { path } else { key.as_str() });
    }
    let recorded = recorded(journal);
    let key = |(path, key): (&String, &str)| {
        let is_earlier = !recorded.contains(key) && recorded.contains(path);
        // The earlier spelling can be the present key of another file.
        if is_earlier && !taken.contains(path.as_str()) { path.clone() } else { key.to_string() }
    };
    paths.iter().zip(keys).map(key).collect()
}

/// A line of a journal.
#[derive(Deserialize)]
struct Line {
    key: String,
}

/// Returns the keys of a journal's records. Errors are left to the step, which opens the journal afterwards.
fn recorded(journal: &Path) -> HashSet<String> {
    let Ok(file) = File::open(journal) else { return HashSet::new() };
    let lines = BufReader::new(file).split(b'\n').map_while(Result::ok);
    lines
        .filter_map(|line| serde_json::from_slice::<Line>(&line).ok())
        .map(|line| line.key)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| text.to_string()).collect()
    }

    #[test]
    fn keys_do_not_depend_on_the_spelling_and_are_different() {
        let journal = Path::new("/here/out.csv.journal.jsonl");
        let paths = ["/here/a.mp4", "/here/./b.mp4", "/else//c.mp4", "/here//a.mp4", ""];
        let expected = ["a.mp4", "b.mp4", "/else/c.mp4", "a.mp4\nrow 4", ""];
        assert_eq!(of(&strings(&paths), journal), expected);
    }

    #[test]
    fn records_of_earlier_versions_keep_their_keys() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let journal = folder.path().join("journal.jsonl");
        let lines = [
            serde_json::json!({"step": "filter"}),
            serde_json::json!({"key": at("a.mp4"), "done": {}}),
            serde_json::json!({"key": at("b.mp4"), "done": {}}),
            serde_json::json!({"key": "b.mp4", "done": {}}),
            serde_json::json!({"key": "c.mp4", "done": {}}),
        ];
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(&journal, text + "{\"key\": \"torn").unwrap();
        // The relative path is of another file than the record: keys are relative to the journal's folder.
        let paths = [at("a.mp4"), at("b.mp4"), at("c.mp4"), "c.mp4".into(), at("d.mp4")];
        let keys = of(&paths, &journal);
        assert_eq!(keys[..3], [at("a.mp4"), "b.mp4".into(), "c.mp4".into()]);
        assert_eq!(
            keys[3..],
            [std::path::absolute("c.mp4").unwrap().display().to_string(), "d.mp4".into()]
        );
    }
}
