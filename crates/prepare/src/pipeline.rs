//! Runs steps one after another, each on the table of the previous one.
//!
//! A pipeline has a work folder. Each stage has a folder in it that is named after the stage and a hash of
//! its settings, such as `split-3fa94c10`, so that results of other settings are kept and found again. A
//! complete stage is not run again if its settings, its input, the files of the input (by size and time) and
//! its output are unchanged. An interrupted stage resumes from its own journal.
//!
//! Each shard of a pipeline has a separate folder in the work folder. The rows of a shard are taken from the
//! first table: the pipeline's input, by their numbers, or the table that the first stage makes of a folder, by the
//! paths of the files below the folder: each shard scans the folder, which can have changed. Near-duplicates
//! need all rows, so shards measure hashes and drop none. Afterwards, merge the tables of the shards in the
//! order of the first table ([`origin`], [`arrange::merge`](mod@crate::arrange::merge)) and filter the merged
//! table with [`filter::Job::duplicates`](crate::filter::Job::duplicates), which opens no file.

pub mod config;
pub mod sections;
mod stages;

use crate::{
    JournalError, Observer, PrepareError, RunOptions, Shard, StageFinished, StageStarted, Summary,
    assemble::{Tables, check_out, failed_path, make_folder, output_path},
    open, scan,
    step::{State, open_journal},
};
use opensora_files::{Journal, hex};
use opensora_manifest::{Table, table::PATH};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

/// The column of a pipeline's list of failures with the name of the stage.
pub const STAGE: &str = "stage";

/// A step of a pipeline. The `Job` of each step is one.
pub trait Stage {
    /// Returns the name, a word of letters, digits, `-` and `_`, which is used in file names.
    fn name(&self) -> &str;

    /// Returns everything that the output depends on besides the input. It is written to files, so it must
    /// not contain secrets.
    fn settings(&self) -> Value;

    /// Returns the stage that replaces this one in a shard, if this one needs all rows.
    fn for_part(&self) -> Option<Box<dyn Stage>> {
        None
    }

    /// Makes the table `output` from `input`: the table of the previous stage or, for the first stage, the
    /// input of the pipeline, which can be a folder. An interrupted stage resumes when it is called again.
    /// Other files are written beside the output; [`failed_path`] is the list of failed rows.
    ///
    /// # Errors
    /// Returns an error if the step fails as a whole, or the observer stops it.
    fn run(
        &self,
        input: &Path,
        output: &Path,
        observer: &mut dyn Observer,
    ) -> Result<Summary, PrepareError>;
}

/// The files and options of a pipeline.
#[derive(Debug, Clone, Default)]
pub struct Job {
    /// The input of the first stage: a table, or a folder.
    pub input: PathBuf,
    /// The work folder.
    pub work: PathBuf,
    /// The final table. The list beside it ([`failed_path`]) has the failed rows of all stages, with
    /// [`STAGE`] and the reason.
    pub out: PathBuf,
    /// Shard of the rows, and retries: complete stages with failures are run again. Stages have separate
    /// options ([`Config::stages`](config::Config::stages)), and only theirs set the workers.
    pub options: RunOptions,
}

/// The record of a complete stage: a line of the pipeline's journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Seal {
    /// The stage's folder.
    folder: String,
    settings: Value,
    /// SHA-256 of the input table; `None` for a folder.
    input: Option<String>,
    /// SHA-256 of the sizes and times of the files in the input table; `None` in journals of earlier
    /// versions.
    #[serde(default)]
    files: Option<String>,
    /// SHA-256 of the output table.
    output: String,
    /// SHA-256 of the sizes and times of the files in the output table, which may be deleted later; `None` in
    /// journals of earlier versions.
    #[serde(default)]
    made: Option<String>,
    summary: Summary,
}

