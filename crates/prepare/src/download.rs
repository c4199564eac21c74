//! Videos of public lists, fetched.
//!
//! A list names videos by addresses and the clips that are wanted of them. Each video is fetched
//! once, into a file whose name follows from its address; the manifest has a row for each clip,
//! with its `start` and `end` in the file. Direct addresses are fetched by this crate, videos on
//! YouTube by the program `yt-dlp`.
//!
//! | module | thought |
//! |---|---|
//! | `list` | what is to be fetched: [`List`], read part by part |
//! | `csv_list`, `hdvg` | the formats of lists |
//! | `literal`, `seconds` | what stands in their cells |
//! | `address` | who fetches an address, and what its file is called |
//! | `terms` | under which [`Terms`] known lists and hosts give their videos away |
//! | `http`, `partial` | direct addresses: attempts, and what there is of a file |
//! | `yt_dlp` | the program for videos on YouTube |
//! | `limits` | rates that all workers share |
//! | `reach` | which hosts are asked |
//! | `secrets` | addresses without what grants access |
//!
//! # Large lists
//! Memory holds the part of the list that is worked on (about as much as that part is large as a
//! file) and, for each of its videos, a key and a record: some 300 bytes. A list of 8 GB is fetched
//! in parts, [`Part::offset`] and [`Part::limit`], each with an `out` of its own; reading over the
//! records before a part costs a pass over the file and no memory. A file that an earlier part or
//! run completed is not fetched again, also without its journal.
//!
//! # Lists of strangers
//! Redirects never leave HTTP and HTTPS, and never lead from HTTPS to HTTP. Hosts on this machine, in
//! private networks and with link-local addresses are not asked ([`DownloadSpec::allow_private`]), neither
//! by name nor after a redirect. User names, passwords, tokens and signatures in addresses are used for the
//! request alone: manifests, lists of failures, journals and messages hold addresses without them, so that
//! such a file is fetched again from its list and not from a manifest.
//!
//! # Interruptions
//! A video counts as done when its record is in the journal, which is after its file is complete
//! under its own name and on the disk. Whatever is cut before that, the next run goes on with.

mod address;
mod csv_list;
mod hdvg;
mod http;
mod limits;
mod list;
mod literal;
mod partial;
mod reach;
mod seconds;
mod secrets;
mod terms;
mod yt_dlp;

pub use crate::assemble::failed_path;
pub use http::Timeouts;
pub use list::{END, LICENCE, List, ListError, ListFormat, Part, REASON, SHA256, START};
pub use terms::Terms;
pub use yt_dlp::{FORMAT, YtDlp};

use crate::{
    PrepareError,
    assemble::journal_path,
    retry::Patience,
    step::{self, Outcome, Run, Shard, Watch},
};
use address::Fetch;
use http::Client;
use limits::Rate;
use list::{Video, fields};
use opensora_manifest::{
    ManifestError, Table,
    table::{PATH, TEXT, URL},
};
use partial::Fetched;
use serde_json::json;
use std::path::{Path, PathBuf};
use yt_dlp::Runner;

/// The column of the address that a row's file came from.
pub const SOURCE: &str = "source";
/// The column of a file's length in bytes.
pub const BYTES: &str = "bytes";

/// How videos are fetched.
#[derive(Debug, Clone)]
pub struct DownloadSpec {
    /// Folder of the files; it is created.
    pub folder: PathBuf,
    /// Whether the terms of known lists and hosts are accepted. Nothing is fetched without.
    pub accept_license: bool,
    /// What is allowed with videos of a list that does not say so itself.
    pub licence: Option<String>,
    /// Videos fetched at once.
    pub parallel: usize,
    /// Largest file, bytes.
    pub max_bytes: Option<u64>,
    /// Requests a second of all workers together; with `yt-dlp`, videos begun a second.
    pub requests_per_second: Option<f64>,
    /// Bytes a second of all workers together.
    pub bytes_per_second: Option<u64>,
    /// How long to wait for a server.
    pub timeouts: Timeouts,
    /// How long to insist.
    pub patience: Patience,
    /// How `yt-dlp` is run.
    pub yt_dlp: YtDlp,
    /// Whether videos that failed in an earlier run are tried again.
    pub retry_failed: bool,
    /// Whether hosts on this machine, in private networks and with link-local addresses are asked.
    pub allow_private: bool,
}

