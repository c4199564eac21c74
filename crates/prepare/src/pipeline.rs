//! Steps one after another, each from the table of the one before.
//!
//! A pipeline works in a folder of its own. A step's files lie in a folder that is named after the
//! step and its settings, such as `split-3fa94c10`: with other settings it works elsewhere and what
//! was done before is not lost; with the old ones again, also behind other steps, it is found
//! again. A step that is complete, whose input and the files that it names (by size and time) are what they
//! were and whose output is untouched is not done again; one that was interrupted goes on by its own journal.
//!
//! Of a job array, each part has a folder for itself in the pipeline's and shares nothing with the
//! others: the part's rows are those of the first table there is. Near-duplicates are looked for among all
//! rows: parts measure the clips' hashes and drop none. Merged ([`arrange::merge`](crate::arrange::merge))
//! and brought into the order of the first table ([`origin`]), the parts' tables are filtered by [`filter::run`](crate::filter::run) with
//! [`Job::duplicates`](crate::filter::Job::duplicates), which opens no file.

pub mod config;
pub mod sections;
pub mod stages;

use crate::{
    PrepareError,
    assemble::{Summary, Tables, failed_path, make_folder, shard_path},
    open,
    step::{Shard, State, Watch, open_journal},
};
use opensora_files::{Journal, hex, one_line};
use opensora_manifest::{Table, table::PATH};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

/// The column of a pipeline's list of failures that says which step's they are.
pub const STAGE: &str = "stage";

/// A step of a pipeline.
pub trait Stage {
    /// Its name, a plain word: it names files.
    fn name(&self) -> &str;

    /// All that its output depends on besides its input. No secrets: they are written down.
    fn settings(&self) -> Value;

    /// The stage that takes this one's place in a part of a job array, if this one needs all rows.
    fn for_part(&self) -> Option<Box<dyn Stage>> {
        None
    }

    /// Makes the table `output` of `input`: the table of the step before or, of the first step,
    /// what the pipeline was given, which may be a folder. Interrupted and called again, it goes
    /// on. Other files that it makes go beside the output.
    ///
    /// # Errors
    /// Where the step as a whole cannot be done. Rows that it cannot use are listed in
    /// [`failed_path`] of the output.
    fn run(
        &self,
        input: &Path,
        output: &Path,
        watch: &mut dyn Watch,
    ) -> Result<Summary, PrepareError>;
}

/// Watches a pipeline, and each of its steps.
pub trait Observer: Watch {
    /// A step begins, the `number`th of `total` from 1.
    fn began(&mut self, _stage: &str, _number: usize, _total: usize) {}

    /// A step is complete; `was_done` where it was so before.
    fn ended(&mut self, _stage: &str, _summary: &Summary, _was_done: bool) {}
}

impl Observer for () {}

/// Where a pipeline works.
#[derive(Debug, Clone)]
pub struct Job {
    /// What the first step is given: a table, or a folder.
    pub input: PathBuf,
    /// The folder of the steps.
    pub work: PathBuf,
    /// The final table. Beside it ([`failed_path`]) all rows that a step could not use, with
    /// [`STAGE`] and the reason.
    pub out: PathBuf,
    /// Which rows.
    pub shard: Shard,
    /// Whether complete steps with failures are run again; the stages have to know as well.
    pub retry_failed: bool,
}

/// That a step is complete: a line of the pipeline's journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Seal {
    /// The step's folder.
    folder: String,
    settings: Value,
    /// SHA-256 of the table that it was given; of a folder there is none.
    input: Option<String>,
    /// SHA-256 of the sizes and times of the files that the table names. Journals of earlier versions
    /// have none.
    #[serde(default)]
    files: Option<String>,
    /// SHA-256 of its table.
    output: String,
    summary: Summary,
}

impl Seal {
    /// Whether a step is as complete as it was: with the same settings, of the same input and the same
    /// files, and with its output untouched. What comes of a folder never is: the folder may have changed.
    fn holds(&self, stage: &dyn Stage, input: &Path, output: &Path) -> bool {
        let is = |path: &Path, hash: &str| hash_file(path).is_ok_and(|found| found == hash);
        let are = |hash: &str| hash_files(input).is_ok_and(|found| found == hash);
        self.settings == stage.settings()
            && self.input.as_ref().is_some_and(|hash| is(input, hash))
            && self.files.as_ref().is_none_or(|hash| are(hash))
            && is(output, &self.output)
    }
}