impl Seal {
    /// Returns true if the stage is up to date: its settings, and the tables and files of input and output, are
    /// unchanged.
    /// Always false if the input is a folder, whose contents can have changed.
    fn holds(&self, stage: &dyn Stage, input: &Path, output: &Path) -> bool {
        let is = |path: &Path, hash: &str| hash_file(path).is_ok_and(|found| found == hash);
        let are = |table: &Path, hash: &Option<String>| {
            hash.as_ref().is_none_or(|hash| hash_files(table).is_ok_and(|found| found == *hash))
        };
        self.settings == stage.settings()
            && self.input.as_ref().is_some_and(|hash| is(input, hash))
            && are(input, &self.files)
            && is(output, &self.output)
            && are(output, &self.made)
    }
}

/// The pipeline's journal: the records of complete stages.
struct Seals {
    path: PathBuf,
    journal: Journal,
    seals: Vec<Seal>,
}

impl Seals {
    fn open(work: &Path) -> Result<Self, PrepareError> {
        let path = work.join("pipeline.journal.jsonl");
        let (journal, lines) = open_journal(&path)?;
        let parse = |(index, line): (usize, &String)| {
            serde_json::from_str(line).map_err(|source| PrepareError::Journal {
                path: path.clone(),
                source: JournalError::Record { line: index + 1, source },
            })
        };
        let seals = lines.iter().enumerate().map(parse).collect::<Result<_, _>>()?;
        Ok(Self { path, journal, seals })
    }

    /// Returns the last record of a folder.
    fn of(&self, folder: &str) -> Option<&Seal> {
        self.seals.iter().rev().find(|seal| seal.folder == folder)
    }

    /// Runs a stage and records that it is complete.
    fn run(
        &mut self,
        stage: &dyn Stage,
        folder: String,
        input: &Path,
        output: &Path,
        observer: &mut dyn Observer,
    ) -> Result<Summary, PrepareError> {
        check_out(input, output)?;
        make_folder(output)?;
        // Before the run: a file that changes meanwhile is not what the stage was given.
        let given = hash_input(input)?;
        let files = given.as_ref().map(|_| hash_files(input)).transpose()?;
        let summary = stage.run(input, output, observer)?;
        let (settings, made) = (stage.settings(), Some(hash_files(output)?));
        let output = hash_file(output)?;
        self.add(Seal { folder, settings, input: given, files, output, made, summary })?;
        Ok(summary)
    }

    fn add(&mut self, seal: Seal) -> Result<(), PrepareError> {
        let line = serde_json::to_string(&seal).map_err(std::io::Error::from);
        let added = line.and_then(|line| self.journal.append([line.as_str()]));
        added.map_err(PrepareError::io(&self.path))?;
        self.seals.push(seal);
        Ok(())
    }
}

/// Runs the stages that are not complete and writes the final table. Returns the name and row counts
/// of each stage.
///
/// # Errors
/// Returns an error if the final table is the input ([`PrepareError::SameFile`]), a stage fails, another process works
/// in the folder, or a file cannot be read or written.
pub fn run(
    job: &Job,
    stages: &[&dyn Stage],
    observer: &mut dyn Observer,
) -> Result<Vec<(String, Summary)>, PrepareError> {
    check(stages)?;
    let shard = job.options.shard;
    let out = output_path(&job.input, &job.out, shard)?;
    let work = work_folder(job);
    std::fs::create_dir_all(&work).map_err(PrepareError::io(&work))?;
    let mut seals = Seals::open(&work)?;

    let mut input = job.input.clone();
    let rows = Rows { shard, folder: job.input.is_dir().then_some(job.input.as_path()) };
    let mut is_cut = shard == Shard::WHOLE;
    let (mut done, mut failed) = (Vec::new(), Table::default());
    let mut folders = HashSet::new();
    for (index, stage) in stages.iter().enumerate() {
        let part_stage = if shard == Shard::WHOLE { None } else { stage.for_part() };
        let stage = part_stage.as_deref().unwrap_or(*stage);
        let name = stage.name();
        if !is_cut && input.is_file() {
            input = part(&input, &work, &rows)?;
            is_cut = true;
        }
        observer.stage_started(&StageStarted { name, number: index + 1, total: stages.len() });
        let mut folder = folder_name(stage);
        while !folders.insert(folder.clone()) {
            // The same stage again.
            folder.push_str("-again");
        }
        let output = work.join(&folder).join(format!("{name}.csv"));
        let known = seals.of(&folder).filter(|seal| seal.holds(stage, &input, &output));
        let known = known.map(|seal| seal.summary);
        let known = known.filter(|summary| !(job.options.retry_failed && summary.failed > 0));
        let summary = match known {
            Some(summary) => summary,
            None => seals.run(stage, folder, &input, &output, observer)?,
        };
        let was_complete = known.is_some();
        observer.stage_finished(&StageFinished { name, summary: &summary, was_complete });
        // Until the rows are divided, a stage works on those of all shards.
        collect(&mut failed, &output, name, (!is_cut).then_some(&rows))?;
        done.push((name.to_string(), summary));
        input = output;
    }

    let mut table = Table::read(&input)?;
    if !is_cut {
        // A single stage made the first table.
        table = rows.of(&table);
    }
    make_folder(&out)?;
    Tables { output: table, failed }.write(&out)?;
    Ok(done)
}

