//! Downloads the videos of public lists.
//!
//! A list has addresses of videos, and the clips in them. Each video is downloaded once, to a file whose name
//! derives from its address. The manifest has a row for each clip, with its range in the file in seconds
//! ([`CLIP_START`], [`CLIP_END`]), which [`split`](mod@crate::split) cuts. Files are downloaded by HTTP, videos on
//! YouTube with the program `yt-dlp`.
//!
//! ```no_run
//! use opensora_prepare::download::{self, Job, List, ListFormat, Part};
//! use std::path::Path;
//!
//! let path = Path::new("panda70m_training_2m.csv");
//! let part = Part { limit: Some(1000), ..Part::WHOLE };
//! let list = List::read(path, ListFormat::of(path)?, part)?;
//! // The terms of the list, which `accept_license` accepts.
//! list.terms().iter().for_each(|terms| println!("{terms}"));
//! let job = Job { accept_license: true, ..Job::default() };
//! let report = download::run(&job, &list, Path::new("clips.csv"), &mut ())?;
//! println!("{} clips of {} videos", report.clips, report.videos);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | module | contents |
//! |---|---|
//! | `list` | [`List`]: videos and clips, read in parts |
//! | `csv_list`, `hdvg` | formats of lists |
//! | `literal`, `seconds` | parsers of cells |
//! | `address` | addresses, and names of files |
//! | `terms` | licence [`Terms`] of known lists and hosts |
//! | `http`, `partial` | downloads by HTTP, and partial files |
//! | `yt_dlp` | downloads with `yt-dlp` |
//! | `busy` | waits for other processes |
//! | `readable` | rows that a table can hold |
//! | `limits` | rate limits |
//! | `reach` | rejection of hosts that are not public |
//! | `secrets` | removal of secrets from addresses |
//!
//! # Large lists
//! Memory holds one part of the list (about the size of that part of the file), and about 300 bytes for each
//! video. Download a list of 8 GB in parts ([`Part::offset`], [`Part::limit`]), each with a separate `out`.
//! Skipping the records before a part takes a pass over the file and no memory. A complete file is not
//! downloaded again, also by another part, without the journal, or with another format of `yt-dlp`.
//!
//! # Untrusted lists
//! Redirects stay within HTTP and HTTPS, and never lead from HTTPS to HTTP. Hosts on this machine, in private
//! networks and with link-local addresses are rejected, also after a redirect, unless
//! [`Job::allow_private`] is set. User names, passwords, tokens and signatures in addresses are used for
//! requests only: manifests, lists of failures, journals and messages have addresses without them. To
//! download such files again, use the list, not the manifest.
//!
//! # Interruptions
//! A video is done when its record is in the journal: after its file is complete, renamed and synced. The
//! next run resumes partial files.

mod address;
mod busy;
mod csv_list;
mod fetch_error;
mod hdvg;
mod http;
mod limits;
mod list;
mod literal;
mod partial;
mod reach;
mod readable;
mod seconds;
mod secrets;
mod terms;
mod yt_dlp;

pub use crate::assemble::failed_path;
pub use fetch_error::{FetchError, HttpError};
pub use http::Timeouts;
pub use list::{END, LICENCE, List, ListError, ListFormat, Part, REASON, SHA256, START};
pub use reach::NotPublic;
pub use terms::Terms;
pub use yt_dlp::{FORMAT, YtDlp};

use crate::{
    Observer, PrepareError, RunOptions, Shard, Summary,
    assemble::journal_path,
    output::stops_every_row,
    retry::{GaveUp, RetryPolicy},
    step::{self, Fault, Outcome, Run, Trust},
};
use address::Fetch;
use http::Client;
use limits::Rate;
use list::{Video, fields};
use opensora_files::error_line;
use opensora_manifest::{
    Table,
    table::{CLIP_END, CLIP_START, PATH, TEXT, URL},
};
use partial::Fetched;
use serde_json::json;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use yt_dlp::Runner;

/// The column with the address of a row's file.
pub const SOURCE: &str = "source";
/// The column with a file's size in bytes.
pub const BYTES: &str = "bytes";

