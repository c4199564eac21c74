//! Outputs of sampling: one file, numbered files in a folder, or standard output.

use super::{Args, FileKind};
use crate::output;
use anyhow::{Context, ensure};
use opensora::{
    SampleRequest,
    files::Existing,
    video::{Frames, VideoSpec, Writer, writer::ends_in_separator},
};
use serde_json::Value;
use std::{
    fs::File,
    path::{Path, PathBuf},
};

/// Outputs of all clips of a call.
pub(super) struct Outputs {
    place: Place,
    spec: VideoSpec,
    existing: Existing,
}

enum Place {
    /// A file for each clip.
    Files(Vec<PathBuf>),
    /// One clip on standard output, with this file extension.
    Stdout(&'static str),
}

impl Outputs {
    /// Chooses a path for each of `count` clips and checks the paths: the first output is opened for writing,
    /// and no other one may be a folder or, with `--no-overwrite`, exist.
    pub(super) fn new(args: &Args, request: &SampleRequest, count: usize) -> anyhow::Result<Self> {
        let [height, width] = request.image_size;
        let spec = VideoSpec { frames: request.num_frames, width, height, fps: request.fps };
        let existing = if args.no_overwrite { Existing::Refuse } else { Existing::Replace };
        let place = if args.out == Path::new("-") {
            ensure!(
                !args.report.json,
                "--out -: standard output receives the video: leave --json out"
            );
            ensure!(count == 1, "--out -: standard output takes one clip, found {count}");
            Place::Stdout(match args.format {
                FileKind::Mp4 if request.num_frames > 1 => "mp4",
                FileKind::Gif if request.num_frames > 1 => "gif",
                FileKind::Png if request.num_frames > 1 => {
                    anyhow::bail!(
                        "--out -: a folder of frames cannot be written there: use --format mp4 or gif"
                    )
                }
                _ => "png",
            })
        } else {
            Place::Files(paths(args, count)?)
        };
        let outputs = Self { place, spec, existing };
        match &outputs.place {
            Place::Stdout(ending) => drop(stdout_clip(ending, &spec)?),
            Place::Files(paths) => {
                for (index, path) in paths.iter().enumerate() {
                    // The others are opened one by one when they are written. With --no-overwrite, the writer knows
                    // which files there would be: a single frame's ends in .png, and each has a record.
                    if index == 0 || args.no_overwrite || path.is_dir() {
                        drop(outputs.open(path)?);
                    }
                }
            }
        }
        Ok(outputs)
    }

    fn open(&self, path: &Path) -> anyhow::Result<Writer> {
        Writer::open_as(path, &self.spec, self.existing).context("--out")
    }

    /// Writes a clip with its record, complete or not at all. Returns the file's path.
    pub(super) fn write(
        &self,
        index: usize,
        clip: &Frames,
        record: &Value,
    ) -> anyhow::Result<Option<PathBuf>> {
        match &self.place {
            Place::Files(paths) => Ok(Some(self.open(&paths[index])?.write(clip, record)?)),
            Place::Stdout(ending) => {
                // Written to a file first: MP4 is not written front to back.
                let (folder, writer) = stdout_clip(ending, &self.spec)?;
                let path = writer.write(clip, record)?;
                output::copy(&mut File::open(path)?)?;
                drop(folder);
                Ok(None)
            }
        }
    }
}

/// Opens a clip in a new temporary folder.
fn stdout_clip(ending: &str, spec: &VideoSpec) -> anyhow::Result<(tempfile::TempDir, Writer)> {
    let folder = tempfile::tempdir().context("--out -")?;
    let writer = Writer::open(&folder.path().join("clip").with_extension(ending), spec)?;
    Ok((folder, writer))
}

/// Returns the named file for one clip, else numbered files in a folder. All numbers have the same number of
/// digits.
fn paths(args: &Args, count: usize) -> anyhow::Result<Vec<PathBuf>> {
    let is_folder = ends_in_separator(&args.out) || args.out.is_dir();
    let is_file = args.out.extension().is_some() && !is_folder;
    if is_file {
        ensure!(
            count == 1,
            "--out: {} is a file, but there are {count} clips: name a folder",
            args.out.display()
        );
        return Ok(vec![args.out.clone()]);
    }
    let digits = count.saturating_sub(1).max(1).ilog10() as usize + 1;
    let name = |index: usize| match args.format {
        FileKind::Mp4 => format!("sample_{index:0digits$}.mp4"),
        FileKind::Gif => format!("sample_{index:0digits$}.gif"),
        FileKind::Png => format!("sample_{index:0digits$}"),
    };
    Ok((0..count).map(|index| args.out.join(name(index))).collect())
}
