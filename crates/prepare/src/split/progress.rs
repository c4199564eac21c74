//! The progress in a long video: what its first pass found, and the clips that are written.
//!
//! It is kept in a hidden file in the folder of clips while the video is worked on. After a kill, the
//! first pass is not made again, and only clips that are missing are encoded.

use super::{Clip, Settings};
use opensora_files::{Journal, hex};
use opensora_video::reader::Decoder;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    fs, io,
    ops::Range,
    path::{Path, PathBuf},
};

/// What the first pass found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Scan {
    /// Height and width of the frames.
    pub(super) size: [usize; 2],
    /// Those in square pixels.
    pub(super) square: [usize; 2],
    /// Frames per second as the container states them.
    pub(super) fps: f64,
    /// Frames of each scene.
    pub(super) scenes: Vec<Range<usize>>,
    /// Seconds of each frame.
    pub(super) times: Vec<f64>,
    /// Seconds at which the last frame ends.
    pub(super) end: f64,
    /// Whether the frames were decoded in this process; the second pass takes the same decoder.
    in_process: bool,
}

impl Scan {
    pub(super) fn new(
        (size, square): ([usize; 2], [usize; 2]),
        fps: f64,
        (scenes, times, end): (Vec<Range<usize>>, Vec<f64>, f64),
        decoder: Decoder,
    ) -> Self {
        let in_process = decoder == Decoder::InProcess;
        Self { size, square, fps, scenes, times, end, in_process }
    }

    pub(super) fn decoder(&self) -> Decoder {
        if self.in_process { Decoder::InProcess } else { Decoder::Ffmpeg }
    }
}

/// The first line of the file.
#[derive(Serialize, Deserialize)]
struct Head {
    /// Size and time of the video.
    state: String,
    settings: Settings,
    scan: Scan,
}

/// Any other line: a clip and its place among the clips that are cut.
#[derive(Serialize, Deserialize)]
struct Written {
    cut: usize,
    clip: Clip,
}

/// The opened file.
pub(super) struct Progress {
    path: PathBuf,
    journal: Journal,
}

/// What an earlier run left.
pub(super) struct Left {
    pub(super) progress: Progress,
    pub(super) scan: Scan,
    /// The clips that it wrote, by their places.
    pub(super) clips: Vec<(usize, Clip)>,
}

impl Progress {
    fn path(folder: &Path, stem: &str) -> PathBuf {
        let digest = hex(&Sha256::digest(stem)[..8]);
        folder.join(format!(".opensora-{digest}.progress.jsonl"))
    }

    /// Takes up what an earlier run left of a video in this state, cut with these settings. Of another
    /// state or other settings, the file and the clips that it names are removed.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or removed.
    pub(super) fn left(
        (folder, stem): (&Path, &str),
        state: Option<&str>,
        settings: &Settings,
    ) -> io::Result<Option<Left>> {
        let path = Self::path(folder, stem);
        if !path.exists() {
            return Ok(None);
        }
        let (journal, lines) = Journal::open(&path)?;
        let progress = Self { path, journal };
        let mut lines = lines.iter();
        let head = lines.next().and_then(|line| serde_json::from_str::<Head>(line).ok());
        let written = lines.map_while(|line| serde_json::from_str::<Written>(line).ok());
        let clips: Vec<(usize, Clip)> = written.map(|Written { cut, clip }| (cut, clip)).collect();
        let head = head.filter(|head| Some(&*head.state) == state && head.settings == *settings);
        if let Some(Head { scan, .. }) = head {
            return Ok(Some(Left { progress, scan, clips }));
        }
        for (_, clip) in &clips {
            // Another run's clip of this name may be there or not.
            let _ = fs::remove_file(folder.join(&clip.file));
        }
        progress.remove()?;
        Ok(None)
    }

    /// Begins the file of a video.
    ///
    /// # Errors
    /// Returns an error if it cannot be written.
    pub(super) fn begin(
        (folder, stem): (&Path, &str),
        state: &str,
        settings: &Settings,
        scan: &Scan,
    ) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let path = Self::path(folder, stem);
        let (mut journal, _) = Journal::open(&path)?;
        let (settings, scan) = (settings.clone(), scan.clone());
        let head = serde_json::to_string(&Head { state: state.into(), settings, scan })?;
        journal.append([head.as_str()])?;
        Ok(Self { path, journal })
    }

    /// Notes a clip that is written.
    ///
    /// # Errors
    /// Returns an error if the disk refuses.
    pub(super) fn add(&mut self, cut: usize, clip: &Clip) -> io::Result<()> {
        let line = serde_json::to_string(&Written { cut, clip: clip.clone() })?;
        self.journal.append([line.as_str()])
    }

    /// Removes the file.
    ///
    /// # Errors
    /// Returns an error if the operating system refuses.
    pub(super) fn remove(self) -> io::Result<()> {
        fs::remove_file(self.path)
    }
}
