//! Downloads videos on YouTube with the program `yt-dlp`.
//!
//! The program runs once per video, in a hidden folder beside the target, where it resumes its own partial
//! files and from which only a complete file is renamed. Arguments are passed directly, never through a
//! shell, and the address comes after `--`.

use super::{
    FetchError, busy,
    http::Timeouts,
    limits::Rate,
    partial::{Fetched, measure},
};
use crate::{
    assemble::appended,
    retry::{Failure, GaveUp, RetryPolicy, retry},
};
use opensora_files::{Lock, LockError, hex, sync_folder};
use opensora_video::shielded;
use sha2::{Digest, Sha256};
use std::{
    fs::OpenOptions,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

/// The default format: H.264 in MP4 without sound, else with sound, else any MP4. It is one file that needs no
/// merging of streams.
pub const FORMAT: &str =
    "bv[vcodec^=avc1][ext=mp4]/b[vcodec^=avc1][ext=mp4]/bv[ext=mp4]/b[ext=mp4]";

/// Texts in the program's last line that mark a permanent failure, in lower case.
const FINAL: [&str; 10] = [
    "video unavailable",
    "video is not available",
    "private video",
    "video is private",
    "has been removed",
    "been terminated",
    "copyright",
    "confirm your age",
    "unsupported url",
    "requested format is not available",
];
/// Texts in that line that mark a folder that cannot be written, in lower case.
const UNWRITABLE: [(&str, io::ErrorKind); 3] = [
    ("no space left on device", io::ErrorKind::StorageFull),
    ("disk quota exceeded", io::ErrorKind::QuotaExceeded),
    ("read-only file system", io::ErrorKind::ReadOnlyFilesystem),
];
/// Maximum length of a line that is read from the program, in bytes.
const MAX_LINE: u64 = 4096;

/// Program, format and arguments of `yt-dlp`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct YtDlp {
    /// The program: a name on the path, or a path.
    pub program: PathBuf,
    /// Format of the video, in the syntax of the option `-f`.
    pub format: String,
    /// More arguments, such as `--cookies` and a file.
    pub arguments: Vec<String>,
}

impl Default for YtDlp {
    fn default() -> Self {
        Self { program: "yt-dlp".into(), format: FORMAT.into(), arguments: vec![] }
    }
}

impl YtDlp {
    /// Returns an error if the program cannot be started.
    pub(crate) fn find(&self) -> Result<(), FetchError> {
        let started =
            self.command().arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        let program = self.program.display();
        match started {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(FetchError::yt_dlp(format!("{program} --version fails: {status}"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let reason =
                    format!("videos on YouTube need the program yt-dlp, and there is no {program}");
                Err(FetchError::yt_dlp(reason))
            }
            Err(error) => Err(self.not_started(error)),
        }
    }
}

impl YtDlp {
    /// Returns the program without arguments and input.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        shielded(&mut command).stdin(Stdio::null());
        command
    }

    fn not_started(&self, error: io::Error) -> FetchError {
        let reason = format!("{} cannot be started", self.program.display());
        FetchError::YtDlp { reason, source: Some(error) }
    }
}

/// Runs `yt-dlp`; shared by all workers.
#[derive(Debug)]
pub(crate) struct Runner<'a> {
    pub(crate) yt_dlp: &'a YtDlp,
    pub(crate) retry: RetryPolicy,
    pub(crate) timeouts: Timeouts,
    pub(crate) max_bytes: Option<u64>,
    /// Bytes per second of one run of the program.
    pub(crate) bytes_per_second: Option<u64>,
    pub(crate) requests: &'a Rate,
}

