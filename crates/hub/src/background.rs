//! Requests and reads in a background thread, so that an observer can stop the wait for a silent server.
//!
//! An abandoned thread ends when the server sends something or the client's timeout expires.

use crate::{HubError, Observer, observer::proceed};
use std::{
    io::{self, Read},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    thread,
    time::Duration,
};

/// Time between two calls of [`Observer::waiting`].
const SLICE: Duration = Duration::from_millis(100);
/// Capacity of the queue of pieces.
const PIECES: usize = 4;
/// Maximum size of a piece in bytes.
const PIECE: usize = 1 << 17;

/// Runs `work` in a thread and returns its result. The observer can stop the wait.
pub(crate) fn patiently<T: Send + 'static>(
    observer: &mut dyn Observer,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, HubError> {
    let results = start("hub", move |results| _ = results.send(work()))?;
    let done = next(&results, observer)?;
    // A thread that panicked sends nothing.
    done.ok_or_else(|| failed(io::Error::other("the thread of a request ended early")))
}

/// The body of an answer, read ahead in a thread.
pub(crate) struct Pieces(Receiver<io::Result<Vec<u8>>>);

impl Pieces {
    pub(crate) fn of(mut body: impl Read + Send + 'static) -> Result<Self, HubError> {
        let read = move |pieces: &SyncSender<io::Result<Vec<u8>>>| {
            let mut buffer = vec![0; PIECE];
            loop {
                let piece = match body.read(&mut buffer) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    read => read.map(|count| buffer[..count].to_vec()),
                };
                let is_last = piece.as_ref().map_or(true, Vec::is_empty);
                // The receiver is gone after a stop.
                if pieces.send(piece).is_err() || is_last {
                    return;
                }
            }
        };
        start("hub body", read).map(Self)
    }

    /// Returns the next bytes; an empty vector at the end.
    pub(crate) fn next(
        &self,
        observer: &mut dyn Observer,
    ) -> Result<io::Result<Vec<u8>>, HubError> {
        let piece = next(&self.0, observer)?;
        Ok(piece.unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into())))
    }
}

fn start<T: Send + 'static>(
    name: &str,
    work: impl FnOnce(&SyncSender<T>) + Send + 'static,
) -> Result<Receiver<T>, HubError> {
    let (sender, receiver) = sync_channel(PIECES);
    let thread = thread::Builder::new().name(name.into());
    thread.spawn(move || work(&sender)).map_err(failed)?;
    Ok(receiver)
}

/// Waits for the next result; `None` if the thread has ended.
fn next<T>(results: &Receiver<T>, observer: &mut dyn Observer) -> Result<Option<T>, HubError> {
    loop {
        match results.recv_timeout(SLICE) {
            Ok(result) => return Ok(Some(result)),
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
            Err(RecvTimeoutError::Timeout) => proceed(observer.waiting())?,
        }
    }
}

fn failed(source: io::Error) -> HubError {
    HubError::Io { path: "a thread for a request".into(), source }
}
