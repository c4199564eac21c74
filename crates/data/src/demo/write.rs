//! A data set of the demo world on disk.

use super::{captions::caption, render::render, world::Scene};
use crate::{DataError, Manifest, Row};
use opensora_nn::random::{HostRng, Purpose};
use opensora_video::{VideoSpec, Writer, png};
use std::{
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

/// What is written.
#[derive(Debug, Clone, PartialEq)]
pub struct DemoSet {
    /// Clips, as MP4.
    pub clips: usize,
    /// Stills, as PNG.
    pub stills: usize,
    /// Seed of everything.
    pub seed: u64,
    /// Pixels along one side.
    pub size: usize,
    /// Frames of a clip.
    pub num_frames: usize,
    /// Frames per second.
    pub fps: f64,
}

impl Default for DemoSet {
    /// 3000 clips of 16 frames of 64x64 at 8 per second, and 3000 stills.
    fn default() -> Self {
        Self { clips: 3000, stills: 3000, seed: 1, size: 64, num_frames: 16, fps: 8.0 }
    }
}

impl DemoSet {
    /// Writes `clips/*.mp4`, `stills/*.png`, `clips.csv`, `stills.csv` and, with the rows of both,
    /// `all.csv` into `folder`. Files that are there already are kept, so that an interrupted call
    /// can be made again. `progress` hears how many files of all are there.
    ///
    /// # Errors
    /// Where a size cannot be or a file cannot be written.
    pub fn write(
        &self,
        folder: &Path,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<(), DataError> {
        for kind in ["clips", "stills"] {
            let folder = folder.join(kind);
            std::fs::create_dir_all(&folder)
                .map_err(|source| DataError::Io { path: folder.clone(), source })?;
        }
        let (done, total) = (AtomicUsize::new(0), self.clips + self.stills);
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
        let work = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= total {
                    return;
                }
                if let Err(error) = self.write_one(folder, index) {
                    // The first error ends the work of all.
                    next.store(total, Ordering::Relaxed);
                    if let Ok(mut failed) = failed.lock() {
                        failed.get_or_insert(error);
                    }
                    return;
                }
                progress(done.fetch_add(1, Ordering::Relaxed) + 1, total);
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(work);
            }
        });
        if let Some(error) = failed.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            return Err(error);
        }
        let rows = |range: std::ops::Range<usize>| range.map(|index| self.row(folder, index));
        for (name, range) in
            [("clips.csv", 0..self.clips), ("stills.csv", self.clips..total), ("all.csv", 0..total)]
        {
            Manifest { rows: rows(range).collect() }.write(&folder.join(name))?;
        }
        Ok(())
    }

    /// The scene of file `index`, clips before stills, and its caption.
    fn scene(&self, index: usize) -> (Scene, String) {
        let scene = if index < self.clips {
            Scene::clip(self.seed, index as u64)
        } else {
            Scene::still(self.seed, (index - self.clips) as u64)
        };
        let mut rng = HostRng::new(self.seed, Purpose::DemoWorld, index as u64, 2);
        let caption = caption(&scene, &mut rng);
        (scene, caption)
    }

    fn path(&self, folder: &Path, index: usize) -> PathBuf {
        if index < self.clips {
            folder.join("clips").join(format!("{index:06}.mp4"))
        } else {
            folder.join("stills").join(format!("{:06}.png", index - self.clips))
        }
    }

    fn row(&self, folder: &Path, index: usize) -> Row {
        let (_, caption) = self.scene(index);
        let num_frames = if index < self.clips { self.num_frames } else { 1 };
        Row { path: self.path(folder, index), caption, num_frames: Some(num_frames) }
    }

    fn write_one(&self, folder: &Path, index: usize) -> Result<(), DataError> {
        let path = self.path(folder, index);
        if path.exists() {
            return Ok(());
        }
        let fail = |reason: String| DataError::Row { row: index, path: path.clone(), reason };
        let (scene, caption) = self.scene(index);
        let frames = if index < self.clips { self.num_frames } else { 1 };
        let clip = render(&scene, frames, self.size).map_err(|error| fail(error.to_string()))?;
        if index >= self.clips {
            return png::write(&path, &clip).map_err(|error| fail(error.to_string()));
        }
        let spec =
            VideoSpec { frames, width: self.size, height: self.size, fps: self.fps };
        let record = serde_json::json!({ "caption": caption });
        Writer::open(&path, &spec)
            .and_then(|writer| writer.write(&clip, &record))
            .map(|_| ())
            .map_err(|error| fail(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opensora_video::mp4;

    #[test]
    fn what_is_written_is_a_manifest_with_its_files_and_can_be_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        let set =
            DemoSet { clips: 3, stills: 2, size: 32, num_frames: 4, ..DemoSet::default() };
        set.write(folder.path(), &|_, _| ()).unwrap();
        let clips = Manifest::read(&folder.path().join("clips.csv")).unwrap();
        assert_eq!(clips.rows.len(), 3);
        for row in &clips.rows {
            let (clip, fps) = mp4::read(&row.path).unwrap();
            assert_eq!((clip.len(), clip.width(), fps), (4, 32, 8.0));
        }
        let all = std::fs::read(folder.path().join("all.csv")).unwrap();
        std::fs::remove_file(&clips.rows[1].path).unwrap();
        set.write(folder.path(), &|_, _| ()).unwrap();
        assert!(clips.rows[1].path.exists());
        assert_eq!(std::fs::read(folder.path().join("all.csv")).unwrap(), all);
    }
}
