//! Writes a data set of the demo world.
//!
//! ```text
//! OUT/clips/000000.mp4, 000000.mp4.json, ...   H.264, with the labels of each clip
//! OUT/stills/000000.png, ...                   images
//! OUT/films/000000.mp4, 000000.mp4.json, ...   videos of several shots
//! OUT/clips.csv, OUT/stills.csv                manifests, written last
//! OUT/captions.txt                             all captions, one per line, for a tokenizer
//! ```

use crate::{Captioned, film, render, training_clip, training_still};
use opensora_files::{remove_if_present, write_atomically};
use opensora_manifest::{Manifest, ManifestError, Row};
use opensora_video::{
    Frames, FramesError, VideoError, VideoSpec, Writer, png, writer::record_path,
};
use serde_json::{Value, json};
use std::{
    io,
    num::NonZero,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

/// Settings of a data set.
#[derive(Debug, Clone, PartialEq)]
pub struct DemoSpec {
    /// Number of clips.
    pub clips: usize,
    /// Number of images.
    pub stills: usize,
    /// Number of videos of several shots, which are not in a manifest: they serve as raw videos.
    pub films: usize,
    /// Shots per video, each as long as a clip.
    pub shots: usize,
    /// Seed of all draws.
    pub seed: u64,
    /// Height and width in pixels.
    pub image_size: [usize; 2],
    /// Frames of a clip.
    pub num_frames: usize,
    /// Frames per second of a clip.
    pub fps: f64,
}

impl Default for DemoSpec {
    /// Returns 16 frames of 64x64 at 8 per second, five shots per video, seed 0, and no files.
    fn default() -> Self {
        Self {
            clips: 0,
            stills: 0,
            films: 0,
            shots: 5,
            seed: 0,
            image_size: [64, 64],
            num_frames: 16,
            fps: 8.0,
        }
    }
}

/// Error for a data set that cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DemoError {
    /// A setting is out of range.
    #[error("{field} = {found}: expected {expected}")]
    Spec {
        /// The setting.
        field: &'static str,
        /// Its value.
        found: String,
        /// Its range.
        expected: &'static str,
    },
    /// A file or folder cannot be written.
    #[error("{}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The observer stopped the work. Files that exist are complete.
    #[error("stopped with {done} of {total} files written; the same call resumes")]
    Stopped {
        /// Files that were written.
        done: usize,
        /// All files.
        total: usize,
    },
    /// A manifest cannot be written.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A clip or image cannot be written.
    #[error(transparent)]
    Video(#[from] VideoError),
    /// The size is not supported for clips.
    #[error(transparent)]
    Frames(#[from] FramesError),
}

/// Smallest side at which shapes can be distinguished, in pixels.
const SMALLEST_SIDE: usize = 16;
/// Largest side in pixels, and largest number of frames and shots.
const LARGEST: usize = 1024;
/// Maximum number of clips, of stills and of films.
const MOST: usize = 10_000_000;

impl DemoSpec {
    /// Checks that every setting is in range.
    ///
    /// # Errors
    /// Returns an error if a setting is out of range.
    pub fn check(&self) -> Result<(), DemoError> {
        let fail = |field, found, expected| Err(DemoError::Spec { field, found, expected });
        let [height, width] = self.image_size;
        let possible =
            |side: usize| side.is_multiple_of(2) && (SMALLEST_SIDE..=LARGEST).contains(&side);
        if !possible(height) || !possible(width) {
            let expected = "even sides of 16 to 1024 pixels";
            return fail("image_size", format!("{height}x{width}"), expected);
        }
        if !(2..=LARGEST).contains(&self.num_frames) {
            return fail("num_frames", self.num_frames.to_string(), "2 to 1024 frames");
        }
        if self.clips == 0 && self.stills == 0 && self.films == 0 {
            return fail("clips", "0 without others".into(), "at least one clip, still or film");
        }
        for (field, found) in
            [("clips", self.clips), ("stills", self.stills), ("films", self.films)]
        {
            if found > MOST {
                return fail(field, found.to_string(), "at most 10,000,000");
            }
        }
        if !(1..=LARGEST).contains(&self.shots) {
            return fail("shots", self.shots.to_string(), "1 to 1024 shots");
        }
        Ok(())
    }

    /// Returns the record of a clip, which is equal only for equal pixels.
    fn record(&self, index: usize, clip: &Captioned) -> Value {
        self.described(index, json!({"caption": clip.caption, "labels": clip.scene.labels}))
    }

    /// Returns the record of a video of several shots.
    fn film_record(&self, index: usize, shots: &[Captioned]) -> Value {
        let shots: Vec<Value> = shots
            .iter()
            .map(|shot| json!({"caption": shot.caption, "labels": shot.scene.labels}))
            .collect();
        self.described(index, json!({"shots": shots}))
    }

    /// Returns `what` with all settings that the pixels of item `index` depend on.
    fn described(&self, index: usize, mut what: Value) -> Value {
        let settings = json!({
            "world": WORLD,
            "seed": self.seed,
            "index": index,
            "image_size": self.image_size,
            "num_frames": self.num_frames,
            "fps": self.fps,
        });
        if let (Value::Object(what), Value::Object(settings)) = (&mut what, settings) {
            what.extend(settings);
        }
        what
    }

    fn video(&self, frames: usize) -> VideoSpec {
        let [height, width] = self.image_size;
        VideoSpec { frames, width, height, fps: self.fps }
    }
}

/// Version of the data set: changes if the same seed gives other pixels or captions.
const WORLD: &str = "opensora-demo-2";

/// Receives the events of [`write_dataset`]; each method has a default that ignores its event.
pub trait Observer {
    /// A clip, image or video is complete. `Break` stops the work.
    fn written(&mut self, _event: &Written) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// Ignores all events.
impl Observer for () {}

/// Files of a data set that are complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Written {
    /// Clips, images and videos that are complete.
    pub done: usize,
    /// Clips, images and videos of the data set.
    pub total: usize,
}

/// Writes a data set into `folder` on all cores. Clips of an earlier run with the same settings are kept,
/// so that an interrupted run resumes.
///
/// # Errors
/// Returns an error if a setting is out of range, a file cannot be written, or `observer` breaks
/// before the last file ([`DemoError::Stopped`]).
pub fn write_dataset(
    folder: &Path,
    spec: &DemoSpec,
    observer: &mut dyn Observer,
) -> Result<(), DemoError> {
    spec.check()?;
    let [clips, stills, films] = ["clips", "stills", "films"].map(|name| folder.join(name));
    for (folder, count) in [(&clips, spec.clips), (&stills, spec.stills), (&films, spec.films)] {
        if count > 0 {
            std::fs::create_dir_all(folder)
                .map_err(|source| DemoError::Io { path: folder.clone(), source })?;
        }
    }
    // Manifests of an earlier run would list files that are about to change.
    for name in ["clips.csv", "stills.csv", "captions.txt"] {
        let path = folder.join(name);
        remove_if_present(&path).map_err(|source| DemoError::Io { path, source })?;
    }
    let pictures = spec.clips + spec.stills;
    let rows = on_all_cores(
        pictures + spec.films,
        |index| {
            if index < spec.clips {
                write_clip(&clips, spec, index).map(Some)
            } else if index < pictures {
                write_still(&stills, spec, index - spec.clips).map(Some)
            } else {
                write_film(&films, spec, index - pictures).map(|()| None)
            }
        },
        |done, total| match observer.written(&Written { done, total }) {
            ControlFlow::Break(()) if done < total => Err(DemoError::Stopped { done, total }),
            _ => Ok(()),
        },
    )?;
    let rows: Vec<Row> = rows.into_iter().flatten().collect();
    if rows.is_empty() {
        return Ok(());
    }
    let (clips, stills) = rows.split_at(spec.clips);
    let captions: String = rows.iter().map(|row| format!("{}\n", row.caption)).collect();
    let path = folder.join("captions.txt");
    write_atomically(&path, |temporary| std::fs::write(temporary, &captions))
        .map_err(|source| DemoError::Io { path, source })?;
    for (name, rows) in [("clips.csv", clips), ("stills.csv", stills)] {
        if !rows.is_empty() {
            let manifest = Manifest { rows: rows.to_vec() };
            manifest.write(&folder.join(name))?;
        }
    }
    Ok(())
}

fn write_clip(folder: &Path, spec: &DemoSpec, index: usize) -> Result<Row, DemoError> {
    let clip = training_clip(spec.seed, index as u64);
    let path = folder.join(format!("{index:06}.mp4"));
    let record = spec.record(index, &clip);
    if !is_written(&path, &record) {
        let frames = render(&clip.scene, spec.num_frames, spec.image_size)?;
        Writer::open(&path, &spec.video(spec.num_frames))?.write(&frames, &record)?;
    }
    Ok(Row { path, caption: clip.caption, num_frames: Some(spec.num_frames) })
}

/// Returns true if a clip exists with this record. The record is written after the clip.
fn is_written(path: &Path, record: &Value) -> bool {
    let found = std::fs::read_to_string(record_path(path)).ok();
    let found = found.and_then(|text| serde_json::from_str::<Value>(&text).ok());
    path.is_file() && found.as_ref() == Some(record)
}

fn write_film(folder: &Path, spec: &DemoSpec, index: usize) -> Result<(), DemoError> {
    let shots = film(spec.seed, index as u64, spec.shots);
    let path = folder.join(format!("{index:06}.mp4"));
    let record = spec.film_record(index, &shots);
    if !is_written(&path, &record) {
        let mut pixels = Vec::new();
        for shot in &shots {
            pixels.extend(render(&shot.scene, spec.num_frames, spec.image_size)?.data());
        }
        let count = spec.shots * spec.num_frames;
        let frames = Frames::from_rgb(pixels, [count, spec.image_size[0], spec.image_size[1]])?;
        Writer::open(&path, &spec.video(count))?.write(&frames, &record)?;
    }
    Ok(())
}

fn write_still(folder: &Path, spec: &DemoSpec, index: usize) -> Result<Row, DemoError> {
    let Captioned { scene, caption } = training_still(spec.seed, index as u64);
    let path = folder.join(format!("{index:06}.png"));
    png::write(&path, &render(&scene, 1, spec.image_size)?)?;
    Ok(Row { path, caption, num_frames: Some(1) })
}

/// Calls `work` for `0..count` on all cores and returns its results in order; stops at the first error.
fn on_all_cores<T: Send, E: Send>(
    count: usize,
    work: impl Fn(usize) -> Result<T, E> + Sync,
    mut progress: impl FnMut(usize, usize) -> Result<(), E>,
) -> Result<Vec<T>, E> {
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let mut results: Vec<Option<T>> = (0..count).map(|_| None).collect();
    thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        for _ in 0..cores.min(count) {
            let (sender, next, stop, work) = (sender.clone(), &next, &stop, &work);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count || sender.send((index, work(index))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        for (done, (index, result)) in receiver.into_iter().enumerate() {
            let told = result.and_then(|result| {
                results[index] = Some(result);
                progress(done + 1, count)
            });
            if told.is_err() {
                stop.store(true, Ordering::Relaxed);
                return told;
            }
        }
        Ok(())
    })?;
    Ok(results.into_iter().flatten().collect())
}
