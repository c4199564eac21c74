//! Manifests made clean: captions without openings and gaps, files that are there, frames that
//! were counted.
//!
//! Every change is counted. Rows that are dropped are listed beside the output with the reason.
//!
//! Source: hpcaitech/Open-Sora, `tools/datasets/csvutil.py` as it became after 1.0.0 (`--remove-caption-prefix`,
//! `--remove-empty-caption`, `--relength`, `--ext`, `--relpath`, `--abspath`).

pub mod caption;
mod frames;

pub use caption::Openings;

use crate::{
    PrepareError,
    assemble::{REASON, write_list},
    step::Watch,
};
use opensora_files::{folder_of, one_line};
use opensora_manifest::{
    Table,
    table::{NUM_FRAMES, PATH, TEXT},
    value,
};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What becomes of rows that are not as they should be. Both are listed with the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Treatment {
    /// They are left out.
    #[default]
    Drop,
    /// They are kept; the list says so.
    List,
}

/// How files are named in the output.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Naming {
    /// Relative to the output's folder where they lie below it, so that it can be moved.
    #[default]
    Movable,
    /// By their absolute paths.
    Absolute,
    /// Relative to this folder where they lie below it; who reads the output must know it.
    From(PathBuf),
}

/// What is cleaned.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// Openings that captions lose.
    pub openings: Openings,
    /// Rows without caption. A table without a column of captions has none of these.
    pub empty: Treatment,
    /// Rows whose file is missing, or cannot be read where its frames are counted. A table without
    /// a column of paths has none of these.
    pub unusable: Treatment,
    /// Whether frames are counted anew.
    pub relength: bool,
    /// How files are named.
    pub naming: Naming,
}

/// Where and how the cleaning is done.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    /// The table that is written; the list of rows that are dropped and, where frames are counted,
    /// a journal lie beside it.
    pub out: &'a Path,
    /// Files that are read at once.
    pub workers: usize,
    /// Whether files that could not be read before are tried again.
    pub retry_failed: bool,
}

/// Changes, in rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counts {
    /// Rows that there were.
    pub rows: usize,
    /// Rows that are written.
    pub written: usize,
    /// Rows that are listed, whether dropped or kept.
    pub listed: usize,
    /// Captions that lost an opening.
    pub openings: usize,
    /// Captions whose words stand apart by one space now.
    pub spaces: usize,
    /// Captions that are empty, or were but for an opening.
    pub empty: usize,
    /// Files that are missing.
    pub missing: usize,
    /// Files that are there and whose frames could not be counted.
    pub unreadable: usize,
    /// Numbers of frames that were wrong or unknown.
    pub recounted: usize,
    /// Files named by their absolute path as they lie elsewhere than where names begin.
    pub elsewhere: usize,
}

