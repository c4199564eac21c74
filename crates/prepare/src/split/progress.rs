//! The progress file of a long video: results of the first pass and the clips that are written.
//!
//! It is a hidden file in the folder of clips that exists while the video is processed. After a kill, the
//! first pass is not repeated, and only missing clips are encoded.

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

/// Results of the first pass over a video: size, frame rate, scenes and frame times.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Scan {
    /// Height and width of the frames.
    pub(super) size: [usize; 2],
    /// Height and width in square pixels.
    pub(super) square: [usize; 2],
    /// Frames per second as the container states them.
    pub(super) fps: f64,
    /// Frames of each scene.
    pub(super) scenes: Vec<Range<usize>>,
    /// Seconds of each frame.
    pub(super) times: Vec<f64>,
    /// Seconds at which the last frame ends.
    pub(super) end: f64,
    /// True if the frames were decoded in this process. The second pass uses the same decoder.
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

/// The first line of a progress file: state of the video, settings and first pass.
#[derive(Serialize, Deserialize)]
struct Head {
    /// Size and time of the video.
    state: String,
    settings: Settings,
    scan: Scan,
}

/// Any other line of a progress file: a clip and its index among the planned clips.
#[derive(Serialize, Deserialize)]
struct Written {
    cut: usize,
    clip: Clip,
}

/// An open progress file.
pub(super) struct Progress {
    path: PathBuf,
    journal: Journal,
}

/// Progress that an earlier run left: its first pass and its clips.
pub(super) struct Left {
    pub(super) progress: Progress,
    pub(super) scan: Scan,
    /// The clips that it wrote, with their indices.
    pub(super) clips: Vec<(usize, Clip)>,
}

impl Progress {
    fn path(folder: &Path, stem: &str) -> PathBuf {
        let digest = hex(&Sha256::digest(stem)[..8]);
        folder.join(format!(".opensora-{digest}.progress.jsonl"))
    }

    /// Opens the progress of an earlier run on the same version of the video with the same settings. If
    /// the version or the settings differ, removes the file and the clips that it names.
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
            // The clip may have been removed already.
            let _ = fs::remove_file(folder.join(&clip.file));
        }
        progress.remove()?;
        Ok(None)
    }

    /// Creates the progress file of a video, `stem` in `folder`. `state` is the version of the video's
    /// file (its size and time, [`State::Known`](crate::step::State)).
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
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

    /// Records a written clip.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub(super) fn add(&mut self, cut: usize, clip: &Clip) -> io::Result<()> {
        let line = serde_json::to_string(&Written { cut, clip: clip.clone() })?;
        self.journal.append([line.as_str()])
    }

    /// Removes the file.
    ///
    /// # Errors
    /// Returns an error if the file cannot be removed.
    pub(super) fn remove(self) -> io::Result<()> {
        fs::remove_file(self.path)
    }
}