impl Default for DownloadSpec {
    fn default() -> Self {
        Self {
            folder: "videos".into(),
            accept_license: false,
            licence: None,
            parallel: 4,
            max_bytes: None,
            requests_per_second: None,
            bytes_per_second: None,
            timeouts: Timeouts::default(),
            patience: Patience::default(),
            yt_dlp: YtDlp::default(),
            retry_failed: false,
            allow_private: false,
        }
    }
}

/// Why nothing was fetched, or the manifest not written. What is wrong with single videos is no
/// error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DownloadError {
    /// The step could not do its work.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// The manifest cannot be written.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Nobody accepted the terms.
    #[error(
        "nothing is fetched before its terms are accepted (--accept-license): {}",
        .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    )]
    Terms(Vec<&'static Terms>),
}

/// What was fetched.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Downloaded {
    /// Videos whose files are there.
    pub videos: usize,
    /// Clips in them: rows of the manifest.
    pub clips: usize,
    /// Bytes of the files.
    pub bytes: u64,
    /// Rows of the list of failures.
    pub failed: usize,
    /// Why no video on YouTube was fetched, where there were any and the program is missing.
    pub no_yt_dlp: Option<String>,
}

/// Fetches the videos of a list and writes the manifest `out` of their clips, the list of failures
/// beside it ([`failed_path`]) and a journal, `<out>.journal.jsonl`.
///
/// The manifest has the columns `path`, `url`, `source`, `licence`, `start`, `end`, `text`,
/// `sha256`, `bytes` and those that the list has besides; the failures have those of the list and
/// `reason`.
///
/// # Errors
/// Where the terms are not accepted, a setting cannot be, the folder, the journal or a manifest
/// cannot be written, or the watcher stops the step.
pub fn download(
    list: &List,
    spec: &DownloadSpec,
    out: &Path,
    watch: &mut dyn Watch,
) -> Result<Downloaded, DownloadError> {
    let terms = list.terms();
    if !spec.accept_license && !terms.is_empty() {
        return Err(DownloadError::Terms(terms));
    }
    check(spec)?;
    let io = |source| PrepareError::Io { path: spec.folder.clone(), source };
    std::fs::create_dir_all(&spec.folder).map_err(io)?;

    let uses_yt_dlp = list.videos.iter().any(|video| video.address.fetch() == Fetch::YtDlp);
    let no_yt_dlp = if uses_yt_dlp { spec.yt_dlp.find().err() } else { None };
    let client = Client {
        agent: http::agent(&spec.timeouts, spec.allow_private),
        patience: spec.patience,
        max_bytes: spec.max_bytes,
        requests: Rate::new(spec.requests_per_second),
        bytes: Rate::new(spec.bytes_per_second.map(|rate| rate as f64)),
    };
    let runner = Runner {
        yt_dlp: &spec.yt_dlp,
        patience: spec.patience,
        timeouts: spec.timeouts,
        max_bytes: spec.max_bytes,
        bytes_per_second: spec.bytes_per_second.map(|rate| (rate / spec.parallel as u64).max(1)),
        requests: &client.requests,
    };
    let fetch = |row: usize| {
        let Video { address, sha256, .. } = &list.videos[row];
        let target = spec.folder.join(address.file());
        match (address.fetch(), &no_yt_dlp) {
            (Fetch::Direct, _) => client.fetch(address, sha256.as_deref(), &target),
            (Fetch::YtDlp, None) => runner
                .fetch(address.url(), &target)
                .map_err(|reason| secrets::shown_in(&reason))
                .and_then(|fetched| http::check(&fetched, sha256.as_deref()).map(|()| fetched)),
            (Fetch::YtDlp, Some(reason)) => Err(reason.clone()),
        }
    };
    let keys: Vec<String> =
        list.videos.iter().map(|video| video.address.file().to_string()).collect();
    let run = Run {
        journal: journal_path(out),
        settings: json!({"step": "download", "format": spec.yt_dlp.format}),
        workers: spec.parallel,
        // The list has only its own shard's videos.
        shard: Shard::WHOLE,
        retry_failed: spec.retry_failed,
    };
    let outcomes = step::run(&run, &keys, fetch, watch)?;
    let written = assemble(list, spec, &outcomes, out)?;
    Ok(Downloaded { no_yt_dlp, ..written })
}

