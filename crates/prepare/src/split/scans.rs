//! First passes that the clip ranges of one video share.

use super::progress::Scan;
use crate::RowError;
use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The first pass over a version of a video; `None` until it is complete.
type Shared = Arc<Mutex<Option<Arc<Scan>>>>;

/// The latest first passes. Rows of one video usually follow each other, so that one video for each worker is
/// enough.
pub(crate) struct Scans {
    /// Maximum number of videos.
    most: usize,
    /// Paths and versions of the videos with their first passes, the latest video last.
    latest: Mutex<VecDeque<((PathBuf, String), Shared)>>,
}

impl Scans {
    /// Creates an empty store for this number of workers.
    pub(super) fn new(workers: usize) -> Self {
        Self { most: workers.max(1), latest: Mutex::default() }
    }

    /// Returns the first pass over the version `state` of the video at `path`; calls `scan` unless another row
    /// of the same version did. Meanwhile other rows of this version wait.
    ///
    /// # Errors
    /// Returns the error of `scan`.
    pub(super) fn get(
        &self,
        path: &Path,
        state: &str,
        scan: impl FnOnce() -> Result<Scan, RowError>,
    ) -> Result<Arc<Scan>, RowError> {
        let shared = self.shared(path, state);
        let mut shared = lock(&shared);
        if let Some(known) = &*shared {
            return Ok(known.clone());
        }
        let made = Arc::new(scan()?);
        *shared = Some(made.clone());
        Ok(made)
    }

    fn shared(&self, path: &Path, state: &str) -> Shared {
        let mut latest = lock(&self.latest);
        let known = latest.iter().find(|((of, version), _)| of == path && version == state);
        if let Some((_, shared)) = known {
            return shared.clone();
        }
        if latest.len() >= self.most {
            latest.pop_front();
        }
        let shared = Shared::default();
        latest.push_back(((path.into(), state.into()), shared.clone()));
        shared
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use opensora_video::reader::Decoder;
    use std::cell::Cell;

    #[test]
    fn the_latest_videos_are_scanned_once() {
        let scans = Scans::new(2);
        let count = Cell::new(0);
        let get = |name: &str, version: &str| {
            let scan = || {
                count.set(count.get() + 1);
                let times = (vec![], vec![f64::from(count.get())], 1.0);
                Ok(Scan::new(([2, 2], [2, 2]), 10.0, times, Decoder::InProcess))
            };
            scans.get(Path::new(name), version, scan).unwrap().times[0]
        };
        assert_eq!(
            [get("a", "1"), get("a", "1"), get("b", "1"), get("a", "1")],
            [1.0, 1.0, 2.0, 1.0]
        );
        // Another version is another video, and replaces the oldest one.
        assert_eq!([get("b", "2"), get("b", "1"), get("a", "1")], [3.0, 2.0, 4.0]);

        // After an error, the next row tries again.
        let torn = scans.get(Path::new("c"), "1", || Err("torn".into()));
        assert_eq!(torn.unwrap_err().to_string(), "torn");
        assert_eq!(get("c", "1"), 5.0);
    }
}