/// Folder, limits, retries and run options of a download.
#[derive(Debug, Clone)]
pub struct Job {
    /// Folder of the files; it is created.
    pub folder: PathBuf,
    /// Accepts the terms of known lists and hosts. Without it, nothing under such terms is downloaded.
    pub accept_license: bool,
    /// Licence of videos whose list does not state one.
    pub licence: Option<String>,
    /// Maximum size of a file in bytes.
    pub max_bytes: Option<u64>,
    /// Requests per second of all workers together; for `yt-dlp`, started videos per second.
    pub requests_per_second: Option<f64>,
    /// Maximum bytes per second of all workers together. Each run of `yt-dlp` gets this rate divided by the number of
    /// workers, beside the downloads by HTTP.
    pub bytes_per_second: Option<u64>,
    /// Timeouts of a connection, of further bytes and of an attempt.
    pub timeouts: Timeouts,
    /// Retries of a request.
    pub retry: RetryPolicy,
    /// Program, format and arguments of `yt-dlp`.
    pub yt_dlp: YtDlp,
    /// Allows hosts on this machine, in private networks and with link-local addresses.
    pub allow_private: bool,
    /// Workers, and retries of videos that failed. The shard must be that of the list
    /// ([`Part::shard`]), which holds the videos of its shard only.
    pub options: RunOptions,
}

impl Default for Job {
    /// Returns the defaults: four videos at once, into the folder `videos`.
    fn default() -> Self {
        Self {
            folder: "videos".into(),
            accept_license: false,
            licence: None,
            max_bytes: None,
            requests_per_second: None,
            bytes_per_second: None,
            timeouts: Timeouts::default(),
            retry: RetryPolicy::default(),
            yt_dlp: YtDlp::default(),
            allow_private: false,
            options: RunOptions { workers: 4, ..RunOptions::default() },
        }
    }
}

/// Error before a download starts: licence terms that were not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DownloadError {
    /// The terms of the list or of a host were not accepted.
    #[error(
        "nothing is downloaded before its terms are accepted (--accept-license): {}",
        .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    )]
    Terms(
        /// The terms.
        Vec<&'static Terms>,
    ),
}

/// Counts of a download: videos, clips, bytes and failed rows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Videos whose files are complete.
    pub videos: usize,
    /// Clips in these videos: rows of the manifest.
    pub clips: usize,
    /// Bytes of the files.
    pub bytes: u64,
    /// Rows of the list of failures.
    pub failed: usize,
    /// Reason why no video on YouTube was downloaded, if the list has any and the program is missing.
    pub no_yt_dlp: Option<String>,
}

impl Report {
    /// Returns the row counts.
    pub fn summary(&self) -> Summary {
        Summary { input: self.clips + self.failed, output: self.clips, failed: self.failed }
    }
}