/// Returns the path of a shard's first table: the pipeline's input or, if the input is a folder, the output of
/// the first stage. The merged tables of all shards are sorted in the order of this table
/// ([`arrange::in_order_of`](crate::arrange::in_order_of)).
pub fn origin(stages: &[&dyn Stage], job: &Job) -> PathBuf {
    match stages.first() {
        Some(first) if job.input.is_dir() => {
            work_folder(job).join(folder_name(*first)).join(format!("{}.csv", first.name()))
        }
        _ => job.input.clone(),
    }
}

/// Returns the work folder of a pipeline, or of one shard.
fn work_folder(job: &Job) -> PathBuf {
    let shard = job.options.shard;
    if shard == Shard::WHOLE {
        return job.work.clone();
    }
    job.work.join(format!("shard-{}", shard.to_string().replace('/', "-of-")))
}

/// Returns the name of a stage's folder.
fn folder_name(stage: &dyn Stage) -> String {
    format!("{}-{}", stage.name(), &hash(&stage.settings().to_string())[..8])
}

/// Returns an error if there are no stages or a name is not usable in file names.
fn check(stages: &[&dyn Stage]) -> Result<(), PrepareError> {
    let is_word = |name: &str| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    let wrong = stages.iter().map(|stage| stage.name()).find(|name| !is_word(name));
    let found = match (stages.is_empty(), wrong) {
        (true, _) => "no stages".to_string(),
        (false, Some(name)) => format!("{name:?}"),
        (false, None) => return Ok(()),
    };
    Err(PrepareError::Spec {
        field: "stages",
        found,
        expected: "at least one, with names of letters, digits, - and _",
    })
}

/// The rows of a shard.
struct Rows<'a> {
    shard: Shard,
    /// The pipeline's input, if it is a folder.
    folder: Option<&'a Path>,
}

impl Rows<'_> {
    /// Returns the rows of `table` that belong to the shard: by their numbers, or by their paths below the folder,
    /// whose files can have other numbers in another shard's table.
    fn of(&self, table: &Table) -> Table {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.into());
        let folder = self.folder.map(absolute);
        let holds = |row: usize| {
            let path = absolute(Path::new(table.get(row, PATH).unwrap_or_default()));
            match folder.as_ref().and_then(|folder| path.strip_prefix(folder).ok()) {
                Some(below) => scan::holds(self.shard, below),
                None => self.shard.holds(row),
            }
        };
        table.select((0..table.len()).filter(|&row| holds(row)))
    }
}

/// Writes the rows of a shard, with unchanged paths, to a table in the folder `work`; returns its path.
fn part(table: &Path, work: &Path, rows: &Rows<'_>) -> Result<PathBuf, PrepareError> {
    let path = work.join("rows.csv");
    rows.of(&Table::read(table)?).write(&path)?;
    Ok(path)
}

