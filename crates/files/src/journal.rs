//! Append-only text files whose lines survive a crash.
//!
//! Lines are synced to the disk when they are appended. An incomplete last line, left by a crash, is not read, and is
//! removed before the next line is appended. One process at a time may have a journal open.
//!
//! ```
//! use opensora_files::Journal;
//!
//! # let folder = tempfile::tempdir()?;
//! let path = folder.path().join("journal.txt");
//! let (mut journal, lines) = Journal::open(&path)?;
//! assert!(lines.is_empty());
//! journal.append(["a.mp4", "b.mp4"])?;
//! drop(journal);
//! let (_journal, lines) = Journal::open(&path)?;
//! assert_eq!(lines, ["a.mp4", "b.mp4"]);
//! # Ok::<(), std::io::Error>(())
//! ```

use crate::{sync_folder, try_lock};
use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
};

/// An open journal. Other processes cannot open it until it is dropped, except on file systems without locks.
#[derive(Debug)]
pub struct Journal {
    file: File,
    /// Offset of the end of the last complete line.
    end: u64,
    /// True if an incomplete line follows.
    torn: bool,
}

impl Drop for Journal {
    fn drop(&mut self) {
        // Closing the file is not enough: a program that another thread is starting holds a copy of the
        // descriptor, and with it the lock, until it has been replaced by its own image.
        let _ = self.file.unlock();
    }
}

impl Journal {
    /// Opens or creates the journal at `path`. Returns the journal and its complete lines. An existing file is not
    /// changed before a line is appended, so that a caller can reject a file that is not its journal.
    ///
    /// File systems without locks, such as Lustre mounted without `flock`, do not keep other processes from opening
    /// the same journal: there, the caller must see to it that only one does.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or written, is not UTF-8, or is open elsewhere
    /// ([`io::ErrorKind::WouldBlock`]).
    pub fn open(path: &Path) -> io::Result<(Self, Vec<String>)> {
        let is_new = !path.exists();
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        try_lock(&file).map_err(|error| match error {
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
        let torn = end < bytes.len();
        bytes.truncate(end);
        let text = String::from_utf8(bytes)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the journal is not UTF-8"))?;
        let lines = text.lines().map(str::to_string).collect();
        Ok((Self { file, end: end as u64, torn }, lines))
    }

    /// Appends lines and syncs them to the disk. On failure, none of the lines is added.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written, or if a line contains a line break
    /// ([`io::ErrorKind::InvalidInput`]).
    pub fn append<'a>(&mut self, lines: impl IntoIterator<Item = &'a str>) -> io::Result<()> {
        let mut bytes = Vec::new();
        for line in lines {
            if line.contains(['\n', '\r']) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "a line of a journal contains a line break",
                ));
            }
            bytes.extend(line.as_bytes());
            bytes.push(b'\n');
        }
        if bytes.is_empty() {
            return Ok(());
        }
        if self.torn {
            self.cut()?;
        }
        match self.file.write_all(&bytes).and_then(|()| self.file.sync_data()) {
            Ok(()) => {
                self.end += bytes.len() as u64;
                Ok(())
            }
            Err(error) => {
                self.torn = true;
                // Best effort: the next append tries again.
                let _ = self.cut();
                Err(error)
            }
        }
    }

    /// Removes what follows the last complete line.
    fn cut(&mut self) -> io::Result<()> {
        self.file.set_len(self.end)?;
        // Before anything is written: a crash must not leave a line of old and new bytes.
        self.file.sync_all()?;
        self.file.seek(SeekFrom::Start(self.end))?;
        self.torn = false;
        Ok(())
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
        assert_eq!(journal.end, 0);
        journal.append([]).unwrap();
        journal.append(["one"]).unwrap();
        journal.append(["two"]).unwrap();
        assert_eq!(journal.end, "one\ntwo\n".len() as u64);
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        for torn in 0..4 {
            // A crash in the middle of a third line, cut anywhere.
            let bytes = [&whole[..], &b"thr\xc3"[..torn]].concat();
            std::fs::write(&path, &bytes).unwrap();
            let (mut journal, lines) = Journal::open(&path).unwrap();
            assert_eq!(lines, ["one", "two"]);
            assert_eq!(journal.end, whole.len() as u64);
            // The caller may find that the file is not its journal.
            journal.append([]).unwrap();
            journal.append(["a\nb"]).unwrap_err();
            assert_eq!(std::fs::read(&path).unwrap(), bytes);
            journal.append(["3"]).unwrap();
            journal.append(["four"]).unwrap();
            drop(journal);
            assert_eq!(std::fs::read(&path).unwrap(), [&whole[..], b"3\nfour\n"].concat());
        }
    }

    #[test]
    fn files_that_are_not_journals_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        std::fs::write(&path, b"\xff\nlast").unwrap();
        assert_eq!(Journal::open(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(std::fs::read(&path).unwrap(), b"\xff\nlast");
        assert!(Journal::open(folder.path()).is_err());
        // A handle without the right to write.
        std::fs::write(&path, "one\n").unwrap();
        let (mut journal, _) = Journal::open(&path).unwrap();
        journal.file = File::open(&path).unwrap();
        assert!(journal.append(["two"]).is_err());
        assert_eq!(journal.end, 4);
    }

    #[test]
    fn a_journal_has_one_writer_and_whole_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let (mut journal, _) = Journal::open(&path).unwrap();
        let second = Journal::open(&path).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::WouldBlock);
        for broken in ["a\nb", "a\r"] {
            let error = journal.append(["whole", broken]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
        // A copy of the descriptor, as a program has that is being started.
        let copy = journal.file.try_clone().unwrap();
        drop(journal);
        assert!(Journal::open(&path).unwrap().1.is_empty());
        drop(copy);
    }
}
