//! Lists of videos to download, with the clips in them and the rows that name no video.
//!
//! Lists can be larger than memory. Readers process a file record by record and keep the records of one part
//! only ([`Part`]); records before the part are not parsed. Rows with the same address are one video with
//! several clips, which is downloaded once.

use super::{
    address::Address,
    csv_list, hdvg, readable,
    secrets::{shown, shown_in},
    terms::{self, Terms},
};
pub use crate::assemble::REASON;
use crate::{PrepareError, Shard};
use opensora_files::one_line;
use opensora_manifest::{
    Table,
    table::{CLIP_END, CLIP_START, TEXT, URL},
};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    str::FromStr,
};

/// The column with the licence of the video.
pub const LICENCE: &str = "licence";
/// The column of a list with a clip's start in seconds of its video.
pub const START: &str = "start";
/// The column of a list with a clip's end in seconds of its video.
pub const END: &str = "end";
/// The column with a file's SHA-256 in hexadecimal digits.
pub const SHA256: &str = "sha256";

/// Error of reading a list.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListError {
    /// The list cannot be read.
    #[error("{}", path.display())]
    Io {
        /// The list.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The file is not a list of the format.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The list.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
}

/// Format of a list of videos.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListFormat {
    /// A CSV with a header and a column `url`, one clip per row: addresses of files, or of videos on
    /// YouTube. Columns `text` (or `caption`), `start` and `end` (or `clip_start` and `clip_end`, as in manifests),
    /// `licence` (or `license`) and `sha256` are used; all others are copied to the manifest.
    Csv,
    /// Panda-70M: one video per row, its clips in Python lists.
    Panda70M,
    /// HD-VG-130M: a JSON object of videos.
    HdVg130M,
}

impl ListFormat {
    /// Detects the format of the list at `path`: JSON by its extension, Panda-70M by its header.
    ///
    /// # Errors
    /// Returns an error if the list cannot be read.
    pub fn of(path: &Path) -> Result<Self, ListError> {
        if path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("json")) {
            return Ok(Self::HdVg130M);
        }
        csv_list::format(path)
    }

    /// Returns the licence terms of the list; `None` for lists in CSV, whose terms are not known.
    pub fn terms(self) -> Option<&'static Terms> {
        match self {
            Self::Csv => None,
            Self::Panda70M => Some(&terms::PANDA_70M),
            Self::HdVg130M => Some(&terms::HD_VG_130M),
        }
    }
}

impl FromStr for ListFormat {
    type Err = PrepareError;

    fn from_str(text: &str) -> Result<Self, PrepareError> {
        match text {
            "csv" => Ok(Self::Csv),
            "panda-70m" => Ok(Self::Panda70M),
            "hd-vg-130m" => Ok(Self::HdVg130M),
            _ => Err(PrepareError::Spec {
                field: "list format",
                found: text.into(),
                expected: "csv, panda-70m or hd-vg-130m",
            }),
        }
    }
}

/// A part of a list: a range of records, and a shard of their videos.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Number of records to skip at the start.
    pub offset: usize,
    /// Number of records to read; `None` for all.
    pub limit: Option<usize>,
    /// Shard of the videos by their addresses: all clips of a video are in one shard.
    pub shard: Shard,
}

impl Part {
    /// The whole list.
    pub const WHOLE: Self = Self { offset: 0, limit: None, shard: Shard::WHOLE };

    /// Returns the index after the last record.
    pub(crate) fn end(&self) -> usize {
        self.limit.map_or(usize::MAX, |limit| self.offset.saturating_add(limit))
    }

    fn holds(&self, address: &Address) -> bool {
        // The digest in the file name distributes addresses evenly, equally on every machine.
        let digest = address.file().rsplit_once('.').map_or("", |(stem, _)| stem);
        let digits = digest.get(digest.len().saturating_sub(15)..).unwrap_or("");
        self.shard.holds(usize::from_str_radix(digits, 16).unwrap_or(0))
    }
}

/// A part of a list in memory.
#[derive(Debug)]
pub struct List {
    pub(crate) format: ListFormat,
    /// Further columns, which are copied to the manifest.
    pub(crate) columns: Vec<String>,
    pub(crate) videos: Vec<Video>,
    /// Rows without usable video, with their reasons.
    pub(crate) rejected: Table,
    part: Part,
    by_file: HashMap<String, usize>,
}

/// A video of a list: address, checksum and clips.
#[derive(Debug, PartialEq)]
pub(crate) struct Video {
    pub(crate) address: Address,
    /// SHA-256 of the file, if the list has it.
    pub(crate) sha256: Option<String>,
    pub(crate) clips: Vec<Clip>,
}

/// A clip of a video: a row of the manifest.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Clip {
    /// Start in seconds.
    pub(crate) start: Option<f64>,
    /// End in seconds.
    pub(crate) end: Option<f64>,
    /// Caption.
    pub(crate) text: Option<String>,
    /// Licence as the list states it.
    pub(crate) licence: Option<String>,
    /// Fields of [`List::columns`].
    pub(crate) rest: Vec<String>,
}

