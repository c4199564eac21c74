//! Files that appear complete or not at all, journals and locks, and text for messages.
//!
//! | module | contents |
//! |---|---|
//! | [`atomic`] | files and folders that appear complete or not at all |
//! | [`folder`] | the folder of a path, created and synced |
//! | [`journal`] | lines that are on the disk once they were appended |
//! | [`lock`] | locks between processes |
//! | [`read`] | files of others: regular ones only, of bounded size, below their folder |
//! | [`text`] | hexadecimal digits; foreign text and errors on one line |

pub mod atomic;
pub mod folder;
pub mod journal;
pub mod lock;
pub mod read;
pub mod text;

pub use atomic::{AtomicFile, AtomicFolder, Existing, remove_leftovers, write_atomically};
pub use folder::{CreatedFolders, folder_of, sync_folder};
pub use journal::Journal;
pub use lock::{Lock, LockError};
pub use text::{error_line, hex, one_line};

/// The README's example, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
