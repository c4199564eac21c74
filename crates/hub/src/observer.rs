//! What a fetch tells while it runs.

use std::{
    ops::ControlFlow,
    path::Path,
    time::{Duration, Instant},
};

/// Receives the events of a fetch, and can end it. Downloaded bytes are kept, and a later call resumes.
pub trait Observer {
    /// Receives an event; `Break` ends the fetch with [`HubError::Stopped`](crate::HubError::Stopped).
    fn event(&mut self, event: Event<'_>) -> ControlFlow<()>;
}

/// An event of a fetch.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Comes before the first byte, if anything is to be downloaded.
    Planned {
        /// The repository, or the host of an address.
        repository: &'a str,
        /// Folder that the files go to.
        folder: &'a Path,
        /// Files to download.
        files: usize,
        /// Bytes to download; those of earlier, unfinished calls are not counted.
        bytes: u64,
    },
    /// A file begins, or resumes after `resumed` bytes.
    Began {
        /// The file.
        file: &'a str,
        /// Bytes of earlier, unfinished calls.
        resumed: u64,
        /// Its size, if the server states it.
        total: Option<u64>,
    },
    /// Bytes have come.
    Advanced(Progress<'a>),
    /// A file is complete and its checksum compared.
    Completed {
        /// The file.
        file: &'a str,
    },
    /// An attempt failed; the next one follows after `wait`.
    Retry {
        /// What happened.
        reason: &'a str,
        /// The wait.
        wait: Duration,
    },
    /// Another process downloads the same file; this one waits for it.
    Locked {
        /// The file.
        file: &'a str,
    },
    /// The hub cannot be reached; the cached files are used.
    Unreachable {
        /// What happened.
        reason: &'a str,
    },
    /// Comes several times a second during waits, so that an observer can end them.
    Waiting,
}

/// How far a file is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress<'a> {
    /// The file.
    pub file: &'a str,
    /// Bytes that are on the disk.
    pub done: u64,
    /// Its size, if the server states it.
    pub total: Option<u64>,
    /// Rate of this attempt.
    pub bytes_per_second: f64,
    /// Time left at this rate; `None` without a rate or a size.
    pub left: Option<Duration>,
}

/// An observer that lets everything pass.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl Observer for Quiet {
    fn event(&mut self, _: Event<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// Measures the rate of an attempt.
pub(crate) struct Meter {
    started: Instant,
    first: u64,
    reported: Option<Instant>,
}

impl Meter {
    /// Between two events of one file.
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
        Some(at_pace(file, done, total, done.saturating_sub(self.first), self.started.elapsed()))
    }
}

fn at_pace(
    file: &str,
    done: u64,
    total: Option<u64>,
    counted: u64,
    elapsed: Duration,
) -> Progress<'_> {
    let seconds = elapsed.as_secs_f64();
    let bytes_per_second = if seconds > 0.0 { counted as f64 / seconds } else { 0.0 };
    let left = total.filter(|_| bytes_per_second > 0.0).and_then(|total| {
        Duration::try_from_secs_f64(total.saturating_sub(done) as f64 / bytes_per_second).ok()
    });
    Progress { file, done, total, bytes_per_second, left }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_earlier_calls_are_left_out_of_the_rate() {
        let progress = at_pace("a", 3000, Some(5000), 1000, Duration::from_secs(2));
        assert_eq!(progress.bytes_per_second, 500.0);
        assert_eq!(progress.left, Some(Duration::from_secs(4)));
        assert_eq!(at_pace("a", 3000, None, 1000, Duration::from_secs(2)).left, None);
        let nothing = at_pace("a", 3000, Some(5000), 0, Duration::ZERO);
        assert_eq!((nothing.bytes_per_second, nothing.left), (0.0, None));
    }
}