fn check(spec: &DownloadSpec) -> Result<(), PrepareError> {
    let wrong = |field, found: String, expected| Err(PrepareError::Spec { field, found, expected });
    // Slower than one request in a day is a mistake.
    let is_rate = |rate: f64| rate.is_finite() && rate >= 1e-5;
    match (spec.requests_per_second, spec.bytes_per_second) {
        (Some(rate), _) if !is_rate(rate) => {
            wrong("requests_per_second", rate.to_string(), "a positive number")
        }
        (_, Some(0)) => wrong("bytes_per_second", "0".into(), "a positive number"),
        _ if spec.parallel == 0 => wrong("parallel", "0".into(), "a positive number"),
        _ if spec.timeouts.idle.is_zero() || spec.timeouts.connect.is_zero() => {
            wrong("timeouts", "0 s".into(), "a positive time")
        }
        _ => Ok(()),
    }
}

/// Writes manifest and failures.
fn assemble(
    list: &List,
    spec: &DownloadSpec,
    outcomes: &[Option<Outcome<Fetched>>],
    out: &Path,
) -> Result<Downloaded, DownloadError> {
    let own = [PATH, URL, SOURCE, LICENCE, START, END, TEXT, SHA256, BYTES];
    let mut clips = Table::new(own);
    let mut failed = Table::new([URL, START, END, TEXT]);
    failed.append(&list.rejected);
    failed.ensure(REASON);
    let mut sum = Downloaded::default();
    for (video, outcome) in list.videos.iter().zip(outcomes) {
        let target = spec.folder.join(video.address.file());
        let outcome = match outcome {
            None => continue,
            Some(Outcome::Failed(reason)) => Err(reason.clone()),
            Some(Outcome::Done(fetched)) => is_there(&target, fetched).map(|()| fetched),
        };
        sum.videos += usize::from(outcome.is_ok());
        sum.bytes += outcome.as_ref().map_or(0, |fetched| fetched.bytes);
        let terms = list.terms_of(video);
        for clip in &video.clips {
            let url = video.address.url();
            let row = fields(&list.columns, url, clip);
            let row = row.iter().map(|(column, value)| (column.as_str(), value.clone()));
            match &outcome {
                Err(reason) => failed.push(row.chain([(REASON, reason.clone())])),
                Ok(fetched) => {
                    let licence = clip.licence.clone().or(terms.map(ToString::to_string));
                    let licence = licence.or(spec.licence.clone()).unwrap_or_default();
                    // Last, so that a list's columns of these names do not replace them.
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
    Ok(Downloaded { clips: clips.len(), failed: failed.len(), ..sum })
}

/// Whether a file that the journal has is still there.
fn is_there(target: &Path, fetched: &Fetched) -> Result<(), String> {
    match std::fs::metadata(target) {
        Ok(file) if file.len() == fetched.bytes => Ok(()),
        Ok(file) => Err(format!(
            "it was fetched with {} bytes and has {} now: take it and the journal away to fetch \
             it again",
            fetched.bytes,
            file.len()
        )),
        Err(error) => Err(format!(
            "it was fetched and is gone ({error}): take the journal away to fetch it again"
        )),
    }
}
