//! Atomic files, crash-safe journals, locks between processes, bounded reads, and text for messages.
//!
//! ```
//! use opensora_files::{Lock, read::read_text, write_atomically};
//!
//! # let folder = tempfile::tempdir()?;
//! let _lock = Lock::take(&folder.path().join("run.lock"))?;
//! let path = folder.path().join("config.json");
//! // Readers see no file or a complete one, also after a crash.
//! write_atomically(&path, |temporary| std::fs::write(temporary, "{}"))?;
//! // At most one KiB is read; pipes and devices are rejected.
//! assert_eq!(read_text(&path, 1024)?, "{}");
//! # Ok::<(), opensora_files::LockError>(())
//! ```
//!
//! | module | contents |
//! |---|---|
//! | [`atomic`] | files and folders that appear complete or not at all |
//! | [`folder`] | the folder of a path: created, synced, and removed if unused |
//! | [`journal`] | append-only text files whose lines survive a crash |
//! | [`lock`] | locks between processes |
//! | [`read`] | untrusted files: regular files only, of bounded size, inside their folder |
//! | [`text`] | hexadecimal digits; untrusted text and errors on one line |

pub mod atomic;
pub mod folder;
pub mod journal;
pub mod lock;
pub mod read;
pub mod text;

pub use atomic::{
    AtomicFile, AtomicFolder, Existing, check_file_path, check_writable, remove_folder,
    remove_if_present, remove_leftovers, remove_unfinished, write_atomically,
};
pub use folder::{CreatedFolders, folder_of, sync_folder};
pub use journal::Journal;
pub use lock::{Lock, LockError, is_at, try_lock};
pub use text::{error_line, hex, one_line};

/// The README's example, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
