//! Videos on YouTube, fetched by the program `yt-dlp`.
//!
//! The program runs once a video, in a hidden folder beside the file's place, so that what it
//! leaves behind is never taken for a file; there it goes on with its own parts. Arguments are
//! passed as words, never through a shell, and the address stands after `--`.

use super::{
    http::Timeouts,
    limits::Rate,
    partial::{Fetched, measure},
};
use crate::retry::{Failure, Patience, insist};
use opensora_files::{hex, sync_folder};
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

/// H.264 in MP4 without sound where there is one, else with sound, else any MP4: one file that
/// needs no joining, which every decoder reads.
pub const FORMAT: &str =
    "bv[vcodec^=avc1][ext=mp4]/b[vcodec^=avc1][ext=mp4]/bv[ext=mp4]/b[ext=mp4]";

/// Words in the program's last line that no other attempt will change.
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
/// Longest line of the program that is looked at.
const MAX_LINE: u64 = 4096;

/// How `yt-dlp` is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct YtDlp {
    /// The program: a name on the path, or where it is.
    pub program: PathBuf,
    /// Which of a video's formats, as its option `-f` has it.
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
    /// Whether the program can be started; if not, why on one line.
    pub(crate) fn find(&self) -> Result<(), String> {
        let started = Command::new(&self.program)
            .arg("--version")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        let program = self.program.display();
        match started {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("{program} --version fails: {status}")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(format!("videos on YouTube need the program yt-dlp, and there is no {program}"))
            }
            Err(error) => Err(format!("{program} cannot be started: {error}")),
        }
    }
}

/// Runs the program; shared by all workers.
#[derive(Debug)]
pub(crate) struct Runner<'a> {
    pub(crate) yt_dlp: &'a YtDlp,
    pub(crate) patience: Patience,
    pub(crate) timeouts: Timeouts,
    pub(crate) max_bytes: Option<u64>,
    /// Bytes a second of one run of the program.
    pub(crate) bytes_per_second: Option<u64>,
    pub(crate) requests: &'a Rate,
}

impl Runner<'_> {
    /// Fetches `url` into `target` unless it is there.
    pub(crate) fn fetch(&self, url: &str, target: &Path) -> Result<Fetched, String> {
        let disk = |error: io::Error| format!("{}: {error}", target.display());
        if let Some(there) = measure(target).map_err(disk)? {
            return Ok(there);
        }
        let folder = work_folder(url, target);
        std::fs::create_dir_all(&folder).map_err(disk)?;
        let file = folder.join("video.mp4");
        let mut keep = false;
        let ended = insist(&self.patience, &AtomicBool::new(false), |_| {
            self.requests.take(1.0);
            let result = self.attempt(url, &file);
            keep = matches!(result, Err(Failure::Again { .. }));
            result
        });
        let fetched = ended.and_then(|()| self.place(&file, target).map_err(disk)?);
        if !keep {
            // Best effort: nobody takes what is in it for a file.
            let _ = std::fs::remove_dir_all(&folder);
        }
        fetched
    }

    /// Gives a file that the program finished its own name.
    fn place(&self, file: &Path, target: &Path) -> io::Result<Result<Fetched, String>> {
        let Some(fetched) = measure(file)? else {
            let limit = self.max_bytes.map(|max| format!(" (is it larger than {max} bytes?)"));
            return Ok(Err(format!("yt-dlp wrote no file{}", limit.unwrap_or_default())));
        };
        match self.max_bytes.filter(|max| fetched.bytes > *max) {
            Some(max) => return Ok(Err(format!("it is larger than {max} bytes"))),
            None if fetched.bytes == 0 => return Ok(Err("it is empty".into())),
            None => {}
        }
        File::open(file)?.sync_all()?;
        std::fs::rename(file, target)?;
        sync_folder(target)?;
        Ok(Ok(fetched))
    }

    fn attempt(&self, url: &str, file: &Path) -> Result<(), Failure> {
        let mut command = Command::new(&self.yt_dlp.program);
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
        // Names are templates, in which a percent sign begins a field.
        let name = file.to_string_lossy().replace('%', "%%");
        command.args(&self.yt_dlp.arguments).arg("-o").arg(name).arg("--").arg(url);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| {
            Failure::Final(format!("{} cannot be started: {error}", self.yt_dlp.program.display()))
        })?;
        let stderr = child.stderr.take();
        let listener = std::thread::spawn(move || stderr.map(last_line));
        let status = self.wait(&mut child);
        let status = status.map_err(|reason| Failure::Again { reason, wait: None })?;
        if status.success() {
            return Ok(());
        }
        let line = listener.join().ok().flatten().filter(|line| !line.is_empty());
        let reason = line.unwrap_or_else(|| format!("yt-dlp fails without a word ({status})"));
        let lower = reason.to_lowercase();
        if FINAL.iter().any(|words| lower.contains(words)) {
            return Err(Failure::Final(reason));
        }
        Err(Failure::Again { reason, wait: None })
    }

    /// Waits for the program, and ends it where it takes too long.
    fn wait(&self, child: &mut Child) -> Result<std::process::ExitStatus, String> {
        let deadline = Instant::now() + self.timeouts.attempt;
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                state => {
                    // It may have ended by itself meanwhile.
                    let _ = child.kill();
                    let _ = child.wait();
                    let seconds = self.timeouts.attempt.as_secs();
                    return Err(match state {
                        Err(error) => format!("yt-dlp cannot be waited for: {error}"),
                        Ok(_) => format!("yt-dlp took longer than {seconds} s"),
                    });
                }
            }
        }
    }
}

/// A folder of a video's own for the program's parts.
fn work_folder(url: &str, target: &Path) -> PathBuf {
    let digest = hex(&Sha256::digest(url));
    target.with_file_name(format!(".yt-dlp-{digest:.20}"))
}

/// The last line that begins with `ERROR:`, without that, else the last line at all.
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
    fn the_reason_is_the_last_error_else_the_last_line() {
        let text = "WARNING: slow\nERROR: one\nERROR: [youtube] x: Video unavailable\nbye\n\n";
        assert_eq!(last_line(text.as_bytes()), "[youtube] x: Video unavailable");
        assert_eq!(last_line(&b"WARNING: a\nTraceback\n\n"[..]), "Traceback");
        assert_eq!(last_line(&b""[..]), "");
    }
}
