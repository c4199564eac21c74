//! Download of one file: resumption, progress and verification.

use crate::{
    Completed, HubError, Observer, Started,
    background::Pieces,
    client::{Answer, Ask, Client, Failure},
    digest::{Digest, Hasher},
    observer::{Meter, proceed},
    redirect::shown,
};
use std::{
    cell::Cell,
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    path::Path,
    time::Duration,
};
use ureq::{Body, http::StatusCode};

/// A file to download.
pub(crate) struct Transfer<'a> {
    pub(crate) url: &'a str,
    /// Name of the file for messages.
    pub(crate) name: &'a str,
    /// Path of the unfinished download; bytes of an earlier call are kept.
    pub(crate) partial: &'a Path,
    /// Path of the complete file.
    pub(crate) target: &'a Path,
    pub(crate) size: Option<u64>,
    pub(crate) digest: Digest,
    /// Tag of the bytes, for servers that may change a file in place.
    pub(crate) if_range: Option<&'a str>,
    /// Returns the failure of a request, by the answer.
    pub(crate) refuse: &'a dyn Fn(Answer) -> Failure,
}

/// An unfinished download. The file is written by position instead of appending: on file systems without
/// locks, two processes write the same bytes to the same positions.
struct Partial<'a> {
    file: File,
    path: &'a Path,
    done: &'a Cell<u64>,
    hasher: Hasher,
    /// Some bytes come from an earlier call or attempt.
    is_joined: bool,
}

