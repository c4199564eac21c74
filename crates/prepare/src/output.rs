//! Errors of the output that affect every row: a full disk, or a folder that cannot be written.
//!
//! They are no failures of a row. A step ends with them ([`Fault::Step`](crate::step::Fault)), and the next run
//! processes the row again.

use std::{
    error::Error,
    io::{self, ErrorKind},
};

/// Returns true if the error or one of its causes says that nothing can be written: the disk is full, a quota is
/// exceeded, or the file system or folder is read-only.
pub(crate) fn is_unwritable(error: &(dyn Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |&error| error.source());
    causes.any(|cause| cause.downcast_ref::<io::Error>().is_some_and(stops_every_row))
}

/// Returns true if no row can be written after this error of an output.
pub(crate) fn stops_every_row(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::PermissionDenied
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RowError;

    #[test]
    fn a_full_disk_stops_every_row_and_a_broken_file_does_not() {
        for (kind, expected) in [
            (ErrorKind::StorageFull, true),
            (ErrorKind::QuotaExceeded, true),
            (ErrorKind::ReadOnlyFilesystem, true),
            (ErrorKind::PermissionDenied, true),
            (ErrorKind::InvalidData, false),
            (ErrorKind::NotFound, false),
            (ErrorKind::WouldBlock, false),
        ] {
            assert_eq!(is_unwritable(&io::Error::from(kind)), expected, "{kind}");
            let part = RowError::part("its clip", io::Error::from(kind));
            assert_eq!((is_unwritable(&part), part.is_of_output()), (expected, expected), "{kind}");
            // A file that cannot be read is a failure of its row.
            assert!(!RowError::Io(kind.into()).is_of_output(), "{kind}");
        }
    }
}
