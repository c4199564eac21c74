//! Standard output and standard error: the only module that prints.
//!
//! Results go to standard output; failing to write one is an error. Messages go to standard error, where
//! write errors are ignored.

use opensora::files::error_line;
use serde::Serialize;
use std::{
    fmt::Display,
    fs::File,
    io::{self, ErrorKind, Write},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

/// Error of printing a result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    /// The reader of the pipe has closed it, as `head` does after its lines.
    #[error("standard output: the reader has closed the pipe")]
    Closed,
    /// Standard output cannot be written, for example because the disk is full.
    #[error("standard output")]
    Write(#[source] io::Error),
    /// The result has no JSON form.
    #[error("the result cannot be written as JSON")]
    Json(#[from] serde_json::Error),
}

impl From<io::Error> for OutputError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Write(error),
        }
    }
}

/// Context of an error that is printed already.
#[derive(Debug, thiserror::Error)]
#[error("the error is printed already")]
pub(crate) struct Reported;

/// Returns a path as JSON's strings can hold it: bytes that are not UTF-8 are replaced, as in messages.
pub(crate) fn path(path: impl AsRef<Path>) -> String {
    path.as_ref().to_string_lossy().into_owned()
}

/// True for ranks other than 0, which print nothing.
static SILENT: AtomicBool = AtomicBool::new(false);

/// Prints nothing from here on, except [`last_words`].
pub(crate) fn silence() {
    SILENT.store(true, Ordering::Relaxed);
}

/// Prints a result and a line break.
///
/// # Errors
/// Returns an error if the reader has closed the pipe or the line cannot be written.
pub(crate) fn line(text: impl Display) -> Result<(), OutputError> {
    if SILENT.load(Ordering::Relaxed) {
        return Ok(());
    }
    Ok(write_line(io::stdout().lock(), text)?)
}

/// Prints a result as one line of JSON.
///
/// # Errors
/// Returns the errors of [`line()`], and an error if `value` has no JSON form.
pub(crate) fn json(value: &impl Serialize) -> Result<(), OutputError> {
    line(serde_json::to_string(value)?)
}

/// Copies a file to standard output.
///
/// # Errors
/// Returns the errors of [`line()`], and an error if the file cannot be read.
pub(crate) fn copy(file: &mut File) -> Result<(), OutputError> {
    let mut stdout = io::stdout().lock();
    io::copy(file, &mut stdout)?;
    Ok(stdout.flush()?)
}

/// Prints a message on standard error. Write errors are ignored: hours of work do not end because a terminal
/// or a `tee` did.
pub(crate) fn message(text: impl Display) {
    if !SILENT.load(Ordering::Relaxed) {
        last_words(text);
    }
}

/// Prints the error of a subcommand on one line, as [`message`] does. Prints nothing if it is [`Reported`], or if the
/// reader has closed standard output.
pub(crate) fn error(error: &anyhow::Error) {
    if !error.is::<Reported>() && !matches!(error.downcast_ref(), Some(OutputError::Closed)) {
        message(format_args!("error: {}", error_line(error.as_ref())));
    }
}

/// Prints a message as [`message`] does, also on a rank that is silent: the reason for which it ends all ranks.
pub(crate) fn last_words(text: impl Display) {
    let _ = write_line(io::stderr().lock(), text);
}

/// True if details are printed.
static VERBOSE: AtomicBool = AtomicBool::new(false);

/// Sets whether [`detail`] prints.
pub(crate) fn set_verbose(verbose: bool) {
    VERBOSE.store(verbose, Ordering::Relaxed);
}

/// Prints a message as [`message`] does if `--verbose` was given.
pub(crate) fn detail(text: impl Display) {
    if VERBOSE.load(Ordering::Relaxed) {
        message(text);
    }
}

/// Writes a line by one call, so that lines of several programs do not mix.
fn write_line(mut target: impl Write, text: impl Display) -> io::Result<()> {
    target.write_all(format!("{text}\n").as_bytes())?;
    target.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_pipe_is_told_from_a_full_disk() {
        struct Fails(ErrorKind);
        impl Write for Fails {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(self.0.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let kind = |kind| OutputError::from(write_line(Fails(kind), "x").unwrap_err());
        assert!(matches!(kind(ErrorKind::BrokenPipe), OutputError::Closed));
        assert!(matches!(kind(ErrorKind::StorageFull), OutputError::Write(_)));
    }

    /// A closed pipe has its own exit code, also after the error was reported.
    #[test]
    fn a_reported_error_keeps_its_cause() {
        let error = anyhow::Error::from(OutputError::Closed);
        assert!(!error.is::<Reported>());
        let error = error.context(Reported);
        assert!(error.is::<Reported>());
        assert!(matches!(error.downcast_ref(), Some(OutputError::Closed)));
    }
}
