//! Lines that are on the disk once they were appended.
//!
//! A journal is a text file of lines. What was appended survives a crash; a line that a crash cut
//! short is taken away when the journal is opened again, as if it had never been begun. One
//! process at a time may have it open.

use crate::sync_folder;
use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
};

/// An opened journal, locked against other processes until it is dropped.
#[derive(Debug)]
pub struct Journal {
    file: File,
    /// Where the last complete line ends.
    end: u64,
}

impl Journal {
    /// Opens or begins the journal at `path`; returns it and the lines that it holds.
    ///
    /// # Errors
    /// Where it cannot be read or written, is no UTF-8, or is open elsewhere.
    pub fn open(path: &Path) -> io::Result<(Self, Vec<String>)> {
        let is_new = !path.exists();
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::new(
                io::ErrorKind::WouldBlock,
                "another process is writing to this journal",
            ),
            TryLockError::Error(error) => error,
        })?;
        if is_new {
            sync_folder(path)?;
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let end = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
        if end < bytes.len() {
            file.set_len(end as u64)?;
            file.sync_all()?;
            bytes.truncate(end);
        }
        file.seek(SeekFrom::Start(end as u64))?;
        let text = String::from_utf8(bytes)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the journal is no UTF-8"))?;
        let lines = text.lines().map(str::to_string).collect();
        Ok((Self { file, end: end as u64 }, lines))
    }

    /// Appends lines and brings them to the disk: all of them are there when this returns. Where
    /// it fails, none is: what was written of them is taken back.
    ///
    /// # Errors
    /// Where the disk refuses, or a line holds a line break.
    pub fn append<'a>(&mut self, lines: impl IntoIterator<Item = &'a str>) -> io::Result<()> {
        let mut bytes = Vec::new();
        for line in lines {
            if line.contains(['\n', '\r']) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "a line of a journal holds a line break",
                ));
            }
            bytes.extend(line.as_bytes());
            bytes.push(b'\n');
        }
        if bytes.is_empty() {
            return Ok(());
        }
        match self.file.write_all(&bytes).and_then(|()| self.file.sync_data()) {
            Ok(()) => {
                self.end += bytes.len() as u64;
                Ok(())
            }
            Err(error) => {
                // Best effort: opening again cuts a torn line in any case.
                let _ = self.file.set_len(self.end);
                let _ = self.file.seek(SeekFrom::Start(self.end));
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_and_a_torn_one_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let (mut journal, lines) = Journal::open(&path).unwrap();
        assert!(lines.is_empty());
        journal.append(["one", "two"]).unwrap();
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        for torn in 0..4 {
            // A crash in the middle of a third line, cut anywhere.
            std::fs::write(&path, [&whole[..], &b"thr\xc3"[..torn]].concat()).unwrap();
            let (mut journal, lines) = Journal::open(&path).unwrap();
            assert_eq!(lines, ["one", "two"]);
            journal.append(["three"]).unwrap();
            drop(journal);
            assert_eq!(std::fs::read(&path).unwrap(), [&whole[..], b"three\n"].concat());
        }
    }

    #[test]
    fn a_journal_has_one_writer_and_whole_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let (mut journal, _) = Journal::open(&path).unwrap();
        let second = Journal::open(&path).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::WouldBlock);
        let broken = journal.append(["a\nb"]).unwrap_err();
        assert_eq!(broken.kind(), io::ErrorKind::InvalidInput);
        drop(journal);
        assert!(Journal::open(&path).unwrap().1.is_empty());
    }
}