/// Cleans a table and writes it, and its list of rows that are not as they should be: the list
/// first, so that where the output is, all is. Without such rows there is no list.
///
/// # Errors
/// Where a file of the step cannot be read or written, or the watcher stops the count of frames.
pub fn clean(
    input: &Table,
    settings: &Settings,
    job: &Job<'_>,
    watch: &mut dyn Watch,
) -> Result<Counts, PrepareError> {
    let mut counts = Counts { rows: input.len(), ..Counts::default() };
    let missing = missing(input);
    let frames = if settings.relength && input.column(PATH).is_some() {
        let skip: Vec<bool> = missing.iter().map(Option::is_some).collect();
        frames::count(input, &skip, job, watch)?
    } else {
        vec![None; input.len()]
    };

    let mut output = input.clone();
    if settings.relength {
        output.ensure(NUM_FRAMES);
    }
    // A list that is cleaned again brings its old reasons along.
    output.remove(REASON);
    let mut reasons = vec![Vec::new(); input.len()];
    let mut kept = Vec::with_capacity(input.len());
    for (row, (missing, frames)) in missing.into_iter().zip(frames).enumerate() {
        let mut keep = true;
        let mut note = |treatment: Treatment, reason: String| {
            keep &= treatment == Treatment::List;
            reasons[row].push(reason);
        };
        if let Some(text) = input.get(row, TEXT) {
            let cleaned = caption::clean(text, &settings.openings);
            counts.spaces += usize::from(cleaned.spaces);
            counts.openings += usize::from(cleaned.openings);
            if value::is_missing(&cleaned.text) {
                counts.empty += 1;
                note(
                    settings.empty,
                    match cleaned.openings {
                        true => format!("its caption is no more than an opening: {}", text.trim()),
                        false => "its caption is empty".into(),
                    },
                );
            }
            output.set(row, TEXT, cleaned.text);
        }
        if let Some(reason) = missing {
            counts.missing += 1;
            note(settings.unusable, reason);
        }
        match frames {
            None => {}
            Some(Ok(frames)) => {
                let frames = frames.to_string();
                counts.recounted += usize::from(input.get(row, NUM_FRAMES) != Some(&frames));
                output.set(row, NUM_FRAMES, frames);
            }
            Some(Err(reason)) => {
                counts.unreadable += 1;
                note(settings.unusable, format!("its frames cannot be counted: {reason}"));
            }
        }
        if keep {
            kept.push(row);
        }
    }
    let failed = list(input, &reasons, &kept);
    (counts.written, counts.listed) = (kept.len(), failed.len());
    let output = output.select(kept);
    let folder = folder_of(job.out);
    let root = match &settings.naming {
        Naming::Movable => Some(folder),
        Naming::Absolute => None,
        Naming::From(root) => Some(root.as_path()),
    };
    counts.elsewhere = root.map_or(Ok(0), |root| elsewhere(&output, root))?;
    write_list(&failed, job.out)?;
    output.write_with_root(job.out, root)?;
    Ok(counts)
}

/// For each row, why its file is not there.
fn missing(input: &Table) -> Vec<Option<String>> {
    let reason = |row: usize| match input.get(row, PATH)? {
        "" => Some("it has no path".to_string()),
        path => std::fs::metadata(path).err().map(|error| error.to_string()),
    };
    (0..input.len()).map(reason).collect()
}

/// The rows with reasons, as they were.
fn list(input: &Table, reasons: &[Vec<String>], kept: &[usize]) -> Table {
    let rows: Vec<usize> = (0..input.len()).filter(|&row| !reasons[row].is_empty()).collect();
    let mut list = input.select(rows.iter().copied());
    list.ensure(REASON);
    for (at, &row) in rows.iter().enumerate() {
        let suffix = if kept.binary_search(&row).is_ok() { " (kept)" } else { "" };
        let reason = one_line(reasons[row].join("; "));
        list.set(at, REASON, format!("{reason}{suffix}"));
    }
    list
}

