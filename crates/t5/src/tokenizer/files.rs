//! Reads small files with a size limit.

use std::{
    io::{ErrorKind, Read},
    path::Path,
};

use opensora_files::read::open_regular;

use super::error::TokenizerError;

/// Reads a whole file of at most `limit` bytes.
pub(super) fn read(path: &Path, limit: u64) -> Result<Vec<u8>, TokenizerError> {
    let failed = |source| TokenizerError::Read { path: path.to_owned(), source };
    let file = open_regular(path).map_err(failed)?;
    let too_large = |found| TokenizerError::TooLarge {
        path: path.to_owned(),
        what: "the file size in bytes",
        found,
        limit,
    };
    let declared = file.metadata().map_err(failed)?.len();
    if declared > limit {
        return Err(too_large(declared));
    }
    // Not the declared size, since the file can grow meanwhile.
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(too_large(bytes.len() as u64));
    }
    Ok(bytes)
}

/// Reads a file as [`read`] does; returns `None` if it does not exist.
pub(super) fn read_optional(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, TokenizerError> {
    match read(path, limit) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(TokenizerError::Read { source, .. }) if source.kind() == ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