/// Downloads the videos of a list and writes the manifest `out` of their clips, the list of failures
/// beside it ([`failed_path`]) and a journal, `<out>.journal.jsonl`.
///
/// The manifest has the columns `path`, `url`, `source`, `licence`, `clip_start`, `clip_end`, `text`,
/// `sha256`, `bytes` and the other columns of the list. `clip_start` and `clip_end` are seconds of the file
/// ([`CLIP_START`], [`CLIP_END`]); they are empty if the list has no times. The failures are a list in CSV
/// ([`ListFormat::Csv`]) with the times in `start` and `end`, the other columns of the list, and `reason`.
///
/// # Errors
/// Returns an error if the terms are not accepted, a setting is invalid, the folder, a video, the journal or a
/// manifest cannot be written (the disk is full, the folder is read-only), or the observer stops the step.
pub fn run(
    job: &Job,
    list: &List,
    out: &Path,
    observer: &mut dyn Observer,
) -> Result<Report, PrepareError> {
    let terms = list.terms();
    if !job.accept_license && !terms.is_empty() {
        return Err(DownloadError::Terms(terms).into());
    }
    job.validate(list)?;
    std::fs::create_dir_all(&job.folder).map_err(PrepareError::io(&job.folder))?;

    let uses_yt_dlp = list.videos.iter().any(|video| video.address.fetch() == Fetch::YtDlp);
    let no_yt_dlp = if uses_yt_dlp { job.yt_dlp.find().err() } else { None };
    let no_yt_dlp = no_yt_dlp.map(|error| error_line(&error));
    let client = job.client();
    let runner = job.runner(&client);
    let fetch = |row: usize| -> Result<Fetched, GaveUp<FetchError>> {
        let Video { address, sha256, .. } = &list.videos[row];
        let target = job.folder.join(address.file());
        match (address.fetch(), &no_yt_dlp) {
            (Fetch::Direct, _) => client.fetch(address, sha256.as_deref(), &target),
            (Fetch::YtDlp, None) => {
                let fetched = runner.fetch(address.url(), &target)?;
                http::check(&fetched, sha256.as_deref())?;
                Ok(fetched)
            }
            (Fetch::YtDlp, Some(reason)) => Err(FetchError::yt_dlp(reason).into()),
        }
    };
    let keys: Vec<String> =
        list.videos.iter().map(|video| video.address.file().to_string()).collect();
    let run = Run {
        journal: journal_path(out),
        settings: json!({"step": "download", "format": job.yt_dlp.format}),
        // The list has the videos of its shard only.
        options: RunOptions { shard: Shard::WHOLE, ..job.options },
    };
    let work = |row: usize| {
        let target = || job.folder.join(list.videos[row].address.file());
        fetch(row).map_err(|failed| fault(failed, target))
    };
    // The list may have got another checksum since a file was downloaded.
    let holds = |row: usize, fetched: &Fetched| {
        http::check(fetched, list.videos[row].sha256.as_deref()).is_ok()
    };
    let trust = Trust { holds: &holds, ..Trust::ALL };
    let outcomes = step::run_checked(&run, &keys, &trust, work, observer)?;
    let report = assemble(job, list, &outcomes, out)?;
    Ok(Report { no_yt_dlp, ..report })
}

/// Returns the fault of a video that was not downloaded to `target`: an output that cannot be written ends the step.
fn fault(failed: GaveUp<FetchError>, target: impl FnOnce() -> PathBuf) -> Fault {
    let GaveUp { error, attempts, stopped } = failed;
    match error {
        FetchError::Write(source) if stops_every_row(&source) => {
            Fault::Step(Arc::new(PrepareError::Io { path: target(), source }))
        }
        error => GaveUp { error, attempts, stopped }.into(),
    }
}

impl Job {
    /// Returns an error if a setting is invalid, or the shard is not that of the list.
    fn validate(&self, list: &List) -> Result<(), PrepareError> {
        let wrong =
            |field, found: String, expected| Err(PrepareError::Spec { field, found, expected });
        // Less than one request a day is taken for a mistake.
        let is_rate = |rate: f64| rate.is_finite() && rate >= 1e-5;
        match (self.requests_per_second, self.bytes_per_second) {
            (Some(rate), _) if !is_rate(rate) => {
                wrong("requests_per_second", rate.to_string(), "a positive number")
            }
            (_, Some(0)) => wrong("bytes_per_second", "0".into(), "a positive number"),
            _ if self.options.workers == 0 => wrong("workers", "0".into(), "a positive number"),
            // Tables are text.
            _ if self.folder.to_str().is_none() => {
                wrong("videos", self.folder.display().to_string(), "a folder whose path is UTF-8")
            }
            _ if self.timeouts.idle.is_zero() || self.timeouts.connect.is_zero() => {
                wrong("timeouts", "0 s".into(), "a positive time")
            }
            _ if self.options.shard != list.part().shard => {
                wrong("shard", self.options.shard.to_string(), "the shard of the list")
            }
            _ => Ok(()),
        }
    }

    fn client(&self) -> Client {
        Client {
            agent: http::agent(&self.timeouts, self.allow_private),
            retry: self.retry,
            max_bytes: self.max_bytes,
            patience: self.timeouts.attempt,
            requests: Rate::new(self.requests_per_second),
            bytes: Rate::new(self.bytes_per_second.map(|rate| rate as f64)),
        }
    }