/// How many of the files lie elsewhere than below `root`.
fn elsewhere(table: &Table, root: &Path) -> Result<usize, PrepareError> {
    // A name is looked up as if the table lay in that folder.
    let place = root.join("table");
    let paths = (0..table.len()).filter_map(|row| table.get(row, PATH));
    paths.filter(|path| !path.is_empty()).try_fold(0, |count, path| {
        Ok(count + usize::from(Table::name_in(&place, Path::new(path))?.is_absolute()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assemble::failed_path;
    use opensora_video::{Frames, png};

    /// Writes a folder of so many frames.
    fn film(path: &Path, frames: usize) {
        std::fs::create_dir(path).unwrap();
        let still = Frames::from_rgb(vec![7; 16 * 16 * 3], [1, 16, 16]).unwrap();
        for frame in 0..frames {
            png::write(&path.join(format!("frame_{frame:05}.png")), &still).unwrap();
        }
    }

    /// A folder with some files and a table of them.
    fn world() -> (tempfile::TempDir, Table) {
        let folder = tempfile::tempdir().unwrap();
        film(&folder.path().join("film"), 3);
        std::fs::write(folder.path().join("still.png"), "").unwrap();
        std::fs::write(folder.path().join("torn.mp4"), "torn").unwrap();
        let path = folder.path().join("all.csv");
        std::fs::write(
            &path,
            "path,text,num_frames,aes\n\
             film,The video shows  a fox,5,1\n\
             still.png,In this image,,2\n\
             still.png,A sea,1,3\n\
             torn.mp4,A tree,9,4\n\
             gone.mp4,,9,5\n\
             film,\"In this video, fog\",3,6\n",
        )
        .unwrap();
        (folder, Table::read(&path).unwrap())
    }

    fn column(table: &Table, name: &str) -> Vec<String> {
        (0..table.len()).map(|row| table.get(row, name).unwrap().into()).collect()
    }

    #[test]
    fn changes_are_counted_and_what_is_dropped_is_listed() {
        let (folder, table) = world();
        let out = folder.path().join("clean.csv");
        let job = Job { out: &out, workers: 2, retry_failed: false };
        let settings = Settings { relength: true, ..Settings::default() };
        let counts = clean(&table, &settings, &job, &mut ()).unwrap();
        let expected = Counts {
            rows: 6,
            written: 4,
            listed: 2,
            openings: 2,
            spaces: 1,
            empty: 1,
            missing: 1,
            unreadable: 1,
            recounted: 2,
            elsewhere: 0,
        };
        assert_eq!(counts, expected);
        let written = Table::read(&out).unwrap();
        assert_eq!(column(&written, TEXT), ["A fox", "In this image", "A sea", "Fog"]);
        assert_eq!(column(&written, NUM_FRAMES), ["3", "1", "1", "3"]);
        assert_eq!(column(&written, "aes"), ["1", "2", "3", "6"]);
        let list = Table::read(&failed_path(&out)).unwrap();
        assert_eq!(column(&list, TEXT), ["A tree", ""]);
        let reasons = column(&list, REASON);
        assert!(reasons[0].starts_with("its frames cannot be counted: "), "{reasons:?}");
        assert!(reasons[1].starts_with("its caption is empty; No such file"), "{reasons:?}");

        // Cleaned once more, nothing is left to change; a file that was changed is counted again.
        std::fs::remove_dir_all(folder.path().join("film")).unwrap();
        film(&folder.path().join("film"), 2);
        let counts = clean(&written, &settings, &job, &mut ()).unwrap();
        let expected = Counts { rows: 4, written: 4, recounted: 2, ..Counts::default() };
        assert_eq!(counts, expected);
        assert!(!failed_path(&out).exists());
    }

    #[test]
    fn rows_can_be_listed_and_kept() {
        let (folder, table) = world();
        let out = folder.path().join("clean.csv");
        let job = Job { out: &out, workers: 1, retry_failed: false };
        let settings = Settings {
            empty: Treatment::List,
            unusable: Treatment::List,
            openings: Openings::parse("in this image"),
            ..Settings::default()
        };
        let counts = clean(&table, &settings, &job, &mut ()).unwrap();
        assert_eq!((counts.rows, counts.written, counts.listed), (6, 6, 2));
        let list = Table::read(&failed_path(&out)).unwrap();
        let reasons = column(&list, REASON);
        assert_eq!(reasons[0], "its caption is no more than an opening: In this image (kept)");
        assert!(reasons[1].ends_with("(kept)"));
        // As the frames were not counted, there is nothing to go on from.
        assert!(!folder.path().join("clean.csv.journal.jsonl").exists());
    }

    #[test]
    fn files_are_named_as_asked() {
        let (folder, table) = world();
        let out = folder.path().join("other/clean.csv");
        std::fs::create_dir(folder.path().join("other")).unwrap();
        let job = Job { out: &out, workers: 1, retry_failed: false };
        let first = |naming: Naming| {
            let settings = Settings { naming, ..Settings::default() };
            let counts = clean(&table, &settings, &job, &mut ()).unwrap();
            let text = std::fs::read_to_string(&out).unwrap();
            let line = text.lines().nth(1).unwrap().split(',').next().unwrap().to_string();
            (line, counts.elsewhere)
        };
        let absolute = folder.path().join("film").to_str().unwrap().to_string();
        assert_eq!(first(Naming::Movable), (absolute.clone(), 5));
        assert_eq!(first(Naming::Absolute), (absolute, 0));
        assert_eq!(first(Naming::From(folder.path().into())), ("film".into(), 0));
    }
}
