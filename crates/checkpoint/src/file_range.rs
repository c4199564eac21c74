//! Reads of parts of an open file. Files are not memory-mapped, so that a file that shrinks causes
//! an error and not a signal.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    sync::{Arc, Mutex, PoisonError},
};

/// An open file whose parts are read from several threads.
#[derive(Clone)]
pub(crate) struct FileRange(Arc<Mutex<File>>);

impl FileRange {
    pub(crate) fn new(file: File) -> Self {
        Self(Arc::new(Mutex::new(file)))
    }

    /// Reads `len` bytes from `start`. The file must have had them when it was opened: `len` bytes are
    /// allocated before the read.
    pub(crate) fn read(&self, start: u64, len: u64) -> io::Result<Vec<u8>> {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = vec![0u8; len as usize];
        file.read_exact(&mut bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::new(
                error.kind(),
                format!("the file ends within these {len} bytes: it has shrunk"),
            ),
            _ => error,
        })?;
        Ok(bytes)
    }
}