impl Runner<'_> {
    /// Downloads `url` to `target`, unless the file exists.
    pub(crate) fn fetch(&self, url: &str, target: &Path) -> Result<Fetched, GaveUp<FetchError>> {
        let read = |source| FetchError::Io { path: target.into(), source };
        if let Some(there) = measure(target).map_err(read)? {
            return Ok(there);
        }
        let folder = work_folder(url, target);
        let path = appended(&folder, ".lock");
        // Held until the folder is removed.
        let _lock = busy::wait(self.timeouts.attempt, || take(&path)).map_err(FetchError::Write)?;
        // Another process may have completed it meanwhile.
        if let Some(there) = measure(target).map_err(read)? {
            return Ok(there);
        }
        // The program would continue a partial file of another format.
        let folder = match self.yt_dlp.format.as_str() {
            FORMAT => folder,
            other => appended(&folder, &format!("-{:.8}", hex(&Sha256::digest(other)))),
        };
        std::fs::create_dir_all(&folder).map_err(FetchError::Write)?;
        let file = folder.join("video.mp4");
        let mut keep = false;
        let ended = retry(&self.retry, &AtomicBool::new(false), |_| {
            self.requests.take(1.0);
            let result = self.attempt(url, &file);
            keep = matches!(result, Err(Failure::Transient { .. }));
            result
        });
        let fetched = ended.and_then(|()| Ok(self.place(&file, target)?));
        keep |= fetched.as_ref().is_err_and(|failed| failed.error.is_of_output());
        if !keep {
            // Best effort: the folder is hidden, and nothing reads it.
            let _ = std::fs::remove_dir_all(&folder);
        }
        fetched
    }

    /// Renames a file that the program has finished to its target.
    fn place(&self, file: &Path, target: &Path) -> Result<Fetched, FetchError> {
        let read = |source| FetchError::Io { path: file.into(), source };
        let Some(fetched) = measure(file).map_err(read)? else {
            let limit = self.max_bytes.map(|max| format!(" (is it larger than {max} bytes?)"));
            let reason = format!("yt-dlp wrote no file{}", limit.unwrap_or_default());
            return Err(FetchError::yt_dlp(reason));
        };
        match self.max_bytes.filter(|max| fetched.bytes > *max) {
            Some(max) => return Err(FetchError::TooLarge(max)),
            None if fetched.bytes == 0 => return Err(FetchError::Empty),
            None => {}
        }
        let rename = || {
            // Windows syncs only files that are open for writing.
            OpenOptions::new().write(true).open(file)?.sync_all()?;
            std::fs::rename(file, target)?;
            sync_folder(target)
        };
        rename().map_err(FetchError::Write)?;
        Ok(fetched)
    }

    fn attempt(&self, url: &str, file: &Path) -> Result<(), Failure<FetchError>> {
        let mut command = self.yt_dlp.command();
        command
            .args(["--ignore-config", "--no-playlist", "--no-progress", "--no-mtime"])
            .arg("--socket-timeout")
            .arg(self.timeouts.idle.as_secs().max(1).to_string())
            .arg("-f")
            .arg(&self.yt_dlp.format);
        if let Some(max) = self.max_bytes {
            command.arg("--max-filesize").arg(max.to_string());
        }
        if let Some(rate) = self.bytes_per_second {
            command.arg("--limit-rate").arg(rate.to_string());
        }
        // Output names are templates, in which a percent sign starts a field.
        let name = file.to_string_lossy().replace('%', "%%");
        command.args(&self.yt_dlp.arguments).arg("-o").arg(name).arg("--").arg(url);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child =
            command.spawn().map_err(|error| Failure::Permanent(self.yt_dlp.not_started(error)))?;
        let stderr = child.stderr.take();
        let listener = std::thread::spawn(move || stderr.map(last_line));
        let status = self.wait(&mut child).map_err(Failure::transient)?;
        if status.success() {
            return Ok(());
        }
        let line = listener.join().ok().flatten().filter(|line| !line.is_empty());
        let reason = line.unwrap_or_else(|| format!("yt-dlp fails without a message ({status})"));
        let lower = reason.to_lowercase();
        let error = FetchError::yt_dlp(reason);
        if let Some((_, kind)) = UNWRITABLE.iter().find(|(words, _)| lower.contains(words)) {
            let full = io::Error::new(*kind, error.to_string());
            return Err(Failure::Permanent(FetchError::Write(full)));
        }
        if FINAL.iter().any(|words| lower.contains(words)) {
            return Err(Failure::Permanent(error));
        }
        Err(Failure::transient(error))
    }

    /// Waits for the program, and kills it after the longest attempt.
    fn wait(&self, child: &mut Child) -> Result<ExitStatus, FetchError> {
        let deadline = Instant::now() + self.timeouts.attempt;
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                state => {
                    // It can have ended by itself meanwhile.
                    let _ = child.kill();
                    let _ = child.wait();
                    let seconds = self.timeouts.attempt.as_secs();
                    return Err(match state {
                        Err(error) => FetchError::YtDlp {
                            reason: "waiting for yt-dlp failed".into(),
                            source: Some(error),
                        },
                        Ok(_) => FetchError::yt_dlp(format!("yt-dlp took longer than {seconds} s")),
                    });
                }
            }
        }
    }
}

/// Returns the folder of a video for the program's files.
fn work_folder(url: &str, target: &Path) -> PathBuf {
    let digest = hex(&Sha256::digest(url));
    target.with_file_name(format!(".yt-dlp-{digest:.20}"))
}

/// Takes the lock of a work folder.
fn take(path: &Path) -> io::Result<Lock> {
    Lock::take(path).map_err(|error| match error {
        LockError::InUse { .. } => busy::busy(),
        LockError::Io(error) => error,
        other => io::Error::other(other),
    })
}

/// Returns the last line that starts with `ERROR:`, without that prefix, else the last line.
fn last_line(output: impl Read) -> String {
    let (mut last, mut error) = (String::new(), None);
    let mut reader = BufReader::new(output);
    let mut line = vec![];
    loop {
        line.clear();
        match reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return error.unwrap_or(last),
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim();
        if let Some(reason) = text.strip_prefix("ERROR:") {
            error = Some(reason.trim().to_string());
        } else if !text.is_empty() {
            last = text.to_string();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_last_error_or_else_the_last_line() {
        let text = "WARNING: slow\nERROR: one\nERROR: [youtube] x: Video unavailable\nbye\n\n";
        assert_eq!(last_line(text.as_bytes()), "[youtube] x: Video unavailable");
        assert_eq!(last_line(&b"WARNING: a\nTraceback\n\n"[..]), "Traceback");
        assert_eq!(last_line(&b""[..]), "");
    }
}