/// The pipeline's journal: which steps are complete, and of what.
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
            serde_json::from_str(line).map_err(|error| PrepareError::Journal {
                path: path.clone(),
                reason: format!("line {} is no record: {}", index + 1, one_line(error)),
            })
        };
        let seals = lines.iter().enumerate().map(parse).collect::<Result<_, _>>()?;
        Ok(Self { path, journal, seals })
    }

    /// The last word on a folder.
    fn of(&self, folder: &str) -> Option<&Seal> {
        self.seals.iter().rev().find(|seal| seal.folder == folder)
    }

    fn add(&mut self, seal: Seal) -> Result<(), PrepareError> {
        let line = serde_json::to_string(&seal).map_err(std::io::Error::from);
        let added = line.and_then(|line| self.journal.append([line.as_str()]));
        added.map_err(io(&self.path))?;
        self.seals.push(seal);
        Ok(())
    }
}

/// Does what is left to do, and writes the final table. Returns the steps' names and numbers.
///
/// # Errors
/// Where a step as a whole cannot be done, another process works in the folder, or a file cannot
/// be read or written.
pub fn run(
    stages: &[&dyn Stage],
    job: &Job,
    observer: &mut dyn Observer,
) -> Result<Vec<(String, Summary)>, PrepareError> {
    check(stages)?;
    let work = work_folder(job);
    std::fs::create_dir_all(&work).map_err(io(&work))?;
    let mut seals = Seals::open(&work)?;

    let mut input = job.input.clone();
    let mut is_cut = job.shard == Shard::WHOLE;
    let (mut done, mut failed) = (Vec::new(), Table::default());
    let mut folders = HashSet::new();
    for (index, stage) in stages.iter().enumerate() {
        let part_stage = if job.shard == Shard::WHOLE { None } else { stage.for_part() };
        let stage = part_stage.as_deref().unwrap_or(*stage);
        if !is_cut && input.is_file() {
            input = part(&input, &work, job.shard)?;
            is_cut = true;
        }
        observer.began(stage.name(), index + 1, stages.len());
        let mut folder = folder_name(stage);
        while !folders.insert(folder.clone()) {
            // The same step again.
            folder.push_str("-again");
        }
        let output = work.join(&folder).join(format!("{}.csv", stage.name()));
        let known = seals.of(&folder).filter(|seal| seal.holds(stage, &input, &output));
        let known = known.map(|seal| seal.summary);
        let known = known.filter(|summary| !(job.retry_failed && summary.failed > 0));
        let summary = match known {
            Some(summary) => summary,
            None => {
                make_folder(&output)?;
                // What comes in while the step works is not what it was given.
                let given = hash_input(&input)?;
                let files = given.as_ref().map(|_| hash_files(&input)).transpose()?;
                let summary = stage.run(&input, &output, observer)?;
                let (settings, output) = (stage.settings(), hash_file(&output)?);
                seals.add(Seal { folder, settings, input: given, files, output, summary })?;
                summary
            }
        };
        observer.ended(stage.name(), &summary, known.is_some());
        collect(&mut failed, &output, stage.name())?;
        done.push((stage.name().to_string(), summary));
        input = output;
    }

    let out = shard_path(&job.out, job.shard);
    let mut table = Table::read(&input)?;
    if !is_cut {
        // A single step made the first table.
        table = table.select((0..table.len()).filter(|&row| job.shard.holds(row)));
    }
    make_folder(&out)?;
    Tables { output: table, failed }.write(&out)?;
    Ok(done)
}

/// The first table that there is in a part of a job array: the pipeline's input or, of a folder, what the
/// first step makes of it. The tables of all parts, merged, are brought into its order
/// ([`arrange::in_order_of`](crate::arrange::in_order_of)).
pub fn origin(stages: &[&dyn Stage], job: &Job) -> PathBuf {
    match stages.first() {
        Some(first) if job.input.is_dir() => {
            work_folder(job).join(folder_name(*first)).join(format!("{}.csv", first.name()))
        }
        _ => job.input.clone(),
    }
}

/// The folder in which a pipeline or a part of it works.
fn work_folder(job: &Job) -> PathBuf {
    if job.shard == Shard::WHOLE {
        return job.work.clone();
    }
    job.work.join(format!("shard-{}", job.shard.to_string().replace('/', "-of-")))
}

/// The name of a step's folder.
fn folder_name(stage: &dyn Stage) -> String {
    format!("{}-{}", stage.name(), &hash(&stage.settings().to_string())[..8])
}

/// Fails where the steps' files could not be told apart.
fn check(stages: &[&dyn Stage]) -> Result<(), PrepareError> {
    let is_word = |name: &str| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    let wrong = stages.iter().map(|stage| stage.name()).find(|name| !is_word(name));
    let found = match (stages.is_empty(), wrong) {
        (true, _) => "no steps".to_string(),
        (false, Some(name)) => format!("{name:?}"),
        (false, None) => return Ok(()),
    };
    Err(PrepareError::Spec {
        field: "stages",
        found,
        expected: "at least one, with names of letters, digits, - and _",
    })
}

