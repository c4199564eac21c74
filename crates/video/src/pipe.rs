//! Frames from the output of a program.

use std::{
    io::{Error, ErrorKind, IoSliceMut, Read, Result},
    process::{Child, Command},
    time::Duration,
};

/// Maximum time without output of a program, far longer than the slowest frame needs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// The readable end of a program's output.
#[cfg(target_os = "linux")]
pub(crate) type Output = std::os::unix::net::UnixStream;
/// The readable end of a program's output.
#[cfg(not(target_os = "linux"))]
pub(crate) type Output = std::process::ChildStdout;

/// Makes a program start in another process group, so that Ctrl-C in the terminal does not stop it: a stopped program
/// would look like a failure of its file. Changes nothing on systems other than Unix.
pub fn shielded(command: &mut Command) -> &mut Command {
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(command, 0);
    command
}

/// Starts a program whose output is read. Reading fails if there is no output for `patience`.
///
/// On Linux the output is a socket, whose buffer is larger than that of a pipe. (On other systems it is smaller.)
#[cfg(target_os = "linux")]
pub(crate) fn start(command: &mut Command, patience: Duration) -> Result<(Child, Output)> {
    let (ours, theirs) = Output::pair()?;
    ours.set_read_timeout(Some(patience))?;
    let child = shielded(command).stdout(std::os::fd::OwnedFd::from(theirs)).spawn();
    // Closes this process's copy of the writing end, which would prevent the end of file.
    command.stdout(std::process::Stdio::null());
    Ok((child?, ours))
}

/// Starts a program whose output is read. Pipes do not support `patience`.
#[cfg(not(target_os = "linux"))]
pub(crate) fn start(command: &mut Command, _patience: Duration) -> Result<(Child, Output)> {
    let mut child = shielded(command).stdout(std::process::Stdio::piped()).spawn()?;
    let out = child.stdout.take().ok_or_else(|| Error::other("it has no output"))?;
    Ok((child, out))
}

/// An error of a program's output.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    /// The program wrote nothing for too long.
    #[error("the {0} program: it has given nothing for {seconds} s", seconds = PATIENCE.as_secs())]
    Silent(&'static str),
    /// The output cannot be read or has another form than requested.
    #[error("the {program} program")]
    Read { program: &'static str, source: Error },
}

impl OutputError {
    pub(crate) fn of(program: &'static str) -> impl FnOnce(Error) -> Self {
        move |source| match source.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Self::Silent(program),
            _ => Self::Read { program, source },
        }
    }
}

/// How much of a frame was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filled {
    Whole,
    Part,
    Nothing,
}

/// A reader of consecutive frames.
#[derive(Debug)]
pub(crate) struct Frames<R = Output> {
    out: R,
    /// Size of a frame in bytes.
    bytes: usize,
    /// Marker before each frame.
    mark: &'static [u8],
    /// Width and height that the header before the first frame must state.
    untold: Option<(usize, usize)>,
}

impl<R: Read> Frames<R> {
    /// Creates a reader of frames of `bytes` bytes: YUV4MPEG2 if `size` (width, height) is given, else raw.
    pub(crate) fn new(out: R, bytes: usize, size: Option<(usize, usize)>) -> Self {
        let mark: &[u8] = if size.is_some() { b"FRAME\n" } else { &[] };
        Self { out, bytes, mark, untold: size }
    }