impl List {
    /// Reads part of the list at `path`.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or is not a list of this format. Invalid records are no
    /// error: [`run`](super::run) adds them to the list of failures.
    pub fn read(path: &Path, format: ListFormat, part: Part) -> Result<Self, ListError> {
        let mut list = Self {
            format,
            columns: vec![],
            videos: vec![],
            rejected: Table::default(),
            part,
            by_file: HashMap::new(),
        };
        match format {
            ListFormat::Csv | ListFormat::Panda70M => csv_list::read(path, &mut list)?,
            ListFormat::HdVg130M => hdvg::read(path, &mut list)?,
        }
        // Only needed while rows are added.
        list.by_file = HashMap::new();
        Ok(list)
    }

    /// Returns the number of videos in this part.
    pub fn videos(&self) -> usize {
        self.videos.len()
    }

    /// Returns the number of clips in this part.
    pub fn clips(&self) -> usize {
        self.videos.iter().map(|video| video.clips.len()).sum()
    }

    /// Returns the known licence terms of the videos of this part.
    pub fn terms(&self) -> Vec<&'static Terms> {
        let mut all: Vec<&'static Terms> = vec![];
        for terms in self.videos.iter().filter_map(|video| self.terms_of(video)) {
            if !all.contains(&terms) {
                all.push(terms);
            }
        }
        all
    }

    /// Returns the known terms of a video: the list's, else its host's.
    pub(crate) fn terms_of(&self, video: &Video) -> Option<&'static Terms> {
        self.format.terms().or_else(|| terms::of_host(&video.address))
    }

    pub(crate) fn part(&self) -> Part {
        self.part
    }

    /// Adds clips of the video at `address`, unless it is of another shard. Clips that no table can hold are
    /// rejected; `wrong` adds the place in the list to their reasons.
    pub(crate) fn push(
        &mut self,
        address: Address,
        sha256: Option<String>,
        mut clips: Vec<Clip>,
        wrong: &dyn Fn(String) -> String,
    ) {
        if !self.part.holds(&address) {
            return;
        }
        if clips.is_empty() {
            let none = Clip { rest: vec![String::new(); self.columns.len()], ..Clip::default() };
            return self.reject(
                Ok(&address),
                &none,
                &no_times(),
                "the list has no clips of this video",
            );
        }
        clips.retain(|clip| {
            let row = fields(&self.columns, address.url(), clip, [CLIP_START, CLIP_END]);
            let Some(reason) = readable::wrong(&row) else { return true };
            let given = sha256.clone().map(|digest| (SHA256, digest));
            self.reject(Ok(&address), clip, given.as_slice(), &wrong(reason));
            false
        });
        if clips.is_empty() {
            return;
        }
        let at = *self.by_file.entry(address.file().into()).or_insert_with(|| {
            self.videos.push(Video { address: address.clone(), sha256: None, clips: vec![] });
            self.videos.len() - 1
        });
        let video = &mut self.videos[at];
        match (&video.sha256, sha256) {
            (Some(one), Some(other)) if !one.eq_ignore_ascii_case(&other) => {
                let reason = format!("another row says that the SHA-256 of its file is {one}");
                let given = [(SHA256, other)];
                clips.iter().for_each(|clip| self.reject(Ok(&address), clip, &given, &reason));
                return;
            }
            (None, found) => video.sha256 = found,
            _ => {}
        }
        self.videos[at].clips.extend(clips);
    }

    /// Adds an unusable row to the failures, with shortened fields if no table can hold it. `given` are further fields as
    /// the list has them: the failures can be read as a list, and a wrong time or checksum must still be wrong there.
    /// Rows without address belong to the first shard.
    pub(crate) fn reject(
        &mut self,
        address: Result<&Address, &str>,
        clip: &Clip,
        given: &[(&str, String)],
        reason: &str,
    ) {
        let (is_mine, url) = match address {
            Ok(address) => (self.part.holds(address), address.url()),
            Err(text) => (self.part.shard.holds(0), &*shown(text)),
        };
        if is_mine {
            let mut row = fields(&self.columns, url, clip, [START, END]);
            row.extend(given.iter().map(|(column, field)| (column.to_string(), field.clone())));
            row.push((REASON.into(), one_line(reason)));
            let row = readable::shortened(row);
            self.rejected.push(row.iter().map(|(column, value)| (column.as_str(), value.clone())));
        }
    }
}

/// Returns the times of a video whose clips are not known. They are no numbers, so that a list of failures that is read as a
/// list does not mean the whole video.
pub(crate) fn no_times() -> [(&'static str, String); 1] {
    [(START, "unknown".into())]
}

/// Returns a clip's fields by column; `range` are the columns of its start and end.
pub(crate) fn fields(
    columns: &[String],
    url: &str,
    clip: &Clip,
    range: [&str; 2],
) -> Vec<(String, String)> {
    let number = |seconds: Option<f64>| seconds.map(|seconds| seconds.to_string());
    let known = [
        (URL, Some(url.to_string())),
        (range[0], number(clip.start)),
        (range[1], number(clip.end)),
        (TEXT, clip.text.clone()),
        (LICENCE, clip.licence.clone()),
    ];
    let known = known.into_iter().map(|(name, value)| (name.into(), value.unwrap_or_default()));
    let rest = clip.rest.iter().map(|field| match field.contains("://") {
        true => shown_in(field),
        false => field.clone(),
    });
    // A column of the list with one of these names does not replace them.
    let rest = columns.iter().cloned().zip(rest);
    known.chain(rest.filter(|(column, _)| !range.contains(&column.as_str()))).collect()
}