/// Writes the rows of a part; their paths stay what they were.
fn part(table: &Path, work: &Path, shard: Shard) -> Result<PathBuf, PrepareError> {
    let all = Table::read(table)?;
    let path = work.join("rows.csv");
    all.select((0..all.len()).filter(|&row| shard.holds(row))).write(&path)?;
    Ok(path)
}

/// Adds a step's failures to those of the pipeline.
fn collect(failed: &mut Table, output: &Path, stage: &str) -> Result<(), PrepareError> {
    let list = failed_path(output);
    if list.exists() {
        let mut rows = Table::read(&list)?;
        for row in 0..rows.len() {
            rows.set(row, STAGE, stage);
        }
        failed.append(&rows);
    }
    Ok(())
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> PrepareError {
    move |source| PrepareError::Io { path: path.into(), source }
}

/// SHA-256 in hexadecimal digits.
fn hash(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

/// A table's SHA-256; a folder has none.
fn hash_input(path: &Path) -> Result<Option<String>, PrepareError> {
    if path.is_dir() { Ok(None) } else { hash_file(path).map(Some) }
}

/// SHA-256 of the states of the files that a table names.
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
    let mut file = std::fs::File::open(path).map_err(io(path))?;
    let mut sha = Sha256::new();
    std::io::copy(&mut file, &mut sha).map_err(io(path))?;
    Ok(hex(&sha.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        assemble::{Keys, REASON, journal_path},
        step::{self, Run},
    };
    use serde_json::json;
    use std::{
        cell::RefCell,
        ops::ControlFlow,
        sync::atomic::{AtomicUsize, Ordering},
    };

    /// Adds its name's column to every row but those of one path, and counts its work.
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
            watch: &mut dyn Watch,
        ) -> Result<Summary, PrepareError> {
            let table = Table::read(input)?;
            let keys = Keys::of(&table, PATH, output);
            let run = Run {
                journal: journal_path(output),
                settings: self.settings(),
                workers: 1,
                shard: Shard::WHOLE,
                retry_failed: false,
            };
            let work = |row: usize| {
                self.worked.fetch_add(1, Ordering::Relaxed);
                let path = table.get(row, PATH).unwrap_or_default();
                if path == self.not { Err("not this one".into()) } else { Ok(self.value) }
            };
            let outcomes = step::run(&run, keys.all(), work, watch)?;
            let tables = Tables::assemble(&table, &[self.name], outcomes, |_, value: u32| {
                Ok(vec![vec![(self.name, value.to_string())]])
            });
            tables.write(output)?;
            Ok(tables.summary(table.len()))
        }
    }

    /// Notes which steps were done, and stops after so many rows in all.
    #[derive(Default)]
    struct Notes {
        left: Option<usize>,
        ended: RefCell<Vec<(String, bool)>>,
    }

    impl Watch for Notes {
        fn advanced(&mut self, _: usize, _: usize, _: usize) -> ControlFlow<()> {
            match &mut self.left {
                Some(0) => return ControlFlow::Break(()),
                Some(left) => *left -= 1,
                None => {}
            }
            ControlFlow::Continue(())
        }
    }

    impl Observer for Notes {
        fn ended(&mut self, stage: &str, _: &Summary, was_done: bool) {
            self.ended.borrow_mut().push((stage.into(), was_done));
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
        Job { input, work, out, shard: Shard::WHOLE, retry_failed: false }
    }

    fn text(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    /// Which steps had been done before.
    fn done(stages: &[&dyn Stage], job: &Job) -> Vec<bool> {
        let mut notes = Notes::default();
        run(stages, job, &mut notes).unwrap();
        notes.ended.into_inner().into_iter().map(|(_, was_done)| was_done).collect()
    }

    #[test]
    fn a_pipeline_goes_on_wherever_it_was_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let expected = {
            let other = tempfile::tempdir().unwrap();
            let (first, second) = (Adds::new("a", 1, "/videos/2.mp4"), Adds::new("b", 2, ""));
            let job = job(other.path());
            let numbers = run(&[&first, &second], &job, &mut ()).unwrap();
            assert_eq!(numbers[0].1, Summary { input: 6, output: 5, failed: 1 });
            assert_eq!(numbers[1].1, Summary { input: 5, output: 5, failed: 0 });
            (text(&job.out), text(&failed_path(&job.out)))
        };
        let job = job(folder.path());
        let (first, second) = (Adds::new("a", 1, "/videos/2.mp4"), Adds::new("b", 2, ""));
        let mut stops = 0;
        loop {
            let mut notes = Notes { left: Some(stops % 3), ..Notes::default() };
            match run(&[&first, &second], &job, &mut notes) {
                Err(PrepareError::Stopped { .. }) => stops += 1,
                ended => break drop(ended.unwrap()),
            }
            assert!(!job.out.exists() && stops < 30);
        }
        assert!(stops > 2, "{stops}");
        // A kill in the middle of a line of the journal.
        let journal = job.work.join("pipeline.journal.jsonl");
        std::fs::write(&journal, text(&journal) + "{\"folder\": \"b").unwrap();
        run(&[&first, &second], &job, &mut ()).unwrap();
        assert_eq!((text(&job.out), text(&failed_path(&job.out))), expected);
        // No row was worked on twice.
        assert_eq!(first.worked.load(Ordering::Relaxed), 6);
        assert_eq!(second.worked.load(Ordering::Relaxed), 5);
        let failed = Table::read(&failed_path(&job.out)).unwrap();
        assert_eq!(
            (failed.get(0, STAGE), failed.get(0, REASON)),
            (Some("a"), Some("not this one"))
        );
    }

    #[test]
    fn only_what_changed_is_done_again() {
        let folder = tempfile::tempdir().unwrap();
        let job = job(folder.path());
        let (a, b, c) = (Adds::new("a", 1, ""), Adds::new("b", 2, ""), Adds::new("c", 3, ""));
        assert_eq!(done(&[&a, &b, &c], &job), [false; 3]);
        assert_eq!(done(&[&a, &b, &c], &job), [true; 3]);
        // Other settings, and with them another input for the step behind.
        let other = Adds::new("b", 20, "");
        assert_eq!(done(&[&a, &other, &c], &job), [true, false, false]);
        assert!(text(&job.out).contains("20"));
        // The old ones again: the step is still there, the one behind has its rows' records.
        assert_eq!(done(&[&a, &b, &c], &job), [true, true, false]);
        assert_eq!(done(&[&a, &c, &c], &job), [true, false, false]);
        assert_eq!(done(&[&a, &b, &c], &job), [true, true, false]);
        // The same step once more is another one.
        assert_eq!(c.worked.load(Ordering::Relaxed), 12);
        // Another input: only its new row is worked on.
        let mut table = Table::read(&job.input).unwrap();
        table.push([(PATH, "/videos/new.mp4".into())]);
        table.write(&job.input).unwrap();
        assert_eq!(done(&[&a, &b, &c], &job), [false; 3]);
        assert_eq!(a.worked.load(Ordering::Relaxed), 7);
        // A file that changed: the steps look again, and their journals know which row it is.
        let video = folder.path().join("here.mp4");
        std::fs::write(&video, "x").unwrap();
        table.push([(PATH, video.display().to_string())]);
        table.write(&job.input).unwrap();
        assert_eq!(done(&[&a, &b, &c], &job), [false; 3]);
        std::fs::write(&video, "longer").unwrap();
        assert_eq!(done(&[&a, &b, &c], &job), [false; 3]);
        assert_eq!(done(&[&a, &b, &c], &job), [true; 3]);
        assert_eq!(a.worked.load(Ordering::Relaxed), 8);
        // An output that somebody changed.
        let mut folders = std::fs::read_dir(&job.work).unwrap();
        let output = folders.find_map(|entry| {
            Some(entry.unwrap().path().join("c.csv")).filter(|path| path.exists())
        });
        std::fs::write(output.unwrap(), "path\n").unwrap();
        assert_eq!(done(&[&a, &b, &c], &job), [true, true, false]);
        assert_eq!(Table::read(&job.out).unwrap().len(), 8);
    }

    #[test]
    fn parts_share_the_rows_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let job = job(folder.path());
        let mut rows = Vec::new();
        for index in 0..4 {
            let job = Job { shard: Shard::new(index, 4).unwrap(), ..job.clone() };
            run(&[&Adds::new("a", 1, "")], &job, &mut ()).unwrap();
            let table = Table::read(&shard_path(&job.out, job.shard)).unwrap();
            rows.extend((0..table.len()).map(|row| table.get(row, PATH).unwrap().to_string()));
        }
        rows.sort();
        assert_eq!(rows, (0..6).map(|row| format!("/videos/{row}.mp4")).collect::<Vec<_>>());
    }

    #[test]
    fn what_cannot_be_run_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let job = job(folder.path());
        let none = run(&[], &job, &mut ()).unwrap_err().to_string();
        assert!(none.contains("no steps"), "{none}");
        let slash = run(&[&Adds::new("../a", 1, "")], &job, &mut ()).unwrap_err().to_string();
        assert!(slash.contains("../a"), "{slash}");
        std::fs::create_dir_all(&job.work).unwrap();
        let _other = Journal::open(&job.work.join("pipeline.journal.jsonl")).unwrap();
        let busy = run(&[&Adds::new("a", 1, "")], &job, &mut ()).unwrap_err().to_string();
        assert!(busy.contains("another process"), "{busy}");
    }
}