/// Adds the failures of a stage to those of the pipeline: all, or those of the rows of a shard.
fn collect(
    failed: &mut Table,
    output: &Path,
    stage: &str,
    shard: Option<&Rows<'_>>,
) -> Result<(), PrepareError> {
    let list = failed_path(output);
    if list.exists() {
        let all = Table::read(&list)?;
        let mut rows = match shard {
            Some(shard) => shard.of(&all),
            None => all,
        };
        for row in 0..rows.len() {
            rows.set(row, STAGE, stage);
        }
        failed.append(&rows);
    }
    Ok(())
}

/// Returns the SHA-256 of a text in hexadecimal digits.
fn hash(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

/// Returns the SHA-256 of a table; `None` for a folder.
fn hash_input(path: &Path) -> Result<Option<String>, PrepareError> {
    if path.is_dir() { Ok(None) } else { hash_file(path).map(Some) }
}

/// Returns the SHA-256 of the states of a table's files.
fn hash_files(table: &Path) -> Result<String, PrepareError> {
    let table = Table::read(table)?;
    let mut sha = Sha256::new();
    for row in 0..table.len() {
        let path = table.get(row, PATH).unwrap_or_default();
        let state = if path.is_empty() { State::Unknown } else { open::state(Path::new(path)) };
        sha.update(format!("{state:?}\n"));
    }
    Ok(hex(&sha.finalize()))
}

fn hash_file(path: &Path) -> Result<String, PrepareError> {
    let mut file = std::fs::File::open(path).map_err(PrepareError::io(path))?;
    let mut sha = Sha256::new();
    std::io::copy(&mut file, &mut sha).map_err(PrepareError::io(path))?;
    Ok(hex(&sha.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Advanced,
        assemble::{Keys, REASON, journal_path, shard_path},
        step::{self, Run},
    };
    use opensora_files::error_line;
    use serde_json::json;
    use std::{
        cell::RefCell,
        ops::ControlFlow,
        sync::atomic::{AtomicUsize, Ordering},
    };

    /// Adds the column of its name to every row except one path, and counts its calls.
    struct Adds {
        name: &'static str,
        value: u32,
        not: &'static str,
        worked: AtomicUsize,
    }

    impl Adds {
        fn new(name: &'static str, value: u32, not: &'static str) -> Self {
            Self { name, value, not, worked: AtomicUsize::new(0) }
        }
    }

    impl Stage for Adds {
        fn name(&self) -> &str {
            self.name
        }

        fn settings(&self) -> Value {
            json!({"value": self.value})
        }

        fn run(
            &self,
            input: &Path,
            output: &Path,
            observer: &mut dyn Observer,
        ) -> Result<Summary, PrepareError> {
            let table = Table::read(input)?;
            let keys = Keys::of(&table, PATH, output);
            let run = Run {
                journal: journal_path(output),
                settings: self.settings(),
                options: RunOptions::default(),
            };
            let work = |row: usize| {
                self.worked.fetch_add(1, Ordering::Relaxed);
                let path = table.get(row, PATH).unwrap_or_default();
                if path == self.not { Err("not this one".into()) } else { Ok(self.value) }
            };
            let outcomes = step::run(&run, keys.all(), work, observer)?;
            let tables = Tables::assemble(&table, &[self.name], outcomes, |_, value: u32| {
                Ok(vec![vec![(self.name, value.to_string())]])
            });
            tables.write(output)?;
            Ok(tables.summary(table.len()))
        }
    }

    /// Records the completed stages, and stops after a number of rows in total.
    #[derive(Default)]
    struct Notes {
        left: Option<usize>,
        ended: RefCell<Vec<(String, bool)>>,
    }

    impl Observer for Notes {
        fn advanced(&mut self, _: &Advanced) -> ControlFlow<()> {
            match &mut self.left {
                Some(0) => return ControlFlow::Break(()),
                Some(left) => *left -= 1,
                None => {}
            }
            ControlFlow::Continue(())
        }

        fn stage_finished(&mut self, event: &StageFinished<'_>) {
            self.ended.borrow_mut().push((event.name.into(), event.was_complete));
        }
    }

    fn job(folder: &Path) -> Job {
        let mut table = Table::new([PATH]);
        for row in 0..6 {
            table.push([(PATH, format!("/videos/{row}.mp4"))]);
        }
        let input = folder.join("videos.csv");
        table.write(&input).unwrap();
        let (work, out) = (folder.join("work"), folder.join("set.csv"));
        Job { input, work, out, options: RunOptions::default() }
    }

    fn text(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    /// Returns for each stage whether it was complete before.
    fn done(stages: &[&dyn Stage], job: &Job) -> Vec<bool> {
        let mut notes = Notes::default();
        run(job, stages, &mut notes).unwrap();
        notes.ended.into_inner().into_iter().map(|(_, was_done)| was_done).collect()
    }

    #[test]
    fn a_pipeline_resumes_wherever_it_was_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let expected = {
            let other = tempfile::tempdir().unwrap();
            let (first, second) = (Adds::new("a", 1, "/videos/2.mp4"), Adds::new("b", 2, ""));
            let job = job(other.path());
            let numbers = run(&job, &[&first, &second], &mut ()).unwrap();
            assert_eq!(numbers[0].1, Summary { input: 6, output: 5, failed: 1 });
            assert_eq!(numbers[1].1, Summary { input: 5, output: 5, failed: 0 });
            (text(&job.out), text(&failed_path(&job.out)))
        };
        let job = job(folder.path());
        let (first, second) = (Adds::new("a", 1, "/videos/2.mp4"), Adds::new("b", 2, ""));
        let mut stops = 0;
        loop {
            let mut notes = Notes { left: Some(stops % 3), ..Notes::default() };
            match run(&job, &[&first, &second], &mut notes) {
                Err(PrepareError::Stopped { .. }) => stops += 1,
                ended => break drop(ended.unwrap()),
            }
            assert!(!job.out.exists() && stops < 30);
        }
        assert!(stops > 2, "{stops}");
        // A kill in the middle of a line of the journal.
        let journal = job.work.join("pipeline.journal.jsonl");
        std::fs::write(&journal, text(&journal) + "{\"folder\": \"b").unwrap();
        run(&job, &[&first, &second], &mut ()).unwrap();
        assert_eq!((text(&job.out), text(&failed_path(&job.out))), expected);
        // No row was processed twice.
        assert_eq!(first.worked.load(Ordering::Relaxed), 6);
        assert_eq!(second.worked.load(Ordering::Relaxed), 5);
        let failed = Table::read(&failed_path(&job.out)).unwrap();
        assert_eq!(
            (failed.get(0, STAGE), failed.get(0, REASON)),
            (Some("a"), Some("not this one"))
        );
    }

    #[test]
    fn a_stage_whose_files_were_deleted_is_run_again() {
        let folder = tempfile::tempdir().unwrap();
        let job = job(folder.path());
        let clip = folder.path().join("clip.mp4");
        std::fs::write(&clip, "clip").unwrap();
        let mut table = Table::new([PATH]);
        table.push([(PATH, clip.display().to_string())]);
        table.write(&job.input).unwrap();
        let stage = Adds::new("a", 1, "");
        assert_eq!(done(&[&stage], &job), [false]);
        assert_eq!(done(&[&stage], &job), [true]);
        std::fs::remove_file(&clip).unwrap();
        assert_eq!(done(&[&stage], &job), [false]);
        // Its own journal decides which rows are processed again.
        assert_eq!(done(&[&stage], &job), [true]);
    }

    #[test]
    fn only_changed_stages_are_run_again() {
        let folder = tempfile::tempdir().unwrap();
        let job = job(folder.path());
        let (a, b, c) = (Adds::new("a", 1, ""), Adds::new("b", 2, ""), Adds::new("c", 3, ""));
        assert_eq!(done(&[&a, &b, &c], &job), [false; 3]);
        assert_eq!(done(&[&a, &b, &c], &job), [true; 3]);
        // Other settings, and so another input of the next stage.
        let other = Adds::new("b", 20, "");
        assert_eq!(done(&[&a, &other, &c], &job), [true, false, false]);
        assert!(text(&job.out).contains("20"));
        // The old settings: the stage is complete, and the next one has records of its rows.
        assert_eq!(done(&[&a, &b, &c], &job), [true, true, false]);
        assert_eq!(done(&[&a, &c, &c], &job), [true, false, false]);
        assert_eq!(done(&[&a, &b, &c], &job), [true, true, false]);
        // The same stage twice has two folders.
        assert_eq!(c.worked.load(Ordering::Relaxed), 12);
        // Another input: only its new row is processed.
        let mut table = Table::read(&job.input).unwrap();
        table.push([(PATH, "/videos/new.mp4".into())]);
        table.write(&job.input).unwrap();
        assert_eq!(done(&[&a, &b, &c], &job), [false; 3]);
        assert_eq!(a.worked.load(Ordering::Relaxed), 7);
        // A changed file: the stages run again, and their journals have all rows but one.
        let video = folder.path().join("here.mp4");
        std::fs::write(&video, "x").unwrap();
        table.push([(PATH, video.display().to_string())]);
        table.write(&job.input).unwrap();
        assert_eq!(done(&[&a, &b, &c], &job), [false; 3]);
        std::fs::write(&video, "longer").unwrap();
        assert_eq!(done(&[&a, &b, &c], &job), [false; 3]);
        assert_eq!(done(&[&a, &b, &c], &job), [true; 3]);
        assert_eq!(a.worked.load(Ordering::Relaxed), 8);
        // A changed output.
        let mut folders = std::fs::read_dir(&job.work).unwrap();
        let output = folders.find_map(|entry| {
            Some(entry.unwrap().path().join("c.csv")).filter(|path| path.exists())
        });
        std::fs::write(output.unwrap(), "path\n").unwrap();
        assert_eq!(done(&[&a, &b, &c], &job), [true, true, false]);
        assert_eq!(Table::read(&job.out).unwrap().len(), 8);
    }

    #[test]
    fn shards_split_the_rows_and_share_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let job = job(folder.path());
        let mut rows = Vec::new();
        for index in 0..4 {
            let mut job = job.clone();
            job.options.shard = Shard::new(index, 4).unwrap();
            run(&job, &[&Adds::new("a", 1, "")], &mut ()).unwrap();
            let table = Table::read(&shard_path(&job.out, job.options.shard)).unwrap();
            rows.extend((0..table.len()).map(|row| table.get(row, PATH).unwrap().to_string()));
        }
        rows.sort();
        assert_eq!(rows, (0..6).map(|row| format!("/videos/{row}.mp4")).collect::<Vec<_>>());
    }

    #[test]
    fn invalid_pipelines_are_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let job = job(folder.path());
        let none = run(&job, &[], &mut ()).unwrap_err().to_string();
        assert!(none.contains("no stages"), "{none}");
        let slash = run(&job, &[&Adds::new("../a", 1, "")], &mut ()).unwrap_err().to_string();
        assert!(slash.contains("../a"), "{slash}");
        let onto_itself = Job { out: job.input.clone(), ..job.clone() };
        let same = run(&onto_itself, &[&Adds::new("a", 1, "")], &mut ()).unwrap_err();
        assert!(matches!(same, PrepareError::SameFile { .. }), "{same}");
        std::fs::create_dir_all(&job.work).unwrap();
        let _other = Journal::open(&job.work.join("pipeline.journal.jsonl")).unwrap();
        let busy = error_line(&run(&job, &[&Adds::new("a", 1, "")], &mut ()).unwrap_err());
        assert!(busy.contains("another process"), "{busy}");
    }
}