    fn runner<'a>(&'a self, client: &'a Client) -> Runner<'a> {
        let workers = self.options.workers as u64;
        Runner {
            yt_dlp: &self.yt_dlp,
            retry: self.retry,
            timeouts: self.timeouts,
            max_bytes: self.max_bytes,
            bytes_per_second: self.bytes_per_second.map(|rate| (rate / workers).max(1)),
            requests: &client.requests,
        }
    }
}

/// Writes the manifest and the list of failures.
fn assemble(
    job: &Job,
    list: &List,
    outcomes: &[Option<Outcome<Fetched>>],
    out: &Path,
) -> Result<Report, PrepareError> {
    let own = [PATH, URL, SOURCE, LICENCE, CLIP_START, CLIP_END, TEXT, SHA256, BYTES];
    let mut clips = Table::new(own);
    let mut failed = Table::new([URL, START, END, TEXT]);
    failed.append(&list.rejected);
    failed.ensure(REASON);
    let mut sum = Report::default();
    for (video, outcome) in list.videos.iter().zip(outcomes) {
        let target = job.folder.join(video.address.file());
        let outcome = match outcome {
            None => continue,
            Some(Outcome::Failed(reason)) => Err(reason.clone()),
            Some(Outcome::Done(fetched)) => is_there(&target, fetched).map(|()| fetched),
        };
        sum.videos += usize::from(outcome.is_ok());
        sum.bytes += outcome.as_ref().map_or(0, |fetched| fetched.bytes);
        let range = if outcome.is_ok() { [CLIP_START, CLIP_END] } else { [START, END] };
        let terms = list.terms_of(video);
        for clip in &video.clips {
            let url = video.address.url();
            let row = fields(&list.columns, url, clip, range);
            let row = row.iter().map(|(column, value)| (column.as_str(), value.clone()));
            let licence = clip.licence.clone().or(terms.map(ToString::to_string));
            match &outcome {
                Err(reason) => {
                    // The list of failures can be read as a list, whose terms are not known.
                    let licence = licence.map(|licence| (LICENCE, licence));
                    let sha256 = video.sha256.clone().map(|sha256| (SHA256, sha256));
                    let reason = [(REASON, reason.clone())];
                    failed.push(row.chain(licence).chain(sha256).chain(reason));
                }
                Ok(fetched) => {
                    let licence = licence.or(job.licence.clone()).unwrap_or_default();
                    // Last, so that columns of the list with these names do not replace them.
                    clips.push(row.chain([
                        (PATH, target.to_string_lossy().into_owned()),
                        (SOURCE, url.to_string()),
                        (LICENCE, licence),
                        (SHA256, fetched.sha256.clone()),
                        (BYTES, fetched.bytes.to_string()),
                    ]));
                }
            }
        }
    }
    failed.write(&failed_path(out))?;
    clips.write(out)?;
    Ok(Report { clips: clips.len(), failed: failed.len(), ..sum })
}

/// Returns an error if a file of the journal is missing or has another size.
fn is_there(target: &Path, fetched: &Fetched) -> Result<(), String> {
    match std::fs::metadata(target) {
        Ok(file) if file.len() == fetched.bytes => Ok(()),
        Ok(file) => Err(format!(
            "it was downloaded with {} bytes and has {} now: remove it and the journal to download \
             it again",
            fetched.bytes,
            file.len()
        )),
        Err(error) => Err(format!(
            "it was downloaded and is missing ({error}): remove the journal to download it again"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Error, ErrorKind};

    #[test]
    fn a_full_disk_ends_the_step_and_other_errors_are_of_the_video() {
        let fault = |error: FetchError| fault(error.into(), || "videos/a.mp4".into());
        let Fault::Step(error) = fault(FetchError::Write(ErrorKind::StorageFull.into())) else {
            panic!("a full disk is not recorded");
        };
        let line = error_line(&*error);
        assert!(line.starts_with("videos/a.mp4: "), "{line}");
        for of_video in [
            FetchError::Write(Error::other("broken")),
            FetchError::Write(busy::busy()),
            // An existing file that cannot be opened.
            FetchError::Io {
                path: "videos/a.mp4".into(),
                source: ErrorKind::PermissionDenied.into(),
            },
            FetchError::Empty,
        ] {
            assert!(matches!(fault(of_video), Fault::Row(_)));
        }
    }
}