impl Transfer<'_> {
    /// Downloads the file. If the download fails or is stopped, the bytes stay for a later call.
    pub(crate) fn run(&self, client: &Client, observer: &mut dyn Observer) -> Result<(), HubError> {
        let done = Cell::new(0);
        let mut partial = self.open(&done, observer)?;
        let (file, resumed, total) = (self.name, done.get(), self.size);
        proceed(observer.started(&Started { file, resumed, total }))?;
        // The whole file was downloaded again by this call.
        let mut is_again = false;
        loop {
            let result =
                client.insist(observer, |o| self.attempt(client, &mut partial, o), || done.get());
            if let Err(error) = result {
                if done.get() == 0 {
                    // Nothing to resume.
                    let _ = fs::remove_file(self.partial);
                }
                return Err(error);
            }
            partial.file.sync_all().map_err(HubError::io(self.partial))?;
            let Some((found, expected)) = self.difference(&partial)? else { break };
            if !partial.is_joined || is_again {
                fs::remove_file(self.partial).map_err(HubError::io(self.partial))?;
                return Err(HubError::Checksum { file: self.name.into(), found, expected });
            }
            // The earlier bytes may belong to another version: download the whole file again.
            self.restart(&mut partial)?;
            is_again = true;
        }
        fs::rename(self.partial, self.target).map_err(HubError::io(self.target))?;
        proceed(observer.completed(&Completed { file: self.name }))
    }

    fn open<'a>(
        &'a self,
        done: &'a Cell<u64>,
        observer: &mut dyn Observer,
    ) -> Result<Partial<'a>, HubError> {
        let open = || -> io::Result<(File, u64)> {
            // Bytes written through a link would leave the cache.
            if fs::symlink_metadata(self.partial).is_ok_and(|found| !found.is_file()) {
                fs::remove_file(self.partial)?;
            }
            let file = OpenOptions::new()
                .create(true)
                .read(true)
                .write(true)
                .truncate(false)
                .open(self.partial)?;
            let mut length = file.metadata()?.len();
            if self.size.is_some_and(|size| length > size) {
                file.set_len(0)?;
                length = 0;
            }
            Ok((file, length))
        };
        let (mut file, length) = open().map_err(HubError::io(self.partial))?;
        let mut hasher = self.new_hasher();
        if length > 0 && self.size.is_some() {
            hasher.read_file(self.partial, &mut |_| observer.waiting())?;
        }
        file.seek(SeekFrom::End(0)).map_err(HubError::io(self.partial))?;
        done.set(length);
        Ok(Partial { file, path: self.partial, done, hasher, is_joined: length > 0 })
    }

    /// Starts the checksum. For a file of unknown size it is computed at the end.
    fn new_hasher(&self) -> Hasher {
        self.size.map_or(Hasher::None, |size| self.digest.hasher(size))
    }

    fn restart(&self, partial: &mut Partial<'_>) -> Result<(), HubError> {
        let empty = |file: &mut File| file.set_len(0).and_then(|()| file.rewind());
        empty(&mut partial.file).map_err(HubError::io(partial.path))?;
        partial.done.set(0);
        partial.hasher = self.new_hasher();
        Ok(())
    }

    fn attempt(
        &self,
        client: &Client,
        partial: &mut Partial<'_>,
        observer: &mut dyn Observer,
    ) -> Result<(), Failure> {
        let from = partial.done.get();
        if self.size == Some(from) {
            return Ok(());
        }
        let ask = Ask { from, if_range: self.if_range, ..Ask::get(self.url) };
        let answer = client.ask(&ask, observer)?;
        let again = |partial: &mut Partial<'_>, reason: String| {
            self.restart(partial).map_err(Failure::Final)?;
            let error = HubError::Answer { url: shown(self.url), reason };
            Err(Failure::Again(error, Some(Duration::ZERO)))
        };
        match answer.status() {
            StatusCode::OK => {
                if from > 0 {
                    self.restart(partial).map_err(Failure::Final)?;
                    partial.is_joined = false;
                }
            }
            StatusCode::PARTIAL_CONTENT if from > 0 => {
                let range = answer.header("content-range").unwrap_or("no range");
                if !continues(range, from, self.size) {
                    return again(partial, format!("{range} found, asked from byte {from}"));
                }
                partial.is_joined = true;
            }
            StatusCode::RANGE_NOT_SATISFIABLE if from > 0 => {
                return again(partial, "the server does not have the range".into());
            }
            _ => return Err((self.refuse)(answer)),
        }
        self.read(answer.response.into_body(), partial, observer)
    }

    fn read(
        &self,
        body: Body,
        partial: &mut Partial<'_>,
        observer: &mut dyn Observer,
    ) -> Result<(), Failure> {
        let pieces = Pieces::of(body.into_reader()).map_err(Failure::Final)?;
        let mut meter = Meter::from(partial.done.get());
        loop {
            let piece = match pieces.next(observer).map_err(Failure::Final)? {
                Ok(piece) if piece.is_empty() => break,
                Ok(piece) => piece,
                Err(source) => {
                    let error =
                        HubError::Connection { url: shown(self.url), source: Box::new(source) };
                    return Err(Failure::Again(error, None));
                }
            };
            let done = partial.done.get() + piece.len() as u64;
            if self.size.is_some_and(|size| done > size) {
                self.restart(partial).map_err(Failure::Final)?;
                let reason = format!("more than the {} bytes it has", self.size.unwrap_or(0));
                let error = HubError::Answer { url: shown(self.url), reason };
                return Err(Failure::Again(error, None));
            }
            let write = partial.file.write_all(&piece);
            write.map_err(|error| Failure::Final(HubError::io(self.partial)(error)))?;
            partial.hasher.update(&piece);
            partial.done.set(done);
            let answer = match meter.progress(self.name, done, self.size) {
                Some(progress) => observer.downloaded(&progress),
                None => observer.waiting(),
            };
            proceed(answer).map_err(Failure::Final)?;
        }
        match self.size {
            Some(expected) if partial.done.get() < expected => {
                let found = partial.done.get();
                let file = self.name.into();
                Err(Failure::Again(HubError::Truncated { file, found, expected }, None))
            }
            _ => Ok(()),
        }
    }

    /// Returns the found and the expected checksum if they differ.
    fn difference(&self, partial: &Partial<'_>) -> Result<Option<(String, String)>, HubError> {
        let Some(expected) = self.digest.expected() else { return Ok(None) };
        let found = match self.size {
            Some(_) => partial.hasher.clone().finish().filter(|found| found != expected),
            None => self
                .digest
                .check_file(self.partial, &mut |_| std::ops::ControlFlow::Continue(()))?,
        };
        Ok(found.map(|found| (found, expected.into())))
    }
}

/// Returns true if a `Content-Range` begins at byte `from` of a file of `size` bytes.
fn continues(range: &str, from: u64, size: Option<u64>) -> bool {
    let parsed = range.strip_prefix("bytes ").and_then(|range| {
        let (range, total) = range.split_once('/')?;
        let (first, _) = range.split_once('-')?;
        Some((first.parse::<u64>().ok()?, total.parse::<u64>().ok()))
    });
    parsed.is_some_and(|(first, total)| {
        first == from && !matches!((total, size), (Some(total), Some(size)) if total != size)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_must_continue_the_file() {
        assert!(continues("bytes 5-9/10", 5, Some(10)));
        assert!(continues("bytes 5-9/*", 5, Some(10)));
        assert!(!continues("bytes 4-9/10", 5, Some(10)));
        assert!(!continues("bytes 5-9/11", 5, Some(10)));
        assert!(!continues("no range", 5, None));
    }
}