    /// Reads the next frame into `frame`, replacing its contents.
    pub(crate) fn read(&mut self, frame: &mut Vec<u8>) -> Result<Filled> {
        if let Some(size) = self.untold.take()
            && !self.read_title(size)?
        {
            return Ok(Filled::Nothing);
        }
        if frame.len() != self.bytes {
            // Zeroed memory is allocated by the system when it is written: a header may overstate the size.
            *frame = vec![0; self.bytes];
        }
        let mut mark = [0; 8];
        let mark = &mut mark[..self.mark.len()];
        let whole = mark.len() + frame.len();
        let mut filled = 0;
        while filled < whole {
            let left = (filled.min(mark.len()), filled.saturating_sub(mark.len()));
            let parts = &mut [&mut mark[left.0..], &mut frame[left.1..]].map(IoSliceMut::new);
            match self.out.read_vectored(parts) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        match filled {
            0 => Ok(Filled::Nothing),
            _ if filled < whole => Ok(Filled::Part),
            _ if mark == self.mark => Ok(Filled::Whole),
            _ => Err(unexpected()),
        }
    }

    /// Reads the header line before the first frame. Returns false at the end of the output.
    fn read_title(&mut self, (width, height): (usize, usize)) -> Result<bool> {
        /// Maximum length of the header line in bytes.
        const MOST: u64 = 4096;
        let mut title = Vec::new();
        #[allow(clippy::unbuffered_bytes, reason = "the next bytes are frames")]
        for byte in self.out.by_ref().take(MOST).bytes() {
            match byte? {
                b'\n' => break,
                byte => title.push(byte),
            }
        }
        if title.is_empty() {
            return Ok(false);
        }
        let mut words = title.split(|byte| *byte == b' ');
        let is_known = words.next() == Some(b"YUV4MPEG2");
        let has = |word: String| words.clone().any(|other| other == word.as_bytes());
        match is_known && has(format!("W{width}")) && has(format!("H{height}")) {
            true => Ok(true),
            false => Err(unexpected()),
        }
    }
}

/// Returns the error of an output in another form than requested.
fn unexpected() -> Error {
    Error::new(ErrorKind::InvalidData, "it gives frames of another size or form than it tells")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All frames of these bytes, and how it ended.
    fn read(bytes: &[u8], size: Option<(usize, usize)>) -> (Vec<Vec<u8>>, Result<Filled>) {
        // A byte at a time, as a pipe may do it.
        struct Slow<'a>(&'a [u8]);
        impl Read for Slow<'_> {
            fn read(&mut self, to: &mut [u8]) -> Result<usize> {
                let most = to.len().min(1);
                self.0.read(&mut to[..most])
            }
        }
        let mut frames = Frames::new(Slow(bytes), 3, size);
        let mut found = Vec::new();
        loop {
            let mut frame = Vec::new();
            match frames.read(&mut frame) {
                Ok(Filled::Whole) => found.push(frame),
                end => return (found, end),
            }
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn nobody_waits_for_ever() {
        let mut command = Command::new("sleep");
        let (mut child, out) = start(command.arg("60"), Duration::from_millis(50)).unwrap();
        let error = Frames::new(out, 3, None).read(&mut Vec::new()).unwrap_err();
        let error = OutputError::of("ffmpeg")(error).to_string();
        assert!(error.contains("given nothing"), "{error}");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn frames_come_out_of_their_words() {
        let two = vec![b"abc".to_vec(), b"def".to_vec()];
        let (frames, end) = read(b"abcdef", None);
        assert_eq!((frames, end.ok()), (two.clone(), Some(Filled::Nothing)));
        let words = b"YUV4MPEG2 W1 H1 F25:1 Ip C444\nFRAME\nabcFRAME\ndef";
        let (frames, end) = read(words, Some((1, 1)));
        assert_eq!((frames, end.ok()), (two.clone(), Some(Filled::Nothing)));
        let (frames, end) = read(&words[..words.len() - 1], Some((1, 1)));
        assert_eq!((frames.len(), end.ok()), (1, Some(Filled::Part)));
        // Nothing at all, another size, another form.
        assert_eq!(read(b"", Some((1, 1))).1.ok(), Some(Filled::Nothing));
        assert!(read(words, Some((1, 2))).1.is_err());
        assert!(read(b"YUV4MPEG2 W1 H1\nabcdefghijkl", Some((1, 1))).1.is_err());
        assert!(read(&[b'a'; 5000], Some((1, 1))).1.is_err());
    }
}
