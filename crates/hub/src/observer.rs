//! Progress of downloads and checks: the trait [`Observer`] and its events.

use crate::HubError;
use std::{
    ops::ControlFlow,
    path::Path,
    time::{Duration, Instant},
};

/// Receives the progress of a download or check, and can stop it.
///
/// Each method receives one event and ignores it by default; `()` ignores all events. A method that
/// returns [`ControlFlow::Break`] stops the work with [`HubError::Stopped`]. Downloaded bytes stay on the
/// disk, and a later call resumes.
///
/// ```
/// use opensora_hub::{Observer, Progress};
/// use std::ops::ControlFlow;
///
/// struct Print;
///
/// impl Observer for Print {
///     fn downloaded(&mut self, event: &Progress<'_>) -> ControlFlow<()> {
///         println!("{}: {} bytes", event.file, event.done);
///         ControlFlow::Continue(())
///     }
/// }
/// ```
pub trait Observer {
    /// A download begins. Called before the first byte, unless nothing is missing.
    fn planned(&mut self, _event: &Planned<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// A file begins or resumes.
    fn started(&mut self, _event: &Started<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// Bytes of a file have arrived. Called at most ten times a second for a file, and at its end.
    fn downloaded(&mut self, _event: &Progress<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// A file is complete, and its checksum is correct.
    fn completed(&mut self, _event: &Completed<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// An attempt failed and is repeated after a wait.
    fn retrying(&mut self, _event: &Retrying<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// Another process downloads the same file. This process waits for it.
    fn locked(&mut self, _event: &Locked<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// The hub cannot be reached, and the cached files are used.
    fn unreachable(&mut self, _event: &Unreachable<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// Bytes of a cached file were compared with its checksum
    /// ([`Cache::verify`](crate::Cache::verify)).
    fn verified(&mut self, _event: &Verified<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// Called several times a second while nothing else happens, so that an observer can stop a wait.
    fn waiting(&mut self) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

impl Observer for () {}

/// Files to download.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Planned<'a> {
    /// The repository, or the host of a web address.
    pub repository: &'a str,
    /// Folder that the files are written to.
    pub folder: &'a Path,
    /// Number of files.
    pub files: usize,
    /// Bytes to download, without those of earlier, unfinished calls.
    pub bytes: u64,
}

/// Start of a file.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Started<'a> {
    /// Name of the file: its path in the repository or, for a plain URL, the last segment of the URL's path.
    pub file: &'a str,
    /// Bytes of earlier, unfinished calls.
    pub resumed: u64,
    /// Size of the file in bytes, if the server states it.
    pub total: Option<u64>,
}

/// Progress of a file.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// Name of the file: its path in the repository or, for a plain URL, the last segment of the URL's path.
    pub file: &'a str,
    /// Bytes on the disk.
    pub done: u64,
    /// Size of the file in bytes, if the server states it.
    pub total: Option<u64>,
    /// Rate of this attempt.
    pub bytes_per_second: f64,
    /// Time left at this rate; `None` without a rate or a size.
    pub left: Option<Duration>,
}

impl<'a> Progress<'a> {
    /// Creates the progress of a file after `elapsed`, in which `counted` of the bytes arrived.
    pub fn new(
        file: &'a str,
        done: u64,
        total: Option<u64>,
        (counted, elapsed): (u64, Duration),
    ) -> Self {
        let seconds = elapsed.as_secs_f64();
        let bytes_per_second = if seconds > 0.0 { counted as f64 / seconds } else { 0.0 };
        let left = total.filter(|_| bytes_per_second > 0.0).and_then(|total| {
            Duration::try_from_secs_f64(total.saturating_sub(done) as f64 / bytes_per_second).ok()
        });
        Self { file, done, total, bytes_per_second, left }
    }
}

/// End of a file.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Completed<'a> {
    /// Name of the file: its path in the repository or, for a plain URL, the last segment of the URL's path.
    pub file: &'a str,
}

/// A failed attempt.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Retrying<'a> {
    /// Why the attempt failed.
    pub error: &'a HubError,
    /// Time until the next attempt.
    pub wait: Duration,
}

/// A file that another process downloads.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Locked<'a> {
    /// Name of the file: its path in the repository or, for a plain URL, the last segment of the URL's path.
    pub file: &'a str,
}

/// The event of an unreachable hub.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Unreachable<'a> {
    /// Why the hub cannot be reached.
    pub error: &'a HubError,
}

/// Progress of the check of a cached file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verified<'a> {
    /// Name of the file in the repository.
    pub file: &'a str,
    /// Bytes read.
    pub done: u64,
    /// Size of the file in bytes.
    pub total: u64,
}

/// Turns an observer's answer into the error that stops the work.
pub(crate) fn proceed(answer: ControlFlow<()>) -> Result<(), HubError> {
    match answer {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(HubError::Stopped),
    }
}

/// Measures the rate of an attempt.
pub(crate) struct Meter {
    started: Instant,
    first: u64,
    reported: Option<Instant>,
}

impl Meter {
    /// Time between two events of one file.
    const INTERVAL: Duration = Duration::from_millis(100);

    pub(crate) fn from(first: u64) -> Self {
        Self { started: Instant::now(), first, reported: None }
    }

    /// Returns the progress if it is time to report it, or the file is complete.
    pub(crate) fn progress<'a>(
        &mut self,
        file: &'a str,
        done: u64,
        total: Option<u64>,
    ) -> Option<Progress<'a>> {
        let due = self.reported.is_none_or(|last| last.elapsed() >= Self::INTERVAL);
        if !due && total != Some(done) {
            return None;
        }
        self.reported = Some(Instant::now());
        let counted = done.saturating_sub(self.first);
        Some(Progress::new(file, done, total, (counted, self.started.elapsed())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_earlier_calls_are_left_out_of_the_rate() {
        let progress = Progress::new("a", 3000, Some(5000), (1000, Duration::from_secs(2)));
        assert_eq!(progress.bytes_per_second, 500.0);
        assert_eq!(progress.left, Some(Duration::from_secs(4)));
        assert_eq!(Progress::new("a", 3000, None, (1000, Duration::from_secs(2))).left, None);
        let nothing = Progress::new("a", 3000, Some(5000), (0, Duration::ZERO));
        assert_eq!((nothing.bytes_per_second, nothing.left), (0.0, None));
    }
}
