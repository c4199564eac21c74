//! Reading from servers in a thread, so that the observer is asked while a server stays silent.
//!
//! A thread that is no longer waited for ends by itself: when the server says something, or when the
//! client's timeout ends its read.

use crate::{HubError, Observer, observer::proceed};
use std::{
    io::{self, Read},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    thread,
    time::Duration,
};

/// Between two questions to the observer.
const SLICE: Duration = Duration::from_millis(100);
/// Pieces of a body that wait for being taken.
const PIECES: usize = 4;
/// Most bytes of a piece.
const PIECE: usize = 1 << 17;

/// Returns what `work` does; the observer may end the wait for it.
pub(crate) fn patiently<T: Send + 'static>(
    observer: &mut dyn Observer,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, HubError> {
    let results = start("hub", move |results| _ = results.send(work()))?;
    let done = next(&results, observer)?;
    // Nothing is sent by work that panicked.
    done.ok_or_else(|| failed(io::Error::other("the thread of a request ended early")))
}

/// The bytes of a body, read ahead a little.
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
                // Nobody waits any more after a stop.
                if pieces.send(piece).is_err() || is_last {
                    return;
                }
            }
        };
        start("hub body", read).map(Self)
    }

    /// Returns the next bytes; none at the end.
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

/// Returns what comes next; `None` if the thread has ended.
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
